"""The reference that the engine is held to: transformers and PEFT, one example at a time.

Knows: plain forward passes and transformers' own generate. Does not know: the engine.
"""

import json
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils import logging

# Products this small gain nothing from threads, and waiting for one on a busy core costs a lot.
torch.set_num_threads(1)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
END = 258
WINDOW = 24

SHAPE = {
    "vocab_size": 259,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # Ten times the usual, so that attention and answers are far from uniform.
    "initializer_range": 0.2,
    "pad_token_id": 256,
    "bos_token_id": 257,
    "eos_token_id": END,
}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 16}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": None}),
    "mistral-window": (MistralForCausalLM, MistralConfig, {"sliding_window": WINDOW}),
    "phi3": (Phi3ForCausalLM, Phi3Config, {}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {"head_dim": 16, "sliding_window": WINDOW}),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {
            "head_dim": 16,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
            "final_logit_softcapping": 5.0,
        },
    ),
}


def write_base(folder: Path, family: str) -> Path:
    """A folder with a tiny random model of a family and a byte-level ChatML tokenizer."""
    model_class, config_class, more = FAMILIES[family]
    torch.manual_seed(0)
    logging.disable_progress_bar()
    model_class(config_class(**SHAPE, **more)).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>", "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


def plain_network(folder: Path):
    """The base model as anyone loads it."""
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def peft_network(folder: Path, adapter: Path, trainable: bool = False):
    """The base model with a saved adapter, put on it by PEFT."""
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers 5.23 for a property by its old name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        network = plain_network(folder)
        return PeftModel.from_pretrained(network, adapter, is_trainable=trainable).eval()


def loss_and_gradients(network, rows) -> tuple[float, dict[str, torch.Tensor]]:
    """Mean over examples of the mean over supervised tokens; gradients by PEFT's saved keys."""
    total = 0.0
    for row in rows:
        ids = torch.tensor([[*row.prompt, *row.answer]])
        logits = network(input_ids=ids).logits[0, len(row.prompt) - 1 : -1].float()
        loss = functional.cross_entropy(logits, torch.tensor(row.answer)) / len(rows)
        loss.backward()
        total += loss.item()
    gradients = {
        name.replace(".default", ""): parameter.grad
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }
    return total, gradients


@torch.no_grad()
def log_probability(network, prompt, answer) -> float:
    """Sum of the log-probabilities of an answer's tokens."""
    logits = network(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double()
    steps = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
    return steps.gather(1, torch.tensor(answer).unsqueeze(1)).sum().item()


@torch.no_grad()
def greedy(network, prompt, limit: int) -> list[int]:
    """New ids from transformers' own generate, the end of turn included."""
    ids = torch.tensor([prompt])
    out = network.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=limit,
        do_sample=False,
        eos_token_id=END,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()
