"""Training rows: checked answers, token ids of prompt and answer, over-long rows dropped or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mixtune.errors import DataError
from mixtune.records import Example, ReasonedText, TrainExample
from mixtune.tokens.chat import Tokens


@dataclass(frozen=True, slots=True)
class Row:
    """One training row in token ids; `answer` (with its end of turn) is what is supervised."""

    ingredient: str
    example_id: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of prompt and answer together."""
        return len(self.prompt) + len(self.answer)

    @property
    def supervised(self) -> int:
        """Tokens of the answer."""
        return len(self.answer)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Training rows in order, and how many were dropped of each ingredient (0 included)."""

    rows: list[Row]
    dropped: dict[str, int]


def encode_rows(
    examples: Sequence[TrainExample],
    tokens: Tokens,
    max_length: int,
    over_long: Literal["error", "drop"],
) -> Encoded:
    """Training rows of examples, in their order; each is a row, or dropped and counted.

    `max_length` is in tokens, prompt and answer together.

    Raises:
        DataError: an empty answer, an answer that contains a control token, or a row longer than
            `max_length` under the policy "error".
    """
    refuse_answers(examples, tokens)
    # Examples come again in later epochs, and labels in many examples: each is encoded once.
    prompts: dict[Example, tuple[int, ...]] = {}
    answers: dict[ReasonedText, tuple[int, ...]] = {}
    rows: list[Row] = []
    dropped = {ingredient: 0 for ingredient, _ in examples}
    for ingredient, example in examples:
        answer = ReasonedText(example.reasoning, example.target)
        if answer not in answers:
            answers[answer] = tuple(tokens.answer_ids(answer.answer, answer.reasoning))
        if example not in prompts:
            prompts[example] = tuple(tokens.prompt_ids(example.messages))
        row = Row(ingredient, example.id, prompts[example], answers[answer])
        if row.length <= max_length:
            rows.append(row)
        elif over_long == "drop":
            dropped[ingredient] += 1
        else:
            raise too_long(ingredient, example.id, row.length, row.supervised, max_length)
    return Encoded(rows, dropped)


def refuse_answers(examples: Sequence[TrainExample], tokens: Tokens) -> None:
    """Check the answers of training examples.

    Raises:
        DataError: an empty answer, or one that contains a control token.
    """
    texts = list(dict.fromkeys(e.target for _, e in examples))
    texts += dict.fromkeys(e.reasoning for _, e in examples if e.reasoning)
    controls = set(tokens.with_control_token(texts))
    for ingredient, example in examples:
        if not example.target.strip():
            raise DataError(
                "the answer is empty: there is nothing to learn from it",
                where=_where(ingredient, example.id),
                found=example.target,
                remedy="fix the row or leave it out of the dataset",
            )
        if not controls.isdisjoint((example.target, example.reasoning)):
            raise DataError(
                "the answer contains a control token of the model, spelled out",
                where=_where(ingredient, example.id),
                found=example.target if example.target in controls else example.reasoning,
                wanted="text only: the end of turn is added here",
                remedy="remove the token from the row",
            )


def too_long(
    ingredient: str, example: str, length: int, supervised: int, max_length: int
) -> DataError:
    """The error for a row of `length` tokens, of which `supervised` are the answer's."""
    return DataError(
        "a training row is too long",
        where=_where(ingredient, example),
        found=f"{length} tokens ({length - supervised} prompt, {supervised} answer)",
        wanted=f"at most {max_length} tokens",
        remedy=f"set train.max_length={length} or more, or train.over_long=drop to leave such "
        "rows out and count them",
    )


def _where(ingredient: str, example: str) -> str:
    return f"ingredient {ingredient}, example {example}"
