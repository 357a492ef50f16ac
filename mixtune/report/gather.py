"""Everything that the page of a study shows, put together, and the page written.

Knows: what is computed where. Does not know: how it is computed, how it is drawn.
"""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from mixtune import __version__
from mixtune.analysis.measures import BASE
from mixtune.analysis.readings import published
from mixtune.errors import DataError, StoreError
from mixtune.records import Choice, Claim, DataRow, LengthRow, Result, Score
from mixtune.report.inputs import Disagreement, ReportInput
from mixtune.report.page import page_files, render
from mixtune.results import judgements as judging
from mixtune.results.claims import Claiming
from mixtune.results.questions import Questioning, agreeing
from mixtune.results.study_results import Derived, mixes_of
from mixtune.store.folder import PlanRow

MOST = 20
"""Items that are shown of a pair of systems and a task."""


def gather(derived: Derived, split: str, with_text: bool = False) -> ReportInput:
    """Everything the page of a split shows, computed; `with_text`: items of the datasets too.

    Raises:
        DataError: text is asked for, and the datasets no longer hold what was answered.
    """
    questions = Questioning(derived, split)
    page = _report_input(derived, split)
    return replace(
        page,
        claims=_claims(derived),
        questions=[*questions.questions(), agreeing([questions])],
        estimates=[*derived.estimates(split), *questions.estimates()],
        clean=_clean(derived, split),
        retention=questions.kept(),
        judged=[row for row in judging.kept(derived) if row.split == split],
        disagreements=_disagreeing(derived, split) if with_text else (),
    )


def _report_input(derived: Derived, split: str) -> ReportInput:
    """Everything the page shows, computed."""
    tasks, facts = derived.tasks(), derived.run_facts()
    return ReportInput(
        study=derived.study,
        resolved_yaml=derived.store.read_text("study.yaml"),
        model_note=derived.model_note(),
        synthetic=any(task.synthetic for task in tasks.values()),
        split=split,
        results=derived.results(split),
        means=derived.means(split),
        differences=derived.differences(split),
        mixes=mixes_of(facts),
        runs=derived.run_rows(),
        curves=derived.curves(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tasks={name: task.title for name, task in tasks.items()},
        version=__version__,
        test_reads=derived.store.test_reads(),
        main_forms={name: derived.main_form(task) for name, task in tasks.items()},
        chosen=derived.chosen() if split == "test" else {},
        data=[DataRow(**row) for row in derived.planned_rows("data")],
        lengths=[LengthRow(**row) for row in derived.planned_rows("lengths")],
        published=published(tasks),
    )


def write_report(derived: Derived, split: str, with_text: bool = False) -> Path:
    """Write the page of a split, with its figures and CSVs beside; returns the page's path."""
    page, store = gather(derived, split, with_text), derived.store
    for name, text in page_files(page).items():
        store.write_text(f"report/{split}/{name}", text)
    return store.write_text(str(derived.report_path(split).relative_to(store.folder)), render(page))


def _claims(derived: Derived) -> list[Claim]:
    """Claims of the study as it is kept; where a validation split is empty there are none."""
    try:
        return Claiming(derived, derived.study).claims()
    except DataError:
        return []


def _clean(derived: Derived, split: str) -> list[Result]:
    """Values on items whose text no training row has in part; none of studies before there were."""
    try:
        flagged = derived.store.read_value("flagged.json")
        return derived.clean_results(split) if any(flagged.values()) else []
    except StoreError:
        return []


def _disagreeing(derived: Derived, split: str) -> list[Disagreement]:
    """Items that the chosen cocktail of a task and its single, or the base, answered unlike.

    Of the first seed that both have, in the task's main form.
    """
    chosen = derived.chosen() or {choice.target: choice.cocktail for choice in _choices(derived)}
    found = []
    for task, name in chosen.items():
        for other in (task, BASE):
            found += disagreements(derived, (task, split), name, other)
    return found


def disagreements(
    derived: Derived, where: tuple[str, str], one: str, other: str
) -> list[Disagreement]:
    """Up to 20 items of a task and split (`where`) that one of two systems got right.

    Of the first seed that both have, in the task's main form; a system without seeds is held
    against the first of the other.

    Raises:
        DataError: the dataset no longer holds what was answered.
    """
    task, split = where
    form = derived.main_form(derived.registry.get(task))
    rows = [
        row for row in derived.finished() if (row.task, row.split, row.form) == (task, split, form)
    ]
    sides = [{row.seed: row for row in rows if row.cocktail == name} for name in (one, other)]
    if one == other or not all(sides):
        return []
    fixed = None in sides[1]
    seeds = [seed for seed in sides[0] if fixed or seed in sides[1]]
    if not seeds:
        return []
    pair = sides[0][seeds[0]], sides[1][None if fixed else seeds[0]]
    scores = [_by_item(derived, row, form) for row in pair]
    texts = {example.id: example.compared_text for example in derived.answers(pair[0])[1]}
    made: list[Disagreement] = []
    for item, first in scores[0].items():
        second = scores[1][item]
        if bool(first.value) == bool(second.value) or len(made) == MOST:
            continue
        good, bad = (first, second) if first.value else (second, first)
        names = (one, other) if first.value else (other, one)
        said = (good.parsed or "–", bad.parsed or "–")
        made.append(Disagreement(task, *names, item, texts[item], good.gold, *said))
    return made


def _by_item(derived: Derived, row: PlanRow, form: str) -> dict[str, Score]:
    scores = (Score(**raw) for raw in derived.store.read_rows(derived.score_file(row)))
    return {score.example: score for score in scores if score.form == form}


def _choices(derived: Derived) -> list[Choice]:
    try:
        return Claiming(derived, derived.study).choices()
    except DataError:
        return []
