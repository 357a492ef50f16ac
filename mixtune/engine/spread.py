"""One training over several processes: each computes a share of a step's passes.

Every process holds the whole model and the same jobs in the same slots; after a step's passes the
gradients and losses are added up over the processes, so that all make the same optimiser step.
Processes and devices are accelerate's matter (`accelerate launch`, or torchrun).

Knows: which passes are whose, sums over processes. Does not know: losses, adapters.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixtune.engine.batching import Pass
from mixtune.errors import SpecError


class Spread:
    """This process among those that accelerate started."""

    def __init__(self) -> None:
        """Join the other processes.

        Raises:
            SpecError: accelerate is not installed.
        """
        try:
            from accelerate import PartialState
        except ImportError as error:
            raise SpecError(
                "training over several processes needs accelerate",
                remedy="pip install accelerate",
            ) from error
        self.state: Any = PartialState(cpu=not torch.cuda.is_available())

    @property
    def device(self) -> torch.device:
        """This process's device."""
        found: torch.device = self.state.device
        return found

    def share(self, works: Sequence[Pass]) -> list[Pass]:
        """The passes that this process computes: dealt out by size, the same in every process."""
        order = sorted(range(len(works)), key=lambda i: (-works[i].tokens, i))
        loads = [0] * self.state.num_processes
        mine = []
        for index in order:
            lightest = min(range(len(loads)), key=loads.__getitem__)
            loads[lightest] += works[index].tokens
            if lightest == self.state.process_index:
                mine.append(works[index])
        return mine

    def add_up(self, tensor: Tensor) -> Tensor:
        """The sum over all processes of a tensor, in every process."""
        from accelerate.utils import reduce

        found: Tensor = reduce(tensor, reduction="sum")
        return found
