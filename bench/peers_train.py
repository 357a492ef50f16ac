"""Peers that train: TRL's SFTTrainer, and transformers' Trainer on a PEFT model.

Knows: how their documentation starts them, which settings can be better, where a step begins and
ends. Does not know: mixtune's engine, repeats, ratios.

A setting is {"default": true}, or {"dtype", "batch", "packing"} without checkpointing. Packs are as
long as `batch` mean rows, one pack to a pass, since longer ones are slower on a CPU; every other
batch is `batch` rows padded to the longest. Passes add up to 16 examples a step (packs: about 16;
they are counted).
"""

import gc
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from bench.data import read_training
from bench.errors import BenchError
from bench.machine import Memory, synchronise, use_threads
from bench.pipe import Channel
from mixtune.records import TrainExample
from mixtune.tokens import Row, Tokens, encode_rows

STEP = 16
SPARE = 2
"""Packs are made of this many times the rows needed, so that no epoch ends in between."""

_COMPARED = 64
_TAIL = 2
"""Tokens that a chat template may write behind the end of turn (TRL trains on them too)."""

_JUDGED = 4
"""Examples after which a setting that is far too slow is given up."""

Setting = dict[str, Any]


@dataclass(slots=True)
class Counted:
    """A collator that counts the examples of every batch it makes, in order."""

    collate: Any
    examples: list[int] = field(default_factory=list)

    def __call__(self, features: Sequence[dict[str, Any]]) -> Any:  # noqa: ANN401
        """Count, and collate."""
        packs = [feature.get("seq_lengths") for feature in features]
        self.examples.append(sum(1 if pack is None else len(pack) for pack in packs))
        return self.collate(features)


class Clock(TrainerCallback):
    """Times steps from begin to end and waits for the next go between them."""

    def __init__(self, channel: Channel, steps: int, device: str, memory: Memory) -> None:
        self._channel, self._steps, self._device = channel, steps, device
        self._memory = memory
        self._began = 0.0
        self._seconds: list[float] = []
        self.counted: Counted | None = None
        self.facts: dict[str, Any] = {}

    def on_step_begin(self, *_: Any, **__: Any) -> None:  # noqa: ANN401 - transformers' interface
        """Start the clock; batches are already made."""
        synchronise(self._device)
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
        """Stop it; after the first step say ready, after every `steps` reply, and wait."""
        synchronise(self._device)
        self._seconds.append(time.perf_counter() - self._began)
        if state.global_step == 1:
            self._channel.ready(**self.facts, first_step_seconds=self._seconds[0])
        elif (state.global_step - 1) % self._steps:
            return
        else:
            self._reply(state.global_step, args.gradient_accumulation_steps)
        if self._channel.next() is None:
            control.should_training_stop = True

    def _reply(self, step: int, passes: int) -> None:
        assert self.counted is not None
        first = (step - self._steps) * passes
        seconds = self._seconds[-self._steps :]
        self._channel.reply(
            seconds=sum(seconds),
            step_seconds=seconds,
            examples=sum(self.counted.examples[first : step * passes]),
            peak_bytes=self._memory.peak(),
        )


class Trial(TrainerCallback):
    """Times the steps of one setting of a grid; gives up on one that is far too slow."""

    def __init__(self, device: str, give_up_below: float, batch: int) -> None:
        self._device, self._least, self._batch = device, give_up_below, batch
        self._began = self._first = 0.0
        self._passes = 0
        self.seconds: list[float] = []
        self.stopped: float | None = None

    def on_step_begin(self, *_: Any, **__: Any) -> None:  # noqa: ANN401 - transformers' interface
        """Start the clock."""
        synchronise(self._device)
        self._began = time.perf_counter()
        self._first = self._first or self._began

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
        """A pass inside a step is over."""
        self._judge(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
        """Stop the clock."""
        synchronise(self._device)
        self.seconds.append(time.perf_counter() - self._began)
        self._judge(control)

    def _judge(self, control: Any) -> None:  # noqa: ANN401
        self._passes += 1
        done = self._passes * self._batch
        rate = done / (time.perf_counter() - self._first)
        if done >= _JUDGED and len(self.seconds) < 2 and rate < self._least:
            self.stopped = rate
            control.should_training_stop = True


def measure_trl(arguments: dict[str, Any], channel: Channel) -> None:
    """Worker: SFTTrainer with one setting; each go is `steps` steps."""
    _measure(arguments, channel, make_trl)


def measure_peft(arguments: dict[str, Any], channel: Channel) -> None:
    """Worker: a PEFT model under transformers' Trainer with one setting; each go is `steps`."""
    _measure(arguments, channel, make_peft)


def _measure(arguments: dict[str, Any], channel: Channel, make: Any) -> None:  # noqa: ANN401
    use_threads()
    named = read_training(Path(arguments["rows"]))
    memory = Memory(arguments["device"])
    steps = 1 + arguments["goes"] * arguments["steps"]
    clock = Clock(channel, arguments["steps"], arguments["device"], memory)
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(Path(arguments["folder"]), arguments["device"], steps, Path(folder))
        trainer = make(plan, named, arguments["setting"], clock)
        clock.counted = trainer.data_collator = Counted(trainer.data_collator)
        clock.facts = facts_of(trainer, named, plan.folder)
        trainer.train()


def try_settings(arguments: dict[str, Any], channel: Channel) -> None:
    """Worker: each go is one setting of TRL, from loading to `steps` steps after a first one.

    Its reply has examples per second; "stopped" where the first step was so slow that the rest
    was left out.
    """
    use_threads()
    named = read_training(Path(arguments["rows"]))
    channel.ready()
    while (order := channel.next()) is not None:
        channel.reply(**_try(arguments, named, order["setting"], order["give_up_below"]))
        gc.collect()


def _try(
    arguments: dict[str, Any], named: Sequence[TrainExample], setting: Setting, give_up_below: float
) -> dict[str, Any]:
    steps = 1 + arguments["steps"]
    # A pack counts as the rows that it is as long as; what it really holds is counted below.
    trial = Trial(arguments["device"], give_up_below, setting["batch"])
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(Path(arguments["folder"]), arguments["device"], steps, Path(folder))
        trainer = make_trl(plan, named, setting, trial)
        counted = trainer.data_collator = Counted(trainer.data_collator)
        trainer.train()
    if trial.stopped is not None:
        return {"rate": trial.stopped, "stopped": True}
    passes = trainer.args.gradient_accumulation_steps
    examples = sum(counted.examples[passes : steps * passes])
    return {"rate": examples / sum(trial.seconds[1:]), "step_seconds": trial.seconds}


@dataclass(frozen=True, slots=True)
class Plan:
    """What does not depend on the setting: base model, device, optimiser steps, a folder."""

    folder: Path
    device: str
    steps: int
    scratch: Path


def make_trl(
    plan: Plan, named: Sequence[TrainExample], setting: Setting, callback: TrainerCallback
) -> SFTTrainer:
    """SFTTrainer as its documentation starts it, or with a setting."""
    rows = plan.steps * STEP * (SPARE if setting.get("packing") else 1)
    return SFTTrainer(
        model=str(plan.folder),
        args=SFTConfig(**_common(plan) | _trl_settings(plan, named[:rows], setting)),
        train_dataset=Dataset.from_list([conversation(example) for _, example in named[:rows]]),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        callbacks=[callback],
    )


def conversation(example: Any) -> dict[str, Any]:  # noqa: ANN401 - mixtune's Example
    """A row in TRL's prompt-completion form: the loss is taken on the completion only."""
    prompt = [{"role": message.role, "content": message.content} for message in example.messages]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": example.target}]}


def make_peft(
    plan: Plan, named: Sequence[TrainExample], setting: Setting, callback: TrainerCallback
) -> Trainer:
    """A PEFT model under transformers' Trainer: rows padded, labels on the answer only."""
    rows = _encoded(plan.folder, named[: plan.steps * STEP])
    network = AutoModelForCausalLM.from_pretrained(
        plan.folder, dtype=getattr(torch, setting["dtype"])
    )
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    tokenizer = AutoTokenizer.from_pretrained(plan.folder)
    sized = _batches(setting["batch"])
    return Trainer(
        model=get_peft_model(network, lora),
        args=TrainingArguments(
            **_common(plan), **sized, bf16=setting["dtype"] == "bfloat16", learning_rate=2e-4
        ),
        train_dataset=Dataset.from_list([_masked(row) for row in rows]),
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
        callbacks=[callback],
    )


def facts_of(trainer: Trainer, named: Sequence[TrainExample], folder: Path) -> dict[str, Any]:
    """What was started, after a check that both sides train on the same tokens.

    Raises:
        BenchError: a row has other tokens than mixtune's.
    """
    parameters = list(trainer.model.parameters())
    args = trainer.args
    return {
        "weights": str(parameters[0].dtype),
        "adapter": str(next(p.dtype for p in parameters if p.requires_grad)),
        "adapter_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "bf16_flag": args.bf16,
        "checkpointing": args.gradient_checkpointing,
        "batch": args.per_device_train_batch_size,
        "passes": args.gradient_accumulation_steps,
        "more_tokens_per_row": _check_tokens(trainer.train_dataset, named, folder),
    }


def _check_tokens(dataset: Dataset, named: Sequence[TrainExample], folder: Path) -> int:
    """How many tokens a peer's row has behind mixtune's: what the template ends a turn with.

    Packs have their rows in another order; their lengths are compared as a whole.
    """
    wanted = _encoded(folder, named)
    if "seq_lengths" in dataset.column_names:
        return _check_packs(dataset, wanted)
    found = dataset[:_COMPARED]["input_ids"]
    labels = dataset[:_COMPARED]["labels"]
    tails = set()
    for row, ids, told in zip(wanted, found, labels, strict=False):
        mine = [*row.prompt, *row.answer]
        learnt = [token for token in told if token != -100]
        tails.add(tuple(ids[len(mine) :]))
        if ids[: len(mine)] != mine or learnt[: len(row.answer)] != list(row.answer):
            raise BenchError(f"{row.example_id}: the peer trains on other tokens than mixtune")
    return _tail_length({len(tail) for tail in tails})


def _check_packs(dataset: Dataset, wanted: Sequence[Row]) -> int:
    found = [length for pack in dataset["seq_lengths"] for length in pack]
    mine = sorted(row.length for row in wanted[: len(found)])
    return _tail_length({peer - own for peer, own in zip(sorted(found), mine, strict=True)})


def _tail_length(lengths: set[int]) -> int:
    if len(lengths) != 1 or not 0 <= min(lengths) <= _TAIL:
        raise BenchError(
            f"the peer's rows are longer than mixtune's by {sorted(lengths)} tokens; wanted the "
            f"same 0 to {_TAIL} for all (what the chat template writes behind the end of turn)"
        )
    return lengths.pop()


def _trl_settings(plan: Plan, named: Sequence[TrainExample], setting: Setting) -> dict[str, Any]:
    """SFTConfig's arguments: its own defaults, or a setting without checkpointing."""
    if setting.get("default"):
        return {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    half = setting["dtype"] == "bfloat16"
    given = {
        "model_init_kwargs": {"dtype": setting["dtype"]},
        "bf16": half,
        "gradient_checkpointing": False,
    }
    if not setting["packing"]:
        return given | _batches(setting["batch"])
    lengths = [row.length + _TAIL for row in _encoded(plan.folder, named)]
    pack = max(*lengths, round(setting["batch"] * sum(lengths) / len(lengths)))
    return given | {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": STEP // setting["batch"],
        "packing": True,
        "max_length": pack,
        # Packs are sorted by length, rows are not: in order, the first packs would be special.
        "train_sampling_strategy": "random",
    }


def _batches(batch: int) -> dict[str, int]:
    return {"per_device_train_batch_size": batch, "gradient_accumulation_steps": STEP // batch}


def _common(plan: Plan) -> dict[str, Any]:
    """What a benchmark needs of any trainer: so many steps, nothing written, rows in order."""
    return {
        "output_dir": str(plan.scratch),
        "max_steps": plan.steps,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": plan.device == "cpu",
        "train_sampling_strategy": "sequential",
    }


def _masked(row: Row) -> dict[str, list[int]]:
    labels = [*([-100] * len(row.prompt)), *row.answer]
    ids = [*row.prompt, *row.answer]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def _encoded(folder: Path, named: Sequence[TrainExample]) -> list[Row]:
    return encode_rows(named, Tokens.load(folder), 1024, "error").rows
