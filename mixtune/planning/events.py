"""Events of a running study, for a listener such as the terminal.

Knows: the names of the events. Does not know: how they are shown.
"""

from mixtune.planning.runs import AnswerPlan, Plan, RunPlan
from mixtune.records import TrainStep


class Events:
    """A listener; this one does nothing. Nothing that one does changes a result."""

    def started(self, plan: Plan, todo: int, cost: float) -> None:
        """A study begins: `todo` runs are not finished; `cost` in tokens of forward pass."""

    def note(self, text: str) -> None:
        """Something worth a line: a unit given back, a file found broken."""

    def run_started(self, run: RunPlan) -> None:
        """A run begins or goes on."""

    def trained(self, run: RunPlan, step: TrainStep, steps: int, cost: float) -> None:
        """One optimiser step was made."""

    def answered(self, run: RunPlan, answer: AnswerPlan, cost: float) -> None:
        """One set of answers is kept."""

    def run_finished(self, run: RunPlan, seconds: float) -> None:
        """All units of a run are done."""

    def run_failed(self, run: RunPlan, error: str) -> None:
        """A run failed; the study goes on with the next."""
