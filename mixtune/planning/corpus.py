"""The examples of a study after the leakage gate: training pools and evaluation items.

Also the matches that the gate leaves, and the flaws of published studies that can be switched on
(labels in lower case, packs that leak). Does not know: models, cells.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any, get_args

from mixtune.datasets.leakage import (
    RUN,
    Kind,
    LeakedBy,
    Notion,
    Overlaps,
    Part,
    Protected,
    own_texts,
)
from mixtune.datasets.registry import Dataset, LoadedSplit, Registry
from mixtune.errors import DataError, StoreError
from mixtune.identity import unit_interval
from mixtune.planning.mixing import select_evaluation
from mixtune.records import JUDGED_ON, Example, Split
from mixtune.store.folder import Store
from mixtune.study.spec import RunLength, Study
from mixtune.tasks.task import Task
from mixtune.tokens import Row

EVALUATED: tuple[Split, ...] = ("validation", "test")
_SAME_TEXT: tuple[Notion, ...] = ("exact", "loose", "words")
"""Matches that spoil an item; another question about the same page does not."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Everything a study trains and scores on.

    `datasets`: every dataset of the study, by name. `pools`: ingredient → train examples left by
    the gate, without reasoning unless the study keeps it. `items`: (task, split) → the items that
    every system answers, or that are read to it (probes). `known`: task → train examples, for the
    majority floor. `leaked_train`: ingredient → train rows dropped, those held out as general text
    among them. `leaked_validation`: task → validation rows dropped because they stand in a test
    split. `held_out`: all that the gate protects, test rows and validation rows before any is
    dropped. `matched`: (dataset, split) → rows that the gate found, dropped or not, by example id.
    `reasoned`: ingredient → rows of its pool that came with reasoning.
    """

    datasets: dict[str, Dataset]
    pools: dict[str, list[Example]]
    items: dict[tuple[str, Split], list[Example]]
    known: dict[str, list[Example]]
    leaked_train: dict[str, int]
    leaked_validation: dict[str, int]
    held_out: list[Example]
    matched: dict[tuple[str, Split], dict[str, LeakedBy]]
    reasoned: dict[str, int]


def answered(study: Study) -> list[tuple[str, Split]]:
    """(dataset, split) that systems answer; judged datasets choose nothing."""
    scored = [(task, split) for task in study.tasks for split in EVALUATED]
    return [*scored, *((name, JUDGED_ON) for name in study.judged)]


def load_corpus(study: Study, registry: Registry) -> Corpus:
    """Load, gate and select.

    The gate looks at the whole validation and test splits, not at the items selected from them,
    so that asking for more items never changes what is trained on.

    Raises:
        DataError: a dataset cannot be read, the gate leaves nothing of a split, or rows leak under
            `leaked: error`.
    """
    general = [] if study.general is None else [study.general]
    names = [*study.tasks, *study.judged, *study.probes, *general, *study.ingredients]
    datasets = {name: registry.dataset(name, study.evaluate.carve) for name in names}
    test = [e for task in study.tasks for e in datasets[task].examples("test")]
    items: dict[tuple[str, Split], list[Example]] = {}
    held_out, tests = list(test), Protected(test)
    matched: dict[tuple[str, Split], dict[str, LeakedBy]] = {}
    leaked_validation = {}
    for task in study.tasks:
        rows = datasets[task].examples("validation")
        clean, matched[task, "validation"] = _gate(task, rows, tests, study)
        leaked_validation[task] = len(rows) - len(clean)
        held_out += rows
        tested = [e for e in test if e.task == task]
        items[task, "validation"] = select_evaluation(clean, study.evaluate.validation_items)
        items[task, "test"] = select_evaluation(tested, study.evaluate.test_items)
    for name in study.judged:
        rows = datasets[name].examples(JUDGED_ON)
        items[name, JUDGED_ON] = select_evaluation(rows, study.evaluate.test_items)
        held_out += rows
    kept_out: set[tuple[str, Split, str]] = set()
    for (name, split), rows, chosen in _probed(study, datasets):
        items[name, split] = chosen
        held_out += rows
        kept_out |= {(name, split, row.id) for row in rows}
    pools, leaked_train, protected = {}, {}, Protected(held_out)
    for name in study.ingredients:
        rows = datasets[name].examples("train")
        pool = [row for row in rows if (name, "train", row.id) not in kept_out]
        pools[name], matched[name, "train"] = _gate(name, pool, protected, study)
        leaked_train[name] = len(rows) - len(pools[name])
    reasoned = {name: sum(row.has_reasoning for row in pool) for name, pool in pools.items()}
    for rows in [*pools.values(), *items.values()]:
        rows[:] = _reasoning_settled(rows, study)
    if study.flaws.label_case:
        pools = {name: [_lowered(row) for row in pool] for name, pool in pools.items()}
    known = {}
    if "majority" in study.baselines:
        labelled = [task for task in study.tasks if datasets[task].task.kind == "label"]
        known = {task: datasets[task].examples("train") for task in labelled}
    leaks = leaked_train, leaked_validation, held_out, matched
    return Corpus(datasets, pools, items, known, *leaks, reasoned)


def _reasoning_settled(rows: Sequence[Example], study: Study) -> list[Example]:
    """Rows with their reasoning, or without it, as the study says.

    Raises:
        DataError: it does not say, and there is some.
    """
    reasoned = [row for row in rows if row.has_reasoning]
    if study.train.reasoning is None and reasoned:
        first = reasoned[0]
        raise DataError(
            f"{len(reasoned)} of {len(rows)} rows have reasoning before an answer, and the study "
            "does not say whether it is trained on",
            where=f"{first.task}, {first.split} {first.id}",
            found=first.reasoning or next(m.reasoning for m in first.messages if m.reasoning),
            remedy="set train.reasoning: keep (train on it), or drop (train on the answers alone)",
        )
    if study.train.reasoning == "keep" or not reasoned:
        return list(rows)
    return [_without_reasoning(row) if row.has_reasoning else row for row in rows]


def _without_reasoning(row: Example) -> Example:
    messages = tuple(replace(message, reasoning="") for message in row.messages)
    return replace(row, messages=messages, reasoning="")


def _lowered(row: Example) -> Example:
    return replace(row, target=row.target.lower()) if row.choices else row


def _probed(
    study: Study, datasets: Mapping[str, Dataset]
) -> Iterator[tuple[tuple[str, Split], list[Example], list[Example]]]:
    """Name and split, rows that are kept out of training, and the items, of each probe.

    The general text is a dataset's validation split; where it has none, the share of its train
    groups that `evaluate.carve` gives.
    """
    carve, count = study.evaluate.carve, study.evaluate.probe_items
    for name in study.probes:
        split = probe_split(datasets[name].task)
        rows = datasets[name].examples(split)
        yield (name, split), rows, select_evaluation(rows, count)
    if study.general is None:
        return
    split = general_split(datasets[study.general])
    rows = datasets[study.general].examples(split)
    if split == "train":
        rows = [row for row in rows if unit_interval("general", row.group) < carve]
    if not rows:
        raise DataError(
            "holding out leaves no general text",
            where=study.general,
            found=f"no group among the first {carve:.0%}",
            remedy="raise evaluate.carve, or name a larger dataset",
        )
    yield (study.general, split), rows, select_evaluation(rows, count)


def probe_split(task: Task) -> Split:
    """The split that a probe is scored on."""
    # Nothing is chosen by a task whose role is to be a probe, and all of them have a test split.
    return "test" if task.role == "probe" else "validation"


def general_split(dataset: Dataset) -> Split:
    """The split that general text is held out from."""
    return "validation" if "validation" in dataset.splits else "train"


def gold_answers(dataset: Dataset) -> list[str]:
    """The answers of a task's train rows; of its validation rows where it has no train split.

    All of them, before the leakage gate, so that another item or task changes nothing here. A
    judged dataset may have test rows alone: of these only the lengths are looked at.
    """
    split: Split = "train" if "train" in dataset.splits else "validation"
    if dataset.task.judged and split not in dataset.splits:
        split = JUDGED_ON
    return [example.target for example in dataset.split(split).examples]


def _gate(
    name: str, rows: Sequence[Example], against: Protected, study: Study
) -> tuple[list[Example], dict[str, LeakedBy]]:
    """The rows that are left, and the matches of those that occur in `against`."""
    leaked = against.leaked(rows)
    if study.evaluate.leaked == "report":
        return list(rows), leaked
    if leaked and study.evaluate.leaked == "error":
        counts = dict(Counter(by.kind for by in leaked.values()))
        raise DataError(
            f"{len(leaked)} of {len(rows)} rows also stand in an evaluation split {counts}",
            where=name,
            found=next(iter(leaked.values())).description,
            wanted="no shared rows",
            remedy="set evaluate.leaked: drop, to drop and count them, or report, to count only",
        )
    clean = [row for row in rows if row.id not in leaked]
    if not clean:
        split = rows[0].split
        raise DataError(
            f"every {split} row also stands in an evaluation split",
            where=name,
            found=f"{len(leaked)} of {len(rows)} rows; {next(iter(leaked.values())).description}",
            wanted="rows that no evaluation split has",
            remedy=f"give it other {split} rows; mixtune data show {name} shows them",
        )
    return clean, leaked


def leaking_packs(
    rows: Sequence[Row], course: RunLength, length: int
) -> tuple[list[Row], RunLength]:
    """Rows packed into sequences, each row behind all that its sequence holds before it.

    A causal network that reads a whole pack sees at each answer what a row with that prompt sees,
    so packing without a block-diagonal mask is nothing but longer prompts. Rows are packed in
    their order; a step has `course.examples_per_step` packs. `length`: most tokens of a pack; a row
    that is longer has a pack of its own. The course that is returned has steps of packs.
    """
    packs: list[list[Row]] = []
    before: tuple[int, ...] = ()
    for row in rows:
        if not packs or len(before) + row.length > length:
            packs.append([])
            before = ()
        packs[-1].append(replace(row, prompt=before + row.prompt))
        before += row.prompt + row.answer
    step = course.examples_per_step
    sizes = [sum(map(len, packs[at : at + step])) for at in range(0, len(packs), step)]
    return list(chain.from_iterable(packs)), replace(course, sizes=tuple(sizes))


# ---- what the gate has done ----------------------------------------------------------------------


class Leaks:
    """The result of the gate, and pools against evaluation splits; compared on first use."""

    def __init__(self, study: Study, corpus: Corpus) -> None:
        self._study = study
        self._corpus = corpus

    def data_rows(self) -> list[dict[str, Any]]:
        """Records read and dropped of each dataset and split, as JSON rows.

        `records` are the dataset's own rows; `dropped` those that its task file skips; `leaked` are
        examples that the gate took out; `examples` those that are left to train on or choose from;
        `noted` what else happened to records that are kept: parts left out, contexts cut; `matched`
        counts examples that stand in a split they should not, each under the strictest kind of
        match, those that share a run of words only last.
        """
        study, corpus = self._study, self._corpus
        trained: list[tuple[str, Split]] = [(name, "train") for name in study.ingredients]
        probed = [(name, probe_split(corpus.datasets[name].task)) for name in study.probes]
        leaks = {"train": corpus.leaked_train, "validation": corpus.leaked_validation}
        rows = []
        for name, split in trained + answered(study) + probed:
            read = corpus.datasets[name].split(split)
            leaked = leaks.get(split, {}).get(name, 0)
            notes = dict(read.notes)
            if split == "train" and corpus.reasoned[name]:
                notes[f"reasoning: {study.train.reasoning}"] = corpus.reasoned[name]
            matched: dict[str, int] = {}
            if (name, split) in corpus.matched:
                kinds = [by.kind for by in corpus.matched[name, split].values()]
                matched = {kind: kinds.count(kind) for kind in get_args(Kind)}
                matched["words"] = self.runs[name, split]
            rows.append(
                {
                    "dataset": name,
                    "split": split,
                    "source": read.source,
                    "records": read.records,
                    "dropped": sum(read.dropped.values()),
                    "why": ", ".join(f"{why}: {n}" for why, n in read.dropped.items()),
                    "noted": ", ".join([*_unusual(read), *(f"{n}: {c}" for n, c in notes.items())]),
                    "leaked": leaked,
                    "examples": len(read.examples) - leaked,
                    "matched": matched,
                }
            )
        return rows

    def first_pairs(self) -> list[str]:
        """The first pair of each dataset and split with a match, with the rule that matched."""
        matches = [next(iter(rows.values())) for rows in self._corpus.matched.values() if rows]
        return [f"for example, {by.description}" for by in matches]

    @cached_property
    def runs(self) -> dict[tuple[str, Split], int]:
        """(dataset, split) → rows that share only a run of words with a later split.

        For train rows that is a validation or test split of any task, for validation rows a test
        split. Rows that the gate matches are counted there.
        """
        counts: dict[tuple[str, Split], int] = {}
        for name, pool in self._corpus.pools.items():
            counts[name, "train"] = self._count_runs(name, "train", pool, EVALUATED)
        for task in self._study.tasks:
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
            if task in self._study.tasks
        }

    def _count_runs(
        self, name: str, split: Split, rows: Iterable[Example], later: Sequence[Split]
    ) -> int:
        """Number of rows that share a run with a later split and that the gate does not match."""
        against = [f"{task}/{later_split}" for later_split in later for task in self._study.tasks]
        sharing = self._matching(f"{name}/{split}", rows, against, ("words",))
        return len(set(sharing) - self._corpus.matched[name, split].keys())

    def _matching(
        self, part: str, rows: Iterable[Example], against: Iterable[str], by: Iterable[Notion]
    ) -> list[str]:
        """Ids of the rows of a part whose record stands in one of the others."""
        pairs = [(notion, split) for notion in by for split in against]
        records = {
            r for notion, split in pairs for r in self._overlaps.matches(notion, part, split)
        }
        return [row.id for row in rows if row.record in records]

    def _evaluation_rows(self, task: str, split: Split) -> list[Example]:
        return [row for row in self._corpus.held_out if (row.task, row.split) == (task, split)]

    @cached_property
    def _overlaps(self) -> Overlaps:
        pools = [Part(name, "train", own_texts(pool)) for name, pool in self._corpus.pools.items()]
        evaluation = [
            Part(task, split, own_texts(self._evaluation_rows(task, split)))
            for task in self._study.tasks
            for split in EVALUATED
        ]
        return Overlaps([*pools, *evaluation])


def _unusual(read: LoadedSplit) -> list[str]:
    """The form of a split's file, where it is not the usual one."""
    return [f"read as: {read.form.text}"] if read.form and not read.form.plain else []


def reading_lines(corpus: Corpus, data: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Lines of text about bad rows that were dropped and unusual forms of files; few or none."""
    for row in data:
        read = corpus.datasets[row["dataset"]].split(row["split"])
        name = f"{row['dataset']}/{row['split']}"
        if read.form and not read.form.plain and read.read_from == row["split"]:
            yield f"{name}: {read.source} is read as: {read.form.text}"
        if read.bad_rows:
            yield f"{name}: {read.bad_rows} of {read.records} rows are bad: dropped ({row['why']})"


def leak_lines(data: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Lines of text about the matches in `data_rows`; none where there are none."""
    for row in data:
        matched = row["matched"]
        if any(matched.values()):
            counts = ", ".join(f"{n} {kind}" for kind, n in matched.items() if kind != "words")
            dropped = f"{row['leaked']} dropped" if row["leaked"] else "none dropped"
            yield (
                f"{row['dataset']}/{row['split']} in a later split: {counts} ({dropped}); "
                f"{matched['words']} more share {RUN} words"
            )


def changed_by_tasks(store: Store, study: Study, data: Sequence[dict[str, Any]]) -> list[str]:
    """Sentences on what added tasks change in datasets of a stored study.

    `data`: `data_rows` of the new study. Empty unless tasks are added and the gate now
    drops more or fewer of the same records.
    """
    try:
        known = set(store.read_value("study.yaml")["tasks"])
        before = {(row["dataset"], row["split"]): row for row in store.read_value("data.json")}
        pairs = [(before.get((row["dataset"], row["split"]), row), row) for row in data]
        changed = [
            (old, new)
            for old, new in pairs
            if old["records"] == new["records"] and old["leaked"] != new["leaked"]
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
