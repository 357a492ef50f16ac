"""Options of the user, and the setting of a computation that follows from them; none is in an id.

Knows: names, defaults, installed versions. Does not know: torch, this machine.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

CHECKPOINT_EVERY = 60.0
"""Seconds between two checkpoints of a bank."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a run; None lets mixtune choose.

    `workers`: processes. `bank`: adapters trained side by side in each of them.
    `checkpoint_every`: seconds between two checkpoints of a bank; 0 is after every step.
    """

    workers: int | None = None
    bank: int | None = None
    checkpoint_every: float = CHECKPOINT_EVERY


@dataclass(frozen=True, slots=True)
class Setting:
    """Everything that an adapter's bits depend on, apart from its id and its bank's members."""

    slots: int
    threads: int
    device: str
    compute: str
    torch: str
    mixtune: str

    @classmethod
    def here(cls, slots: int, threads: int, device: str, compute: str) -> "Setting":
        """The setting of this installation."""
        return cls(
            slots, threads, device, compute, metadata.version("torch"), metadata.version("mixtune")
        )

    def differs(self, before: Mapping[str, Any]) -> str:
        """Differences from an earlier setting in words, empty where they are equal."""
        now = asdict(self)
        keys = [key for key in now if before.get(key) != now[key]]
        return ", ".join(f"{key} {before.get(key)}, now {now[key]}" for key in keys)
