"""The examples of a study after the leakage gate: training pools and evaluation items.

Also the flaws of published studies that can be switched on (labels in lower case, packs that leak).

Knows: splits, the gate, evaluation items, drop counts. Does not know: tokens, models, cells.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

from mixtune.datasets.leakage import Kind, Protected
from mixtune.datasets.registry import Dataset, Registry
from mixtune.errors import DataError
from mixtune.identity import unit_interval
from mixtune.planning.mixing import select_evaluation
from mixtune.records import JUDGED_ON, Example, Split
from mixtune.study.spec import RunLength, Study
from mixtune.tasks.task import Task
from mixtune.tokens import Row

EVALUATED: tuple[Split, ...] = ("validation", "test")


@dataclass(frozen=True, slots=True)
class Corpus:
    """Everything a study trains and scores on.

    `datasets`: every dataset of the study, by name. `pools`: ingredient → train examples left by
    the gate. `items`: (task, split) → the items that every system answers, or that are read to it
    (probes). `known`: task → train examples, for the majority floor. `leaked_train`: ingredient →
    train rows dropped, those held out as general text among them. `leaked_validation`: task →
    validation rows dropped because they stand in a test split. `held_out`: all that the gate
    protects, test rows and validation rows before any is dropped. `matched`: (dataset, split) →
    rows that the gate found, dropped or not, by example id.
    """

    datasets: dict[str, Dataset]
    pools: dict[str, list[Example]]
    items: dict[tuple[str, Split], list[Example]]
    known: dict[str, list[Example]]
    leaked_train: dict[str, int] = field(default_factory=dict)
    leaked_validation: dict[str, int] = field(default_factory=dict)
    held_out: list[Example] = field(default_factory=list)
    matched: dict[tuple[str, Split], dict[str, Kind]] = field(default_factory=dict)


def answered(study: Study) -> list[tuple[str, Split]]:
    """(dataset, split) that systems answer: tasks on both splits, judged datasets on test.

    Judged datasets choose nothing, so they need no validation split.
    """
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
    datasets = _datasets(study, registry)
    test = [e for task in study.tasks for e in datasets[task].examples("test")]
    items: dict[tuple[str, Split], list[Example]] = {}
    held_out, tests = list(test), Protected(test)
    matched: dict[tuple[str, Split], dict[str, Kind]] = {}
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
    known = {}
    if "majority" in study.baselines:
        labelled = [task for task in study.tasks if datasets[task].task.kind == "label"]
        known = {task: datasets[task].examples("train") for task in labelled}
    return Corpus(datasets, pools, items, known, leaked_train, leaked_validation, held_out, matched)


def _datasets(study: Study, registry: Registry) -> dict[str, Dataset]:
    """Every dataset that the study uses; each is asked for once."""
    general = [] if study.general is None else [study.general]
    names = [*study.tasks, *study.judged, *study.probes, *general, *study.ingredients]
    return {name: registry.dataset(name, study.evaluate.carve) for name in names}


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
    """The split that a probe is scored on.

    Nothing is chosen by a task whose role is to be a probe, so that is its test split, which all
    have; of any other task it is the validation split.
    """
    return "test" if task.role == "probe" else "validation"


def general_split(dataset: Dataset) -> Split:
    """The split that general text is held out from."""
    return "validation" if "validation" in dataset.splits else "train"


def gold_answers(dataset: Dataset) -> list[str]:
    """The answers of a task's train rows; of its validation rows where it has no train split.

    All of them, before the leakage gate: an item more or another task in the study changes nothing
    here. Test rows play no part, but for a judged dataset that has no others: of these only the
    lengths are looked at.

    Raises:
        DataError: the dataset cannot be read.
    """
    split: Split = "train" if "train" in dataset.splits else "validation"
    if dataset.task.judged and split not in dataset.splits:
        split = JUDGED_ON
    return [example.target for example in dataset.split(split).examples]


def data_rows(
    study: Study, corpus: Corpus, runs: Mapping[tuple[str, Split], int]
) -> list[dict[str, object]]:
    """Records read and dropped of each dataset and split, as JSON rows.

    `records` are the dataset's own rows; `dropped` those that its task file skips; `leaked` are
    examples that the gate took out; `examples` those that are left to train on or choose from;
    `noted` what else happened to records that are kept: parts left out, contexts cut;
    `matched` counts examples that stand in a split they should not, each under the strictest kind
    of match, those that share a run of words only (`runs`, leaks.py) last.
    """
    rows = []
    for name, split in _splits(study, corpus.datasets):
        read = corpus.datasets[name].split(split)
        leaks = {"train": corpus.leaked_train, "validation": corpus.leaked_validation}
        leaked = leaks.get(split, {}).get(name, 0)
        rows.append(
            {
                "dataset": name,
                "split": split,
                "source": read.source,
                "records": read.records,
                "dropped": sum(read.dropped.values()),
                "why": ", ".join(f"{why}: {n}" for why, n in read.dropped.items()),
                "noted": ", ".join(f"{note}: {n}" for note, n in read.notes.items()),
                "leaked": leaked,
                "examples": len(read.examples) - leaked,
                "matched": _matched(corpus, runs, name, split),
            }
        )
    return rows


def _matched(
    corpus: Corpus, runs: Mapping[tuple[str, Split], int], name: str, split: Split
) -> dict[str, int]:
    if (name, split) not in corpus.matched:
        return {}
    kinds = list(corpus.matched[name, split].values())
    return {kind: kinds.count(kind) for kind in get_args(Kind)} | {"words": runs[name, split]}


def _splits(study: Study, datasets: Mapping[str, Dataset]) -> list[tuple[str, Split]]:
    trained: list[tuple[str, Split]] = [(name, "train") for name in study.ingredients]
    probed = [(name, probe_split(datasets[name].task)) for name in study.probes]
    return trained + answered(study) + probed


def _gate(
    name: str, rows: Sequence[Example], against: Protected, study: Study
) -> tuple[list[Example], dict[str, Kind]]:
    """The rows that are left, and the kind of match of those that occur in `against`."""
    leaked = against.leaked(rows)
    kinds = {row: by.kind for row, by in leaked.items()}
    if study.evaluate.leaked == "report":
        return list(rows), kinds
    if leaked and study.evaluate.leaked == "error":
        first, witness = next(iter(leaked.items()))
        counts = dict(Counter(kinds.values()))
        raise DataError(
            f"{len(leaked)} of {len(rows)} rows also stand in an evaluation split {counts}",
            where=name,
            found=f"row {first} is {witness.task} {witness.split} row {witness.example}",
            wanted="no shared rows",
            remedy="set evaluate.leaked: drop, to drop and count them, or report, to count only",
        )
    clean = [row for row in rows if row.id not in leaked]
    if not clean:
        split = rows[0].split
        raise DataError(
            f"every {split} row also stands in an evaluation split",
            where=name,
            found=f"{len(leaked)} of {len(rows)} rows",
            wanted="rows that no evaluation split has",
            remedy=f"give it other {split} rows; mixtune data show {name} shows them",
        )
    return clean, kinds


def lower_labels(pools: dict[str, list[Example]]) -> None:
    """Training answers of label tasks in lower case, whatever the prompt asks for; in place."""
    for pool in pools.values():
        pool[:] = [replace(row, target=row.target.lower()) if row.choices else row for row in pool]


def leaking_packs(
    rows: Sequence[Row], course: RunLength, length: int
) -> tuple[list[Row], RunLength]:
    """Rows packed into sequences, each row behind all that its sequence holds before it.

    A causal network that reads a whole pack sees at each answer what a row with that prompt sees,
    so packing without a block-diagonal mask is nothing but longer prompts. Rows are packed in
    their order; a step has `course.examples_per_step` packs.

    Args:
        rows: in training order.
        course: of the rows as they are.
        length: most tokens of a pack; a row that is longer has a pack of its own.

    Returns:
        The rows with their longer prompts, and the course in which steps are of packs.
    """
    packs = _packs(rows, length)
    grown = [row for pack in packs for row in _stacked(pack)]
    step = course.examples_per_step
    sizes = [
        sum(len(pack) for pack in packs[first : first + step])
        for first in range(0, len(packs), step)
    ]
    return grown, replace(course, sizes=tuple(sizes))


def _packs(rows: Sequence[Row], length: int) -> list[list[Row]]:
    packs: list[list[Row]] = []
    used = 0
    for row in rows:
        if not packs or used + row.length > length:
            packs.append([])
            used = 0
        packs[-1].append(row)
        used += row.length
    return packs


def _stacked(pack: Sequence[Row]) -> list[Row]:
    before: tuple[int, ...] = ()
    stacked = []
    for row in pack:
        stacked.append(replace(row, prompt=before + row.prompt))
        before += row.prompt + row.answer
    return stacked
