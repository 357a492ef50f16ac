"""Scores predictions against targets, without a model.

Generated text is scored twice: `strict` requires the exact output format, `lenient` extracts the
answer from the text. Log-probabilities of the choices are scored once, as `constrained`. The gap
between strict and lenient measures format errors, the lenient score ability.

A parsed answer has the status `ok` and the value 1 (right) or 0 (wrong). `unparsed`, `truncated`
and `refused` answers have no parsed answer and the value 0. Truncated text is never parsed as
strict; lenient parsing of it uses `Parser.cut`. An infrastructure error gives no score: the run is
not done.

Knows: targets, a task's parser, the four statuses. Does not know: models, prompts, tokens.
"""

from collections import defaultdict
from collections.abc import Sequence

from mixtune.errors import DataError
from mixtune.identity import digest
from mixtune.records import Example, Prediction, Score, Status
from mixtune.tasks import metrics
from mixtune.tasks.parsers import Parse
from mixtune.tasks.parsers.labels import PARSERS, chosen
from mixtune.tasks.task import Task

VERSIONS = {"strict": 2, "constrained": 1, "schema": 1}
"""By form of the answers; increased whenever this module could score one differently."""


def score_version(task: Task, form: str) -> str:
    """Digest of the code that scores a form depends on: this module, the parser, the metrics."""
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
    by_id = {example.id: example for example in examples}
    _check_complete(predictions, by_id, task)
    forms = [(row, row.form) for row in predictions]
    # Appended after the others, so that a score keeps the position of its prediction.
    forms += [(row, "lenient") for row in predictions if row.form == "strict"]
    return [_score(row, by_id[row.example], task, form) for row, form in forms]


def _check_complete(
    predictions: Sequence[Prediction], by_id: dict[str, Example], task: Task
) -> None:
    answered: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for row in predictions:
        answered[row.system, row.form].append(row.example)
    for (system, form), ids in answered.items():
        if sorted(ids) != sorted(by_id):
            raise DataError(
                "there is not one answer to each example",
                where=f"{system}, {form}, {task.name}",
                found=f"{len(ids)} answers to {len(by_id.keys() & ids)} of {len(by_id)} examples",
                remedy="mixtune run STUDY.yaml answers again what was changed on disk",
            )


def _score(prediction: Prediction, example: Example, task: Task, form: str) -> Score:
    parsed, status = _parse(prediction, task, form)
    questions = [turn.content for turn in example.messages if turn.role == "user"]
    right = parsed is not None and PARSERS[task.parser].same(parsed, example.target, questions)
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


def _parse(prediction: Prediction, task: Task, form: str) -> tuple[str | None, Status]:
    """The answer parsed from a prediction, None where there is none, and its status."""
    if prediction.finish == "refused":
        return None, "refused"
    if form == "constrained":
        return _most_likely(prediction), "ok"
    parser, cut = PARSERS[task.parser], prediction.finish == "length"
    if form == "schema":
        parsed = None if cut else chosen(prediction.output, prediction.choices)
        return (parsed, "ok") if parsed is not None else (None, _unparsed(cut))
    parse: Parse | None = parser.strict if form == "strict" else parser.lenient
    if cut:
        parse = parser.cut if form == "lenient" else None
    parsed = parse(prediction.output, task.labels or task.types) if parse else None
    return (parsed, "ok") if parsed is not None else (None, _unparsed(cut))


def _unparsed(cut: bool) -> Status:
    """Status of an answer without a parsed value."""
    return "truncated" if cut else "unparsed"


def _most_likely(prediction: Prediction) -> str:
    """The choice with the highest log-probability; ties go to the first choice."""
    assert len(prediction.choices) == len(prediction.logprobs), "checked by predict"
    best = max(range(len(prediction.choices)), key=prediction.logprobs.__getitem__)
    return prediction.choices[best]
