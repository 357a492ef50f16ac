"""Lengths of rows, prompts and answers in tokens, each text encoded once.

A plan needs lengths only, of the same few thousand rows in most runs. Token rows are made when a
run is trained (tokens.encode_rows, which refuses what is refused here).

Knows: examples, gold answers, the tokenizer. Does not know: cocktails, ids, policies for long rows.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mixtune.errors import DataError
from mixtune.records import Example, TrainExample
from mixtune.tokens import Tokens, refuse_answers, too_long


@dataclass(frozen=True, slots=True)
class RowSize:
    """Tokens of one training row: `length` of prompt and answer, `supervised` of the answer.

    The answer includes its end of turn.
    """

    ingredient: str
    example_id: str
    length: int
    supervised: int


class Sizes:
    """Cached lengths of examples, keyed by identity, since a study's pools outlive this object."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._prompts: dict[int, tuple[Example, int]] = {}
        self._answers: dict[str, int] = {}
        self._usable: set[str] = set()

    def rows(
        self, examples: Sequence[TrainExample], max_length: int | None = None
    ) -> list[RowSize]:
        """Sizes of examples as training rows, in order.

        Raises:
            DataError: an empty answer, one with a control token, or a row over `max_length`.
        """
        self._refuse(examples)
        plain = [each.example for each in examples]
        lengths = zip(examples, self.prompts(plain), self.answers(plain), strict=True)
        sizes = [
            RowSize(ingredient, example.id, prompt + answer, answer)
            for (ingredient, example), prompt, answer in lengths
        ]
        for row in sizes:
            if max_length is not None and row.length > max_length:
                raise too_long(
                    row.ingredient, row.example_id, row.length, row.supervised, max_length
                )
        return sizes

    def prompts(self, examples: Sequence[Example]) -> list[int]:
        """Tokens of each example's prompt."""
        new = {id(e): e for e in examples if id(e) not in self._prompts}
        lengths = map(len, self._tokens.batch_prompt_ids(e.messages for e in new.values()))
        self._prompts |= {
            key: (example, length)
            for (key, example), length in zip(new.items(), lengths, strict=True)
        }
        return [self._prompts[id(example)][1] for example in examples]

    def answers(self, examples: Sequence[Example]) -> list[int]:
        """Tokens of each example's answer with its end of turn; nothing is refused."""
        self.encode(example.target for example in examples)
        return [self._answers[example.target] for example in examples]

    def encode(self, texts: Iterable[str]) -> None:
        """Encode the answers that are not cached yet."""
        new = [text for text in dict.fromkeys(texts) if text not in self._answers]
        lengths = map(len, self._tokens.batch_answer_ids(new))
        self._answers |= dict(zip(new, lengths, strict=True))

    def _refuse(self, examples: Iterable[TrainExample]) -> None:
        new: dict[str, TrainExample] = {}
        for each in examples:
            if each.example.target not in self._usable:
                new.setdefault(each.example.target, each)
        refuse_answers(list(new.values()), self._tokens)
        self._usable |= new.keys()


PERCENTILE = 99
"""Percentile of gold answer lengths that limits generated answers."""


def longest_answer(gold: Sequence[str], tokens: Tokens) -> int:
    """The 99th percentile (nearest rank) of answer lengths in tokens, end of turn included.

    Raises:
        DataError: no answers.
    """
    if not gold:
        raise DataError(
            "no answers to take a length limit from",
            wanted="train or validation rows",
            remedy="set evaluate.max_new_tokens to a number",
        )
    rank = -(-PERCENTILE * len(gold) // 100)
    counts: Counter[int] = Counter()
    texts = Counter(gold)
    for ids, count in zip(tokens.batch_answer_ids(list(texts)), texts.values(), strict=True):
        counts[len(ids)] += count
    cumulative = 0
    for length in sorted(counts):
        cumulative += counts[length]
        if cumulative >= rank:
            return length
    raise AssertionError("a rank is at most the number of answers")
