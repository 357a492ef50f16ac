"""Examples through a model, then scores of its answers against the targets.

A model sees queries, which carry no target; predictions are written once. Generated text is scored
twice: `strict` requires the exact output format, `lenient` extracts the answer from the
text. Log-probabilities of the choices are scored once, as `constrained`. The gap between strict and
lenient measures format errors, the lenient score ability.

A parsed answer has the status `ok` and the value 1 (right) or 0 (wrong). `unparsed`, `truncated`
and `refused` answers have no parsed answer and the value 0. Truncated text is never parsed as
strict; lenient parsing of it uses `Parser.cut`. An infrastructure error gives no score: the run is
not done.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mixtune.errors import DataError, RunFailed
from mixtune.identity import digest
from mixtune.models.base import Chooser, Model
from mixtune.records import (
    Answer,
    Example,
    Form,
    Prediction,
    Query,
    Score,
    Split,
    Status,
)
from mixtune.tasks import metrics
from mixtune.tasks.examples import query_of
from mixtune.tasks.parsers import Parse
from mixtune.tasks.parsers.labels import chosen
from mixtune.tasks.reasoning import split_reasoning
from mixtune.tasks.task import Task

VERSIONS = {"strict": 2, "constrained": 1, "schema": 1}
"""By form of the answers; increased whenever this module could score one differently."""
FINISHES = ("stop", "length", "refused")


@dataclass(frozen=True, slots=True)
class Questions:
    """The items of one task and split as a model sees them; nothing says which answer is right."""

    task: str
    split: Split
    queries: tuple[Query, ...]


def predict(
    model: Model,
    examples: Sequence[Example],
    form: Form,
    split: Split,
    max_new_tokens: int,
    prompt_hash: Callable[[Query], str],
) -> list[Prediction]:
    """One prediction per example of one task and split, in order: see `predict_queries`."""
    for example in examples:
        if example.split != split:
            where = f"{example.task}/{example.id}"
            raise DataError("an example of another split", where=where, found=example.split)
    task = examples[0].task if examples else ""
    questions = Questions(task, split, tuple(map(query_of, examples)))
    return predict_queries(model, questions, form, max_new_tokens, prompt_hash)


def predict_queries(
    model: Model,
    questions: Questions,
    form: Form,
    max_new_tokens: int,
    prompt_hash: Callable[[Query], str],
) -> list[Prediction]:
    """One prediction per query, in order: text, ranked choices, or a choice by schema.

    Raises:
        DataError: an id twice, no choices to rank.
        RunFailed: the model gave too few or too many answers, or one that cannot be used.
    """
    queries = questions.queries
    _check_queries(questions, form)
    answers = _answers(model, queries, form, max_new_tokens)
    if len(answers) != len(queries):
        raise RunFailed(f"{model.system} gave {len(answers)} answers to {len(queries)} queries")
    pairs = list(zip(queries, answers, strict=True))
    for query, answer in pairs:
        _check_answer(f"{model.system} on {query.id}", query, answer, form)
    return [
        Prediction(
            system=model.system,
            task=questions.task,
            split=questions.split,
            example=query.id,
            form=form,
            prompt_hash=prompt_hash(query),
            output=split.answer,
            choices=query.choices,
            logprobs=answer.logprobs if form == "constrained" else (),
            finish=answer.finish,
            latency=answer.latency,
            reasoning=answer.reasoning or split.reasoning,
        )
        for query, answer in pairs
        for split in [split_reasoning(answer.output)]
    ]


def _answers(model: Model, queries: Sequence[Query], form: Form, longest: int) -> list[Answer]:
    if form == "constrained":
        return model.rank(queries)
    if form == "schema":
        if not isinstance(model, Chooser):
            raise RunFailed(f"{model.system} cannot be held to a schema")
        return model.choose(queries, longest)
    return model.generate(queries, longest)


def _check_queries(questions: Questions, form: str) -> None:
    seen: set[str] = set()
    for query in questions.queries:
        where = f"{questions.task}/{query.id}"
        if form in ("constrained", "schema") and not query.choices:
            raise DataError(
                "an open answer cannot be ranked", where=where, remedy="ask for it as strict"
            )
        if query.id in seen:
            raise DataError("an example is asked twice", where=where)
        seen.add(query.id)


def _check_answer(where: str, query: Query, answer: Answer, form: str) -> None:
    """A refused answer needs no log-probabilities; any other ranked one needs all of them."""
    if answer.finish not in FINISHES:
        raise RunFailed(f"{where}: finish {answer.finish!r}, wanted one of {FINISHES}")
    if not (math.isfinite(answer.latency) and answer.latency >= 0):
        raise RunFailed(f"{where}: latency {answer.latency}")
    if form != "constrained" or answer.finish == "refused":
        return
    if len(answer.logprobs) != len(query.choices):
        raise RunFailed(
            f"{where}: {len(answer.logprobs)} log-probabilities for {len(query.choices)} choices"
        )
    for choice, logprob in zip(query.choices, answer.logprobs, strict=True):
        if not math.isfinite(logprob):
            raise RunFailed(f"{where}: log-probability of {choice!r} is {logprob}")


# ---- scores --------------------------------------------------------------------------------------


def score_version(task: Task, form: str) -> str:
    """Digest of the code that scores a form depends on: this module, the parser, the metrics."""
    return digest(
        {"score": VERSIONS[form], "metrics": metrics.VERSION, "parser": task.parser_version}
    )


def score(
    predictions: Sequence[Prediction], examples: Sequence[Example], task: Task
) -> list[Score]:
    """One score per prediction, in order, then one more, `lenient`, for each generated text.

    Raises:
        DataError: a system and form does not answer every example once.
    """
    by_id = {example.id: example for example in examples}
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
    forms = [(row, row.form) for row in predictions]
    # Appended after the others, so that a score keeps the position of its prediction.
    forms += [(row, "lenient") for row in predictions if row.form == "strict"]
    return [_score(row, by_id[row.example], task, form) for row, form in forms]


def _score(prediction: Prediction, example: Example, task: Task, form: str) -> Score:
    parsed, status = _parse(prediction, task, form)
    questions = [turn.content for turn in example.messages if turn.role == "user"]
    right = parsed is not None and task.reader.same(parsed, example.target, questions)
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
    if form == "constrained":  # ties go to the first choice
        assert len(prediction.choices) == len(prediction.logprobs), "checked by predict_queries"
        best = max(range(len(prediction.choices)), key=prediction.logprobs.__getitem__)
        return prediction.choices[best], "ok"
    parser, cut = task.reader, prediction.finish == "length"
    if form == "schema":
        parsed = None if cut else chosen(prediction.output, prediction.choices)
    else:
        parse: Parse | None = parser.strict if form == "strict" else parser.lenient
        if cut:
            parse = parser.cut if form == "lenient" else None
        parsed = parse(prediction.output, task.labels or task.types) if parse else None
    if parsed is None:
        return None, "truncated" if cut else "unparsed"
    return parsed, "ok"
