"""A base model on this machine with its bank of adapters: trained, saved, and asked.

Knows: how the engine's parts fit together; the canonical order of batches. Does not know: tasks,
runs, where predictions go. Keeps the protocol of models/base.py.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from mixtune.engine import generate, probe
from mixtune.engine import rank as score
from mixtune.engine.adapter_format import Form
from mixtune.engine.bank import Bank
from mixtune.engine.batching import PASS_TOKENS, WORTH, common_start
from mixtune.engine.decoder import Decoder
from mixtune.engine.forest import BASE, Past
from mixtune.engine.full import FullWeights
from mixtune.engine.trunk import Trunk
from mixtune.errors import ModelError
from mixtune.records import Answer, Query
from mixtune.study.spec import EvalSpec, TrainSpec
from mixtune.tokens import Row, Tokens

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_Asked = Sequence[tuple[Query, list[int]]]
_Key = tuple[str, tuple[int, ...], tuple[str, ...]]


class LocalModel:
    """A frozen base with a bank of LoRA adapters on every linear layer but the head."""

    def __init__(
        self, decoder: Decoder, bank: Bank | FullWeights, tokens: Tokens, evaluate: EvalSpec
    ) -> None:
        """Put the parts together; `system` is for the caller to set."""
        self.system = ""
        self.trunk: Trunk | None = None
        """What the layers below the adapters computed, where that is kept."""
        self.pass_tokens = PASS_TOKENS
        """Tokens of one pass in training; halved when a pass does not fit in memory."""
        self.on_note: Callable[[str], None] = _say_nothing
        self.decoder = decoder
        self.bank = bank
        self.tokens = tokens
        self.evaluate = evaluate
        self.slot = 0
        """Which adapter answers; BASE for none."""
        self._ranked: dict[_Key, score.Ranked] = {}
        self._base: Decoder | None = None
        """The untouched base, where all of its weights are trained; loaded when first needed."""

    @classmethod
    def load(
        cls,
        folder: Path,
        tokens: Tokens,
        train: TrainSpec,
        evaluate: EvalSpec,
        *,
        slots: int = 1,
        device: str = "cpu",
    ) -> "LocalModel":
        """Read a base model and install adapters that are zero until `reset` or `load_adapter`.

        Args:
            folder: config.json and safetensors, as transformers saves them.
            tokens: the same folder's tokenizer.
            train: `rank`, `alpha` and `compute` (dtype of the base) are used.
            evaluate: `batch_size` and `max_prompt_length` are used.
            slots: adapters in the bank.
            device: where it computes, in torch's words.

        Raises:
            ModelError: the weights cannot be read, or the architecture cannot be run exactly.
        """
        decoder = Decoder.load(folder, DTYPES[train.compute], device)
        if train.gradient_checkpointing:
            decoder.checkpoint_layers()
            decoder.checkpointing = True
        if train.method == "full":
            if slots != 1:
                raise ModelError(
                    "full fine-tuning trains one run at a time",
                    found=f"a bank of {slots}",
                    remedy="--bank 1",
                )
            return cls(decoder, FullWeights(decoder, folder), tokens, evaluate)
        targets = None
        if train.top_layers is not None:
            decoder.cut_below(train.top_layers)
            targets = _linears(decoder, decoder.layers[decoder.cut :])
        form = Form(train.rank, train.alpha, targets)
        return cls.adapted(decoder, form, tokens, evaluate, slots)

    @classmethod
    def adapted(
        cls, decoder: Decoder, form: Form, tokens: Tokens, evaluate: EvalSpec, slots: int = 1
    ) -> "LocalModel":
        """A network with adapters of a form of one's own, such as one that was made elsewhere.

        Raises:
            ModelError: the network has no linear layers of that form.
        """
        return cls(decoder, Bank(decoder, form, slots), tokens, evaluate)

    def reset(self, seed: int) -> None:
        """A fresh first adapter that answers: A drawn from `seed`, B zero, so as the base."""
        self.use_adapter()
        self.bank.reset(0, seed)

    def use_base(self) -> None:
        """The base alone answers."""
        self.use_adapter(BASE)

    def use_adapter(self, slot: int = 0, strength: float = 1.0) -> None:
        """The adapter in a slot answers, or the base alone (BASE).

        Args:
            slot: which adapter.
            strength: its product is multiplied by it: 0 is the base, 1 as it was trained. It holds
                until the next call, or the next step of training.

        Raises:
            ModelError: another strength than 1 under full fine-tuning.
        """
        self.forget()
        self.bank.dial(strength)
        self.bank.ready(slot)
        self.slot = slot

    def save_adapter(self, folder: Path, base_name: str, slot: int = 0) -> None:
        """Write an adapter in PEFT's format; `base_name` is the base it names there."""
        self.bank.save(slot, folder, base_name)

    def load_adapter(self, folder: Path, slot: int = 0, strength: float = 1.0) -> None:
        """Read an adapter in PEFT's format into a slot; it answers from now on (`use_adapter`).

        Raises:
            ModelError: a file is missing, broken or foreign; rank, alpha or targets differ.
        """
        self.forget()
        self.bank.load(slot, folder)
        self.use_adapter(slot, strength)

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

    def rank_all(self, queries: Sequence[Query], slots: Sequence[int]) -> list[list[Answer]]:
        """`rank` under several adapters, in common passes; for each slot its answers.

        Raises:
            ModelError: a prompt is longer than `evaluate.max_prompt_length`.
        """
        found: list[list[Answer]] = [[] for _ in slots]
        order, chunks = self._chunks(queries)
        past = self._past(chunks, slots)
        for chunk in chunks:
            ranked = score.rank(self, self._questions(chunk), self.tokens.eos_ids, slots, past)
            for answers, each in zip(found, ranked, strict=True):
                answers += [one.answer for one in each]
        places = sorted(range(len(order)), key=order.__getitem__)
        return [[answers[i] for i in places] for answers in found]

    def _rank(self, asked: _Asked, past: Past | None) -> list[Answer]:
        """One chunk ranked, and remembered: the same pass says what strict answers need."""
        keys = [_key(*pair) for pair in asked]
        if not all(key in self._ranked for key in keys):
            (ranked,) = score.rank(
                self, self._questions(asked), self.tokens.eos_ids, [self.slot], past
            )
            self._ranked |= zip(keys, ranked, strict=True)
        return [self._ranked[key].answer for key in keys]

    def _questions(self, asked: _Asked) -> list[score.Question]:
        texts = {text: self.tokens.answer_ids(text) for q, _ in asked for text in q.choices}
        return [
            score.Question(query, prompt, [texts[text] for text in query.choices])
            for query, prompt in asked
        ]

    def read(self, rows: Sequence[Row]) -> list[probe.Reading]:
        """How the adapter that answers and the base read given answers (see engine/probe.py).

        Raises:
            ModelError: a row is longer than the model's context.
            RunFailed: a number that is not finite.
        """
        if isinstance(self.bank, Bank):
            base = self.decoder
        else:
            self._base = self._base or Decoder.load(
                self.bank.folder, self.decoder.dtype, str(self.decoder.device)
            )
            base = self._base
        system = probe.Reader(self.decoder, self.slot)
        return probe.read(system, probe.Reader(base), rows, self.pass_tokens)

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

    def _generate(self, max_new_tokens: int, asked: _Asked, past: Past | None) -> list[Answer]:
        """One chunk of greedy answers.

        Where there are choices, the pass that ranks them already says what greedy decoding says
        when that is one of them; only answers that leave the tree are generated token by token.
        The ranking pass is made if it was not, so that the order of asking changes no bit.
        """
        began = time.perf_counter()
        if all(query.choices for query, _ in asked):
            self._rank(asked, past)
        found = [self._ranked.get(_key(*pair)) for pair in asked]
        known = [ranked.spoken if ranked else None for ranked in found]
        said = [ids if ids is not None and len(ids) <= max_new_tokens else None for ids in known]
        latency = (time.perf_counter() - began) / len(asked)
        rest = [prompt for (_, prompt), ids in zip(asked, said, strict=True) if ids is None]
        spoken = (
            generate.generate(self.decoder, rest, self.tokens, max_new_tokens, (self.slot, past))
            if rest
            else []
        )
        others = iter(spoken)
        return [
            next(others) if ids is None else generate.answer_of(ids, self.tokens, latency)
            for ids in said
        ]

    def _in_chunks(
        self, queries: Sequence[Query], answer: Callable[[_Asked, Past | None], list[Answer]]
    ) -> list[Answer]:
        """Answers in the order of the queries, computed in chunks of (length, id) order.

        The order of computing is a function of the queries alone: rounding depends on what shares
        a pass, and a result must not depend on the order in which questions arrive.
        """
        order, chunks = self._chunks(queries)
        past = self._past(chunks, [self.slot])
        answers: dict[int, Answer] = {}
        for chunk in chunks:
            places = order[len(answers) : len(answers) + len(chunk)]
            answers.update(zip(places, answer(chunk, past), strict=True))
        return [answers[i] for i in range(len(queries))]

    def _past(self, chunks: Sequence[_Asked], slots: Sequence[int]) -> Past | None:
        """What all prompts begin with, computed once for all chunks, where that saves anything."""
        if len(chunks) < 2 or self.trunk is not None or self.decoder.span is not None:
            return None
        prompts = [prompt for chunk in chunks for _, prompt in chunk]
        start = min(common_start(min(prompts), max(prompts)), min(map(len, prompts)) - 1)
        if start * (len(chunks) - 1) < WORTH:
            return None
        return self.decoder.begin(prompts[0][:start], slots)

    def _chunks(self, queries: Sequence[Query]) -> tuple[list[int], list[_Asked]]:
        """Places of the queries in the order of computing, and the chunks of that order."""
        asked = [(query, self._prompt(query)) for query in queries]
        order = sorted(range(len(asked)), key=lambda i: (len(asked[i][1]), asked[i][0].id))
        size = self.evaluate.batch_size
        starts = range(0, len(order), size)
        return order, [[asked[i] for i in order[start : start + size]] for start in starts]

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


def _say_nothing(text: str) -> None:
    """Nobody listens."""


def _linears(decoder: Decoder, layers: Sequence[nn.Module]) -> tuple[str, ...]:
    """Whole names of the linear layers within some of the network's layers."""
    inside = {id(module) for layer in layers for module in layer.modules()}
    named: Iterable[tuple[str, nn.Module]] = decoder.network.named_modules()
    return tuple(sorted(name for name, m in named if isinstance(m, nn.Linear) and id(m) in inside))


def _key(query: Query, prompt: Sequence[int]) -> _Key:
    """What an answer is remembered by."""
    return query.id, tuple(prompt), query.choices
