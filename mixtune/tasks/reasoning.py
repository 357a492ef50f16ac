"""An assistant's text in two: the reasoning that it begins with, and the answer."""

import re

from mixtune.errors import DataError
from mixtune.records import REASONING_BLOCKS, ReasonedText

_NEW_TURN = re.compile(r"(?:<\|\w+\|>)?\s*(?:<\|start\|>)?assistant\s*$")
"""End of a turn and header of the next, as a model writes them between reasoning and answer."""


def split_reasoning(text: str) -> ReasonedText:
    """Take a reasoning block off the start of an output; one that is cut off leaves no answer.

    The template may have opened the block, so an output may begin inside it. A block further on
    is part of the answer.
    """
    for opening, closing, own_turn in REASONING_BLOCKS:
        before, closed, after = text.partition(closing)
        if closed and own_turn:
            before = _NEW_TURN.sub("", before)
        if text.lstrip().startswith(opening):
            reasoning = before.lstrip().removeprefix(opening).strip()
            return ReasonedText(reasoning, after.lstrip("\r\n") if closed else "")
        if closed and opening not in before:
            return ReasonedText(before.strip(), after.lstrip("\r\n"))
    return ReasonedText("", text)


def stored_reasoning(text: str, where: str) -> ReasonedText:
    """The same for a stored answer, which holds the whole block or none.

    Raises:
        DataError: a block that is never closed, or that nothing follows.
    """
    if not any(text.lstrip().startswith(block.opening) for block in REASONING_BLOCKS):
        return ReasonedText("", text)
    parts = split_reasoning(text)
    if not parts.answer.strip():
        raise DataError(
            "reasoning without an answer behind it",
            where=where,
            found=text,
            wanted="<think>reasoning</think> and then the answer",
            remedy="close the block and add the answer, or leave the row out",
        )
    return ReasonedText(parts.reasoning, parts.answer.strip())
