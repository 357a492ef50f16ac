"""What a page is made from: estimates, counts and runs, already computed.

Knows: the parts of a page. Does not know: how they were computed or how they are drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mixtune.analysis.readings import Published
from mixtune.records import (
    Claim,
    DataRow,
    Estimate,
    Judged,
    LengthRow,
    MixRow,
    Question,
    Result,
    RunRow,
    TrainStep,
)
from mixtune.study.spec import Study


@dataclass(frozen=True, slots=True)
class Disagreement:
    """An item that one of two systems got right and the other did not; it holds dataset text."""

    task: str
    right: str
    wrong: str
    item: str
    text: str
    gold: str
    said_right: str
    said_wrong: str


@dataclass(frozen=True)
class ReportInput:
    """Everything on one page.

    `results`, `means` (analysis.results.cocktail_means) and `differences` may hold several splits;
    the page shows `split`. `mixes` and `curves` are keyed by run id. `tasks`: name → title, in the
    order of the columns. `main_forms`: task → the form that it is compared and chosen in.
    `chosen`: task → cocktail chosen on validation, for a page that shows test; empty where the page
    chooses the best of what it shows. `test_reads`: how often test scores were looked at. `data`:
    what was read, `lengths`: tokens per row, each in the order shown. `published`: what others
    measured on tasks of the same name. `claims`: what may be said of each target. `estimates`: all
    that is known beside means and differences. `clean`: `results` on the items whose text no
    training row has in part. `retention`: what `mixtune probe` found. `judged`: what judges said of
    free answers, on the page's split. `disagreements`: only where text was asked for.
    """

    study: Study
    resolved_yaml: str
    model_note: str
    synthetic: bool
    split: str
    results: Sequence[Result]
    means: Sequence[Estimate]
    differences: Sequence[Estimate]
    mixes: Sequence[tuple[str, MixRow]]
    runs: Sequence[RunRow]
    curves: Mapping[str, Sequence[TrainStep]]
    created: str
    tasks: Mapping[str, str]
    version: str
    test_reads: int
    main_forms: Mapping[str, str]
    chosen: Mapping[str, str] = field(default_factory=dict)
    data: Sequence[DataRow] = ()
    lengths: Sequence[LengthRow] = ()
    published: Sequence[Published] = ()
    claims: Sequence[Claim] = ()
    questions: Sequence[Question] = ()
    estimates: Sequence[Estimate] = ()
    clean: Sequence[Result] = ()
    retention: Sequence[Estimate] = ()
    judged: Sequence[Judged] = ()
    disagreements: Sequence[Disagreement] = ()

    @property
    def confirms(self) -> bool:
        """Whether the page reads on test what was chosen on validation."""
        return self.split == "test" and bool(self.chosen)
