"""Examples through a model: facts, written once.

Knows: which question is put and that every question got one usable answer. Does not know: which
answer is right (a model sees queries, which carry no target), parsers, metrics.
"""

import math
from collections.abc import Callable, Sequence

from mixtune.errors import DataError, RunFailed
from mixtune.models.base import Chooser, Model
from mixtune.records import Answer, Example, Form, Prediction, Query, Split
from mixtune.tasks.task import query_of

FINISHES = ("stop", "length", "refused")


def predict(
    model: Model,
    examples: Sequence[Example],
    form: Form,
    split: Split,
    max_new_tokens: int,
    prompt_hash: Callable[[Query], str],
) -> list[Prediction]:
    """One prediction per example, in order: text, ranked choices, or a choice by schema.

    Raises:
        DataError: an id twice, an example of another split, no choices to rank.
        RunFailed: the model gave too few or too many answers, or one that cannot be used.
    """
    _check_examples(examples, form, split)
    queries = [query_of(example) for example in examples]
    answers = _asked(model, queries, form, max_new_tokens)
    if len(answers) != len(queries):
        raise RunFailed(f"{model.system} gave {len(answers)} answers to {len(queries)} queries")
    predictions = []
    for example, query, answer in zip(examples, queries, answers, strict=True):
        _check_answer(model.system, query, answer, form)
        predictions.append(
            Prediction(
                system=model.system,
                task=example.task,
                split=split,
                example=example.id,
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


def _asked(model: Model, queries: Sequence[Query], form: Form, longest: int) -> list[Answer]:
    if form == "constrained":
        return model.rank(queries)
    if form == "schema":
        if not isinstance(model, Chooser):
            raise RunFailed(f"{model.system} cannot be held to a schema")
        return model.choose(queries, longest)
    return model.generate(queries, longest)


def _check_examples(examples: Sequence[Example], form: str, split: str) -> None:
    seen: set[tuple[str, str]] = set()
    for example in examples:
        where = f"{example.task}/{example.id}"
        if example.split != split:
            raise DataError("an example of another split", where=where, found=example.split)
        if form in ("constrained", "schema") and not example.choices:
            raise DataError(
                "an open answer cannot be ranked", where=where, remedy="ask for it as strict"
            )
        if (example.task, example.id) in seen:
            raise DataError("an example is asked twice", where=where)
        seen.add((example.task, example.id))


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
