"""Rows that hold no text of a dataset, and give the same numbers.

An answer of a label task is a label and stays. Any other becomes a hash; of a list, each item does,
so that equal items stay equal and F1 is counted as before. A group, which may be the text itself,
becomes its place among the sorted groups of its task: resampling goes through clusters in sorted
order, so every draw is the same. Paths of a machine are cut to their last part.

Knows: scores, probes, what of them is text. Does not know: where rows are kept, what is done with
them.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from mixtune.identity import digest
from mixtune.tasks.metrics import METRICS, NOTHING, items
from mixtune.tasks.task import Task

LENGTH = 12
"""Hex digits of a hash: enough to tell the answers of one item apart."""

_FOLDERS = re.compile(r"(?<![\w:/.])(?:/[\w.@~+-]+)+/")


def pathless(text: str) -> str:
    """The text with absolute paths cut to their last part."""
    return _FOLDERS.sub("", text)


def first_line(error: str) -> str:
    """An error without what it has found, which may be a record: what failed, and where."""
    return pathless(error.partition("\n")[0])


def group_codes(groups_of: Mapping[str, Iterable[str]]) -> dict[str, dict[str, str]]:
    """Task → group → its place among the sorted groups, as text that sorts in the same order."""
    return {task: _numbered(sorted(set(groups))) for task, groups in groups_of.items()}


def _numbered(names: list[str]) -> dict[str, str]:
    width = len(str(len(names)))
    return {name: str(place).zfill(width) for place, name in enumerate(names, start=1)}


class Blind:
    """Takes the text out of the rows of one task."""

    def __init__(self, task: Task, groups: Mapping[str, str]) -> None:
        self._task = task.name
        self._groups = groups
        self._known = {*task.labels, None}
        self._strata = {"", *task.questions}
        self._listed = any(METRICS[name].counts == "items" for name in task.metrics)

    def scores(self, table: pa.Table) -> pa.Table:
        """Scores with the same metrics, to the last bit."""
        ids = table["example"].to_pylist()
        for column in ("gold", "parsed"):
            pairs = zip(ids, table[column].to_pylist(), strict=True)
            table = _with(table, column, [self.answer(example, text) for example, text in pairs])
        strata = [self._stratum(name) for name in table["stratum"].to_pylist()]
        return self.grouped(_with(table, "stratum", strata))

    def grouped(self, table: pa.Table) -> pa.Table:
        """Any rows with a column `group`."""
        return _with(table, "group", [self._groups[name] for name in table["group"].to_pylist()])

    def answer(self, example: str, text: str | None) -> str | None:
        """A label as it is; anything else as a hash that means nothing beside another item."""
        if text in self._known:
            return text
        assert text is not None, "an answer that could not be read is among the known"
        if not self._listed:
            return self._hash(example, text)
        lines = [self._hash(example, item) for item in items(text).elements()]
        return "\n".join(lines) if lines else NOTHING

    def _stratum(self, name: str) -> str:
        return name if name in self._strata else self._hash("", name)

    def _hash(self, example: str, text: str) -> str:
        return digest([self._task, example, text], LENGTH)


def _with(table: pa.Table, column: str, values: list[Any]) -> pa.Table:
    array = pa.array(values, pa.string())
    return table.set_column(table.schema.get_field_index(column), column, array)
