"""A base model on this machine with its bank of adapters: trained, saved, and asked.

Knows: how the engine's parts fit together; the canonical order of batches. Does not know: tasks,
runs, where predictions go. Keeps the protocol of models/base.py.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from mixtune.engine.activation_cache import ActivationCache
from mixtune.engine.adapter_format import AdapterConfig
from mixtune.engine.bank import Bank
from mixtune.engine.batching import MIN_SAVED_TOKENS, PASS_TOKENS, common_prefix_length
from mixtune.engine.decoder import Decoder
from mixtune.engine.forest import BASE
from mixtune.engine.full import FullWeights
from mixtune.engine.generate import Generator, answer_of
from mixtune.engine.kv_cache import PrefixCache
from mixtune.engine.probe import Reader, Reading, read_answers
from mixtune.engine.rank import EncodedQuery, Ranker, Ranking
from mixtune.errors import ModelError
from mixtune.records import Answer, Query
from mixtune.study.spec import EvalSpec, TrainSpec
from mixtune.tokens import Row, Tokens

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class _Prompt(NamedTuple):
    """A query and its prompt in tokens."""

    query: Query
    ids: list[int]

    @property
    def key(self) -> tuple[str, tuple[int, ...], tuple[str, ...]]:
        """Key of its ranking in the cache."""
        return self.query.id, tuple(self.ids), self.query.choices


class LocalModel:
    """A frozen base with a bank of LoRA adapters on every linear layer but the head.

    `slot`: the adapter that answers, BASE for none. `pass_tokens`: of one pass in training; halved
    when a pass does not fit in memory. `on_note` is called with what a user should know.
    `activation_cache`: cached states of the layers below the adapters, where those are in the top
    layers only.
    """

    def __init__(
        self, decoder: Decoder, bank: Bank | FullWeights, tokens: Tokens, evaluate: EvalSpec
    ) -> None:
        """Put the parts together; the caller sets `system`, the id of its predictions."""
        self.system = ""
        self.activation_cache: ActivationCache | None = None
        self.pass_tokens = PASS_TOKENS
        self.on_note: Callable[[str], None] = lambda _note: None
        self.decoder = decoder
        self.bank = bank
        self.tokens = tokens
        self.evaluate = evaluate
        self.slot = 0
        self._rankings: dict[tuple[str, tuple[int, ...], tuple[str, ...]], Ranking] = {}
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
            train: method, rank, alpha, top layers and number format are used.
            evaluate: `batch_size` and `max_prompt_length` are used.
            slots: adapters in the bank.
            device: where it computes, in torch's words.

        Raises:
            ModelError: the weights cannot be read, or the architecture cannot be run exactly.
        """
        decoder = Decoder.load(folder, DTYPES[train.compute], device)
        if train.gradient_checkpointing:
            decoder.enable_gradient_checkpointing()
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
            decoder.split_layers(train.top_layers)
            targets = _linear_layers(decoder, decoder.layers[decoder.num_lower_layers :])
        config = AdapterConfig(train.rank, train.alpha, targets)
        return cls.with_adapters(decoder, config, tokens, evaluate, slots)

    @classmethod
    def with_adapters(
        cls,
        decoder: Decoder,
        config: AdapterConfig,
        tokens: Tokens,
        evaluate: EvalSpec,
        slots: int = 1,
    ) -> "LocalModel":
        """A network with adapters of any configuration, such as that of an external adapter.

        Raises:
            ModelError: the network has no linear layers that the configuration names.
        """
        return cls(decoder, Bank(decoder, config, slots), tokens, evaluate)

    # ---- adapters -------------------------------------------------------------------------------

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
        self.clear_answers()
        self.bank.set_scaling(strength)
        self.bank.sync_to_compute_dtype(slot)
        self.slot = slot

    def save_adapter(self, folder: Path, base_name: str, slot: int = 0) -> None:
        """Write an adapter in PEFT's format; `base_name` is the base it names there."""
        self.bank.save(slot, folder, base_name)

    def load_adapter(self, folder: Path, slot: int = 0, strength: float = 1.0) -> None:
        """Read an adapter in PEFT's format into a slot; it answers from now on (`use_adapter`).

        Raises:
            ModelError: a file is missing, broken or foreign; rank, alpha or targets differ.
        """
        self.clear_answers()
        self.bank.load(slot, folder)
        self.use_adapter(slot, strength)

    def clear_answers(self) -> None:
        """Drop cached rankings; called whenever the adapter changes."""
        self._rankings.clear()

    # ---- answers --------------------------------------------------------------------------------

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

    def generate(self, queries: Sequence[Query], max_new_tokens: int) -> list[Answer]:
        """Greedy text up to the end of turn, at most `max_new_tokens` tokens.

        Raises:
            ModelError: a prompt is longer than `evaluate.max_prompt_length`.
            ValueError: `max_new_tokens` is not positive.
        """
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}, wanted at least 1")
        return self._in_chunks(queries, partial(self._generate, max_new_tokens))

    def read(self, rows: Sequence[Row]) -> list[Reading]:
        """Given answers as the adapter that is on and the base read them (see engine/probe.py).

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
        return read_answers(Reader(self.decoder, self.slot), Reader(base), rows, self.pass_tokens)

    def _rank(self, prompts: Sequence[_Prompt], prefix: PrefixCache | None) -> list[Answer]:
        """One chunk ranked, and cached: the same pass gives what strict answers need."""
        if not all(prompt.key in self._rankings for prompt in prompts):
            texts = {text for prompt in prompts for text in prompt.query.choices}
            ids = {text: self.tokens.answer_ids(text) for text in texts}
            queries = [
                EncodedQuery(query, prompt, [ids[text] for text in query.choices])
                for query, prompt in prompts
            ]
            ranker = Ranker(self.decoder, self.slot, self.tokens.eos_ids, self.activation_cache)
            rankings = ranker.rank(queries, prefix)
            self._rankings |= zip((prompt.key for prompt in prompts), rankings, strict=True)
        return [self._rankings[prompt.key].answer for prompt in prompts]

    def _generate(
        self, max_new_tokens: int, prompts: Sequence[_Prompt], prefix: PrefixCache | None
    ) -> list[Answer]:
        """One chunk of greedy answers.

        Where there are choices, the pass that ranks them already gives the greedy answer if that is
        one of them; only answers that leave the tree are generated token by token. The ranking pass
        is made if it was not, so that the order of asking changes no bit.
        """
        started = time.perf_counter()
        if all(prompt.query.choices for prompt in prompts):
            self._rank(prompts, prefix)
        answers: list[list[int] | None] = []
        for prompt in prompts:
            ranking = self._rankings.get(prompt.key)
            ids = ranking.greedy if ranking else None
            answers.append(ids if ids is not None and len(ids) <= max_new_tokens else None)
        latency = (time.perf_counter() - started) / len(prompts)
        unanswered = [p.ids for p, ids in zip(prompts, answers, strict=True) if ids is None]
        generated: list[Answer] = []
        if unanswered:
            generator = Generator(self.decoder, self.slot, self.tokens)
            generated = generator.generate(unanswered, max_new_tokens, prefix)
        rest = iter(generated)
        return [
            next(rest) if ids is None else answer_of(ids, self.tokens, latency) for ids in answers
        ]

    def _in_chunks(
        self,
        queries: Sequence[Query],
        answer: Callable[[Sequence[_Prompt], PrefixCache | None], list[Answer]],
    ) -> list[Answer]:
        """Answers in the order of the queries, computed in chunks of (length, id) order.

        The order of computing is a function of the queries alone: rounding depends on what shares
        a pass, and a result must not depend on the order in which queries arrive.
        """
        prompts = [_Prompt(query, self._prompt_ids(query)) for query in queries]
        order = sorted(
            range(len(prompts)), key=lambda i: (len(prompts[i].ids), prompts[i].query.id)
        )
        size = self.evaluate.batch_size
        chunks = [order[start : start + size] for start in range(0, len(order), size)]
        prefix = self._prefill_prefix([prompt.ids for prompt in prompts], len(chunks))
        answers: dict[int, Answer] = {}
        for chunk in chunks:
            answers |= zip(chunk, answer([prompts[i] for i in chunk], prefix), strict=True)
        return [answers[i] for i in range(len(queries))]

    def _prefill_prefix(self, prompts: Sequence[list[int]], num_chunks: int) -> PrefixCache | None:
        """The common start of all prompts, computed once for all chunks, where that saves much."""
        is_exact = self.activation_cache is None and self.decoder.packing_limit is None
        if num_chunks < 2 or not is_exact:
            return None
        # All prompts share what the first and the last in sorted order share; each keeps a token.
        shared = common_prefix_length(min(prompts), max(prompts))
        length = min(shared, min(map(len, prompts)) - 1)
        if length * (num_chunks - 1) < MIN_SAVED_TOKENS:
            return None
        return self.decoder.prefill(prompts[0][:length], self.slot)

    def _prompt_ids(self, query: Query) -> list[int]:
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


def _linear_layers(decoder: Decoder, layers: Sequence[nn.Module]) -> tuple[str, ...]:
    """Whole names of the linear layers within some of the network's layers."""
    inside = {id(module) for layer in layers for module in layer.modules()}
    named: Iterable[tuple[str, nn.Module]] = decoder.network.named_modules()
    return tuple(sorted(name for name, m in named if isinstance(m, nn.Linear) and id(m) in inside))
