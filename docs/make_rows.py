"""Write mixtune/planning/rows.yaml from a folder of datasets: `python docs/make_rows.py DATA`.

Sizes of splits and mean tokens of rows, with SmolLM2's tokenizer; what the folder does not have is
taken over from ASSUMED, which says so.

Knows: the registry, a tokenizer. Does not know: what the file is used for.
"""

import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from mixtune.datasets.registry import Registry
from mixtune.models.catalog import locate
from mixtune.models.files import BaseModelFiles
from mixtune.study.spec import EvalSpec
from mixtune.study.yaml import write_yaml
from mixtune.tokens import Tokens

FILE = Path(__file__).parent.parent / "mixtune" / "planning" / "rows.yaml"
MODEL = "smollm2-135m"
SAMPLE = 500
ASSUMED: dict[str, dict[str, Any]] = {
    "open-orca": {"train": 4_200_000, "like": "p3", "note": "tokens as of p3"},
    "orca-math": {"train": 200_000, "like": "gsm8k", "note": "tokens as of gsm8k"},
}
"""Datasets that no folder here has → rows on the hub (their names say them), and whose tokens they
are taken to have."""

HEAD = """# What a plan says of datasets that are not on this machine: rows of each split, and mean
# tokens of a row's prompt and answer. Nothing is computed from it but estimates that are called so.
# Written {day} by `python docs/make_rows.py DATA` with {model}'s tokenizer; `from`: measured, or
# assumed.
"""


def main() -> None:
    """Measure what the folder has, add what is assumed, write the file."""
    registry = Registry.builtin(Path(sys.argv[1]))
    files = locate(MODEL, download=False)
    assert isinstance(files, BaseModelFiles), f"mixtune models --prepare {MODEL}"
    tokens = Tokens.load(files.folder)
    found = {}
    for name in registry.names():
        if (
            not registry.get(name).synthetic
            and registry.dataset(name, EvalSpec().carve).unavailable is None
        ):
            found[name] = measured(registry, name, tokens)
    for name, said in ASSUMED.items():
        like = found[said["like"]]
        found[name] = {
            "train": said["train"],
            "prompt": like["prompt"],
            "answer": like["answer"],
            "from": "assumed",
            "note": said["note"],
        }
    head = HEAD.format(day=time.strftime("%Y-%m-%d", time.gmtime()), model=MODEL)
    text = write_yaml(dict(sorted(found.items())))
    FILE.write_text(head + text, encoding="utf-8")


def measured(registry: Registry, name: str, tokens: Tokens) -> dict[str, Any]:
    """Sizes of a dataset's splits, and mean tokens over a sample of its first one."""
    dataset = registry.dataset(name, EvalSpec().carve)
    splits = {split: dataset.examples(split) for split in dataset.splits}
    first = next(iter(splits.values()))
    chosen = first[:: max(1, len(first) // SAMPLE)][:SAMPLE]
    return {
        **{split: len(rows) for split, rows in splits.items()},
        "prompt": round(fmean(len(tokens.prompt_ids(row.messages)) for row in chosen), 1),
        "answer": round(fmean(len(tokens.answer_ids(row.target)) for row in chosen), 1),
        "from": "measured",
    }


if __name__ == "__main__":
    main()
