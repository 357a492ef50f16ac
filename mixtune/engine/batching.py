"""Which rows share a forward pass: rows of one header, of similar length, within a size limit.

Knows: token ids, lengths, common prefixes, what a pass costs in tokens. Does not know: torch,
what the tokens mean.

A pass with a shared header computes the header once and only the remainders per row:

    header   |----------|
    row 1               |------|
    row 2               |--------|          cost = header + rows x longest remainder
    row 3               |-----|
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mixtune.tokens import Row

MAX_ROWS = 16
MAX_TOKENS = 2048
"""Limits of one pass (remainders with their padding): they bound the memory of activations."""

PASS_COST = 48
"""What one more pass costs beside its tokens, in tokens: reading all weights, starting kernels."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows of one pass, and the length of the header that is computed once for all (0: none)."""

    rows: tuple[Row, ...]
    header: int


def micro_batches(rows: Sequence[Row], span: int | None = None) -> list[MicroBatch]:
    """Split a step's rows into the passes that cost least; a function of the rows alone.

    Rows are ordered by ingredient and length (rows of an ingredient share its header) and cut into
    contiguous runs by dynamic programming over the cost of each run. Rows longer than `span` go
    alone.

    Raises:
        ValueError: a row has no prompt or no answer.
    """
    for row in rows:
        if not row.prompt or not row.answer:
            raise ValueError(f"{row.ingredient}/{row.example_id} has no prompt or no answer")
    ordered = sorted(rows, key=lambda row: (row.ingredient, row.length, row.prompt, row.answer))
    cheapest: list[tuple[int, int, int]] = [(0, 0, 0)]  # cost up to here, start and header of run
    for end in range(1, len(ordered) + 1):
        cheapest.append(_best_run(ordered, end, cheapest, span))
    batches: list[MicroBatch] = []
    end = len(ordered)
    while end:
        _, start, header = cheapest[end]
        batches.append(MicroBatch(tuple(ordered[start:end]), header))
        end = start
    return batches[::-1]


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Length of the longest common prefix that leaves every prompt at least one token."""
    # The prefix that the smallest and the largest sequence share is shared by all between them.
    low, high = min(map(tuple, prompts)), max(map(tuple, prompts))
    limit = min(len(prompt) for prompt in prompts) - 1
    for position in range(limit):
        if low[position] != high[position]:
            return position
    return limit


def shared_header(prompts: Sequence[Sequence[int]]) -> int:
    """Common prefix to compute once for all prompts of a pass; 0 where that makes it no cheaper."""
    header = common_prefix(prompts)
    return header if header * (len(prompts) - 1) > PASS_COST else 0


def _best_run(
    rows: Sequence[Row], end: int, cheapest: Sequence[tuple[int, int, int]], span: int | None
) -> tuple[int, int, int]:
    """The cheapest way to cover rows[:end]: total cost, start and header of its last run."""
    best: tuple[int, int, int] | None = None
    for start in range(end - 1, max(end - MAX_ROWS, 0) - 1, -1):
        run = rows[start:end]
        header = shared_header([row.prompt for row in run])
        longest = max(row.length for row in run)
        tokens = len(run) * (longest - header)
        if len(run) > 1 and (tokens > MAX_TOKENS or (span is not None and longest > span)):
            continue
        cost = cheapest[start][0] + PASS_COST + tokens + (header + PASS_COST if header else 0)
        if best is None or cost < best[0]:
            best = (cost, start, header)
    if best is None:
        raise AssertionError("a run of one row is always allowed")
    return best
