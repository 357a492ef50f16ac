"""How long an answer may be, from the answers that are known to be right.

Knows: gold answers, tokens. Does not know: splits, tasks, what models answer.
"""

from collections import Counter
from collections.abc import Sequence

from mixtune.errors import DataError
from mixtune.tokens import Tokens

PERCENT = 99
"""Of the gold answers that are no longer than the limit, at least."""


def longest_answer(gold: Sequence[str], tokens: Tokens) -> int:
    """The 99th percentile of the answers' lengths in tokens, end of turn included.

    By nearest rank: the length of an answer that exists, the smallest that at least 99 of 100 do
    not exceed.

    Raises:
        DataError: no answers.
    """
    if not gold:
        raise DataError(
            "no answers to take a length limit from",
            wanted="train or validation rows",
            remedy="set evaluate.max_new_tokens to a number",
        )
    rank = -(-PERCENT * len(gold) // 100)
    counts: Counter[int] = Counter()
    asked = Counter(gold)
    for ids, count in zip(tokens.answers_ids(list(asked)), asked.values(), strict=True):
        counts[len(ids)] += count
    seen = 0
    for length in sorted(counts):
        seen += counts[length]
        if seen >= rank:
            return length
    raise AssertionError("a rank is at most the number of answers")
