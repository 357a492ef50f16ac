"""Log-probabilities of given answers: all choices of many prompts in one forward pass.

Knows: trees of choices, layouts and masks. Does not know: which choice is right, tasks, LoRA.

The choices of a prompt form a tree of tokens; it stands behind the prompt in the same row, and a
mask lets each node see the prompt and its own ancestors only. With "up", "up a lot" and "down":

    row        header | rest of the prompt | up  a  lot  down | padding
    position   0 …    | … n-1              | n   n+1 n+2  n   |
    "lot" sees header, rest, up, a, itself; "down" sees header, rest, itself

A choice's last token (its end of turn) is never an input: nothing is asked behind it.

The same pass says what greedy decoding would say as long as that stays on the tree: the likeliest
token behind the prompt, behind that one, and so on, up to a stop.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mixtune.engine.batching import shared_header
from mixtune.engine.forward import Decoder
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


@dataclass(frozen=True, slots=True)
class Ranked:
    """The ranking of a query's choices, and the greedy answer where it stays on their tree."""

    answer: Answer
    spoken: list[int] | None


def rank(
    decoder: Decoder,
    queries: Sequence[Query],
    prompts: Sequence[Sequence[int]],
    choices: Sequence[Sequence[Sequence[int]]],
    stops: Collection[int],
) -> list[Ranked]:
    """Answers of one chunk of queries, in their order; sums over the whole of each choice.

    Args:
        decoder: the network as it stands, adapter on or off.
        queries: ids and texts of the choices.
        prompts: token ids of each query.
        choices: token ids of each query's choices, with their end of turn.
        stops: tokens that end a turn.
    """
    began = time.perf_counter()
    trees: dict[tuple[tuple[int, ...], ...], Tree] = {}
    of_row: list[Tree] = []
    for each in choices:
        key = tuple(tuple(choice) for choice in each)
        of_row.append(trees.setdefault(key, Tree.of(key)))
    with torch.inference_mode():
        pairs = list(zip(prompts, choices, strict=True))
        longest = max(len(p) + len(c) for p, each in pairs for c in each)
        if decoder.alone(longest):
            sums = [_one_by_one(decoder, p, each) for p, each in pairs]
            spoken: list[list[int] | None] = [None] * len(prompts)
        else:
            sums, spoken = _together(decoder, prompts, of_row, stops)
    latency = (time.perf_counter() - began) / len(queries)
    return [
        Ranked(Answer(query.choices[row.index(max(row))], tuple(row), latency=latency), greedy)
        for query, row, greedy in zip(queries, sums, spoken, strict=True)
    ]


def _together(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    trees: Sequence[Tree],
    stops: Collection[int],
) -> tuple[list[list[float]], list[list[int] | None]]:
    """Log-probability of every choice of every row, and greedy answers, by one pass."""
    header = shared_header(prompts)
    rests = [prompt[header:] for prompt in prompts]
    ids = decoder.pad([[*r, *t.tokens] for r, t in zip(rests, trees, strict=True)])
    positions = [
        [*range(header, header + len(rest)), *(header + len(rest) + d for d in tree.depths())]
        for rest, tree in zip(rests, trees, strict=True)
    ]
    allowed = _allowed(header, [len(rest) for rest in rests], trees, ids.shape[1])
    cache = decoder.prefill(prompts[0][:header], len(prompts))
    hidden = decoder.extend(ids, cache, allowed.to(decoder.device), decoder.pad(positions))
    # One term per edge of a tree: the state that predicts, and the token that is predicted.
    edges = [
        (row, len(rest) + node, token)
        for row, (rest, tree) in enumerate(zip(rests, trees, strict=True))
        for path in tree.paths
        for node, token in path
    ]
    values, best = _log_probabilities(decoder, hidden, edges)
    terms = iter(values)
    sums = [[sum(next(terms) for _ in path) for path in tree.paths] for tree in trees]
    nodes: list[dict[int, int]] = [{} for _ in trees]
    for (row, position), token in best.items():
        nodes[row][position - len(rests[row])] = token
    return sums, [
        tree.follow(likeliest, stops) for tree, likeliest in zip(trees, nodes, strict=True)
    ]


def _allowed(header: int, rests: Sequence[int], trees: Sequence[Tree], width: int) -> Tensor:
    """[rows, width, header + width] bool: causal, but among the nodes of a tree only lineage."""
    allowed = torch.ones(len(trees), width, width, dtype=torch.bool).tril()
    lineages = {id(tree): tree.lineage() for tree in trees}
    for row, (rest, tree) in enumerate(zip(rests, trees, strict=True)):
        nodes = slice(rest, rest + len(tree.tokens))
        allowed[row, nodes, nodes] = lineages[id(tree)]
    return torch.cat([allowed.new_ones(len(trees), width, header), allowed], dim=-1)


def _log_probabilities(
    decoder: Decoder, hidden: Tensor, edges: Sequence[tuple[int, int, int]]
) -> tuple[list[float], dict[tuple[int, int], int]]:
    """Log-probability of a token at a (row, position), for each edge; likeliest token of each."""
    states = list(dict.fromkeys((row, position) for row, position, _ in edges))
    number = {state: index for index, state in enumerate(states)}
    where = torch.tensor(states, device=decoder.device)
    picked = hidden[where[:, 0], where[:, 1]]
    wanted = torch.tensor([(number[r, p], token) for r, p, token in edges], device=decoder.device)
    values = torch.empty(len(edges), dtype=torch.float64, device=decoder.device)
    best: list[int] = []
    for start in range(0, len(states), LOGIT_ROWS):
        scores = torch.log_softmax(decoder.logits(picked[start : start + LOGIT_ROWS]), dim=-1)
        inside = (wanted[:, 0] >= start) & (wanted[:, 0] < start + LOGIT_ROWS)
        values[inside] = scores[wanted[inside, 0] - start, wanted[inside, 1]].double()
        best += scores.argmax(dim=-1).tolist()
    found = dict(zip(states, best, strict=True))
    return [float(value) for value in values.tolist()], found


def _one_by_one(
    decoder: Decoder, prompt: Sequence[int], choices: Sequence[Sequence[int]]
) -> list[float]:
    """The same sums by the plain path, for prompts beyond the decoder's span."""
    sums = []
    for choice in choices:
        hidden = decoder.hidden([[*prompt, *choice[:-1]]])
        edges = [(0, len(prompt) - 1 + offset, token) for offset, token in enumerate(choice)]
        sums.append(sum(_log_probabilities(decoder, hidden, edges)[0]))
    return sums
