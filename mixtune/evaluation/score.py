"""Predictions against targets: one score per answer.

Knows: targets, a task's parser, the four statuses. Does not know: models, prompts, tokens.

Four things are kept apart. An answer that was read is `ok`, right (1) or wrong (0). One in which
the parser finds no answer of the form asked for is `unparsed`; one that was cut off is `truncated`,
whatever its beginning says; one the model declined is `refused`; these three have the value 0 and
no parsed answer. An infrastructure error has no row at all: the run is not done.
"""

from collections import defaultdict
from collections.abc import Sequence

from mixtune import metrics
from mixtune.errors import DataError
from mixtune.identity import digest
from mixtune.models.api_schema import chosen
from mixtune.records import Example, Prediction, Score, Status
from mixtune.tasks.base import Task
from mixtune.tasks.parsers import PARSERS

VERSION = 1
"""Raised whenever this module could judge an answer differently."""


def score_version(task: Task) -> str:
    """What a score depends on beside the answer: this module, the task's parser and metrics."""
    parts = {"score": VERSION, "metrics": metrics.VERSION, "parser": task.parser_version}
    return digest(parts)


def score(
    predictions: Sequence[Prediction], examples: Sequence[Example], task: Task
) -> list[Score]:
    """One score per prediction, in order. Every system and form must answer every example once.

    Raises:
        DataError: a prediction without an example, twice, or missing.
    """
    known = {example.id: example for example in examples}
    _check_complete(predictions, known, task)
    return [_judge(prediction, known[prediction.example], task) for prediction in predictions]


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


def _judge(prediction: Prediction, example: Example, task: Task) -> Score:
    parsed, status = _read(prediction, task)
    return Score(
        system=prediction.system,
        task=prediction.task,
        split=prediction.split,
        example=prediction.example,
        form=prediction.form,
        group=example.group,
        stratum=example.stratum,
        parsed=parsed,
        gold=example.target,
        value=float(parsed is not None and PARSERS[task.parser].same(parsed, example.target)),
        status=status,
    )


def _read(prediction: Prediction, task: Task) -> tuple[str | None, Status]:
    """The answer read from a prediction, None where there is none, and why."""
    if prediction.finish == "refused":
        return None, "refused"
    if prediction.form == "constrained":
        return _likeliest(prediction), "ok"
    if prediction.finish == "length":
        return None, "truncated"
    if prediction.form == "schema":
        parsed = chosen(prediction.output, prediction.choices)
    else:
        parsed = PARSERS[task.parser].strict(prediction.output, task.labels)
    return (parsed, "ok") if parsed is not None else (None, "unparsed")


def _likeliest(prediction: Prediction) -> str:
    """The choice with the highest log-probability; of equal ones the first in order of choices."""
    assert len(prediction.choices) == len(prediction.logprobs), "held to it by predict"
    best = max(range(len(prediction.choices)), key=prediction.logprobs.__getitem__)
    return prediction.choices[best]
