"""Count the matches that the leakage gate leaves, and list the items that a training row repeats.

Knows: pools, items and splits after the gate; counts that the study stored before. Does not know:
how a match is found, cocktails.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

from mixtune.datasets.leakage import RUN, Notion, Overlaps, Part, own_texts
from mixtune.errors import StoreError
from mixtune.planning.corpus import EVALUATED, Corpus
from mixtune.records import Example, Split
from mixtune.store.folder import Store
from mixtune.study.spec import Study

_SAME_TEXT: tuple[Notion, ...] = ("exact", "loose", "words")
"""Matches that spoil an item; another question about the same page does not."""


class Leaks:
    """The pools of a study against its evaluation splits; compared on first use."""

    def __init__(self, study: Study, corpus: Corpus) -> None:
        self._tasks = study.tasks
        self._corpus = corpus

    @cached_property
    def runs(self) -> dict[tuple[str, Split], int]:
        """(dataset, split) → rows that share only a run of words with a later split.

        For train rows that is a validation or test split of any task, for validation rows a test
        split. Rows that the gate matches are counted there.
        """
        counts: dict[tuple[str, Split], int] = {}
        for name, pool in self._corpus.pools.items():
            counts[name, "train"] = self._count_runs(name, "train", pool, EVALUATED)
        for task in self._tasks:
            rows = self._evaluation_rows(task, "validation")
            counts[task, "validation"] = self._count_runs(task, "validation", rows, ["test"])
        return counts

    @cached_property
    def flagged(self) -> dict[str, list[str]]:
        """task/split → ids of items whose text stands in a pool, as a whole or by a run of words.

        Pools are what is trained on, without the rows that the gate drops; probes are left out,
        since no table of results has them.
        """
        pools = [f"{name}/train" for name in self._corpus.pools]
        return {
            f"{task}/{split}": sorted(self._matching(f"{task}/{split}", items, pools, _SAME_TEXT))
            for (task, split), items in self._corpus.items.items()
            if task in self._tasks
        }

    def _count_runs(
        self, name: str, split: Split, rows: Iterable[Example], later: Sequence[Split]
    ) -> int:
        """Number of rows that share a run with a later split and that the gate does not match."""
        against = [f"{task}/{later_split}" for later_split in later for task in self._tasks]
        sharing = self._matching(f"{name}/{split}", rows, against, ["words"])
        return len(set(sharing) - self._corpus.matched[name, split].keys())

    def _matching(
        self,
        part: str,
        rows: Iterable[Example],
        against: Iterable[str],
        notions: Sequence[Notion],
    ) -> list[str]:
        """Ids of the rows of a part whose record stands in one of the others."""
        records = {
            record
            for split_name in against
            for notion in notions
            for record in self._overlaps.matches(notion, part, split_name)
        }
        return [row.id for row in rows if row.record in records]

    def _evaluation_rows(self, task: str, split: Split) -> list[Example]:
        return [row for row in self._corpus.held_out if (row.task, row.split) == (task, split)]

    @cached_property
    def _overlaps(self) -> Overlaps:
        pools = [Part(name, "train", own_texts(pool)) for name, pool in self._corpus.pools.items()]
        evaluation = [
            Part(task, split, own_texts(self._evaluation_rows(task, split)))
            for task in self._tasks
            for split in EVALUATED
        ]
        return Overlaps([*pools, *evaluation])


def leak_lines(data: Iterable[dict[str, object]]) -> Iterator[str]:
    """Lines of text about the matches in `Planner.data_rows`; none where there are none."""
    for row in data:
        matched = row["matched"]
        assert isinstance(matched, dict)
        if any(matched.values()):
            counts = ", ".join(f"{n} {kind}" for kind, n in matched.items() if kind != "words")
            dropped = f"{row['leaked']} dropped" if row["leaked"] else "none dropped"
            yield (
                f"{row['dataset']}/{row['split']} in a later split: {counts} ({dropped}); "
                f"{matched['words']} more share {RUN} words"
            )


def changed_by_tasks(store: Store, study: Study, data: Sequence[dict[str, object]]) -> list[str]:
    """Sentences on what added tasks change in datasets of a stored study.

    `data`: `Planner.data_rows` of the new study. Empty unless tasks are added and the gate now
    drops more or fewer of the same records.
    """
    try:
        known = set(store.read_value("study.yaml")["tasks"])
        before = {(row["dataset"], row["split"]): row for row in store.read_value("data.json")}
        pairs = [(before.get((row["dataset"], row["split"]), row), row) for row in data]
        changed = [
            (old, row)
            for old, row in pairs
            if old["records"] == row["records"] and old["leaked"] != row["leaked"]
        ]
    except (StoreError, LookupError, TypeError):
        return []  # nothing is stored, or it is damaged: a run writes it again in any case
    added = [task for task in study.tasks if task not in known]
    names = f"{'tasks' if len(added) > 1 else 'task'} {', '.join(added)}"
    return [
        f"the leakage gate drops {row['leaked']} examples of {row['dataset']}/{row['split']}, "
        f"before {old['leaked']}: they stand in a split of the added {names}"
        for old, row in changed
        if added
    ]
