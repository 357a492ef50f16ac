"""SIGKILL at random moments, then the same command again: it ends as an undisturbed study does."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing.context import SpawnContext

import numpy as np
import pytest
import torch
import yaml
from engine_oracle import write_base
from finished_kit import workers_of
from process_kit import Command

from mixtune.execution import pool
from mixtune.store.folder import Store

KILLS = 10
STUDY = {
    "name": "killed",
    "tasks": ["toy-sentiment"],
    "ingredients": {"toy-sentiment": {"rows": 60}, "toy-mood": {"rows": 60}},
    "design": ["singles", "all"],
    "budget": {"steps": 30, "examples_per_step": 8},
    "seeds": [1, 2, 3],
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


def command(path, runs, bank=1, every=0.1):
    arguments = ["run", str(path), "--runs-dir", str(runs), "--workers", "2"]
    return [*arguments, "--bank", str(bank), "--checkpoint-every", str(every)]


def start(path, arguments):
    return Command(path.parent, *arguments, environment=environment(path))


def complete(path, arguments):
    """Run a command to its end, which must be a good one; what it printed."""
    process = start(path, arguments)
    printed = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    return printed


def environment(path):
    return {**os.environ, "MIXTUNE_CACHE": str(path.parent / "cache")}


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
    files = store.folder.glob("cells/*/adapter/*.safetensors")
    adapters = {p.parent.parent.name: p.read_bytes() for p in files}
    assert store.banks() == []
    return sorted(map(str, rows)), {u.id: u.state for u in units.values()}, answers, adapters


def finished(runs):
    """Units that are done, with the number of attempts that each took."""
    units = Store(runs / "killed").units().values()
    return {unit.id: unit.attempts for unit in units if unit.state == "done"}


def wait_for_work(process, runs):
    """Until a unit is running in this process, not left so by one that was killed before."""
    begun = time.time()
    while process.poll() is None:
        units = Store(runs / "killed").units().values()
        if any(unit.state == "running" and unit.heartbeat > begun for unit in units):
            return
        time.sleep(0.02)


def kill_in_the_middle(path, runs, wait, bank):
    """Start, let work begin and `wait` seconds pass, kill; False if the study ended first."""
    process = start(path, command(path, runs, bank))
    wait_for_work(process, runs)
    time.sleep(wait)
    ended = process.poll() is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return not ended


@pytest.mark.parametrize("bank", [1, 3])
def test_killed_ten_times_and_resumed_ends_like_an_undisturbed_study(path, bank):
    calm, killed = path.parent / f"calm{bank}", path.parent / f"killed{bank}"
    from_a_shell = [sys.executable, "-c", RUN, *command(path, calm, bank)]
    subprocess.run(from_a_shell, env=environment(path), check=True, capture_output=True)
    done, kills = {}, 0
    for wait in np.random.default_rng(11).uniform(0.0, 0.35, KILLS):
        kills += kill_in_the_middle(path, killed, float(wait), bank)
        now = finished(killed)
        assert {unit: now[unit] for unit in done} == done, "a finished unit was done again"
        done = now
    assert kills == KILLS, "the study ended before all kills had hit it: make it longer"
    assert len(done) < len(Store(killed / "killed").units())
    complete(path, command(path, killed, bank))
    assert outcome(killed) == outcome(calm)
    assert set(outcome(killed)[1].values()) == {"done"}


def test_a_killed_worker_is_an_error_and_the_same_command_goes_on(path):
    runs = path.parent / "orphaned"
    process = start(path, command(path, runs))
    store = Store(runs / "killed")
    while not any(unit.state == "running" for unit in store.units().values()):
        time.sleep(0.02)
    os.kill(workers_of(process)[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "a worker process ended early" in errors
    assert "Traceback" not in errors
    complete(path, command(path, runs))
    assert outcome(runs)[1] == outcome(path.parent / "calm1")[1]


FORK = """
import signal
from mixtune.execution import pool
if __name__ == "__main__":
    pool.start_fork_server()
    context = pool._context()
    with pool._signals_blocked():
        worker = context.Process(target=exec, args=('''
import gc, signal, sys
masked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
print("torch" in sys.modules, gc.get_freeze_count() > 0, masked >= {1, 2, 15})
''',))
        worker.start()
    worker.join()
    print(worker.exitcode, signal.pthread_sigmask(signal.SIG_BLOCK, []))
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="beside a GPU workers are started afresh")
def test_workers_are_forked_with_their_imports_and_without_a_terminals_signals(tmp_path):
    (tmp_path / "fork.py").write_text(FORK, encoding="utf-8")
    here = tmp_path / "here"
    here.mkdir()
    (here / "torch.py").write_text("raise SystemExit('not this one')", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, tmp_path / "fork.py"],
        cwd=here,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines() == ["True True True", "0 set()"]
    assert done.stderr == ""


def test_where_a_fork_server_cannot_be_reached_workers_are_started_afresh(monkeypatch):
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/scratch/" + "x" * 70)
    assert isinstance(pool._context(), SpawnContext)


def test_stopped_on_purpose_it_goes_on_at_the_step_where_it_was(path):
    runs = path.parent / "stopped"
    arguments = command(path, runs, bank=3, every=3600)
    process = start(path, arguments)
    store = Store(runs / "killed")
    while not any(0 < unit.progress < 1 for unit in store.units().values()):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert "running" not in {unit.state for unit in store.units().values()}
    _, errors = complete(path, arguments)
    assert errors.count("goes on from its checkpoint: ") >= 1
    assert outcome(runs) == outcome(path.parent / "calm3")
