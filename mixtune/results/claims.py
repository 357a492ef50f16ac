"""The cocktail chosen for each target, written down, and what may be claimed of it."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import count, islice

from mixtune.analysis import claims as analysis
from mixtune.analysis.selection import choose
from mixtune.errors import SpecError, StoreError, did_you_mean
from mixtune.identity import digest
from mixtune.identity import seed as named_seed
from mixtune.planning.plan import Planner
from mixtune.records import Choice, Claim, Selection
from mixtune.results.study_results import SplitResults, StudyFacts, measure_split
from mixtune.study.spec import Claims

SEEDS_FROM, SEEDS_TO = 10**6, 10**7
"""Fresh seeds lie between: far from those that people choose, and readable."""
NOT_SELECTED = (
    "nothing was chosen in writing before it was read (mixtune confirm): it is chosen and read on "
    "the same data"
)


def study_choices(facts: StudyFacts, settings: Claims, validation: SplitResults) -> list[Choice]:
    """The best cocktail and single task of each target on validation.

    Raises:
        SpecError: a target that is named is no task that the study also trains on.
    """
    study, main = facts.study, facts.main_metrics
    known = {n: m for n, m in main.items() if n in study.ingredients and n in study.tasks}
    named = [facts.registry.get(name).name for name in settings.targets]
    for name in named:
        if name not in known:
            raise SpecError(
                f"claims.targets: {name} is no task that the study also trains on",
                wanted=did_you_mean(name, known) if known else "a task among the ingredients",
                remedy="name others, or none for all",
            )
    return choose(validation.measured, [known[name] for name in named or known])


# ---- confirm -------------------------------------------------------------------------------------


def select(
    facts: StudyFacts, settings: Claims, validation: SplitResults, planner: Planner
) -> Selection:
    """The selection as it would be written now, by a planner of the study without a selection.

    Raises:
        SpecError: there is nothing to choose from.
    """
    choices = study_choices(facts, settings, validation)
    if not choices:
        raise SpecError(
            "there is nothing to choose from",
            where=facts.study.name,
            wanted="for a target the task alone and a cocktail, finished for a seed that all "
            "cells have",
            remedy="mixtune status STUDY.yaml shows what is missing; mixtune run does it",
        )
    before, rows = facts.selection, facts.plan
    exposed = _exposures(planner, choices)
    used = (*before.spent, *before.fresh) if before else ()
    seeds, fresh = {*facts.study.seeds, *(row.seed for row in rows), *used}, settings.fresh_seeds
    reasons = {choice.target: analysis.unequal(choice, settings.single_runs) for choice in choices}
    if facts.study.budget.kind == "as-published":
        differ = "steps differ between the arms: budget.kind is as-published"
        reasons = {target: reason or differ for target, reason in reasons.items()}
    if facts.study.flaws.select_on_test:
        reason = "flaws.select_on_test: what is chosen is chosen on the data it is read on"
        reasons = dict.fromkeys(reasons, reason)
    if facts.store.looks_lost() is not None:
        reasons = dict.fromkeys(reasons, LOST)
    selection = Selection(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        margin=settings.margin,
        fresh=(),
        single_runs=settings.single_runs,
        choices=tuple(choices),
        against={choice.target: _references(choice, exposed) for choice in choices},
        exposed=exposed,
        items={
            row.task: row.items_digest
            for row in rows
            if row.kind == "answer" and row.split == "validation"
        },
        reasons={target: reason for target, reason in reasons.items() if reason},
        test_reads=facts.store.test_reads(),
        spent=used,
        again=before.again + 1 if before else 0,
    )
    return replace(selection, fresh=_fresh_seeds(selection, seeds, fresh))


def seal(selection: Selection) -> str:
    """16 hex digits over what was chosen and how, without the time and the fresh seeds."""
    return digest({**asdict(selection), "at": "", "fresh": []})


def _fresh_seeds(
    selection: Selection, used: Collection[int | None], number: int
) -> tuple[int, ...]:
    """Seeds that follow from the choice, so that nobody knows their runs before it is written."""
    drawn = (
        SEEDS_FROM + named_seed(place, "fresh-seeds", seal(selection)) % (SEEDS_TO - SEEDS_FROM)
        for place in count()
    )
    return tuple(islice((seed for seed in drawn if seed not in used), number))


def _exposures(planner: Planner, choices: list[Choice]) -> dict[str, int]:
    """Target → its examples in the chosen cell, where its single task has another number."""
    exposed = {}
    for choice in choices:
        count = planner.exposure_of(choice.cocktail, choice.target)
        if 0 < count != planner.exposure_of(choice.plain, choice.target):
            exposed[choice.target] = count
    return exposed


def _references(choice: Choice, exposed: Mapping[str, int]) -> tuple[str, ...]:
    """The tuned single task, the one at equal steps, the one at equal exposure."""
    names = [choice.single, choice.plain]
    if choice.target in exposed:
        names.append(f"{choice.target} ({exposed[choice.target]} examples)")
    return tuple(dict.fromkeys(names))


def settle(facts: StudyFacts, selection: Selection, again: bool) -> Selection | None:
    """The selection if it has to be written; None where the same is written already.

    Raises:
        StoreError: another choice is written, and `again` is false.
    """
    differences = _differences(facts.selection, selection) if facts.selection else []
    if differences and not again:
        raise StoreError(
            "\n    ".join(["another choice was written down before", *differences]),
            where=str(facts.store.folder / "selection.json"),
            remedy="run what was chosen then; or mixtune confirm --again, which keeps both, "
            "takes other seeds, and is counted",
        )
    return selection if differences or not facts.selection else None


def _differences(before: Selection, after: Selection) -> list[str]:
    """A line for each target or setting that differs; of fresh seeds only the number counts."""
    old, new = _settings(before), _settings(after)
    return [
        f"{name}: {old.get(name, 'nothing')} → {new.get(name, 'nothing')}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]


def _settings(selection: Selection) -> dict[str, object]:
    names = ("margin", "single_runs", "against", "exposed", "items", "reasons")
    values = {name: getattr(selection, name) for name in names}
    choices = {choice.target: choice for choice in selection.choices}
    return {**choices, **values, "fresh seeds": len(selection.fresh)}


# ---- claims --------------------------------------------------------------------------------------


def exploratory_claims(
    facts: StudyFacts, settings: Claims, validation: SplitResults
) -> list[Claim]:
    """Claims of a study without a selection: its own seeds on validation, never confirmed."""
    choices = study_choices(facts, settings, validation)
    return analysis.exploratory(choices, validation.main, settings.margin, NOT_SELECTED)


LOST = "how often test scores were looked at before the choice is not known"


def selected_claims(facts: StudyFacts, selection: Selection) -> list[Claim]:
    """Claims of what was selected, on the test scores of the fresh seeds."""
    test = measure_split(facts, "test", claimed=True)
    arms = [
        analysis.Arms(c, selection.against[c.target], selection.reasons.get(c.target, ""))
        for c in selection.choices
    ]
    alpha = analysis.alpha_of(selection.again)
    claims = analysis.claims(arms, test.main, selection.fresh, selection.margin, alpha)
    again, reads = selection.again, selection.test_reads
    notes = ""
    if again:
        stricter = 1 - alpha / analysis.alpha_of(0)
        notes += (
            f" Chosen again {again} times, so tested at {stricter:.0%} less than a first choice."
        )
    if reads:
        notes += f" Test scores had been looked at {reads} times before the choice."
    if facts.store.looks_lost() is not None:
        notes += " Looks at test scores are not all known: the study's states were rebuilt."
    return [
        replace(
            claim,
            sentence=claim.sentence + notes,
            again=again,
            test_reads=reads,
            seal=seal(selection),
        )
        for claim in claims
    ]


def missing_runs(facts: StudyFacts) -> list[str]:
    """Runs of fresh seeds that are not done, in words."""
    fresh = facts.selection.fresh if facts.selection else ()
    undone = [row for row in facts.claimed if row.seed in fresh and not facts.is_done(row)]
    return list(dict.fromkeys(f"{row.cocktail} seed {row.seed}" for row in undone))
