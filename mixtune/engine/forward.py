"""Token ids in, hidden states and logits out: the one place that calls the network.

Knows: the network's decoder and head, caches of keys and values, padding. Does not know: LoRA,
losses, choices, text.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils import logging as transformers_logging

from mixtune.errors import ModelError

_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
_STRETCHED = {"dynamic", "longrope"}
_PROBE = 4


class Decoder:
    """A causal language model, split into the decoder and the head on top of it."""

    def __init__(self, network: Any) -> None:  # noqa: ANN401 - transformers' models are untyped
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
        _check_layers(network)
        self._check_logits()

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype, device: str) -> "Decoder":
        """Read a model folder: safetensors only, no remote code, every weight present.

        Raises:
            ModelError: the folder cannot be read, or weights are missing.
        """
        auto: Any = AutoModelForCausalLM
        try:
            # The attention function is transformers' own choice: torch's fused one ("sdpa"), or
            # plain matmuls where a model needs them (Gemma 2 caps its scores). On two AVX-512
            # cores, SmolLM2-135M, float32, rows of 100 tokens: both take 5.3 s of one core for a
            # training step of 16 rows and the same for ranking; the fused one generates 4 % faster
            # and keeps no [heads, row, row] tensors for the backward pass.
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

    def hidden(self, rows: Sequence[Sequence[int]], header: int = 0) -> Tensor:
        """Last hidden states of right-padded rows behind their shared header.

        Exact without a padding mask: attention is causal, so a row's tokens never see the padding
        behind them, and the states at padding are read by nobody.

        Args:
            rows: token ids; the first `header` of them are the same in every row.
            header: computed once, as a batch of one (with gradient, if gradients are on).

        Returns:
            [rows, longest remainder, width]; position i is token `header + i` of its row.
        """
        if not header:
            return self._run(self.pad(rows))
        cache = self.prefill(rows[0][:header], len(rows))
        return self._run(self.pad([row[header:] for row in rows]), cache)

    def prefill(self, header: Sequence[int], rows: int) -> DynamicCache:
        """Keys and values of a header, seen by each of `rows` rows; empty for an empty header."""
        # Without the config, so that sliding layers keep every position: masks see to the rest.
        cache = DynamicCache()
        if header:
            self._run(self.pad([header]), cache)
            layers: Any = cache.layers
            for layer in layers:
                layer.keys = layer.keys.expand(rows, -1, -1, -1)
                layer.values = layer.values.expand(rows, -1, -1, -1)
        return cache

    def extend(
        self, ids: Tensor, cache: DynamicCache, allowed: Tensor | None, positions: Tensor | None
    ) -> Tensor:
        """Hidden states of more tokens behind a cache, which grows by them.

        Args:
            ids: [rows, tokens].
            cache: keys and values so far.
            allowed: [rows, tokens, cached + tokens] bool, which keys a token attends to; None for
                plain causal attention.
            positions: [rows, tokens], None for consecutive ones behind the cache.
        """
        if allowed is None:
            return self._run(ids, cache)
        # An additive mask is what both of transformers' attention functions take.
        mask = torch.zeros(allowed.shape, dtype=self.dtype, device=self.device)
        mask.masked_fill_(~allowed, torch.finfo(self.dtype).min)
        return self._run(ids, cache, attention_mask=mask.unsqueeze(1), position_ids=positions)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., width] → [..., vocabulary], float32."""
        logits: Tensor = self.head(hidden).float()
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def pad(self, rows: Sequence[Sequence[int]], value: int = 0) -> Tensor:
        """Right-padded [rows, longest] tensor; no result depends on the padding's value."""
        longest = max(len(row) for row in rows)
        padded = [[*row, *[value] * (longest - len(row))] for row in rows]
        return torch.tensor(padded, device=self.device)

    def alone(self, length: int) -> bool:
        """Whether a row this long must be run by itself, from its start, to be exact."""
        return self.span is not None and length > self.span

    def _run(self, ids: Tensor, cache: DynamicCache | None = None, **more: Tensor | None) -> Tensor:
        out = self.inner(input_ids=ids, past_key_values=cache, use_cache=cache is not None, **more)
        hidden: Tensor = out.last_hidden_state
        return hidden

    @torch.no_grad()
    def _check_logits(self) -> None:
        """Compare `logits` with the network's own: architectures may scale or cap them."""
        ids = torch.arange(1, 1 + _PROBE, device=self.device).unsqueeze(0)
        own = self.network(input_ids=ids, use_cache=False).logits.float()
        if not torch.allclose(self.logits(self._run(ids)), own, rtol=1e-2, atol=1e-2):
            raise ModelError(
                "the model does more to its logits than apply its output head",
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


def _span(config: Any) -> int | None:  # noqa: ANN401 - transformers' configs are untyped
    """Tokens up to which every layer is plain causal attention with fixed rotations.

    Beyond a sliding window or chunk, index and position must agree, which layouts with padding or
    branches in the middle break; stretched rotary embeddings depend on the longest row of a pass.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    limits = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    for part in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if part.get("rope_type") in _STRETCHED:
            original = part.get("original_max_position_embeddings")
            limits.append(original or config.max_position_embeddings)
    return min((int(limit) for limit in limits if limit is not None), default=None)


def _check_layers(network: Any) -> None:  # noqa: ANN401 - transformers' models are untyped
    """Refuse recurrent and other layers whose state is not one key and value per token."""
    kinds = set(getattr(network.config, "layer_types", None) or []) - _LAYERS
    if kinds or getattr(network, "_is_stateful", False):
        raise ModelError(
            "the model has layers that this engine does not run",
            found=sorted(kinds) or type(network).__name__,
            wanted="attention layers only",
            remedy="use another base model",
        )
