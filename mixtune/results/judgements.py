"""Free answers of a study → judgements → what they come to, system by system.

Judgements are facts beside the predictions. They hold what a judge said, and are made again from
the cache of what judges said, so that nothing is asked twice.

Knows: which answers are free text, where judgements are kept. Does not know: which model judges,
what it is asked, how a number is shown.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mixtune.analysis.intervals import Interval, wilson
from mixtune.analysis.readings import mean_interval
from mixtune.errors import SpecError, did_you_mean
from mixtune.evaluation.judge import Cache, Rubric, Settled, judge, self_agreement, settle
from mixtune.identity import make_id
from mixtune.models.base import Model
from mixtune.records import JUDGED_ON, Example, Judged, Judgement, Prediction, Split
from mixtune.results.study_results import StudyFacts, read_answers
from mixtune.store.folder import PlanRow
from mixtune.tasks.metrics import FloatArray

FILE = "judged.parquet"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one judge: rows, outcomes behind them, questions put twice and those that agreed."""

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
        judged: list[Judged] = []
        settled: list[Settled] = []
        agreed = twice = 0
        for row in self.rows:
            answers, left_out = self._answers(row)
            judgements = judge(model, rubric, answers, cache, again)
            self.facts.store.write_rows(_file(row, model, rubric), Judgement, judgements)
            outcomes = settle(judgements)
            judged.append(_judged(row, (model, rubric), outcomes, left_out))
            settled += outcomes
            same, asked = self_agreement(judgements)
            agreed, twice = agreed + same, twice + asked
        return Outcome(judged, settled, agreed, twice)

    def to_label(self, count: int) -> str:
        """JSON lines for people to fill in: answers of all systems in turn, verdicts null."""
        queues = [self._answers(row)[0] for row in self.rows]
        lines: list[str] = []
        for place in range(max(map(len, queues), default=0)):
            for queue in queues:
                if place < len(queue) and len(lines) < count:
                    lines.append(json.dumps(_unlabelled(*queue[place]), ensure_ascii=False))
        return "".join(f"{line}\n" for line in lines)

    def _answers(self, row: PlanRow) -> tuple[list[tuple[Prediction, Example]], int]:
        """Answers that can be judged, and the number of those that cannot."""
        predictions, items = read_answers(self.facts, row)
        examples = {example.id: example for example in items}
        complete = [p for p in predictions if p.finish == "stop" and p.output.strip()]
        return [(p, examples[p.example]) for p in complete], len(predictions) - len(complete)


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
    """Write what verdicts come to, in place of what the same judge said before.

    Returns the rows as they are written, with these words.

    Args:
        facts: the study.
        rows: of one judge.
        validation: whether the judge is validated, in words.
        agreement: how far it agrees with itself, in words.
    """
    new = [replace(row, validation=validation, self_agreement=agreement) for row in rows]
    replaced = {_key(row) for row in new}
    earlier = [row for row in read_judged(facts) if _key(row) not in replaced]
    facts.store.write_rows(FILE, Judged, [*earlier, *new])
    return new


def read_judged(facts: StudyFacts) -> list[Judged]:
    """Judges' verdicts on answers that still are the study's; none where no judge was asked."""
    if not (facts.store.folder / FILE).is_file():
        return []
    answers = {row.id for row in facts.finished()}
    rows = [Judged(**row) for row in facts.store.read_rows(FILE)]
    return [row for row in rows if row.answer in answers]


def _key(row: Judged) -> tuple[str, ...]:
    return row.judge, row.rubric, row.answer


def _file(row: PlanRow, model: Model, rubric: Rubric) -> str:
    judgement = make_id("judgement", {"judge": model.system, "rubric": rubric.id})
    return f"{row.folder}/answers/{row.id}/judgements-{judgement}.parquet"


def _judged(
    row: PlanRow, by: tuple[Model, Rubric], settled: Sequence[Settled], left_out: int
) -> Judged:
    counts: defaultdict[Any, int] = defaultdict(int)
    for one in settled:
        counts[one.outcome] += 1
        counts[one.verdict] += 1
    sure = [one for one in settled if one.verdict is not None]
    values = np.array([(one.verdict or 0) / 2 for one in sure])
    ends = _interval(values, [one.group for one in sure], f"judge/{row.task}/{row.split}")
    model, rubric = by
    return Judged(
        judge=model.system,
        rubric=rubric.id,
        task=row.task,
        split=row.split,
        answer=row.id,
        system=row.system,
        cocktail=row.cocktail,
        seed=row.seed,
        value=float(values.mean()) if sure else None,
        low=ends.low,
        high=ends.high,
        method=ends.method,
        answers=len(settled),
        wrong=counts[0],
        partly=counts[1],
        right=counts[2],
        consistent=counts["consistent"],
        inconsistent=counts["inconsistent"],
        unparsable=counts["unparsable"],
        left_out=left_out,
    )


def _interval(values: FloatArray, groups: Sequence[str], name: str) -> Interval:
    """Of a mean verdict; where all are the same, a resample says wrongly that nothing is unsure."""
    found = mean_interval(values, groups, name)
    if found.low is None or found.low != found.high:
        return found
    clusters = len(set(groups))
    value, bound = float(values.mean()), wilson(0, clusters)[1]
    method = f"no verdict varies: Wilson's bound for an event unseen in {clusters} clusters"
    return Interval(max(0.0, value - bound), min(1.0, value + bound), method)


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
