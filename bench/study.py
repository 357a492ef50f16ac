"""The case of a whole study: `mixtune run` beside a loop of TRL and lm-evaluation-harness.

Knows: the study, what the loop does for each cell, how its time is scaled up. Does not know: how
anything is trained or scored.

The study is one process from its start to its report. The loop starts two fresh processes for each
cell (train and save, then score), and two of the twelve cells are run for each repeat: a single
and a pair, other ones in every repeat. All cells have equally many rows and items, so the twelve
are taken to last six times as long.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.data import fingerprint, write_scoring, write_training
from bench.errors import BenchError
from bench.pipe import OFFLINE
from bench.results import Outcome
from bench.run import Run
from mixtune.datasets.registry import Registry
from mixtune.planning.corpus import Corpus, load_corpus
from mixtune.planning.mixing import mix
from mixtune.records import Query
from mixtune.study.reading import parse_study
from mixtune.study.spec import Study

STEP = 16
PER_REPEAT = 2
_INGREDIENTS = (
    ("fpb", "twitter-sentiment", "headline"),
    ("toy-sentiment", "toy-mood", "toy-topic"),
)


def study12(run: Run) -> Outcome:
    """Twelve cells (three singles and three pairs, two seeds) on one task."""
    settings = {
        "train": run.results.load("tune_fpb")["extras"]["best"]["setting"],
        "score": run.results.load("tune_score3")["extras"]["best"]["setting"],
    }
    study = _study(run)
    corpus = load_corpus(study, Registry.builtin(run.source.data_dir))
    cells = _cells(run, study, corpus)
    asked = _items(study, corpus)
    items = run.scratch / "study-items.json"
    write_scoring(items, asked)
    rate = run.start("matmul")
    repeats: list[dict[str, Any]] = []
    for repeat in range(run.repeats):
        rates = [rate.go()["gflops"]]
        mine = _mixtune(run, study, repeat)
        rates.append(rate.go()["gflops"])
        loop = [_cell(run, cells[number], items, settings) for number in _chosen(repeat, cells)]
        rates.append(rate.go()["gflops"])
        whole = sum(cell["train"] + cell["score"] for cell in loop) / len(loop) * len(cells)
        repeats.append(
            {"mixtune_seconds": mine, "loop_seconds": whole, "cells": loop, "matmul_gflops": rates}
        )
        run.say(f"  {repeat + 1}/{run.repeats}: {mine:.0f} s / {whole:.0f} s (scaled)")
    return Outcome(
        ratios={"study12_vs_loop": [r["loop_seconds"] / r["mixtune_seconds"] for r in repeats]},
        repeats=repeats,
        settings={**settings, "study": study.model_dump(mode="json")},
        extras={
            "cells": len(cells),
            "note": f"the loop's time is that of {PER_REPEAT} cells a repeat, scaled linearly to "
            f"{len(cells)}",
        },
        rows=fingerprint(asked),
    )


def _study(run: Run) -> Study:
    """Every cell trains on equally many rows and answers equally many items of one task."""
    names = _INGREDIENTS[0 if run.source.data_dir else 1]
    half = run.sizes.study_items // 2
    return parse_study(
        {
            "name": "bench-study12",
            "model": run.model,
            "tasks": [names[0]],
            "ingredients": {name: {} for name in names},
            "design": ["singles", "pairs"],
            "budget": {"steps": run.sizes.study_steps, "examples_per_step": STEP},
            "seeds": list(run.sizes.study_seeds),
            "train": {"compute": run.base["compute"]},
            "evaluate": {
                "validation_items": half,
                "test_items": run.sizes.study_items - half,
                "forms": ["constrained"],
            },
            "baselines": [],
        }
    )


def _cells(run: Run, study: Study, corpus: Corpus) -> list[Path]:
    """A file of training rows for every cell: what the study trains on, row for row."""
    names = sorted(study.ingredients)
    pairs = [(one, two) for i, one in enumerate(names) for two in names[i + 1 :]]
    paths = []
    for seed in study.seeds:
        for cocktail in [*((name,) for name in names), *pairs]:
            amounts = {name: study.ingredients[name] for name in cocktail}
            path = run.scratch / f"cell-{len(paths)}.json"
            rows = mix(corpus.pools, amounts, study.budget.examples, seed).order
            write_training(path, rows)
            paths.append(path)
    return paths


def _items(study: Study, corpus: Corpus) -> list[Query]:
    """What the study asks of every adapter, validation and test together."""
    task = study.tasks[0]
    chosen = [*corpus.items[task, "validation"], *corpus.items[task, "test"]]
    return [Query(item.id, item.stratum, item.messages, item.choices) for item in chosen]


def _chosen(repeat: int, cells: list[Path]) -> list[int]:
    """A single of the first seed and a pair of the last one; other ones in every repeat."""
    return [repeat % 3, len(cells) - 1 - repeat % 3]


def _mixtune(run: Run, study: Study, repeat: int) -> float:
    """Seconds of `mixtune run` in an empty folder of runs."""
    file = run.scratch / "study12.yaml"
    file.write_text(json.dumps(study.model_dump(mode="json")), encoding="utf-8")
    program = Path(sys.executable).with_name("mixtune")
    command = [str(program), "run", str(file), "--runs-dir", str(run.scratch / f"runs-{repeat}")]
    if run.source.data_dir:
        command += ["--data-dir", str(run.source.data_dir)]
    return _timed(run, "mixtune", command)


def _cell(run: Run, rows: Path, items: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Seconds of the two processes of one cell of the loop."""
    adapter = run.scratch / f"loop-{time.monotonic_ns()}"
    given = {"folder": run.base["folder"], "device": run.device, "adapter": str(adapter)}
    steps = {"rows": str(rows), "steps": run.sizes.study_steps, "setting": settings["train"]}
    answers = {"rows": str(items), "answers": f"{adapter}.json", "setting": settings["score"]}
    return {
        "train": _timed(run, "loop-train", _step("train", given | steps)),
        "score": _timed(run, "loop-score", _step("score", given | answers)),
    }


def _step(name: str, arguments: dict[str, Any]) -> list[str]:
    return [sys.executable, "-m", "bench.loop", name, json.dumps(arguments)]


def _timed(run: Run, name: str, command: list[str]) -> float:
    """Seconds from start to end of a process.

    Raises:
        BenchError: it failed.
    """
    log = run.scratch / f"{name}.log"
    began = time.perf_counter()
    with log.open("w", encoding="utf-8") as stream:
        done = subprocess.run(
            command, stdout=stream, stderr=subprocess.STDOUT, env=os.environ | OFFLINE, check=False
        )
    seconds = time.perf_counter() - began
    if done.returncode:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
        raise BenchError(f"{name} failed ({done.returncode}); its last lines:\n" + "\n".join(tail))
    return seconds
