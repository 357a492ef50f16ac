"""What all cases of one run share: rows, workers, pairs of measurements in turn.

Knows: the order of measuring, where rows and logs lie while a run lasts. Does not know: what a
case compares, results on disk.

One repeat, for each peer:

    matmul rate | ours | matmul rate | peer | matmul rate
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.data import Source
from bench.pipe import Facts, Worker
from bench.results import Results


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured; `quick` only shows that everything runs."""

    steps: int = 2
    tune_steps: int = 2
    batches: tuple[int, ...] = (2, 4, 8, 16)
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    score_batches: tuple[int | str, ...] = (1, 4, 8, 16, 32, 64)
    items: tuple[int, int] = (64, 12)  # per repeat: 3 labels, 20 labels
    default_items: int = 16
    tune_items: tuple[int, int] = (24, 3)
    adapter_steps: int = 4
    study_steps: int = 4
    study_items: int = 100
    study_seeds: tuple[int, ...] = (1, 2)
    banks: tuple[int, ...] = (1, 2, 4, 8, 16)
    bookkeeping: tuple[int, ...] = (10, 100, 1_000, 10_000)  # runs of a study


QUICK = Sizes(
    steps=1,
    tune_steps=1,
    batches=(4,),
    dtypes=("float32",),
    score_batches=(8,),
    items=(4, 2),
    default_items=2,
    tune_items=(3, 1),
    adapter_steps=1,
    study_steps=1,
    study_items=4,
    study_seeds=(1,),
    banks=(1, 2),
    bookkeeping=(5, 20),
)


@dataclass
class Run:
    """One call of the benchmark; a context manager, entered for each case, that ends its workers.

    `scratch` is a temporary folder: rows, adapters and logs are there, and go with it. `compute`:
    number format of our side and of the matmul rate, or "auto": the one whose products are faster
    here, as peers at their best have the one that is faster for them.
    """

    source: Source
    model: str
    device: str
    compute: str
    repeats: int
    sizes: Sizes
    results: Results
    scratch: Path
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self._stack = ExitStack()

    @cached_property
    def base(self) -> Facts:
        """Facts about the base model and the device: folder, digest, device, compute, rates."""
        arguments = {"model": self.model, "device": self.device, "compute": self.compute}
        with Worker("prepare", arguments, self._log("prepare")) as worker:
            return worker.facts

    def start(self, name: str, **arguments: Any) -> Worker:  # noqa: ANN401 - any JSON value
        """A worker that lives until the case ends."""
        self.say(f"  {name}: starting")
        base = {"folder": self.base["folder"], "compute": self.base["compute"]}
        given = {**base, "device": self.device, **arguments}
        return self._stack.enter_context(Worker(name, given, self._log(name)))

    def pairs(
        self, ours: Worker, peers: Mapping[str, Worker], order: Callable[[int, str], dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Every peer beside ours, repeat by repeat; `order(repeat, peer)` says what to measure."""
        rate = self.start("matmul")
        repeats = []
        for repeat in range(self.repeats):
            row = {}
            for name, peer in peers.items():
                what = order(repeat, name)
                rates = [rate.go()["gflops"]]
                mine = _rated(ours.go(**what))
                rates.append(rate.go()["gflops"])
                other = _rated(peer.go(**what))
                rates.append(rate.go()["gflops"])
                row[name] = {"ours": mine, "peer": other, "matmul_gflops": rates}
                self.say(
                    f"  {repeat + 1}/{self.repeats} {name}: {mine['rate']:.2f} / "
                    f"{other['rate']:.2f} per second = {mine['rate'] / other['rate']:.2f} "
                    f"(matmul {rates[0]:.0f} GFLOP/s)"
                )
            repeats.append(row)
        return repeats

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _log(self, name: str) -> Path:
        return self.scratch / f"{name}.log"


def _rated(numbers: Facts) -> Facts:
    """With examples (or items) per second, and without what is not a measurement."""
    kept = {key: value for key, value in numbers.items() if key != "logprobs"}
    return kept | {"rate": numbers["examples"] / numbers["seconds"]}
