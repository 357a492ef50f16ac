"""What `train.top_layers` keeps on disk, counted before any of it is computed.

One file per text, [tokens, width] in the study's number format: of every distinct training row all
but the last token (which is only ever a target); of every distinct item with choices its prompt,
and behind it the choices' tree. The tree has a node for each distinct start of the choices' tokens,
their last (the end of turn) left out.

Knows: texts in tokens, config.json. Does not know: the files themselves, which the engine writes.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mixtune.errors import ModelError
from mixtune.models.files import BaseModelFiles, read_object
from mixtune.planning.plan import Planner
from mixtune.tasks.task import query_of
from mixtune.tokens import Tokens

_BYTES = {"float32": 4, "bfloat16": 2}
_Text = tuple[Sequence[int], Sequence[int], Sequence[int]]
"""Prompt, what follows it, and the parents of that where it is a tree."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Texts whose states are kept, their tokens, and the bytes of the states.

    Each file has a header of 128 bytes beside. A model with sliding windows keeps none of prompts
    longer than its window, so that it is less there.
    """

    texts: int
    tokens: int
    bytes: int


def kept_states(planner: Planner) -> Kept | None:
    """What a study keeps; None without `train.top_layers`, or before there is a base model.

    Raises:
        ModelError: config.json does not say how wide hidden states are.
    """
    train = planner.study.train
    if train.top_layers is None or planner.tokens is None or planner.files is None:
        return None
    sizes = {
        _key(text): len(text[0]) + len(text[1])
        for texts in (_trained(planner), _ranked(planner, planner.tokens))
        for text in texts
    }
    tokens = sum(sizes.values())
    return Kept(len(sizes), tokens, tokens * _width(planner.files) * _BYTES[train.compute])


def _trained(planner: Planner) -> Iterator[_Text]:
    for row in planner.distinct_rows():
        yield row.prompt, row.answer[:-1], ()


def _ranked(planner: Planner, tokens: Tokens) -> Iterator[_Text]:
    """Items with choices, in whatever form they are asked: strict answers are ranked first, too."""
    trees: dict[tuple[str, ...], tuple[list[int], list[int]]] = {}
    for items in planner.corpus.items.values():
        for example in items:
            if not example.choices:
                continue
            if example.choices not in trees:
                trees[example.choices] = tree_of([tokens.answer_ids(c) for c in example.choices])
            yield tokens.prompt_ids(query_of(example).messages), *trees[example.choices]


def tree_of(choices: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Tokens of the tree of choices given with their end of turn, and each one's parent (or −1)."""
    nodes: dict[tuple[int, int], int] = {}
    for choice in choices:
        node = -1
        for token in choice[:-1]:
            node = nodes.setdefault((node, token), len(nodes))
    return [token for _, token in nodes], [parent for parent, _ in nodes]


def _key(text: _Text) -> bytes:
    """Two texts share a file if all three parts are the same."""
    found = hashlib.blake2b(digest_size=16)
    for part in text:
        found.update(np.asarray([len(part), *part], dtype=np.int64).tobytes())
    return found.digest()


def _width(files: BaseModelFiles) -> int:
    width = read_object(files.folder / "config.json").get("hidden_size")
    if not isinstance(width, int):
        raise ModelError(
            "the base model does not say how wide its hidden states are",
            where=str(files.folder / "config.json"),
            found=width,
            wanted="a whole number as hidden_size",
            remedy="leave train.top_layers out",
        )
    return width
