"""Which cases there are, in the order in which they run, and what each needs first.

Knows: names, functions, the order. Does not know: how anything is measured.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench import scoring, study, training
from bench.bookkeeping import bookkeeping
from bench.errors import BenchError
from bench.results import Outcome
from bench.run import Run


@dataclass(frozen=True, slots=True)
class Case:
    """A function that measures, and the cases whose results it reads."""

    measure: Callable[[Run], Outcome]
    needs: tuple[str, ...] = ()

    @property
    def about(self) -> str:
        """The first line of the function's docstring."""
        return (self.measure.__doc__ or "").splitlines()[0]


CASES = {
    "tune_fpb": Case(training.tune_fpb),
    "train_fpb": Case(training.train_fpb, ("tune_fpb",)),
    "tune_mix": Case(training.tune_mix, ("tune_fpb",)),
    "train_mix": Case(training.train_mix, ("tune_mix",)),
    "tune_score3": Case(scoring.tune_score3),
    "score3": Case(scoring.score3, ("tune_score3",)),
    "tune_score20": Case(scoring.tune_score20, ("tune_score3",)),
    "score20": Case(scoring.score20, ("tune_score20",)),
    "study12": Case(study.study12, ("tune_fpb", "tune_score3")),
    "top_layers": Case(training.top_layers),
    "adapters": Case(training.adapters),
    "bookkeeping": Case(bookkeeping),
}


def in_order(names: Iterable[str]) -> list[str]:
    """The named cases (none: all) and what they need, each once, what is needed first.

    Raises:
        BenchError: there is no such case.
    """
    wanted = list(names) or list(CASES)
    unknown = sorted(set(wanted) - set(CASES))
    if unknown:
        raise BenchError(f"no case is called {', '.join(unknown)}; there are {', '.join(CASES)}")
    needed: dict[str, None] = {}
    for name in wanted:
        _add(name, needed)
    return list(needed)


def _add(name: str, needed: dict[str, None]) -> None:
    for other in CASES[name].needs:
        _add(other, needed)
    needed[name] = None
