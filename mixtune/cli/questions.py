"""The verb that answers the questions of the field from a study: questions."""

import json
from dataclasses import asdict

from mixtune import terminal
from mixtune.cli.app import (
    RUNS,
    Json,
    Limit,
    Overrides,
    RunsDir,
    SplitName,
    StudyFile,
    app,
    derived_of,
    look_at,
    studies_of,
)
from mixtune.questioning import Questioning, agreeing


@app.command(rich_help_panel="Read")
def questions(
    study_file: StudyFile,
    overrides: Overrides = None,
    runs_dir: RunsDir = RUNS,
    split: SplitName = "validation",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Answer what can be asked of a study, or say why it cannot.

    Does mixing help, with nothing selected; does general data keep what the base could do; does
    maths transfer; do knowledge and reasoning grow; does the small model beat models behind APIs;
    do base models agree, where the study file lists several.
    Next: mixtune claims.
    """
    asked = []
    for study in studies_of(study_file, overrides, limit):
        derived = derived_of(study, runs_dir)
        look_at(split, derived.store, "questions")
        asked.append(Questioning(derived, split))
    found = [(one.derived.study.name, one.questions()) for one in asked]
    found.append((", ".join(name for name, _ in found), [agreeing(asked)]))
    if as_json:
        rows = [{"study": name, **asdict(q)} for name, own in found for q in own]
        print(json.dumps(rows, indent=1))
        return
    out = terminal.console()
    for name, own in found:
        if len(asked) > 1:
            out.rule(name)
        for question in own:
            out.print(question.title, markup=False, style="bold")
            out.print(question.answer, markup=False, soft_wrap=True)
            out.print()
