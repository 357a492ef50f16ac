"""The questions that a study can be asked, each with its answer in words and the rows behind it.

Knows: which rows answer which question, when there is no answer. Does not know: how a number is
computed, how an answer is shown.
"""

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import replace
from itertools import combinations

from mixtune.analysis.agreement import APART, CARRIED, ITSELF, RANKS, Side, agreement
from mixtune.analysis.claims import ALPHA
from mixtune.analysis.effects import compare
from mixtune.analysis.ingredients import EFFECT, LEFT_OUT, form_and_ability, ingredient_effects
from mixtune.analysis.measures import Measured
from mixtune.analysis.primary import MODEL, OVER_TARGETS, TARGET_MEAN, primary
from mixtune.records import Estimate, Question
from mixtune.results.compare import different_tasks
from mixtune.results.study_results import Derived
from mixtune.study.design import members

MODELS = "Do base models agree?"
AMOUNTS = ("amount", "number", "final-number", "boxed")
"""Parsers of answers that are numbers."""


class Questioning:
    """A study's questions on one split."""

    def __init__(self, derived: Derived, split: str) -> None:
        self.derived = derived
        self.split = split
        self.main = derived.measured_main(split)
        self.groups = derived.study.grouped
        budget = derived.study.budget
        self._budget = f"{budget.kind}, {budget.steps} steps"
        self.primary, self.why = primary(self.main, self.groups)
        self.effects = ingredient_effects(self.main, self._budget)
        self.parts = form_and_ability(derived.measured(split))

    def estimates(self) -> list[Estimate]:
        """Every row that a question may rest on."""
        return [*self.primary, *self.effects, *self.parts]

    def questions(self) -> list[Question]:
        """Each question, answered or with the reason why it is not."""
        asked: Sequence[Callable[[], Question]] = (
            self._mixing, self._general, self._maths, self._knowledge, self._api,
        )  # fmt: skip
        return [ask() for ask in asked]

    # ---- the questions --------------------------------------------------------------------------

    def _mixing(self) -> Question:
        """Does training on more than the target help it?"""
        over = [row for row in self.primary if row.quantity == OVER_TARGETS]
        rows = [row for row in self.primary if row.quantity in (OVER_TARGETS, TARGET_MEAN, MODEL)]
        if not over or over[0].low is None:
            why = self.why or f"{over[0].n} targets are too few to say"
            return _question("mixing", "Does mixing help?", f"Cannot be said: {why}.", False, rows)
        said = (
            f"Over {over[0].n} targets and every cell that holds them, with nothing selected, a "
            f"cocktail is {_said(over[0])} the single task of equal steps."
        )
        said += f" {self.why[0].upper()}{self.why[1:]}." if self.why else ""
        return _question("mixing", "Does mixing help?", said, True, rows)

    def _general(self) -> Question:
        """Does general data change the gain, and what is kept of the base?"""
        title = "Does general data reduce degradation?"
        term = [row for row in self.primary if row.subject == "has general"]
        kept = self.kept()
        if not term and not kept:
            why = "no group or series of levels called general that differs between cells"
            return _question("general", title, f"Cannot be said: {why}.", False, [])
        lines = [f"With general data a cocktail gains {_said(row)} one without." for row in term]
        lines += self._with_and_without(kept)
        return _question("general", title, " ".join(lines), True, [*term, *kept])

    def _with_and_without(self, kept: Sequence[Estimate]) -> list[str]:
        """What cells with and without general data kept of the base, on each probe."""
        general = set(self.groups.get("general", ()))
        lines = []
        for probe in dict.fromkeys(row.target for row in kept if row.quantity == "retention"):
            rows = [row for row in kept if row.quantity == "retention" and row.target == probe]
            means = []
            for held in (True, False):
                own = [r.value for r in rows if bool(general & set(members(r.subject))) is held]
                means.append(f"{100 * sum(own) / len(own):+.1f}" if own else "–")
            lines.append(
                f"On {probe} cells with general data stand {means[0]} points beside the base, "
                f"cells without {means[1]}."
            )
        return lines

    def _maths(self) -> Question:
        """Does maths transfer to tasks whose answers are numbers?"""
        title = "Does maths transfer to tasks that are answered with numbers?"
        maths = set(self.groups.get("maths", ()))
        tasks = self.derived.tasks()
        numeric = {n for n, task in tasks.items() if task.kind == "open" and task.parser in AMOUNTS}
        rows = [
            row
            for row in self.effects
            if row.target in numeric and row.quantity in (EFFECT, LEFT_OUT) and row.subject in maths
        ]
        if not rows:
            why = (
                "no task of this study is answered with a number"
                if not numeric
                else "no group called maths was added to or left out of such a task"
            )
            return _question("maths", title, f"Cannot be said: {why}.", False, [])
        said = " ".join(
            f"On {row.target}, {row.subject} "
            f"{'added' if row.quantity == EFFECT else 'kept in the mix of all'}: {_said(row)} "
            f"without."
            for row in rows
        )
        return _question("maths", title, said, True, rows)

    def _knowledge(self) -> Question:
        """Do knowledge and reasoning grow?"""
        title = "Do knowledge and reasoning grow?"
        kept = self.kept()
        rows = [row for row in kept if row.quantity == "retention"]
        if not rows:
            why = "the probes were not asked (probes in the study, then mixtune probe)"
            return _question("knowledge", title, f"Cannot be said: {why}.", False, [])
        lines, seen = [], False
        for probe in dict.fromkeys(row.target for row in rows):
            own = [row for row in rows if row.target == probe]
            base = next(
                (r for r in kept if (r.quantity, r.target, r.subject) == ("score", probe, "base")),
                None,
            )
            if base is not None and self._at_chance(base):
                lines.append(f"On {probe} it cannot be seen with this base, which is at chance.")
                continue
            seen = True
            grown = [r for r in own if r.low is not None and r.low > 0]
            fallen = [r for r in own if r.high is not None and r.high < 0]
            lines.append(
                f"On {probe} {len(grown)} of {len(own)} cells stand above the base and "
                f"{len(fallen)} below it, by their intervals (not adjusted)."
            )
        return _question("knowledge", title, " ".join(lines), seen, rows)

    def _at_chance(self, base: Estimate) -> bool:
        """Whether the base's interval holds chance; of open answers chance is nothing."""
        task = self.derived.registry.get(base.target)
        chance = 1.0 / len(task.labels) if task.labels else 0.0
        return base.low is None or base.low <= chance

    def _api(self) -> Question:
        """Does a small model beat models behind APIs, form and ability apart?"""
        title = "Does the small model beat models behind APIs?"
        finished = {info.cocktail for info in self.derived.systems()}
        names = [one.name for one in self.derived.study.api_models if one.name in finished]
        measured, margin = self.derived.measured(self.split), self.derived.study.claims.margin
        rows = [
            row
            for name in names
            for target, chosen in self.derived.chosen().items()
            for row in compare(_on(measured, target), chosen, name, margin)
        ]
        if not rows:
            why = "none was asked (api_models); published figures are a table of their own"
            return _question("api", title, f"Cannot be said here: {why}.", False, [])
        tasks = self.derived.tasks()
        rows = [row for row in rows if row.metric == tasks[row.target].metrics[0]]
        lines = [
            f"On {row.target}, in {row.form} answers, {row.subject} is {_said(row)} "
            f"{row.reference}."
            for row in rows
        ]
        return _question("api", title, " ".join(lines), True, rows)

    def kept(self) -> list[Estimate]:
        """What `mixtune probe` found, if it was run."""
        store = self.derived.store
        if not (store.folder / "retention.parquet").is_file():
            return []
        rows = store.read_rows("retention.parquet")
        known = Estimate.__dataclass_fields__
        return [Estimate(**{k: v for k, v in row.items() if k in known}) for row in rows]


# ---- several studies -----------------------------------------------------------------------------


def agreeing(asked: Sequence[Questioning]) -> Question:
    """Do the base models of several studies agree? The main metric and form of each shared task.

    One study has one base model, and is told what it takes.
    """
    if len(asked) == 1:
        why = (
            "a study has one base model; where its file lists several under model, mixtune "
            "questions holds their studies side by side"
        )
        return _question("models", MODELS, f"Cannot be said here: {why}.", False, [])
    lines, rows = [], []
    sides = [Side(one.derived.study.name, one.main, one.derived.chosen()) for one in asked]
    for (asker, one), (against, other) in combinations(zip(asked, sides, strict=True), 2):
        apart = different_tasks(asker.derived, against.derived, asker.split)
        found = agreement(*(_but(side, apart) for side in (one, other)))
        rows += found
        lines += [f"{one.name} and {other.name}: {said}" for said in _agreements(found)]
        lines += [f"{task} is left out: {why}." for task, why in apart.items()]
    if not rows:
        why = " ".join(lines) or "no target has two cells that both models have."
        return _question("models", MODELS, f"Cannot be said: {why}", False, [])
    return _question("models", MODELS, " ".join(lines), True, rows)


def _but(side: Side, tasks: Container[str]) -> Side:
    """Without some tasks."""
    return replace(side, found=[one for one in side.found if one.panel.task not in tasks])


def _agreements(rows: Sequence[Estimate]) -> Iterator[str]:
    """A sentence or two of each target."""
    for target in dict.fromkeys(row.target for row in rows):
        own = [row for row in rows if row.target == target]
        apart = [row for row in own if row.quantity == APART]
        different = [r for r in apart if r.adjusted is not None and r.adjusted < ALPHA]
        said = "".join(_ranking(row) for row in own if row.quantity == RANKS)
        itself = [f"{row.value:+.2f} ({row.subject})" for row in own if row.quantity == ITSELF]
        said += f", each with itself {' and '.join(itself)}" if itself else ""
        said += "; " if said else ""
        said += f"{len(different)} of {len(apart)} gains over the single task differ (adjusted)"
        carried = [f"{row.subject} is {_said(row)} {row.reference}, its own choice"
                   for row in own if row.quantity == CARRIED]  # fmt: skip
        yield f"on {target} {'; '.join([said, *carried])}."


def _ranking(row: Estimate) -> str:
    ends = "too few cells for an interval"
    if row.low is not None and row.high is not None:
        ends = f"95 % CI {row.low:+.2f} to {row.high:+.2f}"
    return f"tau {row.value:+.2f} over {row.n} cells with it ({ends})"


def _question(
    key: str, title: str, answer: str, answered: bool, rows: Sequence[Estimate]
) -> Question:
    return Question(key, title, answer, answered, tuple(rows))


def _on(measured: Sequence[Measured], target: str) -> list[Measured]:
    return [one for one in measured if one.panel.task == target]


def _said(row: Estimate) -> str:
    """A difference in words, with its interval."""
    points = f"{100 * row.value:+.1f} points"
    if row.low is None or row.high is None:
        return f"{points} (too few to say) from"
    ends = f"95 % CI {100 * row.low:+.1f} to {100 * row.high:+.1f}"
    where = "above" if row.low > 0 else "below" if row.high < 0 else "not told apart from"
    return f"{points} ({ends}), {where}"
