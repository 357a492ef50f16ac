"""Verbs on what a study says, and for its reviewers: confirm, claims, questions, pack."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mixtune import __version__
from mixtune.analysis.claims import VERDICTS
from mixtune.cli.app import Request, base_files, exit_unless_met, look_at, verb
from mixtune.cli.show import Columns, console, print_json, printable, say, show, show_cells
from mixtune.errors import UserError
from mixtune.pack.archive import write_pack, zipped
from mixtune.pack.pack import Contents
from mixtune.planning.plan import Planner
from mixtune.planning.runs import RunPlan
from mixtune.planning.summary import facts_of
from mixtune.records import Claim, Selection
from mixtune.results.claims import (
    exploratory_claims,
    missing_runs,
    seal,
    select,
    selected_claims,
    settle,
)
from mixtune.results.questions import agreeing, gather_evidence, unanswered
from mixtune.results.questions import questions as answers
from mixtune.results.study_results import StudyFacts, measure_split
from mixtune.study.reading import dump_study


@verb("Run", "study_file overrides data_dir runs_dir limit * dry_run as_json")
def confirm(
    request: Request,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="Select again, with other seeds; keeps both choices and counts the repeat.",
        ),
    ] = False,
) -> None:
    """Select on validation, record the choice, and plan the runs that a claim needs.

    Writes the best cocktail and the best single task of each target to selection.json, and plans
    runs with new seeds of the cocktail and of the single task as tuned, at equal steps and at
    equal exposure. Existing results do not change. Next: mixtune run.
    """
    study = request.study()
    facts = request.facts(study)
    registry, base = request.registry(study), base_files(study)
    plain = Planner(study, registry, base, None)
    choice = select(facts, study.claims, measure_split(facts, "validation"), plain)
    settled = settle(facts, choice, again)
    selection = settled or facts.selection or choice
    planner = Planner(study, registry, base, selection)
    plan = planner.plan()
    files = (dump_study(planner.study), facts_of(planner))
    if not request.dry_run:
        with facts.store.lock():
            facts.store.preview(plan.rows(), *files)
            if settled is not None:
                facts.store.save_selection(settled, seal(settled))
            for line in facts.store.save_plan(plan.rows(), *files):
                print(printable(line), file=sys.stderr)
    fresh = [run for run in plan.runs if run.seed in selection.fresh]
    if request.as_json:
        runs = [{"system": run.system, "cell": run.name, "seed": run.seed} for run in fresh]
        print_json({**asdict(selection), "runs": runs})
        return
    _show(facts, selection, fresh, written=settled is not None and not request.dry_run)
    print(f"next: mixtune run {request.study_file}")


def _show(facts: StudyFacts, selection: Selection, fresh: Sequence[RunPlan], written: bool) -> None:
    cells = [
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
    columns = ("target", "cocktail", "validation", "single task", "validation", "compared with", "")
    show_cells(f"{facts.study.name}: chosen on validation", columns, cells)
    path = facts.store.folder / "selection.json"
    status = "as it stands there" if path.is_file() else "dry run"
    say(
        f"{f'written to {path}' if written else status}: {len(fresh)} runs with the fresh seeds "
        f"{selection.fresh[0]} to {selection.fresh[-1]}; margin ±{selection.margin:g}; test scores "
        f"were looked at {selection.test_reads} times before",
        whole=True,
    )


@verb("Read", "study_file overrides runs_dir limit * as_json")
def claims(
    request: Request,
    fail_unless: Annotated[
        str | None,
        typer.Option(
            help="Exit 3 unless every target has one of these verdicts, such as confirmed,tie."
        ),
    ] = None,
) -> None:
    """Show the claim that each target's results support. Next: mixtune report."""
    study = request.study()
    facts = request.facts(study)
    if facts.selection is None:
        rows = exploratory_claims(facts, study.claims, measure_split(facts, "validation"))
    else:
        look_at("test", facts.store, "claims")
        rows = selected_claims(facts, facts.selection)
    if missing := missing_runs(facts):
        such_as = f"such as {missing[0]}: mixtune run {request.study_file}"
        print(f"{len(missing)} runs of fresh seeds are not done, {such_as}", file=sys.stderr)
    if rows or request.as_json:
        show(rows, CLAIMS, f"{facts.study.name}: claims", request.as_json)
    else:
        say("nothing can be claimed: no target has a single task and a cocktail finished")
    for claim in [] if request.as_json else rows:
        say(claim.sentence, whole=True)
    if fail_unless is not None:
        _gate(rows, {part.strip() for part in fail_unless.split(",")})


def _points(claim: Claim) -> str:
    if claim.low is None or claim.high is None:
        return "–"
    return f"{100 * claim.low:+.1f} … {100 * claim.high:+.1f}"


CLAIMS: Columns = {
    "target": "target",
    "verdict": "verdict",
    "points": lambda claim: f"{100 * claim.value:+.1f}",
    "95 % interval": _points,
    "Holm p": "adjusted:.3f",
    "runs tried": lambda claim: f"{claim.tried} : {claim.tried_single}",
}


def _gate(claims: Sequence[Claim], allowed: set[str]) -> None:
    known = set(VERDICTS)
    if not allowed <= known:
        unknown = ", ".join(sorted(allowed - known))
        raise UserError("no such verdict", found=unknown, wanted=", ".join(VERDICTS))
    short = [claim.target for claim in claims if claim.verdict not in allowed]
    if short or not claims:
        exit_unless_met([", ".join(short) or "no claim"])


@verb("Read", "study_file overrides runs_dir split limit as_json")
def questions(request: Request) -> None:
    """Answer questions about a study; give the reason for each that it cannot answer.

    Does mixing help, with nothing selected; does general data keep what the base could do; does
    maths transfer; do knowledge and reasoning grow; does the small model beat models behind APIs;
    do base models agree, where the study file lists several.
    Next: mixtune claims.
    """
    stored = (request.facts_for("questions", study) for study in request.studies())
    evidence = [gather_evidence(facts, request.split) for facts in stored]
    answers_of = [(item.facts.study.name, answers(item)) for item in evidence]
    if len(evidence) == 1:
        answers_of[0][1].append(agreeing(evidence))
    else:
        answers_of.append((", ".join(name for name, _ in answers_of), [agreeing(evidence)]))
    if request.as_json:
        print_json([{"study": name, **asdict(q)} for name, own in answers_of for q in own])
        return
    out = console()
    for name, own in answers_of:
        if len(evidence) > 1:
            out.rule(name)
        for question in (item for item in own if item.answered):
            out.print(question.title, markup=False, style="bold")
            say(f"{question.answer}\n", whole=True)
        if line := unanswered(own):
            say(line, whole=True)


@verb("Read", "study_file overrides * runs_dir limit dry_run as_json")
def pack(
    request: Request,
    out: Annotated[
        Path | None,
        typer.Option(help="Zip to write. Default: <name>-pack.zip in the current folder."),
    ] = None,
) -> None:
    """Write the reviewer's pack: one zip that reproduces the study's analysis.

    It contains scores, settings, states, licences, prompt templates and hashes; no weights and no
    dataset text. Next: mixtune results.
    """
    facts = request.facts()
    name = facts.study.name
    target = out or Path(f"{name}-pack.zip")
    if facts.store.packed:
        raise UserError("this is a pack already", found=str(facts.store.folder))
    files = Contents(facts).files()
    content = zipped(name, files, __version__)
    if not request.dry_run:
        write_pack(target, name, content)
    summary = {
        "pack": str(target),
        "written": not request.dry_run,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "files": {path: len(files[path]) for path in sorted(files)},
    }
    if request.as_json:
        print_json(summary)
        return
    done = "would write" if request.dry_run else "wrote"
    size = f"{len(files)} files, {len(content):,} bytes, no text of a dataset"
    print(printable(f"{done} {target}: {size}"))
    print(printable(f"sha256 {summary['sha256']}; read it: mixtune results {target}"))
