"""What the leakage gate leaves: texts that share a run of words, and items that are clean.

Knows: pools, items and splits after the gate; what a study kept of them before. Does not know: how
a match is found, cocktails.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

from mixtune.datasets.overlap import RUN, Notion, Overlaps, Part
from mixtune.datasets.registry import own_texts
from mixtune.errors import StoreError
from mixtune.planning.corpus import EVALUATED, Corpus
from mixtune.records import Example, Split
from mixtune.store.folder import Store
from mixtune.study.spec import Study

_TEXT: tuple[Notion, ...] = ("exact", "loose", "words")
"""Matches that spoil an item; to be another question about the same page does not."""


class Leaks:
    """The pools of a study beside all that they should not hold; compared when first asked."""

    def __init__(self, study: Study, corpus: Corpus) -> None:
        self._study = study
        self._corpus = corpus

    @cached_property
    def runs(self) -> dict[tuple[str, Split], int]:
        """(dataset, split) → rows that share a run of words with a later split, and no more.

        Train rows share it with a validation or test row of any task, validation rows with a test
        row. Rows that the gate finds are counted there.
        """
        tests = [f"{task}/test" for task in self._study.tasks]
        held = [f"{task}/validation" for task in self._study.tasks] + tests
        found: dict[tuple[str, Split], int] = {}
        for name, pool in self._corpus.pools.items():
            found[name, "train"] = self._more((name, "train"), pool, held)
        for task in self._study.tasks:
            rows = self._rows(task, "validation")
            found[task, "validation"] = self._more((task, "validation"), rows, tests)
        return found

    @cached_property
    def flagged(self) -> dict[str, list[str]]:
        """task/split → ids of items whose text stands in a pool, as a whole or by a run of words.

        The pools are those that are trained on, without what the gate drops.
        """
        pools = [f"{name}/train" for name in self._corpus.pools]
        return {
            f"{task}/{split}": sorted(self._in(f"{task}/{split}", items, pools, _TEXT))
            for (task, split), items in self._corpus.items.items()
            if task in self._study.tasks  # what probes ask is in no table
        }

    def _more(
        self, part: tuple[str, Split], rows: Iterable[Example], against: Iterable[str]
    ) -> int:
        """How many rows share a run with a later split that the gate has not found there."""
        sharing = self._in("/".join(part), rows, against, ["words"])
        return len(set(sharing) - self._corpus.matched[part].keys())

    def _in(
        self,
        part: str,
        rows: Iterable[Example],
        against: Iterable[str],
        notions: Iterable[Notion],
    ) -> list[str]:
        """Ids of a part's rows whose record stands in one of the others."""
        records = {
            record
            for other in against
            for notion in notions
            for record in self._overlaps.matches(notion, part, other)
        }
        return [row.id for row in rows if row.record in records]

    def _rows(self, task: str, split: Split) -> list[Example]:
        return [row for row in self._corpus.held_out if (row.task, row.split) == (task, split)]

    @cached_property
    def _overlaps(self) -> Overlaps:
        pools = [Part(name, "train", own_texts(pool)) for name, pool in self._corpus.pools.items()]
        held = [
            Part(task, split, own_texts(self._rows(task, split)))
            for task in self._study.tasks
            for split in EVALUATED
        ]
        return Overlaps([*pools, *held])


def leak_lines(data: Iterable[dict[str, object]]) -> Iterator[str]:
    """What `Planner.data_rows` says of matches, as lines for people; none where there are none."""
    for row in data:
        found = row["matched"]
        assert isinstance(found, dict)
        if any(found.values()):
            gate = ", ".join(f"{found[kind]} {kind}" for kind in found if kind != "words")
            done = f"{row['leaked']} dropped" if row["leaked"] else "none dropped"
            yield (
                f"{row['dataset']}/{row['split']} in a later split: {gate} ({done}); "
                f"{found['words']} more share {RUN} words"
            )


def changed_by_tasks(store: Store, study: Study, data: Sequence[dict[str, object]]) -> list[str]:
    """What added tasks change in other datasets than their own, in plain words.

    `data`: `Planner.data_rows` of the study as it is asked for. Only where a study is kept, tasks
    are added, and the gate drops more or fewer of the same records than before.
    """
    try:
        tasks = set(store.read_value("study.yaml")["tasks"])
        kept = {(row["dataset"], row["split"]): row for row in store.read_value("data.json")}
        before = [kept.get((row["dataset"], row["split"]), row) for row in data]
        pairs = [(old, row) for old, row in zip(before, data, strict=True) if _dropped(old, row)]
    except (StoreError, LookupError, TypeError):
        return []  # nothing is kept, or it is damaged: a run writes it again without being told why
    added = [task for task in study.tasks if task not in tasks]
    names = f"{'tasks' if len(added) > 1 else 'task'} {', '.join(added)}"
    return [
        f"the leakage gate drops {row['leaked']} examples of {row['dataset']}/{row['split']}, "
        f"before {old['leaked']}: they stand in a split of the added {names}"
        for old, row in pairs
        if added
    ]


def _dropped(old: dict[str, object], row: dict[str, object]) -> bool:
    """Whether the gate drops another number of the same records."""
    return old["records"] == row["records"] and old["leaked"] != row["leaked"]
