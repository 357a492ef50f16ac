"""Examples through a model: facts, written once.

Knows: which question is put and that every question got one usable answer. Does not know: which
answer is right (a model sees queries, which carry no target), parsers, metrics.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mixtune.errors import DataError, RunFailed
from mixtune.models.base import Chooser, Model
from mixtune.records import Answer, Example, Form, Prediction, Query, Split
from mixtune.tasks.task import query_of

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
    """One prediction per example of a task, in order: see `predict_queries`.

    Raises:
        DataError: an example of another split, or as `predict_queries`.
        RunFailed: as `predict_queries`.
    """
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
    predictions = []
    for query, answer in zip(queries, answers, strict=True):
        _check_answer(model.system, query, answer, form)
        predictions.append(
            Prediction(
                system=model.system,
                task=questions.task,
                split=questions.split,
                example=query.id,
                form=form,
                prompt_hash=prompt_hash(query),
                output=answer.output,
                choices=query.choices,
                logprobs=answer.logprobs if form == "constrained" else (),
                finish=answer.finish,
                latency=answer.latency,
            )
        )
    return predictions


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


def _check_answer(system: str, query: Query, answer: Answer, form: str) -> None:
    """A refused answer needs no log-probabilities; any other ranked one needs all of them."""
    where = f"{system} on {query.id}"
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
