"""SIGKILL at random moments, then the same command again: it ends as an undisturbed study does."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from engine_oracle import write_base

from mixtune.store import Store

KILLS = 10
STUDY = {
    "name": "killed",
    "tasks": ["toy-sentiment"],
    "ingredients": {"toy-sentiment": {"rows": 60}, "toy-mood": {"rows": 60}},
    "design": ["singles", "all"],
    "budget": {"steps": 12, "examples_per_step": 8},
    "seeds": [1, 2],
    "train": {"rank": 2, "alpha": 4},
    "evaluate": {"validation_items": 20, "test_items": 20, "max_new_tokens": 4},
}
RUN = "from mixtune.cli import main; main()"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    base = write_base(folder / "base", "llama")
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "model": str(base)}), encoding="utf-8")
    return path


def command(path, runs, workers):
    arguments = ["run", str(path), "--runs-dir", str(runs), "--workers", str(workers)]
    return [sys.executable, "-c", RUN, *arguments]


def environment(path):
    return {**os.environ, "MIXTUNE_CACHE": str(path.parent / "cache"), "OMP_NUM_THREADS": "1"}


def outcome(runs):
    """Runs, rows and ids; answers without the time they took; adapters to the last bit."""
    store = Store(runs / "killed")
    rows = store.plan()
    units = store.units()
    answers = {}
    for row in rows:
        if row.kind == "answer":
            table = store.read_table(f"{row.folder}/answers/{row.id}/predictions.parquet")
            answers[row.id] = table.drop_columns(["latency"]).to_pylist()
    adapters = {p.parent.parent.name: p.read_bytes() for p in store.folder.rglob("*.safetensors")}
    return sorted(map(str, rows)), {u.id: u.state for u in units.values()}, answers, adapters


def test_killed_at_random_and_resumed_ends_like_an_undisturbed_study(path):
    calm, killed = path.parent / "calm", path.parent / "killed"
    begun = time.monotonic()
    subprocess.run(command(path, calm, 1), env=environment(path), check=True, capture_output=True)
    whole = time.monotonic() - begun
    moments = np.random.default_rng(11).uniform(0.3, 0.9, KILLS) * whole
    survived = 0
    for moment in moments:
        process = subprocess.Popen(
            command(path, killed, 1),
            env=environment(path),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(timeout=float(moment))
            survived += 1
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert survived < KILLS, "no kill hit a running study: the test shows nothing"
    subprocess.run(command(path, killed, 1), env=environment(path), check=True, capture_output=True)
    rows, states, answers, adapters = outcome(killed)
    assert set(states.values()) == {"done"}
    assert len(adapters) == 6
    assert (rows, states, answers, adapters) == outcome(calm)
