"""Where the time of a training step goes: torch's profiler, by kind of operation.

    python -m bench.where --data-dir DATA [--compute bfloat16] [--out bench/results/where.json]

Knows: names and shapes of operations. Does not know: peers, ratios.
"""

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from bench.data import Source
from bench.machine import provenance, use_threads
from bench.ours import STEP
from bench.results import write_or_print
from mixtune.engine.convert import prepare
from mixtune.engine.model import LocalModel
from mixtune.engine.train import train
from mixtune.study.spec import Budget, EvalSpec, TrainSpec
from mixtune.tokens import Tokens, encode_rows

STEPS = 2
KINDS = {
    "attention: products": ("aten::bmm", "aten::baddbmm"),
    "attention: softmax and masks": (
        *("aten::_softmax", "aten::_softmax_backward_data", "aten::masked_fill_"),
    ),
    "moving and filling": (
        *("aten::index_select", "aten::copy_", "aten::cat", "aten::fill_", "aten::index_add_"),
        *("aten::index", "aten::index_put_", "aten::_index_put_impl_", "aten::zero_"),
    ),
}
"""Kind → operations; matrix products are told apart by their shapes, the rest is elementwise."""


def kind_of(name: str, shapes: Iterable[Any], rank: int) -> str:
    """What an operation is for."""
    if name in ("aten::mm", "aten::addmm", "aten::addmm_"):
        small = any(rank in shape for shape in shapes if shape)
        return "products of adapters" if small else "products of the base"
    for kind, names in KINDS.items():
        if name in names:
            return kind
    return "elementwise, norms, rotations, optimiser"


def shares(rows: Iterable[tuple[str, Any, float]], rank: int) -> dict[str, float]:
    """Kind → share of the time in operations; rows of (name, shapes, time)."""
    found: dict[str, float] = {}
    for name, shapes, spent in rows:
        if name.startswith("aten::") and spent > 0:
            kind = kind_of(name, shapes, rank)
            found[kind] = found.get(kind, 0.0) + spent
    total = sum(found.values())
    ordered = sorted(found.items(), key=lambda pair: -pair[1])
    return {kind: round(spent / total, 3) for kind, spent in ordered}


def measure(data_dir: Path | None, model_name: str, compute: str) -> Mapping[str, object]:
    """Profile some steps on the task fpb (or the embedded suite's sentiment)."""
    use_threads()
    folder = prepare(model_name).folder
    tokens, spec = Tokens.load(folder), TrainSpec.model_validate({"compute": compute})
    source = Source(data_dir)
    named = source.training("fpb", STEP * (STEPS + 1))
    rows = encode_rows(named, tokens, spec.max_length, "error").rows
    model = LocalModel.load(folder, tokens, spec, EvalSpec())
    model.reset(1)
    train(model, rows[:STEP], spec, Budget(steps=1, examples_per_step=STEP))
    budget = Budget(steps=STEPS, examples_per_step=STEP)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        train(model, rows[STEP:], spec, budget)
    events = found.key_averages(group_by_input_shape=True)
    seen = [(e.key, e.input_shapes, float(e.self_cpu_time_total)) for e in events]
    return {
        "shares": shares(seen, spec.rank),
        "data": source.kind,
        "compute": compute,
        **provenance(f"python -m bench.where --data-dir DATA --compute {compute}"),
    }


def main() -> None:
    """Print or write the shares."""
    parser = argparse.ArgumentParser(description="Where does a training step's time go?")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--compute", default=TrainSpec().compute)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    write_or_print(measure(given.data_dir, given.model, given.compute), given.out)


if __name__ == "__main__":
    main()
