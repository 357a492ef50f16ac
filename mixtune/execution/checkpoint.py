"""What a bank needs to go on where it was after its process has died: one file, written whole.

    banks/<bank>.safetensors
      tensors    each seated adapter's weights and moments, as `Trainer.state` names them
      metadata   `bank`: the rest, as JSON; `sha256`: of that JSON and of every tensor

One file and not two, so that tensors and steps are never of different moments. The checksum is
there because a changed number would change a result and nothing else would tell.

Knows: the file. Does not know: when it is written, whether it fits what is asked now.
"""

import hashlib
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
from mixtune.records import TrainStep
from mixtune.store import files as durable

SCHEME = 1
"""Version of the file; another one is not read."""


class Unusable(Exception):
    """A checkpoint that is damaged or that cannot be read; the text says why."""


@dataclass(frozen=True, slots=True)
class Seated:
    """An adapter in training: its run's id, its slot, its steps so far, whom it shared them with.

    `mates`: ids of the runs that were ever in the bank beside it.
    """

    system: str
    slot: int
    log: tuple[TrainStep, ...]
    mates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Head:
    """A checkpoint but for its tensors.

    `setting`: what the bits depend on beside the members (see `Setting`). `seated` in the order of
    slots; `queue`: ids of the runs that are seated next, in their order. `pass_tokens`: what the
    engine had found that one pass may hold.
    """

    setting: dict[str, Any]
    seated: tuple[Seated, ...]
    queue: tuple[str, ...]
    pass_tokens: int | None

    @property
    def members(self) -> tuple[str, ...]:
        """Every run that the bank still has before it."""
        return (*(one.system for one in self.seated), *self.queue)


def save(path: Path, head: Head, tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint; the one that was there stays until this one is complete.

    Raises:
        StoreError: no space, no permission.
    """
    value = asdict(head) | {
        "scheme": SCHEME,
        # A step is a row without names: thousands of them are kept.
        "seated": [
            {**asdict(one), "log": [astuple(step) for step in one.log]} for one in head.seated
        ],
    }
    text = json.dumps(value)
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    meta = {"bank": text, "sha256": _digest(text, held)}
    durable.write_whole(path, lambda part: save_file(held, part, metadata=meta))


def read_head(path: Path) -> Head:
    """All but the tensors, which are not looked at.

    Raises:
        Unusable: it cannot be read.
    """
    with _reading(), safe_open(path, framework="pt") as held:
        return _head(held.metadata()["bank"])


def read(path: Path) -> tuple[Head, dict[str, Tensor]]:
    """A checkpoint, whole.

    Raises:
        Unusable: it cannot be read, or a bit of it is another one than was written.
    """
    with _reading(), safe_open(path, framework="pt") as held:
        meta = held.metadata()
        tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118 - no mapping
        if _digest(meta["bank"], tensors) != meta["sha256"]:
            raise Unusable("it is damaged")
        return _head(meta["bank"]), tensors


def _head(text: str) -> Head:
    value = json.loads(text)
    if value.pop("scheme") != SCHEME:
        raise Unusable("another version of mixtune wrote it")
    seated = [_seated(**one) for one in value.pop("seated")]
    return Head(**value | {"seated": tuple(seated), "queue": tuple(value["queue"])})


def _seated(system: str, slot: int, log: Sequence[Sequence[Any]], mates: Sequence[str]) -> Seated:
    return Seated(system, slot, tuple(TrainStep(*step) for step in log), tuple(mates))


@contextmanager
def _reading() -> Iterator[None]:
    """Whatever reading raises, as `Unusable`."""
    try:
        yield
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise Unusable(f"it cannot be read ({shorten(str(error), 100)})") from error


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        sha.update(tensor.numpy().data.cast("B"))
    return sha.hexdigest()
