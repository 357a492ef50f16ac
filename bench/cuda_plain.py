"""LoRA as anyone writes it: wrapped linear layers, padded batches, torch's AdamW.

The reference that the engine is held to (`PlainLora`, one example at a time) and the solo runs that
a bank is compared with (`Solo`: PEFT where it is installed, else the same by `PlainLora`).

Knows: transformers, PEFT, plain arithmetic. Does not know: the engine.
"""

import importlib.util
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel

from bench.cuda_device import Peak, timed
from mixtune.engine.decoder import quiet_transformers
from mixtune.tokens import Row

RANK = 16
ALPHA = 32.0
RATE = 1e-4
IGNORED = -100
"""Label of positions that are not supervised, as transformers has it."""


class PlainLora(nn.Module):
    """`base(x) + scale · x Aᵀ Bᵀ`."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, dtype: torch.dtype) -> None:
        super().__init__()
        device = base.weight.device
        self.base, self.scale = base, scale
        self.A = nn.Parameter(torch.empty(rank, base.in_features, device=device, dtype=dtype))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank, device=device, dtype=dtype))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        low = functional.linear(functional.linear(x.to(self.A.dtype), self.A), self.B)
        out: Tensor = self.base(x) + (low * self.scale).to(x.dtype)
        return out


def plain_network(folder: Path, device: str, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """The base model as anyone loads it."""
    auto: Any = AutoModelForCausalLM
    with quiet_transformers():
        network: PreTrainedModel = auto.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention
        )
    return network.to(device).eval()


def wrap(network: nn.Module, rank: int, scale: float, dtype: torch.dtype) -> dict[str, PlainLora]:
    """Freeze a network and put `PlainLora` on every linear layer but the head; by name."""
    network.requires_grad_(False)
    head, found = network.get_output_embeddings(), {}
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Linear) and module is not head:
            parent, _, leaf = name.rpartition(".")
            found[name] = PlainLora(module, rank, scale, dtype)
            setattr(network.get_submodule(parent), leaf, found[name])
    return found


def plain_loss(network: nn.Module, rows: Sequence[Row]) -> float:
    """Mean over examples of the mean over supervised tokens, sent back one example at a time."""
    total = 0.0
    for row in rows:
        ids = torch.tensor([[*row.prompt, *row.answer]], device=network.device)
        logits = network(input_ids=ids, use_cache=False).logits[0, len(row.prompt) - 1 : -1]
        targets = torch.tensor(row.answer, device=network.device)
        loss = functional.cross_entropy(logits.float(), targets) / len(rows)
        loss.backward()
        total += loss.item()
    return total


@torch.no_grad()
def plain_log_probability(
    network: nn.Module, prompt: Sequence[int], answer: Sequence[int]
) -> float:
    """Sum of the log-probabilities of an answer's tokens."""
    ids = torch.tensor([[*prompt, *answer]], device=network.device)
    logits = network(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].double()
    wanted = torch.tensor(answer, device=network.device).unsqueeze(1)
    return float(logits.log_softmax(dim=-1).gather(1, wanted).sum())


@torch.no_grad()
def plain_greedy(
    network: nn.Module, prompt: Sequence[int], stops: set[int], limit: int
) -> list[int]:
    """Likeliest next tokens, each by a pass over the whole text, up to a stop."""
    found: list[int] = []
    while len(found) < limit and not (found and found[-1] in stops):
        ids = torch.tensor([[*prompt, *found]], device=network.device)
        found.append(int(network(input_ids=ids, use_cache=False).logits[0, -1].argmax()))
    return found


class Solo:
    """One adapter trained as a loop of runs trains it: padded batches, no sharing of headers."""

    def __init__(self, folder: Path, device: str, *, masters: torch.dtype) -> None:
        """Load the base in bf16 and put an adapter on it.

        Args:
            folder: config.json and safetensors.
            device: where it runs.
            masters: format of the adapter's weights; PEFT's own choice is float32.
        """
        peak = Peak(device)
        self._device = device
        network = plain_network(folder, device, torch.bfloat16, "sdpa")
        self.by = "peft" if has_peft() else "plain LoRA modules (peft is not installed)"
        if has_peft():
            network = _with_peft(network, masters)
        else:
            wrap(network, RANK, ALPHA / RANK, masters)
        self._network = network.train()
        self._learnt = [p for p in network.parameters() if p.requires_grad]
        fused = device != "cpu"
        self._optimiser = torch.optim.AdamW(self._learnt, lr=RATE, weight_decay=0.0, fused=fused)
        self._peak = peak
        self.vocabulary = int(network.config.vocab_size)

    def seconds(self, batches: Sequence[Sequence[Row]]) -> list[float]:
        """Seconds of each batch's optimiser step."""
        return [timed(self._device, lambda b=batch: self._step(b)) for batch in batches]

    def peak_bytes(self) -> int | None:
        """Bytes allocated at most, from loading on; other work meanwhile counts."""
        return self._peak.bytes()

    def _step(self, rows: Sequence[Row]) -> None:
        longest = max(row.length for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
        for number, row in enumerate(rows):
            ids[number, : row.length] = torch.tensor([*row.prompt, *row.answer])
            mask[number, : row.length] = 1
            labels[number, len(row.prompt) : row.length] = torch.tensor(row.answer)
        ids, mask, labels = (t.to(self._device) for t in (ids, mask, labels))
        given = {"input_ids": ids, "attention_mask": mask, "labels": labels, "use_cache": False}
        loss = self._network(**given).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._learnt, 1.0)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)


def has_peft() -> bool:
    """Whether PEFT is installed."""
    return importlib.util.find_spec("peft") is not None


def _with_peft(network: nn.Module, masters: torch.dtype) -> nn.Module:
    with warnings.catch_warnings():
        # PEFT asks transformers for things by names of other versions.
        warnings.simplefilter("ignore")
        import peft

        config = peft.LoraConfig(
            r=RANK,
            lora_alpha=int(ALPHA),
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        widened = masters == torch.float32
        return peft.get_peft_model(network, config, autocast_adapter_dtype=widened)
