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
    study_of,
)
from mixtune.questioning import Questioning


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
    maths transfer; do knowledge and reasoning grow; does the small model beat models behind APIs.
    Next: mixtune claims.
    """
    derived = derived_of(study_of(study_file, overrides, limit), runs_dir)
    look_at(split, derived.store, "questions")
    found = Questioning(derived, split).questions()
    if as_json:
        print(json.dumps([asdict(question) for question in found], indent=1))
        return
    out = terminal.console()
    for question in found:
        out.print(question.title, markup=False, style="bold")
        out.print(question.answer, markup=False, soft_wrap=True)
        out.print()
