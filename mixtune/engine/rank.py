"""Log-probabilities of given answers: all choices of many prompts in one forward pass.

The choices of a prompt form a tree of tokens; it stands behind the prompt in the same branch, and
each node sees the prompt and its own ancestors only. With "up", "up a lot" and "down":

    branch     header | rest of the prompt | up  a  lot  down
    position   0 …    | … n-1              | n   n+1 n+2  n
    "lot" sees header, rest, up, a, itself; "down" sees header, rest, itself

A choice's last token (its end of turn) is never an input: nothing is predicted behind it.

The same pass gives the greedy answer as long as that stays on the tree: the likeliest token behind
the prompt, behind that one, and so on, up to a stop.

Knows: trees of choices. Does not know: which choice is right, tasks, LoRA.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from mixtune.engine.activation_cache import ActivationCache, forward_pass
from mixtune.engine.batching import InputSequence, make_pass
from mixtune.engine.decoder import LOGIT_ROWS, Decoder
from mixtune.engine.forest import Branch, pack_forest
from mixtune.engine.kv_cache import PrefixCache
from mixtune.records import Answer, Query

PROMPT_END = -1
"""Stands for the last token of the prompt where a node of a tree is expected."""


@dataclass(slots=True)
class ChoiceTrie:
    """The choices' tokens but the last, each shared start once; parents stand before children.

    `paths`: for each choice the (node, next token) pairs whose log-probabilities add up to it.
    `children`: (node, next token) → node.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    paths: list[list[tuple[int, int]]] = field(default_factory=list)
    children: dict[tuple[int, int], int] = field(default_factory=dict)

    @classmethod
    def build(cls, choices: Sequence[Sequence[int]]) -> "ChoiceTrie":
        """The tree of choices given as token ids with their end of turn."""
        tree = cls()
        children = tree.children
        for choice in choices:
            node, path = PROMPT_END, []
            for token in choice[:-1]:
                path.append((node, token))
                if (node, token) not in children:
                    children[node, token] = len(tree.tokens)
                    tree.tokens.append(token)
                    tree.parents.append(node)
                node = children[node, token]
            tree.paths.append([*path, (node, choice[-1])])
        return tree

    def greedy_answer(
        self, likeliest: Mapping[int, int], stops: Collection[int]
    ) -> list[int] | None:
        """Greedy tokens up to a stop, or None where they leave the tree.

        Args:
            likeliest: node → its likeliest next token.
            stops: tokens that end a turn.
        """
        tokens: list[int] = []
        node: int | None = PROMPT_END
        while node is not None:
            tokens.append(likeliest[node])
            if tokens[-1] in stops:
                return tokens
            node = self.children.get((node, tokens[-1]))
        return None

    def depths(self) -> list[int]:
        """Distance of each node from the prompt's last token, minus one."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent == PROMPT_END else depths[parent] + 1)
        return depths

    def mask(self) -> Tensor:
        """[nodes, nodes] bool: whether the second is the first or one of its ancestors."""
        mask = torch.eye(len(self.tokens), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent != PROMPT_END:
                mask[node] |= mask[parent]
        return mask


@dataclass(frozen=True, slots=True)
class EncodedQuery:
    """A query in tokens; choices with their end of turn."""

    query: Query
    prompt: Sequence[int]
    choices: Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Ranking:
    """The ranking of a query's choices, and the greedy answer where it is one of them."""

    answer: Answer
    greedy: list[int] | None


@dataclass(frozen=True, slots=True)
class Ranker:
    """A network with one adapter that ranks choices.

    `slot`: the adapter. `stops`: tokens that end a turn. `activation_cache`: cached states of the
    layers below the adapters, if any.
    """

    decoder: Decoder
    slot: int
    stops: Collection[int]
    activation_cache: ActivationCache | None = None

    def rank(
        self, queries: Sequence[EncodedQuery], prefix: PrefixCache | None = None
    ) -> list[Ranking]:
        """One chunk of queries in their order; log-probabilities are sums over a choice's tokens.

        Args:
            queries: in tokens.
            prefix: common start of all prompts, computed under this adapter.
        """
        started = time.perf_counter()
        longest = max(len(q.prompt) + len(choice) for q in queries for choice in q.choices)
        with torch.inference_mode():
            if self.decoder.must_run_alone(longest):
                scores = [_Scores(self._sums_alone(query), None) for query in queries]
            else:
                scores = self._scores_in_one_pass(queries, prefix)
        latency = (time.perf_counter() - started) / len(queries)
        return [
            Ranking(_answer(query.query, each.log_probs, latency), each.greedy)
            for query, each in zip(queries, scores, strict=True)
        ]

    def _scores_in_one_pass(
        self, queries: Sequence[EncodedQuery], prefix: PrefixCache | None
    ) -> list["_Scores"]:
        keys = [tuple(map(tuple, query.choices)) for query in queries]
        by_choices = {key: ChoiceTrie.build(key) for key in dict.fromkeys(keys)}
        masks = {key: tree.mask() for key, tree in by_choices.items()}
        trees = [by_choices[key] for key in keys]
        start = prefix.length if prefix else 0
        sequences = [
            InputSequence(self.slot, query.prompt[start:], tree.tokens, masks[key], tree.depths())
            for query, key, tree in zip(queries, keys, trees, strict=True)
        ]
        order = sorted(range(len(sequences)), key=lambda i: tuple(sequences[i].prompt))
        work = make_pass(sequences, order)
        forest = work.pack(self.decoder.device, prefix)
        hidden = forward_pass(self.decoder, self.activation_cache, work, sequences, forest)
        # Index of each tree's first node; the prompt's last token stands before it, as node -1.
        roots = [0] * len(sequences)
        for row in work.rows:
            prompt_length = len(sequences[row.index].prompt) - row.shared
            roots[row.index] = forest.branch_starts[row.branch] + prompt_length
        edges = [
            _Edge(root + node, token)
            for root, tree in zip(roots, trees, strict=True)
            for path in tree.paths
            for node, token in path
        ]
        log_probs, likeliest = _log_probabilities(self.decoder, hidden, edges)
        terms = iter(log_probs)
        return [
            _Scores(
                [sum(next(terms) for _ in path) for path in tree.paths],
                tree.greedy_answer(
                    {node: likeliest[root + node] for path in tree.paths for node, _ in path},
                    self.stops,
                ),
            )
            for root, tree in zip(roots, trees, strict=True)
        ]

    def _sums_alone(self, query: EncodedQuery) -> list[float]:
        """The same sums, each choice in a pass of its own, for prompts too long to share one."""
        sums = []
        for choice in query.choices:
            branch = Branch([*query.prompt, *choice[:-1]], slot=self.slot)
            hidden = self.decoder.forward(pack_forest([branch], self.decoder.device))
            last = len(query.prompt) - 1
            edges = [_Edge(last + offset, token) for offset, token in enumerate(choice)]
            sums.append(sum(_log_probabilities(self.decoder, hidden, edges)[0]))
        return sums


class _Scores(NamedTuple):
    """Log-probability of each choice, and the greedy answer where it stays on their tree."""

    log_probs: list[float]
    greedy: list[int] | None


class _Edge(NamedTuple):
    """A token of a choice, and the packed index of the state that predicts it."""

    state: int
    token: int


def _answer(query: Query, log_probs: Sequence[float], latency: float) -> Answer:
    likeliest = query.choices[log_probs.index(max(log_probs))]
    return Answer(likeliest, tuple(log_probs), latency=latency)


def _log_probabilities(
    decoder: Decoder, hidden: Tensor, edges: Sequence[_Edge]
) -> tuple[list[float], dict[int, int]]:
    """Log-probability of each edge's token, and the likeliest token at each packed index."""
    indices = list(dict.fromkeys(edge.state for edge in edges))
    row_of = {index: row for row, index in enumerate(indices)}
    states = hidden[torch.tensor(indices, device=decoder.device)]
    # [edges, 2]: row of the states, token.
    targets = torch.tensor([(row_of[e.state], e.token) for e in edges], device=decoder.device)
    log_probs = torch.empty(len(edges), dtype=torch.float64, device=decoder.device)
    likeliest: list[int] = []
    for start in range(0, len(indices), LOGIT_ROWS):
        logits = decoder.logits(states[start : start + LOGIT_ROWS])
        inside = (targets[:, 0] >= start) & (targets[:, 0] < start + LOGIT_ROWS)
        rows, tokens = targets[inside, 0] - start, targets[inside, 1]
        # The normaliser alone: a whole log-softmax would write as much again as the logits.
        log_probs[inside] = (logits[rows, tokens] - logits.logsumexp(dim=-1)[rows]).double()
        likeliest += logits.argmax(dim=-1).tolist()
    values = [float(value) for value in log_probs.tolist()]
    return values, dict(zip(indices, likeliest, strict=True))
