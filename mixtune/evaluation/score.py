"""Predictions against targets: up to three scores for each answer, without a model.

Knows: targets, a task's parser, the four statuses. Does not know: models, prompts, tokens.

A generated text is judged twice, as `strict` (the exact form asked for) and as `lenient` (the
answer extracted from it); log-probabilities of the choices once, as `constrained`. The difference
of the first two is form, what is left is ability.

Four things are kept apart. An answer that was read is `ok`, right (1) or wrong (0). One in which
the parser finds no answer is `unparsed`; one that was cut off is `truncated`, whatever its
beginning says; one the model declined is `refused`; these three have the value 0 and no parsed
answer. A lenient reading takes from a text that was cut off what the parser can be sure of
(Parser.cut), and is `truncated` where that is nothing. An infrastructure error has no row at all:
the run is not done.
"""

from collections import defaultdict
from collections.abc import Sequence

from mixtune.errors import DataError
from mixtune.identity import digest
from mixtune.records import Example, Prediction, Score, Status
from mixtune.tasks import metrics
from mixtune.tasks.label_schema import chosen
from mixtune.tasks.parsers.labels import PARSERS, Parse
from mixtune.tasks.task import Task

VERSIONS = {"strict": 2, "constrained": 1, "schema": 1}
"""By the form of the answers; raised whenever this module could judge one differently."""


def score_version(task: Task, form: str) -> str:
    """What the scores of answers of a form depend on: this module, the parser and the metrics."""
    parts = {"score": VERSIONS[form], "metrics": metrics.VERSION, "parser": task.parser_version}
    return digest(parts)


def score(
    predictions: Sequence[Prediction], examples: Sequence[Example], task: Task
) -> list[Score]:
    """One score per prediction, in order, then one more, `lenient`, for each generated text.

    Every system and form must answer every example once.

    Raises:
        DataError: a prediction without an example, twice, or missing.
    """
    known = {example.id: example for example in examples}
    _check_complete(predictions, known, task)
    asked = [(row, row.form) for row in predictions]
    asked += [(row, "lenient") for row in predictions if row.form == "strict"]
    return [_judge(row, known[row.example], task, form) for row, form in asked]


def _check_complete(
    predictions: Sequence[Prediction], known: dict[str, Example], task: Task
) -> None:
    answered: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for row in predictions:
        answered[row.system, row.form].append(row.example)
    for (system, form), ids in answered.items():
        if sorted(ids) != sorted(known):
            raise DataError(
                "there is not one answer to each example",
                where=f"{system}, {form}, {task.name}",
                found=f"{len(ids)} answers to {len(known.keys() & ids)} of {len(known)} examples",
                remedy="mixtune run STUDY.yaml answers again what was changed on disk",
            )


def _judge(prediction: Prediction, example: Example, task: Task, form: str) -> Score:
    parsed, status = _read(prediction, task, form)
    asked = [turn.content for turn in example.messages if turn.role == "user"]
    right = parsed is not None and PARSERS[task.parser].same(parsed, example.target, asked)
    return Score(
        system=prediction.system,
        task=prediction.task,
        split=prediction.split,
        example=prediction.example,
        form=form,
        group=example.group,
        stratum=example.stratum,
        parsed=parsed,
        gold=example.target,
        value=float(right),
        status=status,
    )


def _read(prediction: Prediction, task: Task, form: str) -> tuple[str | None, Status]:
    """The answer read from a prediction, None where there is none, and why."""
    if prediction.finish == "refused":
        return None, "refused"
    if form == "constrained":
        return _likeliest(prediction), "ok"
    parser, cut = PARSERS[task.parser], prediction.finish == "length"
    if form == "schema":
        parsed = None if cut else chosen(prediction.output, prediction.choices)
        return (parsed, "ok") if parsed is not None else (None, _unread(cut))
    read: Parse | None = parser.strict if form == "strict" else parser.lenient
    if cut:
        read = parser.cut if form == "lenient" else None
    parsed = read(prediction.output, task.labels or task.types) if read else None
    return (parsed, "ok") if parsed is not None else (None, _unread(cut))


def _unread(cut: bool) -> Status:
    """Why nothing was read."""
    return "truncated" if cut else "unparsed"


def _likeliest(prediction: Prediction) -> str:
    """The choice with the highest log-probability; of equal ones the first in order of choices."""
    assert len(prediction.choices) == len(prediction.logprobs), "held to it by predict"
    best = max(range(len(prediction.choices)), key=prediction.logprobs.__getitem__)
    return prediction.choices[best]
