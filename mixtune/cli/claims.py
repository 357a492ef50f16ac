"""Verbs that say what may be claimed: confirm, claims.

The verb that answers the questions of the field from a study: questions.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mixtune.cli import show as terminal
from mixtune.cli.app import (
    RUNS,
    DataDir,
    DryRun,
    Json,
    Limit,
    Overrides,
    RunsDir,
    SplitName,
    StudyFile,
    app,
    look_at,
    print_rows,
    stored_facts,
    studies_of,
    study_of,
)
from mixtune.datasets.registry import Registry
from mixtune.errors import ModelError, UserError
from mixtune.models.catalog import locate
from mixtune.models.files import BaseModelFiles
from mixtune.planning.plan import Planner
from mixtune.planning.runs import Plan
from mixtune.planning.summary import facts_of
from mixtune.records import Claim, Selection
from mixtune.results.claims import (
    exploratory_claims,
    missing_runs,
    select,
    selected_claims,
    settle,
)
from mixtune.results.questions import agreeing, gather_evidence, unanswered
from mixtune.results.questions import questions as answers
from mixtune.results.study_results import StudyFacts, measure_split
from mixtune.study.reading import dump_study
from mixtune.study.spec import Study


@app.command(rich_help_panel="Run")
def confirm(  # noqa: PLR0913 - a verb's options
    study_file: StudyFile,
    overrides: Overrides = None,
    data_dir: DataDir = None,
    runs_dir: RunsDir = RUNS,
    limit: Limit = None,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="Select again, with other seeds; keeps both choices and counts the repeat.",
        ),
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Select on validation, record the choice, and plan the runs that a claim needs.

    Writes the best cocktail and the best single task of each target to selection.json, and plans
    runs with new seeds of the cocktail and of the single task as tuned, at equal steps and at
    equal exposure. Existing results do not change. Next: mixtune run.
    """
    study = study_of(study_file, overrides, limit)
    facts = stored_facts(study, runs_dir, data_dir)
    plain = _planner(study, data_dir, None)
    choice = select(facts, study.claims, measure_split(facts, "validation"), plain)
    settled = settle(facts, choice, again)
    selection = settled or facts.selection or choice
    planner = _planner(study, data_dir, selection)
    plan = planner.plan()
    files = (dump_study(planner.study), facts_of(planner))
    if not dry_run:
        with facts.store.lock():
            facts.store.preview(plan.rows(), *files)
            if settled is not None:
                facts.store.save_selection(settled)
            facts.store.save_plan(plan.rows(), *files)
    if as_json:
        print(json.dumps({**asdict(selection), "runs": _runs(plan, selection)}, indent=1))
        return
    _show(facts, selection, plan, written=settled is not None and not dry_run)
    print(f"next: mixtune run {study_file}")


def _planner(study: Study, data_dir: Path | None, selection: Selection | None) -> Planner:
    files = locate(study.model, download=False)
    if not isinstance(files, BaseModelFiles):
        raise ModelError(
            "runs can be planned only where the base model's files are",
            found=f"{study.model} is not on this machine",
            remedy=f"mixtune models --prepare {study.model}",
        )
    return Planner(study, Registry.of(study, data_dir), files, selection)


def _runs(plan: Plan, selection: Selection) -> list[dict[str, object]]:
    """Runs of fresh seeds."""
    return [
        {"system": run.system, "cell": run.name, "seed": run.seed}
        for run in plan.runs
        if run.seed in selection.fresh
    ]


def _show(facts: StudyFacts, selection: Selection, plan: Plan, written: bool) -> None:
    out = terminal.console()
    rows = [
        (
            choice.target,
            choice.cocktail,
            f"{choice.value:.3f} of {choice.tried} runs",
            choice.single,
            f"{choice.single_value:.3f} of {choice.tried_single} runs",
            ", ".join(selection.against[choice.target]),
            selection.reasons.get(choice.target, ""),
        )
        for choice in selection.choices
    ]
    columns = ("target", "cocktail", "validation", "single task", "validation", "held against", "")
    out.print(terminal.table(f"{facts.study.name}: chosen on validation", columns, rows))
    runs = _runs(plan, selection)
    path = facts.store.folder / "selection.json"
    status = (
        f"written to {path}" if written else "as it stands there" if path.is_file() else "dry run"
    )
    seeds = f"{selection.fresh[0]} to {selection.fresh[-1]}"
    out.print(
        f"{status}: {len(runs)} runs with the fresh seeds {seeds}; margin ±{selection.margin:g}; "
        f"test scores were looked at {selection.test_reads} times before",
        markup=False,
        soft_wrap=True,
    )


@app.command(rich_help_panel="Read")
def claims(
    study_file: StudyFile,
    overrides: Overrides = None,
    runs_dir: RunsDir = RUNS,
    limit: Limit = None,
    fail_unless: Annotated[
        str | None,
        typer.Option(
            help="Exit 3 unless every target has one of these verdicts, such as confirmed,tie."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the claim that each target's results support. Next: mixtune report."""
    study = study_of(study_file, overrides, limit)
    facts = stored_facts(study, runs_dir)
    if facts.selection is None:
        rows = exploratory_claims(facts, study.claims, measure_split(facts, "validation"))
    else:
        look_at("test", facts.store, "claims")
        rows = selected_claims(facts.selection, measure_split(facts, "test", claimed=True))
    missing = missing_runs(facts)
    if missing:
        print(
            f"{len(missing)} runs of fresh seeds are not done, such as {missing[0]}: "
            f"mixtune run {study_file}",
            file=sys.stderr,
        )
    if as_json:
        print_rows(rows)
    else:
        _show_claims(facts, rows)
    _gate(rows, fail_unless)


def _show_claims(facts: StudyFacts, claims: list[Claim]) -> None:
    out = terminal.console()
    if not claims:
        out.print("nothing can be claimed: no target has a single task and a cocktail finished")
        return
    rows = [
        (
            claim.target,
            claim.verdict,
            f"{100 * claim.value:+.1f}",
            "–"
            if claim.low is None or claim.high is None
            else f"{100 * claim.low:+.1f} … {100 * claim.high:+.1f}",
            "–" if claim.adjusted is None else f"{claim.adjusted:.3f}",
            f"{claim.tried} : {claim.tried_single}",
        )
        for claim in claims
    ]
    columns = ("target", "verdict", "points", "95 % interval", "Holm p", "runs tried")
    out.print(terminal.table(f"{facts.study.name}: claims", columns, rows))
    for claim in claims:
        out.print(claim.sentence, markup=False, soft_wrap=True)


def _gate(claims: list[Claim], allowed: str | None) -> None:
    if allowed is None:
        return
    verdicts = {part.strip() for part in allowed.split(",")}
    known = {"confirmed", "tie", "not confirmed", "exploratory"}
    if not verdicts <= known:
        raise UserError(
            "no such verdict",
            found=", ".join(sorted(verdicts - known)),
            wanted=", ".join(sorted(known)),
        )
    short = [claim.target for claim in claims if claim.verdict not in verdicts]
    if short or not claims:
        print(f"gate not met: {', '.join(short) or 'no claim'}", file=sys.stderr)
        raise typer.Exit(3)


@app.command(rich_help_panel="Read")
def questions(
    study_file: StudyFile,
    overrides: Overrides = None,
    runs_dir: RunsDir = RUNS,
    split: SplitName = "validation",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Answer questions about a study; give the reason for each that it cannot answer.

    Does mixing help, with nothing selected; does general data keep what the base could do; does
    maths transfer; do knowledge and reasoning grow; does the small model beat models behind APIs;
    do base models agree, where the study file lists several.
    Next: mixtune claims.
    """
    evidence = []
    for study in studies_of(study_file, overrides, limit):
        facts = stored_facts(study, runs_dir)
        look_at(split, facts.store, "questions")
        evidence.append(gather_evidence(facts, split))
    answers_of = [(item.facts.study.name, answers(item)) for item in evidence]
    if len(evidence) == 1:
        answers_of[0][1].append(agreeing(evidence))
    else:
        answers_of.append((", ".join(name for name, _ in answers_of), [agreeing(evidence)]))
    if as_json:
        rows = [{"study": name, **asdict(q)} for name, own in answers_of for q in own]
        print(json.dumps(rows, indent=1))
        return
    out = terminal.console()
    for name, own in answers_of:
        if len(evidence) > 1:
            out.rule(name)
        for question in (item for item in own if item.answered):
            out.print(question.title, markup=False, style="bold")
            out.print(question.answer, markup=False, soft_wrap=True)
            out.print()
        if line := unanswered(own):
            out.print(line, markup=False, soft_wrap=True)
