"""Free answers of a study → judgements → mean verdicts, system by system.

Judgements are facts beside the predictions: the raw answers of a judge. They can be made again from
the cache of judges' answers, so that nothing is asked twice.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np

from mixtune.analysis.intervals import Interval, wilson
from mixtune.analysis.readings import mean_interval
from mixtune.api.ledger import Cache
from mixtune.errors import SpecError, did_you_mean
from mixtune.evaluation.judge import Answered, Rubric, Settled, judge, self_agreement, settle
from mixtune.identity import make_id
from mixtune.models.base import Model
from mixtune.records import JUDGED_ON, Example, Judgement, Prediction, Split
from mixtune.results.study_results import StudyFacts, read_answers
from mixtune.store.folder import PlanRow

FILE = "judged.parquet"


@dataclass(frozen=True, slots=True)
class Judged:
    """Summary of a judge's verdicts on one system and task.

    `value`: mean verdict / 2 over the `consistent` of the judged `answers`, with its interval.
    `left_out`: answers not judged, as they were cut off, refused or empty. `validation` and
    `self_agreement`: how reliable the judge is, in words.
    """

    judge: str
    rubric: str
    task: str
    split: str
    answer: str
    system: str
    cocktail: str
    seed: int | None
    value: float | None
    low: float | None
    high: float | None
    method: str
    answers: int
    wrong: int
    partly: int
    right: int
    consistent: int
    inconsistent: int
    unparsable: int
    left_out: int
    validation: str = ""
    self_agreement: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Verdicts of one judge: rows, what they rest on, questions put twice and those that agreed."""

    rows: list[Judged]
    settled: list[Settled]
    agreed: int
    twice: int


@dataclass(frozen=True, slots=True)
class FreeAnswers:
    """The free answers of a study on one split: facts and the sets of answers to judge."""

    facts: StudyFacts
    rows: list[PlanRow]

    def judge(self, model: Model, rubric: Rubric, cache: Cache, again: int) -> Outcome:
        """Judge every answer; judgements are written beside the answers."""
        by = {"judge": model.system, "rubric": rubric.id}
        name = f"judgements-{make_id('judgement', by)}.parquet"
        judged: list[Judged] = []
        settled: list[Settled] = []
        agreed = twice = 0
        for row in self.rows:
            answers, left_out = self._answers(row)
            judgements = judge(model, rubric, answers, cache, again)
            file = f"{row.folder}/answers/{row.id}/{name}"
            self.facts.store.write_rows(file, Judgement, judgements)
            outcomes = settle(judgements)
            judged.append(_judged(row, by, outcomes, left_out))
            settled += outcomes
            same, repeated = self_agreement(judgements)
            agreed, twice = agreed + same, twice + repeated
        return Outcome(judged, settled, agreed, twice)

    def to_label(self, count: int) -> str:
        """JSON lines for people to fill in: answers of all systems in turn, verdicts null."""
        queues = zip_longest(*(self._answers(row)[0] for row in self.rows))
        answers = [answer for turn in queues for answer in turn if answer][:count]
        lines = [json.dumps(_unlabelled(*answer), ensure_ascii=False) for answer in answers]
        return "".join(f"{line}\n" for line in lines)

    def _answers(self, row: PlanRow) -> tuple[list[Answered], int]:
        """Answers that can be judged, and the number of those that cannot."""
        predictions, items = read_answers(self.facts, row)
        examples = {example.id: example for example in items}
        complete = [p for p in predictions if p.finish == "stop" and p.output.strip()]
        answers = [Answered(p, examples[p.example]) for p in complete]
        return answers, len(predictions) - len(complete)


def free_answers(facts: StudyFacts, split: Split, only: Sequence[str] = ()) -> FreeAnswers:
    """Sets of free answers on a split; `only`: names of tasks, empty for all that have some.

    Raises:
        SpecError: no such task among them, there are none, or they are on another split.
    """
    free = list(facts.free_text_tasks)
    names = [facts.registry.get(name).name for name in only] or free
    for name in names:
        if name not in free:
            raise SpecError(
                f"{name} has no free answers in this study",
                wanted=did_you_mean(name, free) if free else "a study with an open task",
                remedy="mixtune results scores the others",
            )
    if not names:
        raise SpecError(
            "no task of this study has free answers",
            where=facts.study.name,
            found=", ".join(facts.tasks),
            remedy="mixtune results scores labels and numbers",
        )
    if split != JUDGED_ON and all(facts.free_text_tasks[name].judged for name in names):
        raise SpecError(
            f"{', '.join(names)} is answered on {JUDGED_ON} only",
            found=f"--split {split}",
            remedy=f"--split {JUDGED_ON}: nothing is chosen by what is judged",
        )
    rows = [
        row
        for row in facts.finished()
        if row.task in names and row.split == split and row.form == "strict"
    ]
    return FreeAnswers(facts, rows)


def write_judged(
    facts: StudyFacts, rows: Sequence[Judged], validation: str, agreement: str
) -> list[Judged]:
    """Write one judge's summaries in place of its earlier ones; returns them as they are written.

    `validation`: whether the judge is validated; `agreement`: how far it agrees with itself.
    """
    new = [replace(row, validation=validation, self_agreement=agreement) for row in rows]
    rows_of = {(row.judge, row.rubric, row.answer): row for row in read_judged(facts)}
    for row in new:
        rows_of.pop((row.judge, row.rubric, row.answer), None)
    facts.store.write_rows(FILE, Judged, [*rows_of.values(), *new])
    return new


def read_judged(facts: StudyFacts) -> list[Judged]:
    """Judges' verdicts on answers that still are the study's; none where no judge was asked."""
    if not (facts.store.folder / FILE).is_file():
        return []
    answers = {row.id for row in facts.finished()}
    rows = facts.store.read_records(FILE, Judged)
    return [row for row in rows if row.answer in answers]


def _judged(
    row: PlanRow, by: Mapping[str, str], settled: Sequence[Settled], left_out: int
) -> Judged:
    outcomes = Counter(answer.outcome for answer in settled)
    verdicts = Counter(answer.verdict for answer in settled)
    consistent = [answer for answer in settled if answer.verdict is not None]
    values = np.array([(answer.verdict or 0) / 2 for answer in consistent])
    value = float(values.mean()) if consistent else None
    groups = [answer.group for answer in consistent]
    ci = mean_interval(values, groups, f"judge/{row.task}/{row.split}")
    if value is not None and ci.low is not None and ci.low == ci.high:
        # Where all verdicts are the same, a bootstrap would claim no uncertainty.
        clusters = len(set(groups))
        bound = wilson(0, clusters)[1]
        method = f"no verdict varies: Wilson's bound for an event unseen in {clusters} clusters"
        ci = Interval(max(0.0, value - bound), min(1.0, value + bound), method)
    return Judged(
        **by,
        task=row.task,
        split=row.split,
        answer=row.id,
        system=row.system,
        cocktail=row.cocktail,
        seed=row.seed,
        value=value,
        low=ci.low,
        high=ci.high,
        method=ci.method,
        answers=len(settled),
        wrong=verdicts[0],
        partly=verdicts[1],
        right=verdicts[2],
        consistent=outcomes["consistent"],
        inconsistent=outcomes["inconsistent"],
        unparsable=outcomes["unparsable"],
        left_out=left_out,
    )


def _unlabelled(prediction: Prediction, example: Example) -> dict[str, object]:
    return {
        "task": prediction.task,
        "system": prediction.system,
        "example": prediction.example,
        "question": "\n\n".join(message.content for message in example.messages),
        "reference": example.target,
        "answer": prediction.output,
        "verdict": None,
    }
