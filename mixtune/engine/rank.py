"""Log-probabilities of given answers: all choices of many prompts in one forward pass.

Knows: trees of choices. Does not know: which choice is right, tasks, LoRA.

The choices of a prompt form a tree of tokens; it stands behind the prompt in the same branch, and
each node sees the prompt and its own ancestors only. With "up", "up a lot" and "down":

    branch     header | rest of the prompt | up  a  lot  down
    position   0 …    | … n-1              | n   n+1 n+2  n
    "lot" sees header, rest, up, a, itself; "down" sees header, rest, itself

A choice's last token (its end of turn) is never an input: nothing is asked behind it.

The same pass says what greedy decoding would say as long as that stays on the tree: the likeliest
token behind the prompt, behind that one, and so on, up to a stop.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from mixtune.engine.batching import Text, seat
from mixtune.engine.decoder import Decoder
from mixtune.engine.forest import Branch, Past, plant
from mixtune.engine.trunk import Trunk
from mixtune.records import Answer, Query

LOGIT_ROWS = 512
"""Positions whose logits exist at once: bounds memory at 512 x vocabulary x 4 bytes."""

ROOT = -1
"""Stands for the last token of the prompt where a node's number is wanted."""


@dataclass(slots=True)
class Tree:
    """The choices' tokens but the last, each shared start once; parents stand before children.

    `paths`: for each choice the (node, next token) pairs whose log-probabilities add up to it.
    `children`: (node, next token) → node.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    paths: list[list[tuple[int, int]]] = field(default_factory=list)
    children: dict[tuple[int, int], int] = field(default_factory=dict)

    @classmethod
    def of(cls, choices: Sequence[Sequence[int]]) -> "Tree":
        """Build the tree of choices given as token ids with their end of turn."""
        tree = cls()
        children = tree.children
        for choice in choices:
            node, path = ROOT, []
            for token in choice[:-1]:
                path.append((node, token))
                if (node, token) not in children:
                    children[node, token] = len(tree.tokens)
                    tree.tokens.append(token)
                    tree.parents.append(node)
                node = children[node, token]
            tree.paths.append([*path, (node, choice[-1])])
        return tree

    def follow(self, likeliest: Mapping[int, int], stops: Collection[int]) -> list[int] | None:
        """Greedy tokens up to a stop, or None where they leave the tree.

        Args:
            likeliest: node (ROOT for the prompt) → its likeliest next token.
            stops: tokens that end a turn.
        """
        found: list[int] = []
        node: int | None = ROOT
        while node is not None:
            found.append(likeliest[node])
            if found[-1] in stops:
                return found
            node = self.children.get((node, found[-1]))
        return None

    def depths(self) -> list[int]:
        """Distance of each node from the prompt's last token, minus one."""
        found: list[int] = []
        for parent in self.parents:
            found.append(0 if parent == ROOT else found[parent] + 1)
        return found

    def lineage(self) -> Tensor:
        """[nodes, nodes] bool: whether the second is the first or one of its ancestors."""
        seen = torch.eye(len(self.tokens), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent != ROOT:
                seen[node] |= seen[parent]
        return seen


class Reader(Protocol):
    """What answers: a network, and what is kept of its lower layers' work."""

    decoder: Decoder
    trunk: Trunk | None


@dataclass(frozen=True, slots=True)
class Question:
    """A query in tokens; choices with their end of turn."""

    query: Query
    prompt: Sequence[int]
    choices: Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Ranked:
    """The ranking of a query's choices, and the greedy answer where it stays on their tree."""

    answer: Answer
    spoken: list[int] | None


def rank(
    reader: Reader,
    asked: Sequence[Question],
    stops: Collection[int],
    slots: Sequence[int],
    past: Past | None = None,
) -> list[list[Ranked]]:
    """Answers of some adapters to one chunk of questions; sums over the whole of each choice.

    Args:
        reader: the network, and what was kept of the layers below the adapters.
        asked: queries with their token ids.
        stops: tokens that end a turn.
        slots: the adapters that answer, each once.
        past: what all prompts begin with, computed under these adapters.

    Returns:
        For each slot the answers in the order of the questions.
    """
    began = time.perf_counter()
    trees: dict[tuple[tuple[int, ...], ...], Tree] = {}
    of_row = []
    for question in asked:
        key = tuple(tuple(choice) for choice in question.choices)
        of_row.append(trees.setdefault(key, Tree.of(key)))
    with torch.inference_mode():
        longest = max(len(q.prompt) + len(c) for q in asked for c in q.choices)
        if reader.decoder.alone(longest):
            found = [[_one_by_one(reader.decoder, q, slot) for q in asked] for slot in slots]
        else:
            found = _together(reader, asked, (of_row, stops, slots), past)
    latency = (time.perf_counter() - began) / (len(asked) * len(slots))
    return [
        [
            Ranked(_answer(question.query, sums, latency), spoken)
            for question, (sums, spoken) in zip(asked, answers, strict=True)
        ]
        for answers in found
    ]


def _answer(query: Query, sums: Sequence[float], latency: float) -> Answer:
    return Answer(query.choices[sums.index(max(sums))], tuple(sums), latency=latency)


_Found = tuple[list[float], list[int] | None]
"""Log-probability of each choice, and the greedy answer where it stays on the tree."""


def _together(
    reader: Reader,
    asked: Sequence[Question],
    how: tuple[Sequence[Tree], Collection[int], Sequence[int]],
    past: Past | None,
) -> list[list[_Found]]:
    """Log-probability of every choice of every row under every adapter, by one pass."""
    trees, stops, slots = how
    decoder, known = reader.decoder, past.length if past else 0
    lineages = {id(tree): tree.lineage() for tree in trees}
    texts = [
        Text(slot, question.prompt[known:], tree.tokens, lineages[id(tree)], tree.depths())
        for slot in slots
        for question, tree in zip(asked, trees, strict=True)
    ]
    work = seat(
        texts, sorted(range(len(texts)), key=lambda i: (texts[i].slot, tuple(texts[i].prompt)))
    )
    forest = plant(work.branches, decoder.device, stacked=decoder.device.type != "cpu", past=past)
    if reader.trunk is None:
        hidden = decoder.run(forest)
    else:
        hidden = decoder.above(forest, reader.trunk.states(work, texts, forest))
    # One term per edge of a tree: the state that predicts, and the token that is predicted.
    starts = [0] * len(texts)
    for each in work.seats:
        starts[each.row] = forest.starts[each.branch] + len(texts[each.row].prompt) - each.skip
    edges = [
        (start + node, token)
        for row, start in enumerate(starts)
        for path in trees[row % len(asked)].paths
        for node, token in path
    ]
    values, best = _log_probabilities(decoder, hidden, edges)
    terms = iter(values)
    found = []
    for row, start in enumerate(starts):
        tree = trees[row % len(asked)]
        sums = [sum(next(terms) for _ in path) for path in tree.paths]
        likeliest = {node: best[start + node] for path in tree.paths for node, _ in path}
        found.append((sums, tree.follow(likeliest, stops)))
    return [found[i : i + len(asked)] for i in range(0, len(found), len(asked))]


def _log_probabilities(
    decoder: Decoder, hidden: Tensor, edges: Sequence[tuple[int, int]]
) -> tuple[list[float], dict[int, int]]:
    """Log-probability of a token at a packed place, for each edge; each place's likeliest."""
    places = list(dict.fromkeys(place for place, _ in edges))
    number = {place: index for index, place in enumerate(places)}
    picked = hidden[torch.tensor(places, device=decoder.device)]
    wanted = torch.tensor([(number[place], t) for place, t in edges], device=decoder.device)
    values = torch.empty(len(edges), dtype=torch.float64, device=decoder.device)
    best: list[int] = []
    for start in range(0, len(places), LOGIT_ROWS):
        logits = decoder.logits(picked[start : start + LOGIT_ROWS])
        inside = (wanted[:, 0] >= start) & (wanted[:, 0] < start + LOGIT_ROWS)
        rows, tokens = wanted[inside, 0] - start, wanted[inside, 1]
        # The normaliser alone: a whole log-softmax would write as much again as the logits.
        values[inside] = (logits[rows, tokens] - logits.logsumexp(dim=-1)[rows]).double()
        best += logits.argmax(dim=-1).tolist()
    return [float(value) for value in values.tolist()], dict(zip(places, best, strict=True))


def _one_by_one(decoder: Decoder, question: Question, slot: int) -> _Found:
    """The same sums by the plain path, for prompts beyond the decoder's span."""
    sums = []
    for choice in question.choices:
        row = Branch([*question.prompt, *choice[:-1]], adapter=slot)
        hidden = decoder.run(plant([row], decoder.device))
        edges = [(len(question.prompt) - 1 + at, token) for at, token in enumerate(choice)]
        sums.append(sum(_log_probabilities(decoder, hidden, edges)[0]))
    return sums, None
