"""What a task's rows look like, and everything that is wrong with them: for `mixtune data check`.

Knows: counts, labels, lengths, repeats, where problems are. Does not know: tokenizers and leaks
(both are asked through functions that the caller gives), terminals.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from mixtune.datasets.registry import Registry
from mixtune.errors import DataError, UserError, shorten
from mixtune.records import Example
from mixtune.tasks.parsers.labels import PARSERS
from mixtune.tasks.task import Task, shared_fields

MOST_PROBLEMS = 20
"""Problems that are listed; reading ends there."""
PREVIEWS = 5

CountTokens = Callable[[Example], tuple[int, int]]
"""An example's tokens: those of the prompt, those of the answer with its end of turn."""
FindLeaked = Callable[[Sequence[Example], Sequence[Example]], Mapping[str, Any]]
"""Rows of the first that stand in the second, by id."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Of a number per example: the middle, the 95th percentile, the largest."""

    median: float
    p95: float
    maximum: float


@dataclass(frozen=True, slots=True)
class SplitFacts:
    """One split: records read = kept + dropped; examples; lengths in characters, or tokens.

    `repeated`: examples whose prompt stands in the split before. `leaked`: examples that stand in
    a later split, which a study drops. `over_long`: examples of more tokens than `limit`. `noted`:
    what else happened to records that are kept.
    """

    split: str
    source: str
    records: int
    kept: int
    dropped: dict[str, int]
    examples: int
    labels: dict[str, int]
    repeated: int
    leaked: int
    prompt_characters: Spread
    answer_characters: Spread
    tokens: Spread | None = None
    supervised_tokens: int | None = None
    over_long: int | None = None
    noted: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Preview:
    """An example as a model gets it."""

    id: str
    split: str
    messages: tuple[tuple[str, str], ...]
    target: str


@dataclass(frozen=True, slots=True)
class TaskCheck:
    """A task, its splits, problems that stop a study, notes that do not, and a few examples."""

    name: str
    origin: str
    kind: str
    role: str
    scored: bool
    splits: tuple[SplitFacts, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    previews: tuple[Preview, ...]


@dataclass(frozen=True, slots=True)
class Measures:
    """How a check measures: the share carved for validation, leaks, tokens (None: not counted)."""

    carve: float
    find_leaked: FindLeaked
    count_tokens: CountTokens | None = None
    limit: int = 0


class _Enough(Exception):
    """As many problems as are listed."""


def check_task(registry: Registry, name: str, measures: Measures) -> TaskCheck:
    """Read every split of a task, collect what is wrong, and describe what is there.

    Raises:
        SpecError: no such task.
    """
    task = registry.get(name)
    problems: list[str] = []
    notes: list[str] = []

    def collect(fault: DataError) -> None:
        problems.append(str(fault))
        if len(problems) == MOST_PROBLEMS:
            raise _Enough

    splits: list[SplitFacts] = []
    shown: list[Preview] = []
    try:
        unread = registry.unread(task.name)
        if unread is not None:
            notes.append(unread)
        else:
            registry.load(task.name, collect)
        if unread is None and not problems:
            splits = _facts(registry, task.name, measures)
            shown = previews(registry, task.name, "train", measures.carve, PREVIEWS)
            notes += _notes(splits, task, measures.limit)
            problems += _emptied(splits, task)
            for split in registry.splits(task.name, measures.carve) if task.scored else ():
                rows = registry.examples(task.name, split, measures.carve)
                problems += _unreadable(rows, task)
                notes += _out_of_form(rows, task)
    except UserError as error:
        problems.append(str(error))
    except _Enough:
        notes.append(f"reading ended after {MOST_PROBLEMS} problems; there may be more")
    return TaskCheck(
        name=task.name,
        origin=registry.origin_of(task.name),
        kind=task.kind,
        role=task.role,
        scored=task.scored,
        splits=tuple(splits),
        problems=tuple(problems),
        notes=tuple(notes),
        previews=tuple(shown),
    )


def previews(registry: Registry, name: str, split: Any, carve: float, rows: int) -> list[Preview]:  # noqa: ANN401 - a Split
    """The first examples of a split.

    Raises:
        SpecError, DataError: as Registry.examples.
    """
    return [
        Preview(e.id, e.split, tuple((m.role, m.content) for m in e.messages), e.target)
        for e in registry.examples(name, split, carve)[:rows]
    ]


def _facts(registry: Registry, name: str, measures: Measures) -> list[SplitFacts]:
    carve = measures.carve
    found = {split: registry.examples(name, split, carve) for split in registry.splits(name, carve)}
    facts = []
    for place, (split, examples) in enumerate(found.items()):
        later = [e for rows in list(found.values())[place + 1 :] for e in rows]
        report = registry.report(name, split, carve)
        facts.append(
            SplitFacts(
                split=split,
                source=report.source,
                records=report.records,
                kept=report.kept,
                dropped=dict(report.dropped),
                examples=len(examples),
                noted=dict(report.notes),
                labels=_labels(examples),
                repeated=len(examples) - len({e.messages for e in examples}),
                leaked=len(measures.find_leaked(examples, later)),
                prompt_characters=_spread([_characters(e) for e in examples]),
                answer_characters=_spread([len(e.target) for e in examples]),
                **_tokens(examples, measures),
            )
        )
    return facts


def _tokens(examples: Sequence[Example], measures: Measures) -> dict[str, Any]:
    if measures.count_tokens is None:
        return {}
    counts = [measures.count_tokens(e) for e in examples]
    return {
        "tokens": _spread([sum(pair) for pair in counts]),
        "supervised_tokens": sum(answer for _, answer in counts),
        "over_long": sum(sum(pair) > measures.limit for pair in counts),
    }


def _characters(example: Example) -> int:
    return sum(len(message.content) for message in example.messages)


def _labels(examples: Sequence[Example]) -> dict[str, int]:
    """How often each choice is right, in the order of the choices; nothing for open answers."""
    counts = Counter(e.target for e in examples)
    return {label: counts[label] for label in (examples[0].choices if examples else ())}


def _spread(values: Sequence[int]) -> Spread:
    ordered = sorted(values)
    return Spread(
        median(ordered), ordered[min(len(ordered) - 1, len(ordered) * 95 // 100)], ordered[-1]
    )


def _emptied(splits: Sequence[SplitFacts], task: Task) -> list[str]:
    """Splits of which a study would drop every example."""
    return [
        str(
            DataError(
                f"every example of {facts.split} also stands in a later split",
                where=task.name,
                found=f"{facts.leaked} of {facts.examples}, read from {facts.source}",
                wanted="rows that no later split has; a study drops the others",
                remedy="name another file for one of the splits",
            )
        )
        for facts in splits
        if task.scored and facts.leaked == facts.examples
    ]


def _unreadable(rows: Sequence[Example], task: Task) -> list[str]:
    """Gold answers that the task's parser cannot read: nothing could be right."""
    parser, words, lost = PARSERS[task.parser], task.labels or task.types, []
    for row in rows:
        parsed = parser.lenient(row.target, words)
        if parsed is None or not parser.same(parsed, row.target, ()):
            lost.append(row)
    if not lost:
        return []
    fault = DataError(
        f"the parser {task.parser!r} cannot read an answer of the data, so nothing is right there",
        where=f"{task.name}/{lost[0].split}/{lost[0].id}",
        found=f"{shorten(lost[0].target, 80)!r}; {len(lost)} of {len(rows)} are so",
        wanted="answers in the form that docs/scoring.md describes",
        remedy="change the target, or name another parser",
    )
    return [str(fault)]


def _out_of_form(rows: Sequence[Example], task: Task) -> list[str]:
    """Gold answers that are right and would still be unparsed if a model said them."""
    parser, words = PARSERS[task.parser], task.labels or task.types
    out = [row.target for row in rows if parser.strict(row.target, words) is None]
    said = (
        f"are not in the form that parser {task.parser!r} asks for; an answer like them is unparsed"
    )
    return [f"{rows[0].split}: {len(out)} answers {said}: {shorten(out[0], 80)!r}"] if out else []


def _notes(splits: Sequence[SplitFacts], task: Task, limit: int) -> list[str]:
    """What is worth a look and stops nothing."""
    notes = []
    if task.kind == "open" and (shared := shared_fields(task)):
        notes.append(f"the prompt shows what the answer is made of: {', '.join(sorted(shared))}")
    for facts in splits:
        if task.scored:
            notes += _notes_on_scores(facts, task.labels)
        notes += [f"{facts.split}: {what}: {count}" for what, count in facts.noted.items()]
        if facts.repeated:
            notes.append(f"{facts.split}: {facts.repeated} prompts stand there more than once")
        if facts.over_long:
            notes.append(
                f"{facts.split}: {facts.over_long} examples have over {limit} tokens; set "
                "train.max_length, or train.over_long: drop"
            )
    return notes


def _notes_on_scores(facts: SplitFacts, labels: Sequence[str]) -> Iterator[str]:
    """What matters only to a task that is scored."""
    missing = [label for label in labels if not facts.labels.get(label)]
    if missing:
        yield f"{facts.split}: no row has the label {', '.join(missing)}"
    if facts.leaked:
        yield (
            f"{facts.split}: {facts.leaked} examples also stand in a later split; a study drops "
            "and counts them"
        )
    if facts.split != "train" and facts.examples < 30:
        yield f"{facts.split}: {facts.examples} examples are few: intervals get wide"
