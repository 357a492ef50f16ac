"""The questions that a study can answer, each with a sentence and the estimates behind it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from mixtune.analysis.agreement import APART, CARRIED, ITSELF, RANKS, Side, agreement
from mixtune.analysis.claims import ALPHA, interval_text, p_text, points, relation
from mixtune.analysis.effects import adjusted, compare
from mixtune.analysis.ingredients import EFFECT, LEFT_OUT, form_and_ability, ingredient_effects
from mixtune.analysis.measures import BASE
from mixtune.analysis.primary import MODEL, OVER_TARGETS, TARGET_MEAN, primary
from mixtune.records import Estimate, Question
from mixtune.results.compare import different_tasks
from mixtune.results.retention import RETENTION, SCORE, read_retention
from mixtune.results.study_results import (
    SplitResults,
    StudyFacts,
    best_cocktails,
    measure_split,
)
from mixtune.study.spec import Study

AMOUNTS = ("amount", "number", "final-number", "boxed")
"""Parsers of answers that are numbers."""


@dataclass(frozen=True, slots=True)
class QuestionEstimates:
    """Estimates of a split that questions rest on and no other table has.

    `note`: what the primary analysis left out; `parts`: form and ability.
    """

    primary: list[Estimate]
    note: str
    effects: list[Estimate]
    parts: list[Estimate]

    @property
    def rows(self) -> list[Estimate]:
        """All of them."""
        return [*self.primary, *self.effects, *self.parts]


def question_estimates(facts: StudyFacts, split: SplitResults) -> QuestionEstimates:
    """Compute what questions about a split rest on."""
    budget = facts.study.budget
    rows, note = primary(split.main, facts.study.grouped, facts.study.claims.margin)
    effects = ingredient_effects(split.main, f"{budget.kind}, {budget.steps} steps")
    return QuestionEstimates(rows, note, effects, form_and_ability(split.measured))


@dataclass(frozen=True, slots=True)
class Evidence:
    """One study and split, with all that answers to questions rest on.

    `best`: task → cocktail chosen on validation; `retention`: what `mixtune probe` measured.
    """

    facts: StudyFacts
    validation: SplitResults
    split: SplitResults
    best: Mapping[str, str]
    estimates: QuestionEstimates
    retention: list[Estimate]

    def retained(self) -> dict[str, list[Estimate]]:
        """Probe → what each cell kept of the base's score."""
        rows: dict[str, list[Estimate]] = {}
        for row in self.retention:
            if row.quantity == RETENTION:
                rows.setdefault(row.target, []).append(row)
        return rows


def gather_evidence(facts: StudyFacts, split: str) -> Evidence:
    """Everything that questions about a split are answered by."""
    validation = measure_split(facts, "validation")
    shown = validation if split == "validation" else measure_split(facts, split)
    best = best_cocktails(facts, validation)
    estimates = question_estimates(facts, shown)
    return Evidence(facts, validation, shown, best, estimates, read_retention(facts.store))


def questions(evidence: Evidence) -> list[Question]:
    """Each question about one study, answered or with the reason why it is not."""
    return [ask(evidence) for ask in (_mixing, _general, _maths, _knowledge, _api)]


def unanswered(listed: Sequence[Question]) -> str:
    """One line with every question that has no answer, and why; "" where all have one."""
    reasons = [f"{q.topic} ({q.reason})" for q in listed if not q.answered]
    return f"Not answered: {'; '.join(reasons)}." if reasons else ""


@dataclass(frozen=True, slots=True)
class _Topic:
    """A question before it is answered."""

    key: str
    title: str
    topic: str

    def answer(self, sentences: Sequence[str], rows: Sequence[Estimate]) -> Question:
        text = " ".join(sentences)
        return Question(self.key, self.title, text, True, tuple(rows), self.topic)

    def without_answer(self, reason: str, rows: Sequence[Estimate] = ()) -> Question:
        text = f"Not answered: {reason}."
        return Question(self.key, self.title, text, False, tuple(rows), self.topic, reason)


MIXING = _Topic("mixing", "Does mixing help?", "effect of mixing")
GENERAL = _Topic("general", "Does general data reduce degradation?", "general data")
MATHS = _Topic(
    "maths", "Does maths transfer to tasks that are answered with numbers?", "transfer of maths"
)
KNOWLEDGE = _Topic("knowledge", "Do knowledge and reasoning grow?", "knowledge and reasoning")
API = _Topic("api", "Does the small model beat models behind APIs?", "models behind APIs")
MODELS = _Topic("models", "Do base models agree?", "agreement of base models")


def basis(study: Study) -> str:
    """Basis of comparison of a cocktail and a single task, in words."""
    if study.budget.kind == "as-published":
        return "on its own rows (as published: cocktails train for more steps)"
    return "at the same steps"


# ---- one study -----------------------------------------------------------------------------------


def _mixing(evidence: Evidence) -> Question:
    """Does training on more than the target help it?"""
    note = evidence.estimates.note
    shown = (OVER_TARGETS, TARGET_MEAN, MODEL)
    rows = [row for row in evidence.estimates.primary if row.quantity in shown]
    mean = next((row for row in rows if row.quantity == OVER_TARGETS), None)
    if mean is None or mean.low is None:
        few = f"{mean.n} targets are too few for an interval" if mean else ""
        return MIXING.without_answer(note or few, rows)
    lines = [
        _difference(
            mean, "cocktails", f"single-task training {basis(evidence.facts.study)}", "are"
        ),
        f"Mean over {mean.n} targets and every cell that holds them; nothing is selected.",
    ]
    lines += [f"{note[0].upper()}{note[1:]}."] if note else []
    return MIXING.answer(lines, rows)


def _general(evidence: Evidence) -> Question:
    """Does general data change the gain, and what is kept of the base?"""
    terms = [row for row in evidence.estimates.primary if row.subject == "has general"]
    facts = evidence.facts
    general = set(facts.study.grouped.get("general", ()))
    members = sorted(general & {part for row in facts.plan for part in row.ingredients})
    if not terms and not evidence.retention:
        reason = "no ingredient of a group called general"
        if members:
            reason = evidence.estimates.note or "every cell has general data, or none has"
        return GENERAL.without_answer(reason)
    # One dataset speaks for itself, not for its kind.
    data = members[0] if len(members) == 1 else "general data"
    named = f" ({', '.join(members)})" if len(members) > 1 else ""
    lines = [
        _difference(row, f"the gain of cocktails with {data}{named}", "that of cocktails without")
        for row in terms
    ]
    has_general = {r.cocktail: bool(general & {*r.ingredients}) for r in facts.plan + facts.claimed}
    for probe, own in evidence.retained().items():
        means = []
        for with_general in (True, False):
            values = [row.value for row in own if has_general[row.subject] is with_general]
            means.append(points(sum(values) / len(values)) if values else "–")
        lines.append(
            f"{probe}: {means[0]} from the base in cells with {data}, {means[1]} in cells without."
        )
    return GENERAL.answer(lines, [*terms, *evidence.retention])


def _maths(evidence: Evidence) -> Question:
    """Does maths transfer to tasks whose answers are numbers?"""
    maths = set(evidence.facts.study.grouped.get("maths", ()))
    tasks = evidence.facts.tasks.items()
    numeric = {name for name, task in tasks if task.kind == "open" and task.parser in AMOUNTS}
    if not numeric:
        return MATHS.without_answer("no task is answered with a number")
    added = {EFFECT: "added to the task", LEFT_OUT: "in the mix of all"}
    rows = [
        row
        for row in evidence.estimates.effects
        if row.target in numeric and row.quantity in added and row.subject in maths
    ]
    if not rows:
        return MATHS.without_answer(
            "no ingredient of a group called maths is added to or left out of such a task"
        )
    lines = []
    for row in rows:
        subject = f"{row.subject} {added[row.quantity]}"
        lines.append(f"{row.target}: {_difference(row, subject, 'the same without it')}")
    return MATHS.answer(lines, rows)


def _knowledge(evidence: Evidence) -> Question:
    """Do knowledge and reasoning grow?"""
    retained = evidence.retained()
    if not retained:
        return KNOWLEDGE.without_answer("no probes: name some in the study, then mixtune probe")
    bases = (r for r in evidence.retention if (r.quantity, r.subject) == (SCORE, BASE))
    at_chance = {base.target for base in bases if _at_chance(evidence, base)}
    lines = []
    for probe, own in retained.items():
        if probe in at_chance:
            lines.append(f"{probe}: this base is at chance, so no change can be seen.")
            continue
        above = sum(row.low is not None and row.low > 0 for row in own)
        below = sum(row.high is not None and row.high < 0 for row in own)
        lines.append(
            f"{probe}: {above} of {len(own)} cells are above the base, {below} below (by 95 % CI, "
            "not adjusted)."
        )
    rows = [row for own in retained.values() for row in own]
    if retained.keys() <= at_chance:
        return KNOWLEDGE.without_answer("the base is at chance on every probe", rows)
    return KNOWLEDGE.answer(lines, rows)


def _at_chance(evidence: Evidence, base: Estimate) -> bool:
    """True if the base's interval holds chance, which is 0 for open answers."""
    task = evidence.facts.registry.get(base.target)
    chance = 1.0 / len(task.labels) if task.labels else 0.0
    return base.low is None or base.low <= chance


def _api(evidence: Evidence) -> Question:
    """Does a small model beat models behind APIs, form and ability apart?"""
    study = evidence.facts.study
    if evidence.split.split != "test" and study.api_models:
        return API.without_answer(
            "cocktails are chosen on validation, so it is answered on test: --split test"
        )
    finished = {info.cocktail for info in evidence.split.systems}
    rows = [
        row
        for entry in study.api_models
        if entry.name in finished
        for target, cocktail in evidence.best.items()
        for row in compare(
            [m for m in evidence.split.measured if m.panel.task == target],
            cocktail,
            entry.name,
            study.claims.margin,
        )
        if row.metric == evidence.facts.tasks[target].metrics[0]
    ]
    if not rows:
        return API.without_answer("no api_models; published figures are a table of their own")
    rows = adjusted(rows)
    return API.answer(
        [f"{r.target}, {r.form}: {_difference(r, r.subject, r.reference)}" for r in rows], rows
    )


# ---- several studies -----------------------------------------------------------------------------


def agreeing(evidence: Sequence[Evidence]) -> Question:
    """Do the base models of several studies agree? The main metric and form of each shared task.

    One study has one base model, and the answer says what it takes.
    """
    if len(evidence) == 1:
        return MODELS.without_answer("one base model; list several under model in the study file")
    lines: list[str] = []
    rows: list[Estimate] = []
    for first, second in combinations(evidence, 2):
        differing = different_tasks(first.facts, second.facts, first.split.split)
        sides = [
            Side(
                each.facts.study.name,
                [m for m in each.split.main if m.panel.task not in differing],
                each.best,
            )
            for each in (first, second)
        ]
        own = agreement(*sides)
        rows += own
        names = " and ".join(side.name for side in sides)
        lines += [f"{names}: {text}" for text in _agreements(own)]
        lines += [f"{task} is left out: {why}." for task, why in differing.items()]
    if not rows:
        reason = " ".join(lines).rstrip(".") or "no target has two cells that both models have"
        return MODELS.without_answer(reason)
    return MODELS.answer(lines, rows)


def _agreements(rows: Sequence[Estimate]) -> Iterator[str]:
    """A sentence or two of each target."""
    for target in dict.fromkeys(row.target for row in rows):
        own = [row for row in rows if row.target == target]
        gains = [row for row in own if row.quantity == APART]
        different = [r for r in gains if r.adjusted is not None and r.adjusted < ALPHA]
        ranks = "".join(_ranking(row) for row in own if row.quantity == RANKS)
        itself = [f"{row.value:+.2f} ({row.subject})" for row in own if row.quantity == ITSELF]
        ranks += f", each with itself {' and '.join(itself)}" if itself else ""
        ranks += "; " if ranks else ""
        differ = f"{len(different)} of {len(gains)} gains over the single task differ (adjusted)"
        carried = [
            _difference(row, row.subject, f"{row.reference}, its own choice")
            for row in own
            if row.quantity == CARRIED
        ]
        yield " ".join([f"on {target} {ranks}{differ}.", *carried])


def _ranking(row: Estimate) -> str:
    known = row.low is not None and row.high is not None
    ends = (
        f"95 % CI {row.low:+.2f} to {row.high:+.2f}" if known else "too few cells for an interval"
    )
    return f"tau {row.value:+.2f} over {row.n} cells with it ({ends})"


def _difference(row: Estimate, subject: str, reference: str, verb: str = "is") -> str:
    """A difference as a sentence: the number with its interval, then what is above what."""
    known = row.low is not None and row.high is not None
    p = f"; adjusted p {p_text(row.adjusted)}" if known and row.adjusted is not None else ""
    numbers = f"{points(row.value)} ({interval_text(row.low, row.high)}{p})"
    condition = ", given this run" if row.seeds == 1 and known else ""
    if row.low is None or row.high is None:
        return f"{numbers}: {subject} minus {reference}."
    words = relation(row.low, row.high)
    if row.adjusted is not None and row.adjusted >= ALPHA:
        words = relation(-1.0, 1.0)  # the interval is that of one difference among several
    return f"{numbers}: {subject} {verb} {words} {reference}{condition}."
