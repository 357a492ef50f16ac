"""What is left of a plan, cut into portions that workers take one at a time.

A portion is one system to be answered, or a bank of adapters to be trained side by side and then
answered. What a bank computes depends, in the last bits, on who is in it: more rows in a matrix
product may be summed in another order. So that a study that was killed gives the bits of one that
was not, who shares a bank must not depend on who came first or on what was done when it was killed:

- With one slot an adapter is alone, and its bits are its own. Every adapter is a portion, taken by
  whichever worker is free.
- With more, the adapters of the whole plan are dealt to the workers in turn, and each hand is one
  bank: its adapters are seated in the plan's order, the next one wherever a slot is free.
- A bank that was begun has a checkpoint that holds its members, their slots and its queue. It goes
  on from that, whichever worker takes it. Adapters that were finished after the checkpoint was
  written are trained along once more, for the others' sake, and not kept again.
- What failed before, or was added to the study since, waits in a bank of its own.

Knows: states of units, heads of checkpoints. Does not know: torch's tensors, how anything is
trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from mixtune.errors import shorten
from mixtune.execution.checkpoint import Head, Unusable, read_head
from mixtune.identity import make_id
from mixtune.planning.events import Events
from mixtune.planning.runs import Plan, RunPlan
from mixtune.store.folder import Store
from mixtune.store.states import Unit


@dataclass(frozen=True, slots=True)
class Setting:
    """What an adapter's bits depend on beside its id and who shares its bank."""

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

    def differs(self, other: Mapping[str, Any]) -> str:
        """In what another setting is not this one, in words; empty where they are equal."""
        mine = asdict(self)
        keys = [key for key in mine if other.get(key) != mine[key]]
        return ", ".join(f"{key} {other.get(key)}, now {mine[key]}" for key in keys)


@dataclass(frozen=True, slots=True)
class Portion:
    """What a worker takes at a time.

    `runs`: one system to be answered; or, where it `trains`, the members of a bank in the order in
    which they are seated, those that are done among them where it `resumes`.
    """

    name: str
    runs: tuple[RunPlan, ...]
    trains: bool = False
    resumes: bool = False


def heads(store: Store) -> dict[str, Head | Unusable]:
    """What the banks' checkpoints say, by name of the bank."""
    found: dict[str, Head | Unusable] = {}
    for name in store.banks():
        try:
            found[name] = read_head(store.bank_file(name))
        except Unusable as error:
            found[name] = error
    return found


def deal(plan: Plan, store: Store, setting: Setting, workers: int, events: Events) -> list[Portion]:
    """Portions for what is missing or failed, in the order of the plan.

    Checkpoints that do not fit are removed, and it is said why. The caller holds the store's lock.
    """
    units = store.units()
    kept = _kept(plan, store, setting, events)
    taken = {run.system for portion in kept for run in portion.runs}
    fresh = _fresh(plan, units, taken, (setting.slots, workers))
    answers = [Portion(run.system, (run,)) for run in plan.runs if _only_answers(run, units)]
    order = {run.system: place for place, run in enumerate(plan.runs)}
    return sorted(
        [*answers, *kept, *fresh],
        key=lambda portion: min(
            order[run.system]
            for run in portion.runs
            if not portion.trains or units[run.system].state != "done"
        ),
    )


def missing(run: RunPlan, units: Mapping[str, Unit]) -> bool:
    """Whether any unit of a run is not done."""
    ids = [answer.id for answer in run.answers]
    ids += [run.system] if run.kind == "trained" else []
    return any(units[unit].state != "done" for unit in ids)


def title(run: RunPlan) -> str:
    """What messages call a run."""
    return run.name if run.seed is None else f"{run.name} seed {run.seed}"


def titles(runs: Sequence[RunPlan]) -> str:
    """What messages call several runs."""
    return shorten(", ".join(map(title, runs)), 300)


def _only_answers(run: RunPlan, units: Mapping[str, Unit]) -> bool:
    trained = run.kind != "trained" or units[run.system].state == "done"
    # Models behind APIs are asked by the process that holds the study, not by a worker, and merged
    # adapters wait for their parts (merged.py).
    return run.kind not in ("api", "merged") and trained and missing(run, units)


def _fresh(
    plan: Plan, units: Mapping[str, Unit], taken: set[str], shape: tuple[int, int]
) -> list[Portion]:
    """Banks for the adapters that are in none; `shape`: slots and workers."""
    slots, workers = shape
    trained = [run for run in plan.runs if run.kind == "trained"]
    hands = [trained[first::workers] for first in range(workers)]
    if slots == 1:
        hands = [[run] for run in trained]
    left = [
        tuple(r for r in hand if units[r.system].state != "done" and r.system not in taken)
        for hand in hands
    ]
    return [Portion(_name(runs), runs, trains=True) for runs in left if runs]


def _name(runs: Sequence[RunPlan]) -> str:
    return make_id("bank", {"runs": [run.system for run in runs]})


def _kept(plan: Plan, store: Store, setting: Setting, events: Events) -> list[Portion]:
    """Banks that go on from their checkpoints; what cannot be used is removed."""
    runs = {run.system: run for run in plan.runs if run.kind == "trained"}
    found = []
    for name, head in heads(store).items():
        if isinstance(head, Unusable):
            events.note(f"a checkpoint is not used, {head}; what it held is trained from its start")
            store.drop_bank(name)
            continue
        known = [runs[system] for system in head.members if system in runs]
        left = store.undone(run.system for run in known)
        if not left:
            store.drop_bank(name)  # its process died between its last adapter and this
            continue
        why = setting.differs(head.setting)
        if len(known) < len(head.members):
            why = "some of its runs are no longer in the plan"
        if why:
            again = titles([run for run in known if run.system in left])
            events.note(f"a checkpoint is not used ({why}); trained from their start: {again}")
            store.drop_bank(name)
        else:
            found.append(Portion(name, tuple(known), trains=True, resumes=True))
    return found
