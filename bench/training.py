"""Cases that train: settings found for TRL, then our engine beside the peers.

Knows: which workers a case needs, which numbers become which ratios. Does not know: how anything
is trained.
"""

from pathlib import Path
from typing import Any

from bench.data import fingerprint, write_training
from bench.errors import BenchError
from bench.results import Outcome, pair_ratios
from bench.run import Run
from bench.tuning import SKIPPED, best_of, give_up_below, hopeless, settings_of, worth

STEP = 16
SPARE = 2
"""Rows are written twice over: packs are drawn from more rows than a run trains on."""

TOP = 10
"""Of the 30 layers of the base model that targets were set for: a third."""


def tune_fpb(run: Run) -> Outcome:
    """TRL's settings on fpb: the whole grid."""
    return _tune(run, "fpb", run.sizes.dtypes)


def tune_mix(run: Run) -> Outcome:
    """TRL's settings on the mix, in the number formats that came near the best on fpb."""
    return _tune(run, "finance-mix", worth(run.results.load("tune_fpb"), run.sizes.dtypes))


def _tune(run: Run, workload: str, dtypes: tuple[str, ...]) -> Outcome:
    rows, named = _write(run, workload, 1 + run.sizes.tune_steps)
    worker = run.start("trl-grid", rows=str(rows), steps=run.sizes.tune_steps)
    grid: list[dict[str, Any]] = []
    for setting in settings_of(dtypes, run.sizes.batches):
        if hopeless(grid, setting):
            grid.append({"setting": setting, "rate": 0.0, "skipped": SKIPPED})
            continue
        found = worker.go(setting=setting, give_up_below=give_up_below(grid, setting))
        grid.append({"setting": setting, **found})
        run.say(f"  {setting}: {found['rate']:.2f} examples/s")
    return Outcome(extras=best_of(grid), rows=fingerprint(named))


def train_fpb(run: Run) -> Outcome:
    """The task fpb beside TRL by default and at its best, and beside PEFT with a plain Trainer."""
    tuned = run.results.load("tune_fpb")["extras"]
    outcome = _train(run, "fpb", {"trl": {"default": True}, **_best(tuned)})
    repeats = outcome.repeats
    outcome.ratios = {
        "train_fpb_vs_trl": pair_ratios(repeats, "trl"),
        "train_fpb_vs_trl_best": pair_ratios(repeats, "trl_best"),
        "matmul_share": _shares(repeats, "useful_flops"),
        "peak_memory_vs_trl_best": pair_ratios(repeats, "trl_best", "peak_bytes"),
    }
    outcome.extras |= {
        "vs_trl_best_bf16": _vs_bf16(repeats, tuned),
        "matmul_share_every_token": _shares(repeats, "every_token_flops"),
    }
    return outcome


def train_mix(run: Run) -> Outcome:
    """The mix of finance tasks, instructions and maths beside the peers at their best."""
    tuned = run.results.load("tune_mix")["extras"]
    outcome = _train(run, "finance-mix", _best(tuned))
    repeats = outcome.repeats
    outcome.ratios = {"train_mix_vs_trl_best": pair_ratios(repeats, "trl_best")}
    outcome.extras["matmul_share"] = _shares(repeats, "useful_flops")
    return outcome


def _best(tuned: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Peers at their best; the Trainer does not pack, and takes TRL's best setting without."""
    return {"trl_best": tuned["best"]["setting"], "peft_best": tuned["best_padded"]["setting"]}


def _train(run: Run, workload: str, settings: dict[str, dict[str, Any]]) -> Outcome:
    steps = run.sizes.steps
    rows, named = _write(run, workload, 1 + run.repeats * steps)
    given = {"rows": str(rows), "steps": steps}
    ours = run.start("ours-train", **given, count=len(named) // SPARE)
    peers = {
        name: run.start(
            "peft" if name.startswith("peft") else "trl",
            **given,
            goes=run.repeats,
            setting=setting,
        )
        for name, setting in settings.items()
    }
    repeats = run.pairs(ours, peers, lambda repeat, _: {"start": STEP * (1 + repeat * steps)})
    started = {n: {"setting": settings[n], **peer.facts} for n, peer in peers.items()}
    vs = {f"vs_{name}": pair_ratios(repeats, name) for name in peers if name.startswith("peft")}
    return Outcome(
        repeats=repeats,
        settings={"ours": ours.facts, **started},
        extras={**vs, "examples_per_second": _rates(repeats), "peak_bytes": _peaks(repeats)},
        rows=fingerprint(named),
    )


def top_layers(run: Run) -> Outcome:
    """Our engine, adapters on the top layers only, beside all layers."""
    steps = run.sizes.steps
    rows, named = _write(run, "fpb", 1 + run.repeats * steps)
    given = {"rows": str(rows), "steps": steps, "count": len(named) // SPARE}
    top = run.start("ours-train", **given, train={"top_layers": TOP})
    every = run.start("ours-train", **given)
    repeats = run.pairs(
        top, {"all": every}, lambda repeat, _: {"start": STEP * (1 + repeat * steps)}
    )
    return Outcome(
        ratios={"top_layers_vs_all": pair_ratios(repeats, "all")},
        repeats=repeats,
        settings={"top": top.facts, "all": every.facts},
        extras={"peak_bytes": _peaks(repeats)},
        rows=fingerprint(named),
    )


def adapters(run: Run) -> Outcome:
    """Our engine with one to sixteen adapters trained together: examples per second, memory."""
    largest = max(run.sizes.banks)
    rows, named = _write(run, "fpb", largest * run.sizes.steps)
    found: dict[str, list[dict[str, Any]]] = {}
    for bank in run.sizes.banks:
        # One after the other: the larger ones do not fit into memory beside the others.
        count = bank * run.sizes.steps * STEP
        worker = run.start("ours-bank", rows=str(rows), count=count, adapters=bank)
        found[str(bank)] = [worker.go() for _ in range(run.repeats)]
        worker.close()
        run.say(f"  {bank}: {', '.join(f'{rate:.2f}' for rate in _per_second(found[str(bank)]))}")
    return Outcome(
        repeats=[
            {bank: one[repeat] for bank, one in found.items()} for repeat in range(run.repeats)
        ],
        extras={
            "examples_per_second": {bank: _per_second(one) for bank, one in found.items()},
            "peak_bytes": {bank: one[-1]["peak_bytes"] for bank, one in found.items()},
        },
        rows=fingerprint(named),
    )


def _per_second(measured: list[dict[str, Any]]) -> list[float]:
    return [one["examples"] / one["seconds"] for one in measured]


def _write(run: Run, workload: str, steps: int) -> tuple[Path, list[Any]]:
    """Rows for so many steps of every side, in a file."""
    named = run.source.training(workload, steps * STEP * SPARE)
    path = run.scratch / f"{workload}-{steps}.json"
    write_training(path, named)
    return path, named


def _shares(repeats: list[dict[str, Any]], key: str) -> list[float]:
    """Arithmetic done per second over the matmul rate just before and after."""
    found = []
    for repeat in repeats:
        pair = repeat["trl_best"]
        done = pair["ours"][key] / pair["ours"]["seconds"]
        before, after, _ = pair["matmul_gflops"]
        found.append(done / ((before + after) / 2 * 1e9))
    return found


def _vs_bf16(repeats: list[dict[str, Any]], tuned: dict[str, Any]) -> float | None:
    """Ours beside the best bf16 setting of the grid: not of the same minutes, so no key."""
    found = tuned["best_bfloat16"]
    if found is None:
        return None
    rates = sorted(repeat["trl_best"]["ours"]["rate"] for repeat in repeats)
    return float(rates[len(rates) // 2] / found["rate"])


def _rates(repeats: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Examples per second of ours and of every peer, by repeat."""
    if not repeats:
        raise BenchError("no repeat was measured")
    ours = [next(iter(repeat.values()))["ours"]["rate"] for repeat in repeats]
    peers = {name: [repeat[name]["peer"]["rate"] for repeat in repeats] for name in repeats[0]}
    return {"ours": ours, **peers}


def _peaks(repeats: list[dict[str, Any]]) -> dict[str, int]:
    """Peak memory of ours and of every peer at the end."""
    last = repeats[-1]
    ours = next(iter(last.values()))["ours"]["peak_bytes"]
    return {"ours": ours} | {name: pair["peer"]["peak_bytes"] for name, pair in last.items()}
