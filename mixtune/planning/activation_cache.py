"""Disk space of the activations that `train.top_layers` caches, before any is computed.

One file per text, [tokens, width] in the study's number format: for each distinct training row all
but its last token (which is only a target); for each distinct item with choices its prompt followed
by the trie of its choices, without their last token (the end of turn).

Knows: texts in tokens, config.json. Does not know: the files themselves, which the engine writes.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mixtune.errors import ModelError
from mixtune.models.files import BaseModelFiles, read_object
from mixtune.planning.plan import Planner
from mixtune.tasks.task import query_of
from mixtune.tokens import Tokens

_BYTES = {"float32": 4, "bfloat16": 2}


class _Text(NamedTuple):
    """Tokens of a prompt and of its continuation, with parents where that is a trie."""

    prompt: Sequence[int]
    continuation: Sequence[int]
    parents: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class CacheSize:
    """Number of cached texts, their tokens, and bytes of their activations.

    File headers (128 bytes each) not counted. An upper bound for models with sliding windows, which
    cache no prompt longer than the window.
    """

    texts: int
    tokens: int
    bytes: int


def activation_cache_size(planner: Planner) -> CacheSize | None:
    """Size of a study's activation cache; None without `train.top_layers` or a base model.

    Raises:
        ModelError: config.json does not say how wide hidden states are.
    """
    train = planner.study.train
    if train.top_layers is None or planner.tokens is None or planner.files is None:
        return None
    sizes = {
        _key(text): len(text.prompt) + len(text.continuation)
        for texts in (_trained(planner), _ranked(planner, planner.tokens))
        for text in texts
    }
    tokens = sum(sizes.values())
    return CacheSize(len(sizes), tokens, tokens * _width(planner.files) * _BYTES[train.compute])


def _trained(planner: Planner) -> Iterator[_Text]:
    for row in planner.distinct_rows():
        yield _Text(row.prompt, row.answer[:-1])


def _ranked(planner: Planner, tokens: Tokens) -> Iterator[_Text]:
    """Items with choices in any form: strict answers share the pass that ranks them."""
    tries: dict[tuple[str, ...], tuple[list[int], list[int]]] = {}
    for items in planner.corpus.items.values():
        for example in items:
            if not example.choices:
                continue
            if example.choices not in tries:
                tries[example.choices] = trie_of([tokens.answer_ids(c) for c in example.choices])
            yield _Text(tokens.prompt_ids(query_of(example).messages), *tries[example.choices])


def trie_of(choices: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Tokens of the trie of choices (given with their end of turn) and each one's parent, or −1."""
    nodes: dict[tuple[int, int], int] = {}
    for choice in choices:
        node = -1
        for token in choice[:-1]:
            node = nodes.setdefault((node, token), len(nodes))
    return [token for _, token in nodes], [parent for parent, _ in nodes]


def _key(text: _Text) -> bytes:
    """Two texts share a file if all three parts are equal."""
    key = hashlib.blake2b(digest_size=16)
    for part in text:
        key.update(np.asarray([len(part), *part], dtype=np.int64).tobytes())
    return key.digest()


def _width(files: BaseModelFiles) -> int:
    width = read_object(files.folder / "config.json").get("hidden_size")
    if not isinstance(width, int):
        raise ModelError(
            "the base model does not state the size of its hidden states",
            where=str(files.folder / "config.json"),
            found=width,
            wanted="a whole number as hidden_size",
            remedy="leave train.top_layers out",
        )
    return width
