"""How a study is run, as far as the person who runs it has a say; none of it is in an id.

Knows: names and defaults. Does not know: torch, this machine.
"""

from dataclasses import dataclass

CHECKPOINT_EVERY = 60.0
"""Seconds between two checkpoints of a bank."""


@dataclass(frozen=True, slots=True)
class Options:
    """None is for mixtune to choose.

    `workers`: processes. `bank`: adapters trained side by side in each of them.
    `checkpoint_every`: seconds between two checkpoints of a bank; 0 is after every step.
    """

    workers: int | None = None
    bank: int | None = None
    checkpoint_every: float = CHECKPOINT_EVERY
