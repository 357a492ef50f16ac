"""Forests of tokens in, hidden states and logits out: the one place that calls the network.

Knows: the network's decoder and head. Does not know: LoRA, losses, choices, text.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from mixtune.engine.attention import NAME
from mixtune.engine.forest import BASE, Branch, Forest, Past, Routes, plant
from mixtune.engine.kv_cache import Memory
from mixtune.errors import ModelError

_LAYERS = {"full_attention", "sliding_attention"}
_STRETCHED = {"dynamic", "longrope"}
_PROBE = 4
_AGREE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Relative distance to the network's own logits up to which the rest is rounding."""


class _ReachedError(Exception):
    """The layers that were wanted have run."""


class Decoder:
    """A causal language model, split into the decoder and the head on top of it."""

    def __init__(self, network: Any) -> None:
        """Take a network in evaluation mode.

        Raises:
            ModelError: its state is not keys and values, or its logits are not `logits` below.
        """
        self.network = network
        self.head: nn.Module = network.get_output_embeddings()
        self.inner: nn.Module = network.get_decoder()
        self.softcap: float | None = getattr(network.config, "final_logit_softcapping", None)
        self.dtype: torch.dtype = network.dtype
        self.device: torch.device = network.device
        self.span = _span(network.config)
        self.context: int | None = getattr(network.config, "max_position_embeddings", None)
        self.routes = Routes()
        self.cut = 0
        """Layers whose work may be taken from what was kept (see `cut_below`)."""
        self.checkpointing = False
        """Whether a layer's activations are computed again in the backward pass, not kept."""
        self._given: Tensor | None = None
        _check_layers(network)
        self._check()

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype, device: str) -> "Decoder":
        """Read a model folder: safetensors only, no remote code, every weight present.

        Raises:
            ModelError: the folder cannot be read, or weights are missing.
        """
        auto: Any = AutoModelForCausalLM
        try:
            with quiet():  # its report of missing weights: the error below says it
                network, info = auto.from_pretrained(
                    folder,
                    dtype=dtype,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    output_loading_info=True,
                )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"the base model cannot be loaded: {error}",
                where=str(folder),
                wanted="config.json and safetensors of a causal language model",
                remedy="name the folder of a whole model that transformers knows",
            ) from error
        absent = sorted([*info["missing_keys"], *map(str, info["mismatched_keys"])])
        if absent:
            # transformers fills these with random numbers and goes on.
            raise ModelError(
                "the base model lacks weights",
                where=str(folder),
                found=f"{len(absent)} missing or misshapen, such as {absent[0]}; "
                f"{len(info['unexpected_keys'])} that the architecture does not have",
                wanted=f"the weights of a {type(network).__name__}, as config.json says",
                remedy="fetch the model again: config.json and weights are not of one model",
            )
        return cls(network.to(device).eval())

    @torch.inference_mode()
    def begin(self, start: Sequence[int], slots: Sequence[int]) -> Past:
        """Compute a start that many rows share, under some adapters, once for all later passes.

        Args:
            start: at least one token.
            slots: adapters, each once.
        """
        ordered = tuple(sorted(slots))  # the order of the packed tokens
        past = Past(len(start), ordered)
        forest = plant([Branch(start, adapter=slot) for slot in ordered], self.device)
        self.routes.slices = forest.slices
        self._run(forest.ids, forest.positions, forest=forest, record=past)
        return past

    def run(self, forest: Forest, memory: Memory | None = None) -> Tensor:
        """Last hidden states [N, width] of a forest's packed tokens.

        Args:
            forest: tokens and what each sees.
            memory: keeps keys and values for tokens that follow (see `follow`).
        """
        self.check_length(forest.longest)
        self.routes.slices = forest.slices
        return self._run(forest.ids, forest.positions, forest=forest, memory=memory)

    def cut_below(self, top: int) -> None:
        """Make the layers below the `top` topmost ones skippable.

        Raises:
            ModelError: the model has no more layers than that.
        """
        layers = self.layers
        if not 0 < top < len(layers):
            raise ModelError(
                "train.top_layers leaves no layer below",
                found=top,
                wanted=f"1 to {len(layers) - 1} of the model's {len(layers)} layers",
                remedy="lower it, or leave it out to train all layers",
            )
        self.cut = len(layers) - top
        for number, layer in enumerate(layers[: self.cut]):
            layer.forward = self._skippable(layer.forward, last=number == self.cut - 1)

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder's layers, from the bottom."""
        found: Any = self.inner.layers
        return list(found)

    def _skippable(self, forward: Callable[..., Tensor], *, last: bool) -> Callable[..., Tensor]:
        """A lower layer: computes, or, where states are given, hands them on at the last one."""

        def layer(hidden: Tensor, *args: Any, **more: Any) -> Tensor:
            if self._given is None:
                return forward(hidden, *args, **more)
            return self._given.unsqueeze(0) if last else hidden

        return layer

    def below(self, forest: Forest) -> Tensor:
        """[N, width]: what enters the top layers, computed by those below."""
        found: list[Tensor] = []

        def reached(_layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            found.append(args[0][0].clone())
            raise _ReachedError

        self.routes.slices = ((BASE, 0, forest.size),)
        handle = self.layers[self.cut].register_forward_pre_hook(reached)
        try:
            self._run(forest.ids, forest.positions, forest=forest)
        except _ReachedError:
            return found[0]
        finally:
            handle.remove()
        raise AssertionError("a network calls all of its layers")

    def above(self, forest: Forest, states: Tensor) -> Tensor:
        """`run` with the states that enter the top layers given."""
        self._given = states
        try:
            return self.run(forest)
        finally:
            self._given = None

    def checkpoint_layers(self) -> None:
        """Let every layer compute its activations again in the backward pass if asked to."""
        for layer in self.layers:
            layer.forward = self._twice(layer.forward)

    def _twice(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def layer(hidden: Tensor, *args: Any, **more: Any) -> Tensor:
            if not (self.checkpointing and torch.is_grad_enabled()):
                return forward(hidden, *args, **more)
            # The routes of the pass are those of its backward pass too: it comes before the next.
            found: Tensor = checkpoint(forward, hidden, *args, use_reentrant=False, **more)
            return found

        return layer

    def follow(self, ids: Tensor, memory: Memory) -> Tensor:
        """Last hidden states [rows, width] of one more token for each row of a memory."""
        positions = memory.advance()
        self.routes.slices = memory.slices
        return self._run(ids, positions, memory=memory)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., width] → [..., vocabulary], float32."""
        logits: Tensor = self.head(hidden).float()
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def check_length(self, tokens: int) -> None:
        """Refuse a text beyond the positions that the model was made for.

        Raises:
            ModelError: it is longer; networks go on computing there, and what comes is no use.
        """
        if self.context is not None and tokens > self.context:
            raise ModelError(
                "a text is longer than the model's context",
                found=f"{tokens} tokens",
                wanted=f"at most {self.context}, as config.json says (max_position_embeddings)",
                remedy="lower train.max_length or evaluate.max_prompt_length, shorten the texts, "
                "or use another base model",
            )

    def alone(self, length: int) -> bool:
        """Whether a row this long must be run by itself to be exact."""
        return self.span is not None and length > self.span

    def _run(self, ids: Tensor, positions: Tensor, **more: object) -> Tensor:
        out = self.inner(
            input_ids=ids.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            use_cache=False,
            **more,
        )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    @torch.no_grad()
    def _check(self) -> None:
        """Compare with the network's own attention and logits: architectures may do more to them.

        The probe has a shared start, so that a layer that looks across tokens in another way than
        by attention is found out. Its tokens are taken from all over the vocabulary, and the
        median token decides: in bfloat16 single tokens, special ones above all, are so sensitive
        that two of transformers' own attention functions differ by a third of their logits there.
        """
        vocabulary = int(self.network.config.get_text_config().vocab_size)
        probe = [vocabulary * (1 + place) // (1 + _PROBE) for place in range(_PROBE)]
        other = [*probe[:2], *reversed(probe[2:])]
        own = [
            self.network(input_ids=torch.tensor([row], device=self.device), use_cache=False)
            for row in (probe, other)
        ]
        self.network.set_attn_implementation(NAME)
        forest = plant(
            [Branch(probe[:2]), Branch(probe[2:], parent=0), Branch(other[2:], parent=0)],
            self.device,
        )
        mine = self.logits(self.run(forest))
        theirs = torch.cat([own[0].logits[0], own[1].logits[0, 2:]]).float()
        apart = (mine - theirs).norm(dim=1) / theirs.norm(dim=1)
        if not float(apart.sort().values[len(apart) // 2]) < _AGREE[self.dtype]:
            raise ModelError(
                "the model does more than attention over its tokens and an output head",
                found=type(self.network).__name__,
                wanted="an architecture such as Llama, Qwen, Mistral, Phi-3 or Gemma",
                remedy="use another base model",
            )


@contextmanager
def quiet() -> Iterator[None]:
    """The progress bars and warnings of transformers off, and back as they were."""
    logging: Any = transformers_logging
    bar, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _span(config: Any) -> int | None:
    """Tokens up to which the rotations of positions are fixed.

    Stretched rotary embeddings depend on the longest row of a pass.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    limits: list[int] = []
    for part in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if part.get("rope_type") in _STRETCHED:
            original = part.get("original_max_position_embeddings")
            limits.append(int(original or config.max_position_embeddings))
    return min(limits, default=None)


def _check_layers(network: Any) -> None:
    """Refuse recurrent and other layers whose state is not one key and value per token."""
    kinds = set(getattr(network.config, "layer_types", None) or []) - _LAYERS
    if kinds or getattr(network, "_is_stateful", False):
        raise ModelError(
            "the model has layers that this engine does not run",
            found=sorted(kinds) or type(network).__name__,
            wanted="attention layers only",
            remedy="use another base model",
        )
