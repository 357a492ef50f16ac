"""Collect everything that the page of a study shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

import pyarrow.compute as pc

from mixtune import __version__
from mixtune.analysis.measures import BASE
from mixtune.analysis.readings import Published, published
from mixtune.records import (
    Claim,
    DataRow,
    Estimate,
    MixRow,
    Question,
    Result,
    Score,
    TrainStep,
)
from mixtune.results.claims import exploratory_claims, selected_claims, study_choices
from mixtune.results.judgements import Judged, read_judged
from mixtune.results.questions import agreeing, gather_evidence, questions
from mixtune.results.study_results import (
    RunRow,
    SplitResults,
    StudyFacts,
    read_answers,
    run_rows,
    training_curves,
)
from mixtune.store.folder import PlanRow
from mixtune.study.spec import Study

MOST = 20
"""Items that are shown of a pair of systems and a task."""


@dataclass(frozen=True, slots=True)
class LengthRow:
    """Tokens per row of an ingredient's pool (planning.summary): sums and quantiles.

    `supervised`: the answer's part. Sums, quantiles and `over_long` are of the `measured` rows.
    """

    ingredient: str
    rows: int
    measured: int
    over_long: int
    tokens: int
    tokens_min: int
    tokens_p5: int
    tokens_median: int
    tokens_p95: int
    tokens_max: int
    supervised: int
    supervised_min: int
    supervised_p5: int
    supervised_median: int
    supervised_p95: int
    supervised_max: int


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
    chooses the best of what it shows. `test_reads`: how often test scores were looked at, at least
    where `looks_lost`. `data`:
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
    looks_lost: bool
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
        """True for a page that reads on test what was chosen on validation."""
        return self.split == "test" and bool(self.chosen)

    @cached_property
    def main_metrics(self) -> dict[str, str]:
        """Task → the metric that its results name first."""
        return {row.task: row.metric for row in reversed(self.results)}

    def is_main(self, task: str, form: str, metric: str) -> bool:
        """True for the form and metric that a task is compared and chosen in."""
        return (form, metric) == (self.main_forms.get(task), self.main_metrics.get(task))

    @cached_property
    def split_results(self) -> list[Result]:
        """`results` on the page's split."""
        return [row for row in self.results if row.split == self.split]

    @cached_property
    def main_results(self) -> list[Result]:
        """Those in the main metric of a task of the page, in every form."""
        main = self.main_metrics
        return [r for r in self.split_results if r.task in self.tasks and r.metric == main[r.task]]


def gather(facts: StudyFacts, split: str, with_text: bool = False) -> ReportInput:
    """Everything the page of a split shows, computed; `with_text`: items of the datasets too.

    Raises:
        DataError: text is asked for, and the datasets no longer hold what was answered.
    """
    settings = facts.study.claims
    evidence = gather_evidence(facts, split)
    validation, shown, best = evidence.validation, evidence.split, evidence.best
    store, tasks = facts.store, facts.tasks
    flagged = store.read_value("flagged.json")
    if facts.selection is None:
        claims = exploratory_claims(facts, settings, validation)
    else:
        claims = selected_claims(facts, facts.selection)
    rows: list[Disagreement] = []
    if with_text:
        choices = [] if best else study_choices(facts, settings, validation)
        for task, name in (best or {c.target: c.cocktail for c in choices}).items():
            for reference in (task, BASE):
                rows += disagreements(facts, shown, task, (name, reference))
    return ReportInput(
        study=facts.study,
        resolved_yaml=store.read_text("study.yaml"),
        model_note=facts.model_note,
        synthetic=any(task.synthetic for task in tasks.values()),
        split=split,
        results=shown.results,
        means=shown.means,
        differences=shown.differences,
        mixes=facts.mixes,
        runs=run_rows(facts),
        curves=training_curves(facts),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tasks={name: task.title for name, task in tasks.items()},
        version=__version__,
        test_reads=store.test_reads(),
        looks_lost=store.looks_lost() is not None,
        main_forms={name: main.form for name, main in facts.main_metrics.items()},
        chosen=best if split == "test" else {},
        data=store.read_records("data.json", DataRow),
        lengths=store.read_records("lengths.json", LengthRow),
        published=published(tasks),
        claims=claims,
        questions=[*questions(evidence), agreeing([evidence])],
        estimates=[*shown.estimates(settings.margin), *evidence.estimates.rows],
        clean=shown.without_items(flagged) if any(flagged.values()) else [],
        retention=evidence.retention,
        judged=[row for row in read_judged(facts) if row.split == split],
        disagreements=tuple(rows),
    )


def disagreements(
    facts: StudyFacts, shown: SplitResults, task: str, pair: tuple[str, str]
) -> list[Disagreement]:
    """Up to 20 items of a task that one of two cocktails or fixed systems (`pair`) got right.

    Of the first seed that both have, in the task's main form; a system without seeds is held
    against the first of the other.

    Raises:
        DataError: the dataset no longer holds what was answered.
    """
    form = facts.main_metrics[task].form
    key = (task, shown.split, form)
    rows = [row for row in facts.finished() if (row.task, row.split, row.form) == key]
    first, second = ({row.seed: row for row in rows if row.cocktail == name} for name in pair)
    fixed = None in second
    seeds = [seed for seed in first if fixed or seed in second]
    if pair[0] == pair[1] or not second or not seeds:
        return []
    answers = first[seeds[0]], second[None if fixed else seeds[0]]
    scores, reference_scores = (_by_item(shown, row) for row in answers)
    texts = {example.id: example.compared_text for example in read_answers(facts, answers[0])[1]}
    unlike: list[Disagreement] = []
    for item, score in scores.items():
        reference = reference_scores[item]
        if bool(score.value) != bool(reference.value):
            right, wrong = (score, reference) if score.value else (reference, score)
            names = pair if score.value else pair[::-1]
            parsed = (right.parsed or "–", wrong.parsed or "–")
            unlike.append(Disagreement(task, *names, item, texts[item], right.gold, *parsed))
    return unlike[:MOST]


def _by_item(shown: SplitResults, row: PlanRow) -> dict[str, Score]:
    table = shown.scores
    for column in ("task", "form", "system"):
        table = table.filter(pc.equal(table[column], getattr(row, column)))
    return {score.example: score for score in (Score(**raw) for raw in table.to_pylist())}
