"""Models and rows that are made here: a tiny base folder, random networks, rows of given lengths.

Knows: what transformers and mixtune read from a model folder, how long FPB-like rows are. Does not
know: engines, devices' speed, what is measured with them.
"""

import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
)

from mixtune.engine.decoder import quiet_transformers
from mixtune.tokens import Row

_SPECIAL = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|pad|>")
_BYTES = 256
_TEMPLATE = (
    "{% for turn in messages %}<|{{ turn['role'] }}|>{{ turn['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
END = _BYTES + _SPECIAL.index("<|end|>")
VOCABULARY = _BYTES + len(_SPECIAL)

LABELS = 3
"""Labels of the made task, one token each."""

_FIRST_ID = 16
"""Ids below it are left to labels and the end of turn."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a row: a header that all share, then a text; `spread` 0 makes all texts equal.

    Texts are log-normal around `text` (the median), cut at `longest`.
    """

    header: int
    text: int
    spread: float
    longest: int
    answer: int = 1

    @property
    def equal(self) -> "Lengths":
        """The same with all texts as long as the median."""
        return Lengths(self.header, self.text, 0.0, self.longest, self.answer)


FPB = Lengths(header=50, text=40, spread=0.4, longest=110)
"""Like Financial PhraseBank's prompts: about 94 tokens, 50 of them a header; a one-token label."""

LONG = Lengths(header=0, text=448, spread=0.0, longest=448, answer=64)
"""Instruction rows without a header: 512 tokens, 64 of them an answer."""


def write_tiny(folder: Path) -> Path:
    """A folder with a random Llama of two layers and a byte-level tokenizer with a chat template.

    Weights are ten times as large as usual, so that attention and answers are far from uniform.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        tie_word_embeddings=True,
        eos_token_id=END,
        bos_token_id=None,
        pad_token_id=_BYTES + _SPECIAL.index("<|pad|>"),
    )
    with quiet_transformers():
        LlamaForCausalLM(config).save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in _SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"eos_token": "<|end|>", "pad_token": "<|pad|>", "chat_template": _TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
    return folder


def phi3_mini(*, small: bool) -> Phi3Config:
    """Phi-3-mini's shape (3.8 billion parameters), or one small enough for a CPU in CI."""
    sizes = (
        {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "heads": 4}
        if small
        else {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "heads": 32}
    )
    heads = sizes.pop("heads")
    return Phi3Config(
        vocab_size=512 if small else 32064,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **sizes,
    )


def random_network(config: PreTrainedConfig, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """A network with random weights, made on the device itself."""
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM
    with torch.device(device):
        # A copy: networks write into their configurations.
        network: PreTrainedModel = auto.from_config(deepcopy(config), dtype=dtype)
    return network.eval()


def rows_of(adapter: int, count: int, lengths: Lengths, vocabulary: int) -> list[Row]:
    """Random rows of one adapter; the header is the same for every adapter.

    Raises:
        ValueError: the vocabulary is too small to draw from.
    """
    if vocabulary <= 2 * _FIRST_ID:
        raise ValueError(f"a vocabulary of {vocabulary}, wanted more than {2 * _FIRST_ID}")
    header = _draw(np.random.default_rng(0), lengths.header, vocabulary)
    generator = np.random.default_rng([1, adapter])
    rows = []
    for number in range(count):
        drawn = round(lengths.text * float(np.exp(lengths.spread * generator.standard_normal())))
        text = _draw(generator, min(max(drawn, 4), lengths.longest), vocabulary)
        answer = (
            (1 + int(generator.integers(LABELS)),)
            if lengths.answer == 1
            else _draw(generator, lengths.answer, vocabulary)
        )
        rows.append(Row(f"made-{adapter}", str(number), (*header, *text), (*answer, 0)))
    return rows


def _draw(generator: np.random.Generator, count: int, vocabulary: int) -> tuple[int, ...]:
    return tuple(generator.integers(_FIRST_ID, vocabulary, count).tolist())
