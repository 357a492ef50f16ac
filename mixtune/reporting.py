"""Everything that the page of a study shows, put together, and the page written.

Knows: what is computed where. Does not know: how it is computed, how it is drawn.
"""

from dataclasses import replace
from pathlib import Path

from mixtune.claiming import Claiming
from mixtune.derive import Derived
from mixtune.errors import DataError, StoreError
from mixtune.questioning import Questioning
from mixtune.records import Claim, Result
from mixtune.report.inputs import ReportInput
from mixtune.report.page import page_files, render


def gather(derived: Derived, split: str) -> ReportInput:
    """Everything the page of a split shows, computed."""
    questions = Questioning(derived, split)
    page = derived.report_input(split)
    return replace(
        page,
        claims=_claims(derived),
        questions=questions.questions(),
        estimates=[*derived.estimates(split), *questions.estimates()],
        clean=_clean(derived, split),
    )


def write_report(derived: Derived, split: str) -> Path:
    """Write the page of a split, with its figures and CSVs beside; returns the page's path."""
    page, store = gather(derived, split), derived.store
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
        return derived.clean_results(split)
    except StoreError:
        return []
