"""What was chosen, in writing, and what may be claimed of it.

Knows: which cells can be chosen, what they are held against, where that is written. Does not know:
how a difference is computed, how a run is trained, how a claim is shown.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from mixtune.analysis import claims as found
from mixtune.analysis.selection import choose
from mixtune.errors import SpecError, StoreError, did_you_mean
from mixtune.planning.plan import Planner
from mixtune.records import Choice, Claim, Selection
from mixtune.results.study_results import Derived
from mixtune.store.selection import differences, fresh_seeds, same
from mixtune.study.spec import Study

UNWRITTEN = (
    "nothing was chosen in writing before it was read (mixtune confirm): it is chosen and read on "
    "the same data"
)


class Claiming:
    """A study's claims; `study` is the file as it is now: it says what a gain is held to."""

    def __init__(self, derived: Derived, study: Study) -> None:
        self.derived = derived
        self.asked = study.claims

    def targets(self) -> dict[str, tuple[str, str]]:
        """Target → the form and metric that it is chosen and claimed by.

        Raises:
            SpecError: one that is named is no task that the study also trains on.
        """
        derived = self.derived
        known = {
            name: (derived.main_form(task), task.metrics[0])
            for name, task in derived.tasks().items()
            if name in derived.study.ingredients and name in derived.study.tasks
        }
        named = [derived.registry.get(name).name for name in self.asked.targets]
        for name in named:
            if name not in known:
                raise SpecError(
                    f"claims.targets: {name} is no task that the study also trains on",
                    wanted=did_you_mean(name, known) if known else "a task among the ingredients",
                    remedy="name others, or none for all",
                )
        return {name: known[name] for name in named or known}

    def choices(self) -> list[Choice]:
        """The best cocktail and single task of each target on validation."""
        return choose(self.derived.measured("validation"), self.targets())

    # ---- confirm ------------------------------------------------------------------------------

    def select(self, planner: Planner) -> Selection:
        """What would be written down now; `planner`: of the study, without a selection.

        Raises:
            SpecError: there is nothing to choose from.
        """
        choices = self.choices()
        if not choices:
            raise SpecError(
                "there is nothing to choose from",
                where=self.derived.study.name,
                wanted="for a target the task alone and a cocktail, finished for a seed that all "
                "cells have",
                remedy="mixtune status STUDY.yaml shows what is missing; mixtune run does it",
            )
        before = self.derived.selection
        exposed = {c.target: planner.exposure_of(c.cocktail, c.target) for c in choices}
        whole = {c.target: planner.exposure_of(c.plain, c.target) for c in choices}
        exposed = {t: count for t, count in exposed.items() if 0 < count != whole[t]}
        spent = (*before.spent, *before.fresh) if before else ()
        rows = self.derived.plan
        taken = [*self.derived.study.seeds, *(r.seed for r in rows if r.seed is not None), *spent]
        return Selection(
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            margin=self.asked.margin,
            fresh=fresh_seeds(self.asked.fresh_seeds, taken),
            single_runs=self.asked.single_runs,
            choices=tuple(choices),
            against={c.target: _against(c, exposed) for c in choices},
            exposed=exposed,
            items={
                row.task: row.items_digest
                for row in rows
                if row.kind == "answer" and row.split == "validation"
            },
            reasons={c.target: self._reason(c) for c in choices if self._reason(c)},
            test_reads=self.derived.store.test_reads(),
            spent=spent,
            again=before.again + 1 if before else 0,
        )

    def _reason(self, choice: Choice) -> str:
        if self.derived.study.flaws.select_on_test:
            return "flaws.select_on_test: what is chosen is chosen on the data it is read on"
        return found.unequal(choice, self.asked.single_runs)

    def settle(self, selection: Selection, again: bool) -> Selection | None:
        """What has to be written: the selection, or None where the same stands there already.

        Raises:
            StoreError: another choice stands there, and it is not said to choose again.
        """
        before = self.derived.selection
        if before is None:
            return selection
        if same(before, selection):
            return None
        if not again:
            raise StoreError(
                "another choice was written down before\n"
                + "\n".join(f"    {line}" for line in differences(before, selection)),
                where=str(self.derived.store.folder / "selection.json"),
                remedy="run what was chosen then; or mixtune confirm --again, which keeps both, "
                "takes other seeds, and is counted",
            )
        return selection

    # ---- claims -------------------------------------------------------------------------------

    def claims(self) -> list[Claim]:
        """What may be said of each target.

        With a selection: of the fresh seeds on test. Without one: of the study's own seeds on
        validation, and no more than exploratory.
        """
        selection = self.derived.selection
        if selection is None:
            measured = self.derived.measured_main("validation")
            return found.exploratory(self.choices(), measured, self.asked.margin, UNWRITTEN)
        arms = [
            found.Arms(
                choice, selection.against[choice.target], selection.reasons.get(choice.target, "")
            )
            for choice in selection.choices
        ]
        measured = self.derived.measured_claimed("test")
        made = found.claims(arms, measured, selection.fresh, selection.margin)
        return [self._counted(claim, selection) for claim in made]

    def _counted(self, claim: Claim, selection: Selection) -> Claim:
        """The sentence with what else a reader has to know."""
        if not selection.again:
            return claim
        said = f" Chosen again {selection.again} times: earlier choices are kept beside this one."
        return replace(claim, sentence=claim.sentence + said)

    def missing(self) -> list[str]:
        """Runs of fresh seeds that are not done, in words."""
        rows = self.derived.claimed
        fresh = self.derived.selection.fresh if self.derived.selection else ()
        undone = [r for r in rows if r.seed in fresh and self.derived.state(r.id) != "done"]
        return list(dict.fromkeys(f"{row.cocktail} seed {row.seed}" for row in undone))


def _against(choice: Choice, exposed: Mapping[str, int]) -> tuple[str, ...]:
    """The tuned single task, the one at equal steps, the one at equal exposure."""
    names = [choice.single, choice.plain]
    if choice.target in exposed:
        names.append(f"{choice.target} ({exposed[choice.target]} examples)")
    return tuple(dict.fromkeys(names))
