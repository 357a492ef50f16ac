"""The catalogue as this machine sees it: what is here, what would be fetched, what fits in memory.

Knows: the cache, installed packages, the hub's local cache, the machine's main memory. Does not
know: the hub itself (nothing is fetched), checksums of large files, torch.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mixtune.errors import ModelError
from mixtune.models.catalog import prepared_folder
from mixtune.models.entries import Entry, catalogue
from mixtune.models.files import MANIFEST
from mixtune.models.hub import cached, offline

BYTES_PER_PARAMETER = 16
"""What a training process in float32 is given for each parameter of the base: weights, optimiser
state and activations (execution/pool.py counts with the same)."""

BYTES_AT_LEAST = 5
"""Per parameter: the weights in float32 and a quarter more."""

SHARE_OF_MEMORY = 0.8
"""Of the machine's main memory that training may take and be called comfortable: the system, the
page cache and other programs need the rest."""

State = Literal["prepared", "package", "hub cache", "download", "licence", "offline", "damaged"]
Fit = Literal["yes", "tight", "no"]

HERE: tuple[State, ...] = ("prepared", "package", "hub cache")
"""States in which a model can be used without a network."""

_MEANING: dict[State, str] = {
    "prepared": "ready in mixtune's cache",
    "package": "installed package, converted at first use",
    "hub cache": "ready in the hub's cache",
    "download": "would be downloaded from the hub",
    "licence": "from the hub, once its licence is accepted there and HF_TOKEN set",
    "offline": "not here, and HF_HUB_OFFLINE is set",
    "damaged": "damaged or unusable: delete it",
}


@dataclass(frozen=True, slots=True)
class Overview:
    """One catalogue model on this machine; sizes in bytes.

    `disk`: what lies on this machine now, or 0. `memory`: main memory that one training process
    is given (LoRA, float32); `fits`: "tight" where it takes nearly all
    memory, or where only the weights and a little more fit.
    """

    name: str
    hub: str
    parameters: int
    licence: str
    gated: bool
    state: State
    disk: int
    memory: int
    fits: Fit
    install: str
    note: str

    @property
    def here(self) -> bool:
        """Whether it can be used without a network."""
        return self.state in HERE

    @property
    def meaning(self) -> str:
        """The state in words, with the way to get what is not here."""
        text = _MEANING[self.state]
        return text if self.here or not self.install else f"{text}; or: {self.install}"


def overview(total_memory: int | None = None) -> list[Overview]:
    """Every catalogue model in the catalogue's order; fetches, converts and imports nothing."""
    memory = main_memory() if total_memory is None else total_memory
    return [_look(name, entry, memory) for name, entry in catalogue().items()]


def main_memory() -> int:
    """Bytes of main memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _look(name: str, entry: Entry, total: int) -> Overview:
    state, disk = _state(name, entry)
    needed = entry.parameters * BYTES_PER_PARAMETER
    least = entry.parameters * BYTES_AT_LEAST
    return Overview(
        name=name,
        hub=entry.hub,
        parameters=entry.parameters,
        licence=entry.licence,
        gated=entry.gated,
        state=state,
        disk=disk,
        memory=needed,
        fits="yes" if needed <= SHARE_OF_MEMORY * total else "tight" if least <= total else "no",
        install=entry.package.install if entry.package else "",
        note=entry.note,
    )


def _state(name: str, entry: Entry) -> tuple[State, int]:
    """Where a model would come from, in the order in which `catalog.locate` looks."""
    folder = prepared_folder(name)
    if (folder / MANIFEST).is_file():
        return "prepared", _size(folder)
    parts = entry.package.found() if entry.package else []
    if parts:
        return "package", sum(path.stat().st_size for path in parts)
    try:
        snapshot = cached(entry.hub)
    except ModelError:
        return "damaged", 0
    if snapshot is not None:
        return "hub cache", _size(snapshot.folder)
    if offline():
        return "offline", 0
    return ("licence" if entry.gated else "download"), 0


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
