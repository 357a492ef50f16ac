"""Cases that score: settings found for lm-evaluation-harness, then our engine beside it.

Knows: which workers a case needs, how closely log-probabilities must agree. Does not know: how
anything is scored.
"""

from pathlib import Path
from typing import Any

from bench.data import fingerprint, write_scoring, write_training
from bench.errors import BenchError
from bench.pipe import Worker
from bench.results import Outcome, pair_ratios
from bench.run import Run
from bench.tuning import best_of, give_up_below, score_settings, worth

STEP = 16
WARM = (2, 1)
_MIDDLE = (4, 8, 16, 32)
CHECKED = 4
CLOSE = 1e-2
"""Largest difference of a log-probability, in float32."""


def tune_score3(run: Run) -> Outcome:
    """The harness's settings with three labels: the whole grid."""
    return _tune(run, "labels-3", run.sizes.dtypes, run.sizes.score_batches)


def tune_score20(run: Run) -> Outcome:
    """The harness's settings with twenty labels.

    In the number formats that came near the best with three, in batches that an item's twenty
    rows fill, and without "auto": it first runs 320 rows to find what fits into memory, which would
    be most of the time here.
    """
    dtypes = worth(run.results.load("tune_score3"), run.sizes.dtypes)
    sizes = tuple(batch for batch in run.sizes.score_batches if batch in _MIDDLE)
    return _tune(run, "labels-20", dtypes, sizes)


def _tune(
    run: Run, workload: str, dtypes: tuple[str, ...], batches: tuple[int | str, ...]
) -> Outcome:
    many = workload == "labels-20"
    items = run.sizes.tune_items[many]
    queries = run.source.scoring(workload, items)
    rows = _write(run, workload, queries)
    grid: list[dict[str, Any]] = []
    arguments = {"rows": str(rows), "adapter": _adapter(run), "items": items, "warm": WARM[many]}
    worker = run.start("lm-eval-grid", **arguments)
    for setting in score_settings(dtypes, batches):
        found = worker.go(setting=setting, give_up_below=give_up_below(grid, setting))
        grid.append({"setting": setting, **found})
        run.say(f"  {setting}: {found['rate']:.2f} items/s")
    return Outcome(extras=best_of(grid), rows=fingerprint(queries))


def score3(run: Run) -> Outcome:
    """Three labels beside the harness at its best, and as it starts by itself."""
    best = run.results.load("tune_score3")["extras"]["best"]["setting"]
    settings = {"lm_eval_best": best, "lm_eval": {"dtype": "auto", "batch": 1}}
    outcome = _score(run, "labels-3", settings)
    outcome.ratios = {"score3_vs_lm_eval": pair_ratios(outcome.repeats, "lm_eval_best")}
    outcome.extras["vs_lm_eval_default"] = pair_ratios(outcome.repeats, "lm_eval")
    return outcome


def score20(run: Run) -> Outcome:
    """Twenty labels, listed in the header of the prompt, beside the harness at its best."""
    best = run.results.load("tune_score20")["extras"]["best"]["setting"]
    outcome = _score(run, "labels-20", {"lm_eval_best": best})
    outcome.ratios = {"score20_vs_lm_eval": pair_ratios(outcome.repeats, "lm_eval_best")}
    return outcome


def _score(run: Run, workload: str, settings: dict[str, dict[str, Any]]) -> Outcome:
    many = workload == "labels-20"
    each = run.sizes.items[many]
    queries = run.source.scoring(workload, each * run.repeats)
    if len(queries) < each * run.repeats:
        raise BenchError(f"{workload}: {len(queries)} items, wanted {each} × {run.repeats}")
    rows = _write(run, workload, queries)
    given = {"rows": str(rows), "adapter": _adapter(run), "warm": WARM[many]}
    ours = run.start("ours-score", **given)
    peers = {n: run.start("lm-eval", **given, setting=one) for n, one in settings.items()}
    apart = _check(run, ours, peers["lm_eval_best"], given)

    def order(repeat: int, peer: str) -> dict[str, Any]:
        start = repeat * each
        count = each if peer == "lm_eval_best" else min(run.sizes.default_items, each)
        return {"start": start, "stop": start + count}

    repeats = run.pairs(ours, peers, order)
    started = {n: {"setting": settings[n], **peer.facts} for n, peer in peers.items()}
    last = repeats[-1]["lm_eval_best"]
    return Outcome(
        repeats=repeats,
        settings={"ours": ours.facts, **started},
        extras={
            "largest_difference": apart,
            "choices": ours.facts["choices"],
            "peak_bytes": {side: last[side]["peak_bytes"] for side in ("ours", "peer")},
        },
        rows=fingerprint(queries),
    )


def _check(run: Run, ours: Worker, best: Worker, given: dict[str, Any]) -> float:
    """Largest difference between both sides' log-probabilities of a few items, in float32.

    Raises:
        BenchError: they differ by more than CLOSE.
    """
    plain, mine = best, ours
    if run.base["compute"] != "float32":
        mine = run.start("ours-score", **given, compute="float32")
    if best.facts["weights"] != "torch.float32":
        plain = run.start("lm-eval", **given, setting={"dtype": "float32", "batch": 8})
    left_side = mine.go(start=0, stop=CHECKED)["logprobs"]
    right_side = plain.go(check=CHECKED)["logprobs"]
    # Workers that only check end here: what they hold in memory would slow what is timed.
    for worker in {plain, mine} - {best, ours}:
        worker.close()
    apart = max(
        abs(one - two)
        for left, right in zip(left_side, right_side, strict=True)
        for one, two in zip(left, right, strict=True)
    )
    if apart > CLOSE:
        raise BenchError(f"log-probabilities differ by {apart:.4f}, wanted at most {CLOSE}")
    return float(apart)


def _adapter(run: Run) -> str:
    """An adapter trained for a few steps, made once per call of the benchmark."""
    folder = run.scratch / "adapter"
    if not folder.is_dir():
        rows = run.scratch / "adapter.json"
        named = run.source.training("fpb", run.sizes.adapter_steps * STEP)
        write_training(rows, named)
        run.start("ours-adapter", rows=str(rows), count=len(named), adapter=str(folder)).close()
    return str(folder)


def _write(run: Run, workload: str, queries: list[Any]) -> Path:
    path = run.scratch / f"{workload}-{len(queries)}.json"
    write_scoring(path, queries)
    return path
