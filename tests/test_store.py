import fcntl
import sqlite3
import subprocess
import sys
import threading

import pytest

from mixtune.errors import StoreError
from mixtune.records import TrainStep
from mixtune.store import files
from mixtune.store.folder import FOLDER_NAME, PlanRow, Store
from mixtune.study.fields import slug

STEP = TrainStep(1, 0.5, 1e-3, 1.0, 16, 32, 640, 0.1)


def recovered(store):
    """Labels of what was cut off, and of what is broken."""
    return tuple([unit.label for unit in units] for units in store.recover())


def row(  # noqa: PLR0913
    kind="train", unit="aaaa", cocktail="fpb", seed=1, task="", split="", form=""
):
    folder = f"cells/{unit}-{slug(cocktail)}"
    return PlanRow(kind, unit, "aaaa", folder, cocktail, seed, task, split, form, 16, 99, "")


ANSWER = row("answer", "bbbb", task="fpb", split="test", form="strict")


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "study")
    store.save_plan([row(), ANSWER], "name: study\n", {"env": {"python": "3"}})
    return store


def finish(store, unit="aaaa"):
    store.begin(unit)
    path = store.write_rows("cells/aaaa-fpb/train.parquet", TrainStep, [STEP])
    store.finish(unit, [path], 1.5)
    return path


def test_states_go_planned_running_done(store):
    assert {u.state for u in store.units().values()} == {"planned"}
    store.begin("aaaa")
    store.beat({"aaaa": 0.25})
    unit = store.units()["aaaa"]
    assert (unit.state, unit.progress, unit.attempts) == ("running", 0.25, 1)
    finish(store)
    unit = store.units()["aaaa"]
    assert (unit.state, unit.progress, unit.seconds) == ("done", 1, 1.5)
    assert list(unit.files) == ["cells/aaaa-fpb/train.parquet"]


def test_a_failed_unit_keeps_its_error(store):
    store.begin("aaaa")
    store.fail("aaaa", "RunFailed: loss is nan", 3.0)
    unit = store.units()["aaaa"]
    assert (unit.state, unit.error) == ("failed", "RunFailed: loss is nan")
    store.begin("aaaa")
    assert store.units()["aaaa"].error == ""


def test_an_unknown_state_cannot_be_written(store):
    with sqlite3.connect(store.folder / "state.sqlite") as db, pytest.raises(sqlite3.Error):
        db.execute("UPDATE unit SET state='invalid'")
    db.close()


def test_a_folder_of_an_older_format_is_refused(store):
    with sqlite3.connect(store.folder / "state.sqlite") as db:
        db.execute("PRAGMA user_version = 0")
    db.close()
    for use in (store.units, lambda: store.undone(["aaaa"]), lambda: store.begin("aaaa")):
        with pytest.raises(StoreError, match=r"(?s)another version of mixtune.*format 1.*format 2"):
            use()


def test_recover_gives_back_what_was_cut_off_and_what_was_damaged(store):
    path = finish(store)
    store.begin("bbbb")
    assert recovered(store) == (["fpb seed 1 fpb/test/strict"], [])
    assert store.units()["aaaa"].state == "done"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert recovered(store) == ([], ["fpb seed 1"])
    assert store.units()["aaaa"].state == "planned"


def test_rows_survive_the_way_to_disk_and_back(store):
    finish(store)
    assert TrainStep(**store.read_rows("cells/aaaa-fpb/train.parquet")[0]) == STEP
    assert not list((store.folder / "cells/aaaa-fpb").glob(".*")), "temporary file left"


def test_a_study_is_extended_and_the_change_is_logged(store):
    finish(store)
    store.save_plan([row(), ANSWER, row(unit="cccc", seed=2)], "name: study\n", {})
    assert store.units()["aaaa"].state == "done"
    assert store.units()["cccc"].state == "planned"
    assert [c["what"] for c in store.changes()] == ["planned", "extended"]
    assert store.changes()[1]["added"] == ["fpb seed 2"]


def test_a_plan_may_leave_runs_out_as_long_as_it_adds_none(store):
    store.save_plan([row()], "name: study\nseeds: [1]\n", {})
    assert {r.id for r in store.plan()} == {"aaaa", "bbbb"}
    assert (store.folder / "study.yaml").read_text() == "name: study\n"
    with pytest.raises(StoreError, match="adds 1 units and leaves out 2"):
        store.save_plan([row(unit="cccc", seed=2)], "name: study\n", {})
    assert {r.id for r in store.plan()} == {"aaaa", "bbbb"}


def test_a_broken_adapter_takes_its_answers_with_it(store):
    path = finish(store)
    store.begin("bbbb")
    store.finish("bbbb", [store.write_text("cells/aaaa-fpb/x.txt", "x")], 1.0)
    assert recovered(store) == ([], [])
    path.unlink()
    assert recovered(store)[1] == ["fpb seed 1", "fpb seed 1 fpb/test/strict"]
    assert {u.state for u in store.units().values()} == {"planned"}


def test_the_state_can_be_read_after_a_kill_inside_a_transaction(store):
    code = (
        "import os, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('PRAGMA cache_size=1')\n"
        "db.execute('BEGIN')\n"
        "db.execute(\"UPDATE unit SET state='failed'\")\n"
        "db.executemany('INSERT INTO test_read VALUES (?, ?)', [(1.0, 'x' * 500)] * 400)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    path = store.folder / "state.sqlite"
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert path.with_name("state.sqlite-journal").exists(), "no journal was left: shows nothing"
    assert {u.state for u in store.units().values()} == {"planned"}
    assert store.test_reads() == 0


def test_what_a_killed_process_was_writing_is_swept_away(store):
    cell = store.folder / "cells" / "aaaa-fpb"
    left = cell / ".train.parquet.4711.mixtune-part"
    folder = cell / ".adapter.4711.mixtune-part"
    folder.mkdir(parents=True)
    (folder / "half").write_bytes(b"half")
    left.write_bytes(b"half")
    own = cell / ".notes.v1.2"
    own.write_bytes(b"not ours")
    store.recover()
    assert [path.name for path in cell.iterdir()] == [own.name]


def test_a_change_that_alters_an_id_is_refused_with_the_difference(store):
    with pytest.raises(StoreError, match=r"(?s)aaaa → dddd.*-name: study.*\+name: other"):
        store.save_plan([row(unit="dddd")], "name: other\n", {})
    assert (store.folder / "study.yaml").read_text() == "name: study\n"
    assert set(store.units()) == {"aaaa", "bbbb"}


def test_two_writers_cannot_hold_one_folder(store):
    code = (
        "import sys; from pathlib import Path; from mixtune.store.folder import Store\n"
        "from mixtune.errors import StoreError\n"
        "try:\n"
        "    with Store(Path(sys.argv[1])).lock(): print('held')\n"
        "except StoreError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(store.folder)]
    with store.lock():
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "another mixtune process" in out
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out == "held\n"


def test_units_are_cut_off_where_no_process_holds_the_folder(store):
    store.begin("aaaa")
    assert store.current_units()[0]["aaaa"].state == "planned", "no lock file yet"
    with store.lock():
        units, cut_off = store.current_units()
        assert (units["aaaa"].state, cut_off) == ("running", [])
    units, cut_off = store.current_units()
    assert (units["aaaa"].state, [unit.label for unit in cut_off]) == ("planned", ["fpb seed 1"])
    assert store.units()["aaaa"].state == "running", "a look changes nothing"


def test_a_process_that_looks_at_the_lock_does_not_stop_one_that_starts(store):
    with store.lock():
        pass
    with (store.folder / "lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        timer = threading.Timer(0.1, fcntl.flock, (looking, fcntl.LOCK_UN))
        timer.start()
        with store.lock():
            assert files.is_held(store.folder / "lock")
        timer.join()
    assert not files.is_held(store.folder / "lock")


def test_rows_with_other_columns_are_a_damaged_file(store):
    store.write_json("rows.json", [{"step": 1, "losses": 2}])
    for name in ("rows.json", finish(store).relative_to(store.folder).as_posix()):
        with pytest.raises(StoreError, match=name):
            store.read_records(name, PlanRow)


def test_reading_a_folder_without_a_study_says_what_to_do(tmp_path):
    with pytest.raises(StoreError, match="mixtune run"):
        Store(tmp_path / "none").plan()


def test_a_damaged_file_is_named(store):
    path = finish(store)
    path.write_bytes(b"PAR1")
    with pytest.raises(StoreError, match=r"train\.parquet"):
        store.read_rows("cells/aaaa-fpb/train.parquet")


def test_looks_at_test_scores_are_counted(store):
    assert store.test_reads() == 0
    assert store.count_test_read("results") == 1
    assert store.count_test_read("report") == 2


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("FPB+Head line", "fpb-head-line"), ("../../x", "x"), ("a" * 99, "a" * 40), ("é", "")],
)
def test_slugs_fit_a_folder(text, wanted):
    assert slug(text, FOLDER_NAME) == wanted


@pytest.mark.parametrize("plant", ["symlink_to", "hardlink_to"])
@pytest.mark.parametrize("name", ["lock", "workers"])
def test_a_link_in_the_place_of_a_lock_is_refused_and_its_target_stays(tmp_path, name, plant):
    target = tmp_path / "precious.txt"
    target.write_text("precious")
    store = Store(tmp_path / "study")
    store.folder.mkdir()
    getattr(store.folder / name, plant)(target)
    with pytest.raises(StoreError, match=f"{name}: cannot write"), store.lock():
        pass
    assert target.read_text() == "precious"


def test_parts_have_names_that_cannot_be_guessed_and_a_private_file_is_its_owners(tmp_path):
    seen = []

    def write(path):
        seen.append(path.name)
        path.write_text("x")

    for _ in range(2):
        files.write_whole(tmp_path / "a.txt", write, private=True)
    assert seen[0] != seen[1]
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "text", ["=HYPERLINK(1)", "+cmd", "-x", "@sum", " =1+1", "\t=1", "-1+cmd|x"]
)
def test_a_cell_that_a_spreadsheet_would_run_is_text(text):
    assert files.plain_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", [-1.5, 3, None, True, "-1.5", "+2", "-1e-5", "a=b", "", "good"])
def test_other_cells_stay(value):
    assert files.plain_cell(value) == value
