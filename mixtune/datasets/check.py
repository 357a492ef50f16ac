"""Describe the rows of a task and list everything that is wrong with them, for `data check`.

Does not know: tokenizers (the caller passes a function that counts), terminals.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import NamedTuple

from mixtune.datasets.leakage import find_leaked
from mixtune.datasets.registry import Dataset, LoadedSplit, Registry
from mixtune.errors import DataError, UserError, shorten
from mixtune.records import Example, Message
from mixtune.tasks.task import Task, shared_fields

MOST_PROBLEMS = 20
"""Problems that are listed; reading ends there."""
PREVIEWS = 5
FEW_ITEMS = 30
"""Evaluation splits with fewer examples get a note: their intervals are wide."""


class TokenCount(NamedTuple):
    """Tokens of an example; those of the answer include its end of turn."""

    prompt: int
    answer: int


CountTokens = Callable[[Example], TokenCount]


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, 95th percentile and maximum of one number per example."""

    median: float
    p95: float
    maximum: float


@dataclass(frozen=True, slots=True)
class SplitFacts:
    """One split: records read = kept + dropped; examples; lengths in characters, or tokens.

    `repeated`: examples whose prompt an earlier example of the split has. `leaked`: examples that
    also stand in a later split; a study drops these (`leak`: the first). `over_long`: examples of
    more tokens than the limit. `noted`: what else happened to records that were used. `form`: that
    of the split's own file, where files of its kind have several.
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
    form: str = ""
    leak: str = ""


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


class Limit(NamedTuple):
    """The tokens that an example may have, and their count."""

    tokens: int
    count_tokens: CountTokens


class _TooManyProblems(Exception):
    """MOST_PROBLEMS are listed; nothing more is read."""


def check_task(registry: Registry, name: str, carve: float, limit: Limit | None) -> TaskCheck:
    """Read every split of a task, collect its problems and describe its rows.

    `carve`: share of train groups carved for validation. Without a limit tokens are not counted.
    """
    task = registry.get(name)
    problems: list[str] = []
    notes: list[str] = []

    def collect(fault: DataError) -> None:
        problems.append(str(fault))
        if len(problems) == MOST_PROBLEMS:
            raise _TooManyProblems

    splits: list[SplitFacts] = []
    shown: list[Preview] = []
    try:
        dataset = registry.dataset(name, carve)
        if dataset.unavailable is not None:
            notes.append(dataset.unavailable)
        else:
            dataset.load_all(collect)
        if dataset.unavailable is None and not problems:
            splits = _facts(dataset, limit)
            shown = previews(dataset.split("train").examples[:PREVIEWS])
            notes += _notes(splits, task, limit)
            unused = {name for split in dataset.splits for name in dataset.split(split).unused}
            notes += [f"nothing reads {shorten(', '.join(sorted(unused)), 400)}"] if unused else []
            problems += _fully_leaked(splits, task)
            for split in dataset.splits:
                rows = dataset.split(split).examples
                notes += _contradictions(rows) if task.kind == "label" else []
                if task.scored:
                    notes += _loosely_written_answers(rows, task)
    except UserError as error:
        problems.append(str(error))
    except _TooManyProblems:
        notes.append(f"reading ended after {MOST_PROBLEMS} problems; there may be more")
    kinds = task.kind, task.role, task.scored
    texts = tuple(problems), tuple(notes), tuple(shown)
    return TaskCheck(task.name, registry.origin_of(task.name), *kinds, tuple(splits), *texts)


def previews(examples: Sequence[Example]) -> list[Preview]:
    """Examples with their messages as plain pairs of role and content."""
    return [
        Preview(e.id, e.split, tuple((m.role, m.content) for m in e.messages), e.target)
        for e in examples
    ]


def _facts(dataset: Dataset, limit: Limit | None) -> list[SplitFacts]:
    loaded = {split: dataset.split(split) for split in dataset.splits}
    later = [example for split in loaded.values() for example in split.examples]
    facts = []
    for name, split in loaded.items():
        # What is left are the examples of the splits after this one.
        later = later[len(split.examples) :]
        facts.append(_split_facts(name, split, later, limit))
    return facts


def _split_facts(
    name: str, split: LoadedSplit, later: Sequence[Example], limit: Limit | None
) -> SplitFacts:
    """Describe one split; `later`: the examples of all splits after it."""
    examples = split.examples
    counts = Counter(e.target for e in examples)
    reasoned = sum(e.has_reasoning for e in examples)
    notes = {"with reasoning, which train.reasoning keeps or drops": reasoned} if reasoned else {}
    leaked = find_leaked(examples, later)
    facts = SplitFacts(
        split=name,
        source=split.source,
        records=split.records,
        kept=split.used,
        dropped=dict(split.dropped),
        examples=len(examples),
        noted={**split.notes, **notes},
        form=split.form.text if split.form and split.read_from == name else "",
        labels={label: counts[label] for label in (examples[0].choices if examples else ())},
        repeated=len(examples) - len({e.messages for e in examples}),
        leaked=len(leaked),
        leak=next((by.description for by in leaked.values()), ""),
        prompt_characters=_spread([sum(len(m.content) for m in e.messages) for e in examples]),
        answer_characters=_spread([len(e.target) for e in examples]),
    )
    if limit is None:
        return facts
    tokens = [limit.count_tokens(e) for e in examples]
    return replace(
        facts,
        tokens=_spread([sum(count) for count in tokens]),
        supervised_tokens=sum(count.answer for count in tokens),
        over_long=sum(sum(count) > limit.tokens for count in tokens),
    )


def _spread(values: Sequence[int]) -> Spread:
    ordered = sorted(values)
    # The nearest rank, not interpolated: lengths are whole numbers that some example has.
    p95 = ordered[min(len(ordered) - 1, len(ordered) * 95 // 100)]
    return Spread(median(ordered), p95, ordered[-1])


def _fully_leaked(splits: Sequence[SplitFacts], task: Task) -> list[str]:
    """A problem for each split of which a study would drop every example."""
    faults = [
        DataError(
            f"every example of {facts.split} also stands in a later split",
            where=task.name,
            found=f"{facts.leaked} of {facts.examples}, read from {facts.source}; {facts.leak}",
            wanted="rows that no later split has; a study drops the others",
            remedy="name another file for one of the splits",
        )
        for facts in splits
        if task.scored and facts.leaked == facts.examples
    ]
    return list(map(str, faults))


def _loosely_written_answers(rows: Sequence[Example], task: Task) -> list[str]:
    """A note if gold answers are right, yet unparsed where a model gives them word for word."""
    parser, words = task.reader, task.labels or task.types
    answers = [row.target for row in rows if parser.strict(row.target, words) is None]
    return answers and [
        f"{rows[0].split}: {len(answers)} answers are not in the form that parser {task.parser!r} "
        f"asks for; an answer like them is unparsed: {shorten(answers[0], 80)!r}"
    ]


def _contradictions(rows: Sequence[Example]) -> list[str]:
    """A note if one prompt has several labels: no system can be right on all of them."""
    labels: dict[tuple[Message, ...], set[str]] = {}
    for row in rows:
        labels.setdefault(row.messages, set()).add(row.target)
    several = [row for row in rows if len(labels[row.messages]) > 1]
    if not several:
        return []
    first = several[0]
    return [
        f"{first.split}: {len({row.messages for row in several})} prompts have several labels, the "
        f"first at {first.id}: {', '.join(sorted(labels[first.messages]))}"
    ]


def _notes(splits: Sequence[SplitFacts], task: Task, limit: Limit | None) -> Iterator[str]:
    """Oddities that stop no study; some matter only to a task that is scored."""
    if task.kind == "open" and (shared := shared_fields(task)):
        yield f"the prompt shows what the answer is made of: {', '.join(sorted(shared))}"
    for facts in splits:
        if task.scored:
            yield from _notes_on_scores(facts, task.labels)
        yield from (f"{facts.split}: {reason}: {count}" for reason, count in facts.noted.items())
        if facts.repeated:
            yield f"{facts.split}: {facts.repeated} prompts occur more than once"
        if facts.over_long and limit is not None:
            yield (
                f"{facts.split}: {facts.over_long} examples have over {limit.tokens} tokens; set "
                "train.max_length, or train.over_long: drop"
            )


def _notes_on_scores(facts: SplitFacts, labels: Sequence[str]) -> Iterator[str]:
    missing = [label for label in labels if not facts.labels.get(label)]
    if missing:
        yield f"{facts.split}: no row has the label {', '.join(missing)}"
    if facts.leaked:
        yield (
            f"{facts.split}: {facts.leaked} examples also stand in a later split; a study drops "
            f"and counts them: {facts.leak}"
        )
    if facts.split != "train" and facts.examples < FEW_ITEMS:
        yield f"{facts.split}: {facts.examples} examples are few: intervals get wide"
