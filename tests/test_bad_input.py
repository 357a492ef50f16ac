"""Nothing is lost: a small finished study meets each fault through the real command line.

After every fault what was finished before is still there to the last byte, `results` says the
same, and the message names what to do.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from engine_oracle import write_base
from study_kit import TASK, record, write_data, write_rows

from mixtune import cli, durable, store
from mixtune.execution import start
from mixtune.execution.local import Session, local_model
from mixtune.store import Store

RUN = "from mixtune.cli import main; main()"
STUDY = {
    "name": "weather",
    "model": "base",
    "tasks": ["north"],
    "task_files": ["north.yaml", "south.yaml"],
    "ingredients": {"north": {"rows": 8}, "south": {"rows": 8}},
    "design": ["all"],
    "budget": {"steps": 2, "examples_per_step": 4},
    "train": {"rank": 16, "alpha": 4},
    "evaluate": {"validation_items": 6, "test_items": 6, "max_new_tokens": 4},
}
MORE = "seeds=[1,2]"
LARGE = 80_000
HOSTILE = ["\x1b[31mred\x1b[0m", "[bold]x[/bold]", "a\nb", "\u202egnp.exe", "x" * 10_000, "../up"]


def environment(folder, **more):
    fixed = {"MIXTUNE_CACHE": str(folder / "cache"), "MIXTUNE_DATA_DIR": "data"}
    return {**os.environ, **fixed, "OMP_NUM_THREADS": "1", **more}


def python(folder, *arguments, code=RUN, **more):
    """A real process with the command line."""
    command = [sys.executable, "-c", code, *arguments]
    quiet = {"capture_output": True, "text": True, "timeout": 120}
    return subprocess.run(command, cwd=folder, env=environment(folder), **quiet, **more)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a study that was run to its end."""
    folder = tmp_path_factory.mktemp("finished")
    write_base(folder / "base", "llama")
    write_data(folder / "data")
    for name in ("north", "south"):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name), encoding="utf-8")
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    done = python(folder, "run", "study.yaml", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return folder


@pytest.fixture
def place(finished, tmp_path, monkeypatch):
    """A copy of it to break, the current folder."""
    place = tmp_path / "place"
    shutil.copytree(finished, place)
    monkeypatch.chdir(place)
    for name, value in environment(place).items():
        monkeypatch.setenv(name, value)
    return place


@pytest.fixture
def mixtune(place, monkeypatch, capsys):
    """A verb in this process: exit code, standard output, standard error; no worker processes."""

    def in_this_process(work, workers, events):
        torch.set_num_threads(1)
        planner = work.make_planner()
        session = Session(planner, Store(work.folder), lambda: local_model(planner), events)
        return session.run(work.plan)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["mixtune", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out = capsys.readouterr()
        for text in (out.out, out.err):
            assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
            assert "Traceback" not in text
        return stop.value.code or 0, out.out, out.err

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(start, "run_pool", in_this_process)
    yield call
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def kept(place, mixtune):
    """Call it to check that what was finished at first is there, unchanged, and verifies."""
    study = Store(place / "runs" / "weather")
    units = study.units()
    before = mixtune("results", "study.yaml", "--json")[1]
    assert {unit.state for unit in units.values()} == {"done"}
    assert len(json.loads(before)) == 3 * 2 * 2

    def check(more=False):
        now = study.units()
        assert {unit: now[unit] for unit in units} == units
        assert [study.damage(unit) for unit in now.values() if unit.state == "done"] == [[]] * sum(
            unit.state == "done" for unit in now.values()
        )
        code, out, _ = mixtune("results", "study.yaml", "--json")
        assert code == 0
        ids = {(row["system"], row["task"]) for row in json.loads(before)}
        rows = [row for row in json.loads(out) if (row["system"], row["task"]) in ids]
        assert (rows == json.loads(before)) if more else (out == before)

    return check


def outcome(folder):
    """Adapters to the last bit, and answers without the time that they took."""
    study = Store(folder)
    answers = {
        row.id: study.read_table(f"{row.folder}/answers/{row.id}/predictions.parquet")
        .drop_columns(["latency"])
        .to_pylist()
        for row in study.plan()
        if row.kind == "answer"
    }
    weights = sorted(folder.rglob("*.safetensors"))
    return answers, {w.parent.parent.name: digest(w) for w in weights}, states(folder)


def states(folder):
    return {unit.id: unit.state for unit in Store(folder).units().values()}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def edit(path, old, new):
    text = Path(path).read_text(encoding="utf-8")
    assert old in text
    Path(path).write_text(text.replace(old, new), encoding="utf-8")


# ---- a study that changes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ("train.lr=0.01", ["-  lr: 0.001", "+  lr: 0.01"]),
        ("train.rank=2", ["-  rank: 16", "+  rank: 2"]),
        (lambda: edit("north.yaml", "Is it dry", "Is it rather dry"), ["content.json", '"north"']),
        (
            lambda: edit("data/north/train.jsonl", "station", "place"),
            ["content.json", '"north/train"'],
        ),
        (lambda: write_base(Path("base"), "qwen2"), ["content.json", '"digest"']),
    ],
    ids=["lr", "rank", "prompt", "data", "base"],
)
def test_what_would_change_an_id_is_refused_with_the_difference(mixtune, kept, change, shown):
    more = [change] if isinstance(change, str) else []
    if not more:
        change()
    code, _, err = mixtune("run", "study.yaml", *more)
    assert code == 2
    for text in [*shown, "would get another id", "remedy: give the changed study another name"]:
        assert text in err
    kept()


@pytest.mark.parametrize(
    ("change", "added"),
    [
        (MORE, "north+south seed 2"),
        ("design=[singles, all]", "south seed 1"),
        ("tasks=[north,south]", "extended"),
    ],
    ids=["seeds", "cocktails", "tasks"],
)
def test_a_study_is_extended_and_says_so(mixtune, kept, place, change, added):
    times = {path: path.stat().st_mtime_ns for path in place.rglob("*.safetensors")}
    code, _, err = mixtune("run", "study.yaml", change)
    assert code == 0, err
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())
    code, out, _ = mixtune("status", "study.yaml")
    assert added in out
    assert out.index("planned 20") < out.index("extended 20")
    assert [c["what"] for c in json.loads(mixtune("status", "study.yaml", "--json")[1])["changes"]]
    kept(more=True)


# ---- two at once, and being stopped --------------------------------------------------------------

AT = """
import importlib, os, signal, sys, time
from pathlib import Path
module, name = os.environ["STOP_AT"].rsplit(".", 1)
def here(*arguments, **named):
    if os.environ.get("STUBBORN"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path("reached").touch()
    while not Path("go").exists():
        time.sleep(0.02)
    return there(*arguments, **named)
owner = importlib.import_module(module)
there = getattr(owner, name)
setattr(owner, name, here)
if __name__ == "__main__":
    from mixtune.cli import main
    main()
"""


@contextlib.contextmanager
def stopped_at(place, function, *arguments, **more):
    """A run in a session of its own that waits where it first calls a function."""
    (place / "at.py").write_text(AT, encoding="utf-8")
    command = [sys.executable, "at.py", "run", "study.yaml", "--workers", "1", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    env = environment(place, STOP_AT=function, **more)
    process = subprocess.Popen(command, cwd=place, env=env, start_new_session=True, **pipes)
    deadline = time.monotonic() + 60
    while not (place / "reached").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_second_run_is_told_who_is_at_work_and_harms_nothing(place, mixtune, kept):
    with stopped_at(place, "mixtune.execution.local.train", MORE) as first:
        code, _, err = mixtune("run", "study.yaml", MORE)
        assert code == 2
        assert f"found:  process {first.pid}, since 20" in err
        assert "wait for it" in err
        code, out, _ = mixtune("status", "study.yaml")
        assert code == 0
        assert "running" in out
        assert mixtune("results", "study.yaml")[0] == 0
        (place / "go").touch()
        _, errors = first.communicate(timeout=60)
        assert first.returncode == 0, errors
    assert set(states(place / "runs/weather").values()) == {"done"}
    kept(more=True)


STOPS = [
    ("mixtune.planning.plan.load_corpus", signal.SIGINT, True),
    ("mixtune.execution.local.train", signal.SIGINT, True),
    ("mixtune.execution.local.predict", signal.SIGTERM, True),
    ("mixtune.derive.score", signal.SIGHUP, False),
    ("mixtune.derive.render", signal.SIGINT, False),
]


@pytest.mark.parametrize(("function", "number", "anew"), STOPS, ids=lambda x: str(x))
def test_stopped_anywhere_it_says_how_to_go_on_and_ends_the_same(
    place, finished, mixtune, function, number, anew
):
    runs = place / "runs" / "weather"
    if anew:
        shutil.rmtree(runs)
    for path in runs.rglob("scores"):
        shutil.rmtree(path)
    with stopped_at(place, function) as process:
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("stopped; what is finished is kept. Go on with: mixtune")
    assert "running" not in (states(runs).values() if runs.exists() and number != 1 else ())
    assert not list(runs.rglob("*.mixtune-part"))
    assert mixtune("run", "study.yaml")[0] == 0
    assert outcome(runs) == outcome(finished / "runs" / "weather")


def test_a_second_ctrl_c_ends_at_once_and_consistently(place, finished, mixtune):
    runs = place / "runs" / "weather"
    shutil.rmtree(runs)
    with stopped_at(place, "mixtune.execution.local.train", STUBBORN="1") as process:
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None, "the worker was to be asked first"
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=4)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert mixtune("run", "study.yaml")[0] == 0
    assert outcome(runs) == outcome(finished / "runs" / "weather")


def test_a_worker_that_somebody_ended_is_an_error(place, mixtune, kept):
    with stopped_at(place, "mixtune.execution.local.train", MORE) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(max(map(int, children)), signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "a worker process ended early" in err
    assert "the same command goes on" in err
    assert "Traceback" not in err
    assert "running" not in states(place / "runs/weather").values()
    kept(more=True)


# ---- a system that refuses ----------------------------------------------------------------------

WRITTEN = [
    "changes.jsonl",
    "study.yaml",
    "data.json",
    "plan.parquet",
    "adapter",
    "train.parquet",
    "run.json",
    "predictions.parquet",
    "index.html",
]


@pytest.mark.parametrize("name", [*WRITTEN, "scores"])
def test_no_space_while_writing_loses_nothing_and_the_same_command_goes_on(
    place, mixtune, kept, monkeypatch, name
):
    flush = os.fsync

    def full(handle):
        path = str(Path(f"/proc/self/fd/{handle}").readlink())
        if name in path:
            raise OSError(28, "No space left on device")
        flush(handle)

    monkeypatch.setattr(durable.os, "fsync", full)
    code, _, err = mixtune("run", "study.yaml", MORE)
    assert code == 2
    assert "cannot write: No space left on device" in err
    assert name in err
    assert "remedy: free space" in err
    assert not list(place.rglob("*.mixtune-part"))
    if name != "scores":  # answers without scores are in no table: results asks for them
        kept(more=True)
    monkeypatch.setattr(durable.os, "fsync", flush)
    assert mixtune("run", "study.yaml", MORE)[0] == 0
    assert set(states(place / "runs/weather").values()) == {"done"}
    kept(more=True)


def test_a_limit_of_the_system_reaches_the_user_from_a_worker(place, kept):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGE, LARGE))

    assert only(ADAPTER).stat().st_size > LARGE > only("state.sqlite").stat().st_size + 9999
    done = python(place, "run", "study.yaml", MORE, "--workers", "1", preexec_fn=limit)
    assert done.returncode == 2
    assert "cannot write" in done.stderr
    assert "File too large" in done.stderr
    assert "adapter" in done.stderr
    assert "Traceback" not in done.stderr
    kept(more=True)


def test_a_folder_that_cannot_be_written_can_still_be_read(place, mixtune, kept, monkeypatch):
    replace = Path.replace

    def refuse(self, target):
        if "runs" in target.parts:
            raise OSError(30, "Read-only file system", str(self))
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        for arguments in (["run", "study.yaml", MORE], ["report", "study.yaml"]):
            code, _, err = mixtune(*arguments)
            assert code == 2
            assert "cannot write: Read-only file system" in err
            assert "--runs-dir" in err
        kept(more=True)


@pytest.mark.parametrize("runs_dir", ["study.yaml", "study.yaml/below"])
def test_a_file_in_the_folders_place(mixtune, kept, runs_dir):
    for verb in ("run", "status"):
        code, _, err = mixtune(verb, "study.yaml", "--runs-dir", runs_dir)
        assert code == 2
        assert runs_dir in err
        assert "--runs-dir" in err
    kept()


def test_a_state_that_is_full_or_held_by_another(place, mixtune, kept, monkeypatch):
    connect = Store._connect

    def small(self):
        connection = connect(self)
        connection.execute("PRAGMA max_page_count=1")
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(Store, "_connect", small)
        code, _, err = mixtune("run", "study.yaml", "seeds=[1,2,3,4,5,6,7,8,9]")
        assert (code, "database or disk is full" in err) == (2, True)
    kept()
    monkeypatch.setattr(store, "PATIENCE", 0.05)
    other = sqlite3.connect(place / "runs/weather/state.sqlite", check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    code, _, err = mixtune("status", "study.yaml")
    assert (code, "database is locked" in err, "state.sqlite" in err) == (2, True, True)
    monkeypatch.setattr(store, "PATIENCE", 30)
    threading.Timer(0.4, other.rollback).start()
    assert mixtune("status", "study.yaml")[0] == 0
    other.close()
    kept()


def test_a_run_without_memory_fails_and_is_tried_again(mixtune, kept, monkeypatch):
    def full(*arguments):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("mixtune.execution.local.train", full)
        code, _, err = mixtune("run", "study.yaml", MORE)
        assert (code, "FAILED, MemoryError" in err) == (1, True)
    with monkeypatch.context() as patch:
        patch.setattr("mixtune.execution.start.begin", full)
        code, _, err = mixtune("run", "study.yaml", MORE)
        assert (code, "out of memory" in err, "--workers 1" in err) == (1, True, True)
    kept(more=True)
    assert mixtune("run", "study.yaml", MORE)[0] == 0


def test_a_fault_of_our_own_keeps_its_traceback_and_says_what_is_kept(mixtune, kept, monkeypatch):
    def wrong(*arguments):
        raise KeyError("nowhere")

    with monkeypatch.context() as patch:
        patch.setattr("mixtune.derive.render", wrong)
        patch.setattr(sys, "argv", ["mixtune", "report", "study.yaml"])
        with pytest.raises(KeyError) as error:
            cli.main()
    assert "a fault of mixtune" in error.value.__notes__[0]
    assert "What is finished is kept" in error.value.__notes__[0]
    kept()


# ---- a damaged folder ---------------------------------------------------------------------------


def only(pattern):
    return sorted(Path("runs/weather").glob(pattern))[-1]


def each(damage, pattern):
    for path in Path("runs/weather").glob(pattern):
        damage(path.relative_to("runs/weather"))


def cut(pattern):
    path = only(str(pattern))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(pattern):
    path = only(str(pattern))
    body = bytearray(path.read_bytes())
    body[len(body) // 9] ^= 0xFF
    path.write_bytes(body)


def put(pattern, text):
    only(pattern).write_text(text, encoding="utf-8")


ADAPTER = "cells/*/adapter/adapter_model.safetensors"
ANSWERS = "cells/*-s1/answers/*/predictions.parquet"
SCORES = "cells/*/scores/*.parquet"
REFUSED = [
    (lambda: cut("plan.parquet"), "status run results", ["plan.parquet", "remove it and run"]),
    (
        lambda: shutil.copy(only(SCORES), only("plan.parquet")),
        "status run",
        ["not the plan of a study"],
    ),
    (lambda: put("state.sqlite", "no database " * 99), "status run", ["state.sqlite", "restore"]),
    (lambda: put("state.sqlite", ""), "status run", ["states of the study's units are gone"]),
    (lambda: only("state.sqlite").unlink(), "status run results", ["restore it"]),
    (lambda: only("study.yaml").unlink(), "status results", ["study.yaml", "mixtune run"]),
    (lambda: put("study.yaml", "a: [b"), "status report", ["study.yaml", "mixtune run"]),
    (lambda: put("study.yaml", "- a"), "status", ["study.yaml"]),
    (lambda: put("changes.jsonl", "{"), "status", ["changes.jsonl", "remove the line"]),
    (lambda: put("data.json", "[}"), "report", ["data.json", "mixtune run"]),
    (lambda: put("cells/*-s1/run.json", "{"), "report", ["run.json", "mixtune run"]),
    (lambda: each(cut, SCORES), "results report", ["scores", "mixtune score"]),
    (lambda: each(flip, SCORES), "results", ["scores", "mixtune score"]),
]


@pytest.mark.parametrize(("damage", "verbs", "shown"), REFUSED)
def test_a_damaged_study_is_refused_with_the_file_and_the_remedy(
    place, mixtune, damage, verbs, shown
):
    weights = digest(only(ADAPTER))
    damage()
    for verb in verbs.split():
        code, _, err = mixtune(verb, "study.yaml")
        assert code == 2, verb
        assert all(text in err for text in [*shown, "remedy:"]), err
    assert digest(only(ADAPTER)) == weights


@pytest.mark.parametrize(
    ("damage", "again"),
    [
        (lambda: flip(ADAPTER), "done again"),
        (lambda: cut(ANSWERS), "done again"),
        (lambda: put("cells/*-s1/run.json", "{"), "done again"),
        (lambda: only("study.yaml").unlink(), ""),
        (lambda: put("data.json", "[}"), ""),
        (lambda: only("plan.parquet").unlink(), ""),
        (lambda: cut(SCORES), ""),
    ],
)
def test_the_same_command_makes_again_what_is_damaged(place, finished, mixtune, damage, again):
    before = mixtune("results", "study.yaml", "--json")[1]
    damage()
    code, _, err = mixtune("run", "study.yaml")
    assert code == 0, err
    assert again in err
    assert outcome(place / "runs/weather") == outcome(finished / "runs/weather")
    assert mixtune("results", "study.yaml", "--json")[1] == before
    assert mixtune("report", "study.yaml")[0] == 0


def test_a_truncated_set_of_answers_is_not_scored(mixtune):
    cut(ANSWERS)
    shutil.rmtree(only("cells/*-s1/scores"))
    code, _, err = mixtune("score", "study.yaml")
    assert (code, "predictions.parquet" in err, "mixtune run" in err) == (2, True, True)


def test_somebody_elses_folder_is_left_alone(place, mixtune, kept):
    notes = place / "other" / "weather" / ".notes.v1.2"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine", encoding="utf-8")
    code, _, err = mixtune("run", "study.yaml", "--runs-dir", "other")
    assert code == 2
    assert "holds something else than a study" in err
    assert ".notes.v1.2" in err
    assert [path.name for path in notes.parent.iterdir()] == [notes.name]
    kept()


# ---- names --------------------------------------------------------------------------------------


def tree(folder):
    return {path for path in folder.rglob("*") if "runs" not in path.parts}


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "study.yaml", "name={}"],
        ["run", "study.yaml", "tasks=[{}]"],
        ["plan", "study.yaml", "model={}"],
        ["plan", "study.yaml", "ingredients.{}.rows=3"],
        ["plan", "study.yaml", "{}"],
        ["plan", "{}"],
        ["plan", "study.yaml", "--data-dir", "{}"],
        ["status", "study.yaml", "--runs-dir", "{}"],
        ["results", "study.yaml", "--split", "{}"],
        ["{}"],
        ["run", "--{}"],
    ],
    ids=" ".join,
)
def test_hostile_names_are_refused_and_shown_escaped(place, mixtune, arguments, text):
    before, runs = tree(place.parent), set((place / "runs").iterdir())
    quoted = json.dumps(text) if any("{}" in a and a != "{}" for a in arguments) else text
    as_value = any("=" in a for a in arguments)
    code, _, err = mixtune(*(a.replace("{}", quoted if as_value else text) for a in arguments))
    assert code == 2, err
    assert err.startswith("error: ")
    assert max(map(len, err.splitlines())) < 1200
    assert (tree(place.parent), set((place / "runs").iterdir())) == (before, runs)


@pytest.mark.parametrize("name", ["sub dir/emoji 🌦", "\x1b[31mred", "[bold]", "mark\u202eed"])
def test_an_odd_runs_folder_works_and_is_shown_escaped(place, mixtune, name):
    shutil.copytree("runs", name)
    code, out, err = mixtune("report", "study.yaml", "--runs-dir", name)
    assert code == 0, err
    assert "index.html" in out


# ---- terminals and pipes ------------------------------------------------------------------------

READS = [
    ["tasks"],
    ["plan", "study.yaml"],
    ["status", "study.yaml"],
    ["results", "study.yaml"],
    ["results", "study.yaml", "--summary"],
    ["report", "study.yaml"],
]


@pytest.mark.parametrize("arguments", READS, ids=" ".join)
@pytest.mark.parametrize(
    "settings", [{"NO_COLOR": "1", "TERM": "dumb"}, {"COLUMNS": "40"}, {"COLUMNS": "80"}]
)
def test_every_reading_verb_fits_what_it_is_shown_on(mixtune, monkeypatch, arguments, settings):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    code, out, err = mixtune(*arguments)
    assert (code, err) == (0, "")
    width = int(settings.get("COLUMNS", 160))
    long = [line for line in out.splitlines() if len(line) > width and " " in line.strip()]
    assert not [line for line in long if not line.startswith(("base model:", "../", "/"))]


@pytest.mark.parametrize("arguments", READS, ids=" ".join)
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_signs_that_an_encoding_lacks_are_replaced(mixtune, monkeypatch, arguments, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    assert mixtune(*arguments)[0] == 0
    assert raw.getvalue().decode(encoding).strip()
    assert b"\\u" not in raw.getvalue()


@pytest.mark.parametrize("arguments", READS, ids=" ".join)
def test_a_reader_that_goes_ends_it_quietly(mixtune, monkeypatch, arguments):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        code, _, err = mixtune(*arguments)
    assert (code, err) == (141, "")


@pytest.mark.parametrize("arguments", [*READS, ["results", "study.yaml", "--json"]], ids=" ".join)
def test_a_full_output_is_an_error(mixtune, monkeypatch, arguments):
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        code, _, err = mixtune(*arguments)
    assert code == 2
    assert "No space left on device" in err
    assert "standard output" in err


def test_in_a_real_pipe_without_input_in_the_c_locale(place, kept):
    shell = f'{sys.executable} -c "{RUN}" results study.yaml <&- | head -1'
    shell += '; echo "${PIPESTATUS[*]}"'
    done = subprocess.run(
        ["bash", "-c", shell],
        cwd=place,
        env=environment(place, LANG="C", LC_ALL="C", PYTHONIOENCODING="ascii"),
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    first, codes = done.stdout.splitlines()
    assert first.startswith("weather, validation")
    assert codes in ("141 0", "0 0")
    kept()


@pytest.mark.parametrize("arguments", [READS[0], READS[1], READS[2], READS[3]], ids=" ".join)
def test_json_is_alone_on_the_standard_output(mixtune, arguments):
    code, out, _ = mixtune(*arguments, "--json")
    assert code == 0
    assert json.loads(out)


def test_progress_stays_out_of_the_standard_output(mixtune):
    code, out, err = mixtune("run", "study.yaml", MORE)
    assert code == 0
    assert "seed 2: done" in err
    assert "seed 2: done" not in out
    assert record("north", "train", 1)["text"] not in out + err
    write_rows(Path("data"), "north", "train", [])
    code, _, err = mixtune("plan", "study.yaml")
    assert (code, "north" in err) == (2, True)
