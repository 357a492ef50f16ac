"""Results on disk: a file for every finished case, and latest.json made of all of them.

Knows: the keys that have targets, what makes a result still valid. Does not know: how anything is
measured, how it is shown.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.errors import BenchError

LATEST = "latest.json"
FEWEST = 3
"""Repeats below which a median is marked."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a ratio should reach; `lower` where a smaller one is better."""

    what: str
    least: float
    aim: float
    lower: bool = False

    def reached(self, value: float) -> str:
        """What a value is: "aim", "at least" or "short"."""
        for name, bound in (("aim", self.aim), ("at least", self.least)):
            if (value <= bound) if self.lower else (value >= bound):
                return name
        return "short"


TARGETS = {
    "train_fpb_vs_trl": Target(
        "training, fpb: examples/s relative to TRL with default settings", 10, 20
    ),
    "train_fpb_vs_trl_best": Target(
        "training, fpb: examples/s relative to TRL with its best settings", 5, 10
    ),
    "train_mix_vs_trl_best": Target(
        "training, finance mix: examples/s relative to TRL with its best settings", 3, 6
    ),
    "score3_vs_lm_eval": Target(
        "scoring, 3 labels: items/s relative to lm-evaluation-harness with its best settings", 4, 8
    ),
    "score20_vs_lm_eval": Target(
        "scoring, 20 labels: items/s relative to lm-evaluation-harness with its best settings",
        20,
        50,
    ),
    "study12_vs_loop": Target(
        "a study of 12 cells: speed relative to a loop over TRL and lm-evaluation-harness", 8, 20
    ),
    "matmul_share": Target(
        "training, fpb: useful FLOP/s as a share of the machine's matmul rate", 0.5, 0.75
    ),
    "peak_memory_vs_trl_best": Target(
        "training, fpb: peak memory relative to TRL with its best settings", 0.8, 0.5, lower=True
    ),
    "top_layers_vs_all": Target(
        "training the top third of the layers: examples/s relative to all layers", 2.5, 4
    ),
}


@dataclass(slots=True)
class Outcome:
    """What a case found.

    `ratios`: key → one value per repeat. `repeats`: raw numbers, one entry per repeat. `settings`:
    what was started with what. `extras`: numbers without a target. `rows`: fingerprint of the data.
    """

    ratios: dict[str, list[float]] = field(default_factory=dict)
    repeats: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)
    rows: str = ""


class Results:
    """The folder of results of one kind of run.

    `about` is what a result has to agree with to count as finished: base model, data, device.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self.about = dict(about)

    def finished(self, case: str) -> bool:
        """Whether a case was measured with the same model, data and device."""
        path = self._path(case)
        return path.is_file() and self.about.items() <= _read(path).items()

    def load(self, case: str) -> dict[str, Any]:
        """What was written of a case.

        Raises:
            BenchError: it was not measured yet.
        """
        if not self.finished(case):
            raise BenchError(f"case {case} has no result in {self.folder.name}; run it first")
        return _read(self._path(case))

    def save(self, case: str, outcome: Outcome, made: Mapping[str, Any]) -> None:
        """Write a finished case, whole or not at all, and latest.json with it."""
        held = {
            "case": case,
            **self.about,
            **made,
            "ratios": {key: median(values) for key, values in outcome.ratios.items()},
            "values": outcome.ratios,
            "settings": outcome.settings,
            "extras": outcome.extras,
            "rows": outcome.rows,
            "repeats": outcome.repeats,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(self._path(case), held)
        _write(self.folder / LATEST, self.latest())

    def latest(self) -> dict[str, Any]:
        """All finished cases in one: flat `ratios`, how each was made, numbers without a target."""
        paths = sorted(self.folder.glob("*.json"))
        held = [_read(path) for path in paths if path.name != LATEST]
        cases = [case for case in held if self.about.items() <= case.items()]
        return {
            "ratios": {key: case["ratios"][key] for key in TARGETS for case in _with(cases, key)},
            "values": {key: case["values"][key] for key in TARGETS for case in _with(cases, key)},
            "targets": {key: [target.least, target.aim] for key, target in TARGETS.items()},
            "made": {**self.about, "cases": {case["case"]: _made(case) for case in cases}},
            "extras": {case["case"]: case["extras"] for case in cases if case["extras"]},
        }

    def others(self) -> dict[str, dict[str, Any]]:
        """Folder below this one → what was found there, on another machine."""
        found = {}
        for path in sorted(self.folder.glob(f"*/{LATEST}")):
            held = Results(path.parent, self.about).latest()
            if held["ratios"]:
                found[path.parent.name] = held
        return found

    def _path(self, case: str) -> Path:
        return self.folder / f"{case}.json"


def pair_ratios(
    repeats: list[dict[str, Any]], peer: str, key: str = "rate", inverse: bool = False
) -> list[float]:
    """Ours over the peer's, pair by pair; `inverse` for the peer's over ours."""
    found = []
    for repeat in repeats:
        mine, other = repeat[peer]["ours"][key], repeat[peer]["peer"][key]
        found.append(other / mine if inverse else mine / other)
    return found


def _with(cases: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    return [case for case in cases if key in case["ratios"]]


def _made(case: dict[str, Any]) -> dict[str, Any]:
    names = ("command", "date", "minutes", "commit", "machine", "device", "rows")
    made = {name: case[name] for name in names} | {"repeats": len(case["repeats"])}
    # Cases from before there was a choice computed in float32, and say nothing.
    return made | ({"compute": case["compute"]} if "compute" in case else {})


def _read(path: Path) -> dict[str, Any]:
    held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return held


def _write(path: Path, held: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(held, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def write_or_print(value: object, out: Path | None) -> None:
    """A value as JSON: into a file, or to the terminal where none is named."""
    text = json.dumps(value, indent=1) + "\n"
    if out is None:
        print(text, end="")
    else:
        out.write_text(text, encoding="utf-8")
