"""Checkpoint of a bank of adapters in training: one file, written whole.

    banks/<bank>.safetensors
      tensors    weights and moments of each adapter in a slot, as `Trainer.state` names them
      metadata   `bank`: the head as JSON; `sha256`: of that JSON and of every tensor

One file and not two, so that tensors and steps are never of different moments. Without the checksum
a changed number would change a result, and nothing would show it.

Knows: the file. Does not know: when it is written, whether it fits the run.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mixtune.errors import shorten
from mixtune.identity import digest_of_arrays
from mixtune.records import TrainStep
from mixtune.store.files import write_whole
from mixtune.store.folder import Store

SCHEME = 1
"""Version of the file; another one is not read."""


class Unusable(Exception):
    """A checkpoint that is damaged or that cannot be read; the text says why."""


@dataclass(frozen=True, slots=True)
class AdapterState:
    """An adapter in training: id of its run, its slot and its steps so far.

    `peers`: ids of the runs that ever shared the bank with it.
    """

    system: str
    slot: int
    log: tuple[TrainStep, ...]
    peers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Head:
    """A checkpoint without its tensors.

    `setting`: what the bits depend on beside the members (`assign.Setting`). `adapters` in the
    order of slots; `queue`: ids of the runs that wait for a slot, in their order. `pass_tokens`:
    tokens of one pass that fit into memory, as the engine has found.
    """

    setting: dict[str, Any]
    adapters: tuple[AdapterState, ...]
    queue: tuple[str, ...]
    pass_tokens: int

    @property
    def members(self) -> tuple[str, ...]:
        """Ids of all runs that the bank is not done with."""
        return (*(adapter.system for adapter in self.adapters), *self.queue)


def save(path: Path, head: Head, tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint; the one that was there stays until this one is complete.

    Raises:
        StoreError: no space, no permission.
    """
    # A step is a list without names: a bank has thousands of them.
    adapters = [
        {**asdict(adapter), "log": [astuple(step) for step in adapter.log]}
        for adapter in head.adapters
    ]
    text = json.dumps({**asdict(head), "scheme": SCHEME, "adapters": adapters})
    saved = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"bank": text, "sha256": _digest(text, saved)}
    write_whole(path, lambda part: save_file(saved, part, metadata=metadata))


def read_head(path: Path) -> Head:
    """Read a checkpoint without its tensors, whose checksum is not tested.

    Raises:
        Unusable: it cannot be read.
    """
    with _unusable_on_error(), safe_open(path, framework="pt") as file:
        return _head(file.metadata()["bank"])


def read(path: Path) -> tuple[Head, dict[str, Tensor]]:
    """Read a whole checkpoint.

    Raises:
        Unusable: it cannot be read, or a bit of it has changed.
    """
    with _unusable_on_error(), safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if _digest(metadata["bank"], tensors) != metadata["sha256"]:
            raise Unusable("it is damaged")
        return _head(metadata["bank"]), tensors


def heads(store: Store) -> dict[str, Head | Unusable]:
    """Heads of the banks' checkpoints by name of the bank."""
    by_name: dict[str, Head | Unusable] = {}
    for name in store.banks():
        try:
            by_name[name] = read_head(store.bank_file(name))
        except Unusable as error:
            by_name[name] = error
    return by_name


def _head(text: str) -> Head:
    value = json.loads(text)
    if value.pop("scheme") != SCHEME:
        raise Unusable("another version of mixtune wrote it")
    adapters = tuple(_adapter(**adapter) for adapter in value.pop("adapters"))
    return Head(**value | {"adapters": adapters, "queue": tuple(value["queue"])})


def _adapter(
    system: str, slot: int, log: Sequence[Sequence[Any]], peers: Sequence[str]
) -> AdapterState:
    return AdapterState(system, slot, tuple(TrainStep(*step) for step in log), tuple(peers))


@contextmanager
def _unusable_on_error() -> Iterator[None]:
    """Whatever reading raises, as `Unusable`."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise Unusable(f"it cannot be read ({shorten(str(error), 100)})") from error


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    return digest_of_arrays({name: tensor.numpy() for name, tensor in tensors.items()}, text)
