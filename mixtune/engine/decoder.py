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

from mixtune.engine.attention import ATTENTION_NAME
from mixtune.engine.forest import (
    BASE,
    AdapterRouting,
    AdapterSlice,
    Branch,
    Forest,
    pack_forest,
)
from mixtune.engine.kv_cache import DecodeCache, PrefixCache
from mixtune.errors import ModelError

LOGIT_ROWS = 512
"""Positions whose logits exist at once: bounds memory at 512 x vocabulary x 4 bytes."""

_LAYER_TYPES = {"full_attention", "sliding_attention"}
_LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}
_PROBE_TOKENS = 4
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Relative distance to the network's own logits up to which it is rounding."""


class _TopLayersReachedError(Exception):
    """Ends a forward pass behind the lower layers."""


class Decoder:
    """A causal language model, split into the decoder and the head on top of it.

    `packing_limit`: tokens up to which a row may share a pass (None: any). `max_length`: positions
    that the model was made for. `num_lower_layers`: see `split_layers`.
    """

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
        self.packing_limit = _packing_limit(network.config)
        self.max_length: int | None = getattr(network.config, "max_position_embeddings", None)
        self.routing = AdapterRouting()
        self.num_lower_layers = 0
        self._lower_states: Tensor | None = None
        _check_layers(network)
        self._check_attention()

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype, device: str) -> "Decoder":
        """Read a model folder: safetensors only, no remote code, every weight present.

        Raises:
            ModelError: the folder cannot be read, or weights are missing.
        """
        auto: Any = AutoModelForCausalLM
        try:
            with quiet_transformers():  # its report of missing weights: the error below says it
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

    # ---- passes ---------------------------------------------------------------------------------

    def forward(self, forest: Forest, decode_cache: DecodeCache | None = None) -> Tensor:
        """Last hidden states [N, width] of a forest's packed tokens.

        Args:
            forest: tokens and what each sees.
            decode_cache: filled with keys and values of the last block's rows (see `decode`).

        Raises:
            ModelError: a text is longer than the model's context.
        """
        self.check_length(forest.max_length)
        return self._run_forest(forest, decode_cache=decode_cache)

    @torch.inference_mode()
    def prefill(self, prefix: Sequence[int], slot: int) -> PrefixCache:
        """Keys and values of a prefix under one adapter, computed once for many passes."""
        cache = PrefixCache(len(prefix))
        forest = pack_forest([Branch(prefix, slot=slot)], self.device)
        self._run_forest(forest, prefix_cache=cache)
        return cache

    def decode(self, ids: Tensor, cache: DecodeCache, slot: int) -> Tensor:
        """Last hidden states [R, width] of one more token for each row of a cache."""
        self.routing.slices = (AdapterSlice(slot, 0, len(ids)),)
        return self._run(ids, cache.next_positions(), decode_cache=cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., width] → [..., vocabulary], float32."""
        logits: Tensor = self.head(hidden).float()
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def _run_forest(self, forest: Forest, **caches: object) -> Tensor:
        self.routing.slices = forest.slices
        return self._run(forest.input_ids, forest.position_ids, forest=forest, **caches)

    def _run(self, ids: Tensor, positions: Tensor, **attention_options: object) -> Tensor:
        out = self.inner(
            input_ids=ids.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            use_cache=False,
            **attention_options,
        )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    # ---- layers ---------------------------------------------------------------------------------

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder's layers, from the bottom."""
        layers: Any = self.inner.layers
        return list(layers)

    def split_layers(self, num_top_layers: int) -> None:
        """Make the layers below the top ones skippable (see `forward_top`).

        Raises:
            ModelError: the model has no more layers than that.
        """
        layers = self.layers
        if not 0 < num_top_layers < len(layers):
            raise ModelError(
                "train.top_layers leaves no layer below",
                found=num_top_layers,
                wanted=f"1 to {len(layers) - 1} of the model's {len(layers)} layers",
                remedy="lower it, or leave it out to train all layers",
            )
        self.num_lower_layers = len(layers) - num_top_layers
        for number, layer in enumerate(layers[: self.num_lower_layers]):
            is_last = number == self.num_lower_layers - 1
            layer.forward = self._skippable(layer.forward, is_last=is_last)

    def _skippable(self, forward: Callable[..., Tensor], *, is_last: bool) -> Callable[..., Tensor]:
        """A lower layer that computes nothing, or at the last one returns the states, if given."""

        def layer(hidden: Tensor, *args: Any, **options: Any) -> Tensor:
            if self._lower_states is None:
                return forward(hidden, *args, **options)
            return self._lower_states.unsqueeze(0) if is_last else hidden

        return layer

    def forward_lower(self, forest: Forest) -> Tensor:
        """Hidden states [N, width] that enter the top layers, under the base alone."""
        states: list[Tensor] = []

        def stop(_layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            states.append(args[0][0].clone())
            raise _TopLayersReachedError

        handle = self.layers[self.num_lower_layers].register_forward_pre_hook(stop)
        self.routing.slices = (AdapterSlice(BASE, 0, forest.num_tokens),)
        try:
            self._run(forest.input_ids, forest.position_ids, forest=forest)
        except _TopLayersReachedError:
            return states[0]
        finally:
            handle.remove()
        raise AssertionError("a network calls all of its layers")

    def forward_top(self, forest: Forest, lower_states: Tensor) -> Tensor:
        """`forward` from the states [N, width] that enter the top layers."""
        self._lower_states = lower_states
        try:
            return self.forward(forest)
        finally:
            self._lower_states = None

    def enable_gradient_checkpointing(self) -> None:
        """Compute every layer's activations again in the backward pass rather than keep them."""
        for layer in self.layers:
            layer.forward = _checkpointed(layer.forward)

    # ---- what can be run ------------------------------------------------------------------------

    def check_length(self, tokens: int) -> None:
        """Refuse a text beyond the positions that the model was made for.

        Raises:
            ModelError: it is longer; networks go on computing there, and what comes is no use.
        """
        if self.max_length is not None and tokens > self.max_length:
            raise ModelError(
                "a text is longer than the model's context",
                found=f"{tokens} tokens",
                wanted=f"at most {self.max_length}, as config.json says (max_position_embeddings)",
                remedy="lower train.max_length or evaluate.max_prompt_length, shorten the texts, "
                "or use another base model",
            )

    def must_run_alone(self, length: int) -> bool:
        """True where a row this long must have a pass to itself to be exact."""
        return self.packing_limit is not None and length > self.packing_limit

    @torch.no_grad()
    def _check_attention(self) -> None:
        """Compare with the network's own attention and logits: architectures may do more to them.

        The two probes share a start, so that a layer that looks across tokens in another way than
        by attention is found out. Tokens are taken from all over the vocabulary, and the median
        token decides: in bfloat16 single tokens, special ones above all, are so sensitive that two
        of transformers' own attention functions differ by a third of their logits there.
        """
        vocabulary = int(self.network.config.get_text_config().vocab_size)
        probe = [vocabulary * (1 + i) // (1 + _PROBE_TOKENS) for i in range(_PROBE_TOKENS)]
        second = [*probe[:2], *reversed(probe[2:])]
        expected = [
            self.network(input_ids=torch.tensor([row], device=self.device), use_cache=False)
            for row in (probe, second)
        ]
        self.network.set_attn_implementation(ATTENTION_NAME)
        branches = [Branch(probe[:2]), Branch(probe[2:], parent=0), Branch(second[2:], parent=0)]
        logits = self.logits(self.forward(pack_forest(branches, self.device)))
        reference = torch.cat([expected[0].logits[0], expected[1].logits[0, 2:]]).float()
        distance = (logits - reference).norm(dim=1) / reference.norm(dim=1)
        if not float(distance.sort().values[len(distance) // 2]) < _TOLERANCE[self.dtype]:
            raise ModelError(
                "the model does more than attention over its tokens and an output head",
                found=type(self.network).__name__,
                wanted="an architecture such as Llama, Qwen, Mistral, Phi-3 or Gemma",
                remedy="use another base model",
            )


@contextmanager
def quiet_transformers() -> Iterator[None]:
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


def _checkpointed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def layer(hidden: Tensor, *args: Any, **options: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(hidden, *args, **options)
        # The pass's routing still holds in its backward pass, which comes before the next pass.
        out: Tensor = checkpoint(forward, hidden, *args, use_reentrant=False, **options)
        return out

    return layer


def _packing_limit(config: Any) -> int | None:
    """Tokens up to which rotary embeddings are fixed: some depend on the longest row of a pass."""
    rope = getattr(config, "rope_parameters", None) or {}
    limits: list[int] = []
    # One set of parameters, or one for each type of layer.
    for parameters in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if parameters.get("rope_type") in _LENGTH_DEPENDENT_ROPE:
            original = parameters.get("original_max_position_embeddings")
            limits.append(int(original or config.max_position_embeddings))
    return min(limits, default=None)


def _check_layers(network: Any) -> None:
    """Refuse recurrent and other layers whose state is not one key and value per token."""
    unknown = set(getattr(network.config, "layer_types", None) or []) - _LAYER_TYPES
    if unknown or getattr(network, "_is_stateful", False):
        raise ModelError(
            "the model has layers that this engine does not run",
            found=sorted(unknown) or type(network).__name__,
            wanted="attention layers only",
            remedy="use another base model",
        )
