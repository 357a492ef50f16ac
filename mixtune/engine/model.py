"""A base model on this machine with one adapter: trained, saved, and asked.

Knows: how the engine's parts fit together; the canonical order of batches. Does not know: tasks,
runs, where predictions go. Keeps the protocol of models/base.py.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from mixtune.engine import generate, score
from mixtune.engine.forward import Decoder
from mixtune.engine.lora import Adapter, Form
from mixtune.errors import ModelError
from mixtune.records import Answer, Query
from mixtune.spec import EvalSpec, TrainSpec
from mixtune.tokens import Tokens

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_Asked = Sequence[tuple[Query, list[int]]]
_Key = tuple[str, tuple[int, ...], tuple[str, ...]]


class LocalModel:
    """A frozen base with a LoRA adapter on every linear layer but the head."""

    def __init__(
        self, decoder: Decoder, adapter: Adapter, tokens: Tokens, evaluate: EvalSpec
    ) -> None:
        """Put the parts together; `system` is for the caller to set."""
        self.system = ""
        self.decoder = decoder
        self.adapter = adapter
        self.tokens = tokens
        self.evaluate = evaluate
        self._ranked: dict[_Key, score.Ranked] = {}

    @classmethod
    def load(
        cls,
        folder: Path,
        tokens: Tokens,
        train: TrainSpec,
        evaluate: EvalSpec,
        device: str = "cpu",
    ) -> "LocalModel":
        """Read a base model and install an adapter that is zero until `reset` or `load_adapter`.

        Args:
            folder: config.json and safetensors, as transformers saves them.
            tokens: the same folder's tokenizer.
            train: `rank`, `alpha` and `compute` (dtype of the base) are used.
            evaluate: `batch_size` and `max_prompt_length` are used.
            device: where it computes, in torch's words.

        Raises:
            ModelError: the weights cannot be read, or the architecture cannot be run exactly.
        """
        decoder = Decoder.load(folder, DTYPES[train.compute], device)
        return cls.adapted(decoder, Form(train.rank, train.alpha), tokens, evaluate)

    @classmethod
    def adapted(
        cls, decoder: Decoder, form: Form, tokens: Tokens, evaluate: EvalSpec
    ) -> "LocalModel":
        """A network with an adapter of a form of one's own, such as one that was made elsewhere.

        Raises:
            ModelError: the network has no linear layers of that form.
        """
        adapter = Adapter.install(decoder.network, decoder.head, form)
        return cls(decoder, adapter, tokens, evaluate)

    def reset(self, seed: int) -> None:
        """A fresh adapter, switched on: A drawn from `seed`, B zero, so that the base answers."""
        self.forget()
        self.adapter.reset(seed)
        self.adapter.enable(True)

    def use_base(self) -> None:
        """Switch the adapter off: the base alone answers."""
        self.forget()
        self.adapter.enable(False)

    def save_adapter(self, folder: Path, base_name: str) -> None:
        """Write the adapter in PEFT's format; `base_name` is the base it names there."""
        self.adapter.save(folder, base_name)

    def load_adapter(self, folder: Path) -> None:
        """Read an adapter in PEFT's format and switch it on.

        Raises:
            ModelError: a file is missing, broken or foreign; rank, alpha or targets differ.
        """
        self.forget()
        self.adapter.load(folder)
        self.adapter.enable(True)

    def rank(self, queries: Sequence[Query]) -> list[Answer]:
        """Log-probability of each choice with its end of turn; `output` is the likeliest choice.

        Raises:
            ModelError: a prompt is longer than `evaluate.max_prompt_length`.
            ValueError: a query has no choices.
        """
        for query in queries:
            if not query.choices:
                raise ValueError(f"query {query.id} has no choices to rank")
        return self._in_chunks(queries, self._rank)

    def _rank(self, asked: _Asked) -> list[Answer]:
        """One chunk ranked, and remembered: the same pass says what strict answers need."""
        keys = [_key(*pair) for pair in asked]
        if not all(key in self._ranked for key in keys):
            queries = [query for query, _ in asked]
            texts = {text: self.tokens.answer_ids(text) for q in queries for text in q.choices}
            ranked = score.rank(
                self.decoder,
                queries,
                [prompt for _, prompt in asked],
                [[texts[text] for text in query.choices] for query in queries],
                self.tokens.eos_ids,
            )
            self._ranked |= zip(keys, ranked, strict=True)
        return [self._ranked[key].answer for key in keys]

    def forget(self) -> None:
        """Drop what was remembered of answers; called whenever the adapter changes."""
        self._ranked.clear()

    def generate(self, queries: Sequence[Query], max_new_tokens: int) -> list[Answer]:
        """Greedy text up to the end of turn, at most `max_new_tokens` tokens.

        Raises:
            ModelError: a prompt is longer than `evaluate.max_prompt_length`.
            ValueError: `max_new_tokens` is not positive.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}, wanted at least 1")

        return self._in_chunks(queries, partial(self._generate, max_new_tokens))

    def _generate(self, max_new_tokens: int, asked: _Asked) -> list[Answer]:
        """One chunk of greedy answers.

        Where there are choices, the pass that ranks them already says what greedy decoding says
        when that is one of them; only answers that leave the tree are generated token by token.
        The ranking pass is made if it was not, so that the order of asking changes no bit.
        """
        began = time.perf_counter()
        if all(query.choices for query, _ in asked):
            self._rank(asked)
        found = [self._ranked.get(_key(*pair)) for pair in asked]
        known = [ranked.spoken if ranked else None for ranked in found]
        said = [ids if ids is not None and len(ids) <= max_new_tokens else None for ids in known]
        latency = (time.perf_counter() - began) / len(asked)
        rest = [prompt for (_, prompt), ids in zip(asked, said, strict=True) if ids is None]
        spoken = generate.generate(self.decoder, rest, self.tokens, max_new_tokens) if rest else []
        others = iter(spoken)
        return [
            next(others) if ids is None else generate.answer_of(ids, self.tokens, latency)
            for ids in said
        ]

    def _in_chunks(
        self, queries: Sequence[Query], answer: Callable[[_Asked], list[Answer]]
    ) -> list[Answer]:
        """Answers in the order of the queries, computed in chunks of (length, id) order.

        The order of computing is a function of the queries alone: rounding depends on what shares
        a pass, and a result must not depend on the order in which questions arrive.
        """
        asked = [(query, self._prompt(query)) for query in queries]
        order = sorted(range(len(asked)), key=lambda i: (len(asked[i][1]), asked[i][0].id))
        answers: dict[int, Answer] = {}
        for start in range(0, len(order), self.evaluate.batch_size):
            chunk = order[start : start + self.evaluate.batch_size]
            answers.update(zip(chunk, answer([asked[i] for i in chunk]), strict=True))
        return [answers[i] for i in range(len(asked))]

    def _prompt(self, query: Query) -> list[int]:
        ids = self.tokens.prompt_ids(query.messages)
        if len(ids) > self.evaluate.max_prompt_length:
            raise ModelError(
                "a prompt is too long",
                where=f"query {query.id}",
                found=f"{len(ids)} tokens",
                wanted=f"at most {self.evaluate.max_prompt_length}",
                remedy=f"set evaluate.max_prompt_length={len(ids)} or more, or shorten the prompt",
            )
        return ids


def _key(query: Query, prompt: Sequence[int]) -> _Key:
    """What an answer is remembered by."""
    return query.id, tuple(prompt), query.choices
