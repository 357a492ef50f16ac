"""Damaged states and damaged files of a plan: named, and repaired from the rest."""

import json
import random
import sqlite3
from contextlib import closing

import pytest
from finished_kit import ADAPTER, digest, edit, only, outcome, states

from mixtune.errors import StoreError
from mixtune.store.folder import Store
from mixtune.store.repair import repair

REPAIR = ("doctor", "study.yaml", "--repair")


def results(mixtune):
    code, out, err = mixtune("results", "study.yaml", "--json")
    assert code == 0, err
    return out


def sql(path, *statements):
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA ignore_check_constraints = 1")
        for statement in statements:
            db.execute(statement)


def flipped(path, rng):
    body = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 8, 64])):
        body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
    path.write_bytes(body)


def cut_anywhere(path, rng):
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def page_of_zeros(path, rng):
    body = bytearray(path.read_bytes())
    start = 4096 * rng.randrange(len(body) // 4096)
    body[start : start + 4096] = bytes(4096)
    path.write_bytes(body)


STATEMENTS = [
    "DELETE FROM test_read",
    "DROP TABLE unit",
    "DROP TABLE test_read",
    "DROP TABLE file",
    "DELETE FROM unit WHERE rowid = 1",
    "DELETE FROM unit",
    "ALTER TABLE unit ADD COLUMN more TEXT",
    "ALTER TABLE unit RENAME COLUMN seconds TO minutes",
    "UPDATE unit SET state = 'gone'",
    "UPDATE unit SET files = '{'",
    "UPDATE unit SET files = '[1]'",
    "UPDATE unit SET files = '{\"a\": 3}'",
    "UPDATE unit SET files = 7",
    "UPDATE unit SET files = replace(files, 'a', 'b')",
    "UPDATE unit SET progress = 'half'",
    "UPDATE unit SET seconds = 9e999",
    "UPDATE unit SET label = x'ff00'",
    "UPDATE unit SET label = CAST(x'ff00' AS TEXT)",
    "UPDATE unit SET system = 'other' WHERE kind = 'train'",
    "UPDATE test_read SET command = x'00ff'",
    "UPDATE file SET size = 'large', text = 3",
    "PRAGMA user_version = 9",
    "PRAGMA journal_mode = WAL",
]
DAMAGES = [
    *(lambda path, rng, s=s: sql(path, s) for s in STATEMENTS),
    lambda path, rng: path.unlink(),
    lambda path, rng: path.write_bytes(b""),
    lambda path, rng: path.write_bytes(rng.randbytes(5000)),
    *[flipped] * 24,
    *[cut_anywhere] * 12,
    *[page_of_zeros] * 6,
]


def test_however_the_states_are_damaged_they_are_rebuilt(place, mixtune):
    store = Store(place / "runs/weather")
    store.count_test_read("results")
    path, plan = store.folder / "state.sqlite", store.plan()
    body, units, looks, before = path.read_bytes(), store.units(), store.looks(), results(mixtune)
    rng = random.Random(7)
    for number, damage in enumerate(DAMAGES):
        for other in store.folder.glob("state.sqlite*"):
            other.unlink()
        path.write_bytes(body)
        damage(path, rng)
        try:
            for unit in store.units().values():
                assert unit.files and store.damage(unit) is not None
            store.plan(), store.recover()
        except StoreError as error:
            text = str(error)
            assert "doctor STUDY.yaml --repair" in text or "plan.parquet" in text, (number, text)
        findings = repair(store, write=True)
        assert {finding.level for finding in findings} <= {"ok"}, (number, findings)
        assert {unit.files == units[name].files for name, unit in store.units().items()} == {True}
        assert set(states(store.folder).values()) == {"done"}, number
        assert [command for _, command in store.looks()] == [command for _, command in looks]
        assert store.plan() == plan
        assert store.known_files().keys() >= {"study.yaml", "data.json", "plan.parquet"}
    assert results(mixtune) == before
    assert "rebuilt from results" in mixtune("status", "study.yaml")[1]


def test_the_verb_rebuilds_and_the_run_has_nothing_to_do(place, finished, mixtune):
    before, weights = results(mixtune), digest(only(ADAPTER))
    only("state.sqlite").write_bytes(b"no database")
    code, _, err = mixtune("run", "study.yaml")
    assert (code, "mixtune doctor STUDY.yaml --repair" in err) == (2, True)
    for arguments in ([], ["--repair", "--dry-run"]):
        code, out, _ = mixtune("doctor", "study.yaml", *arguments, "--json")
        assert code == 3
        assert json.loads(out)[0]["level"] == "problem"
        assert only("state.sqlite").read_bytes() == b"no database"
    code, out, _ = mixtune(*REPAIR)
    assert (code, "13 of 13 units are finished" in " ".join(out.split())) == (0, True), out
    assert only("state.sqlite.before-repair").read_bytes() == b"no database"
    code, _, err = mixtune("run", "study.yaml")
    assert code == 0, err
    assert "0 to do" in err
    assert outcome(place / "runs/weather") == outcome(finished / "runs/weather")
    assert results(mixtune) == before
    assert digest(only(ADAPTER)) == weights
    assert mixtune("doctor", "study.yaml")[0] == 0


def test_without_the_journal_results_are_read_whole_and_looks_are_lost(place, finished, mixtune):
    before = results(mixtune)
    assert mixtune("results", "study.yaml", "--split", "test")[0] == 0
    only("state.sqlite").unlink()
    only("journal.jsonl").unlink()
    cut = only("cells/*-s1/answers/*/predictions.parquet")
    body = cut.read_bytes()
    cut.write_bytes(body[:-7])
    code, out, _ = mixtune(*REPAIR, "--json")
    assert code == 0
    text = json.dumps(json.loads(out))
    assert "12 of 13 units are finished" in text
    assert "12 units have no recorded checksum" in text
    assert "stays exploratory" in text
    state = json.loads(mixtune("status", "study.yaml", "--json")[1])
    assert (state["looks_lost"], state["test_reads"]) == (True, 0)
    cut.write_bytes(body)
    only("state.sqlite").unlink()
    only("journal.jsonl").unlink()
    assert mixtune(*REPAIR)[0] == 0
    assert "since its states were rebuilt" in mixtune("results", "study.yaml", "--split", "test")[2]
    code, _, err = mixtune("run", "study.yaml")
    assert (code, "0 to do" in err) == (0, True), err
    assert results(mixtune) == before
    assert outcome(place / "runs/weather") == outcome(finished / "runs/weather")
    page = only("report/index.html").read_text("utf-8")
    assert "<dt>Test reads</dt><dd>at least 1</dd>" in page


def test_answers_of_an_adapter_that_is_gone_do_not_count(mixtune):
    only("state.sqlite").unlink()
    only(ADAPTER).write_bytes(b"other weights")
    code, out, _ = mixtune(*REPAIR)
    assert (code, "8 of 13 units are finished" in " ".join(out.split())) == (0, True), out
    only("plan.parquet").write_bytes(b"no plan")
    only("state.sqlite").unlink()
    code, out, _ = mixtune(*REPAIR)
    assert (code, "not the plan that the journal has" in " ".join(out.split())) == (3, True)


EDITS = [
    ("study.yaml", "margin: 0.01", "margin: 0.2", ["study.yaml", "-  margin: 0.01"]),
    ("data.json", '"dropped": 0', '"dropped": 5', ["data.json", '+  "dropped": 5']),
    ("flagged.json", "{", "{ ", ["flagged.json"]),
]


@pytest.mark.parametrize(("name", "old", "new", "shown"), EDITS)
def test_an_edited_file_of_the_plan_is_refused_and_written_back(mixtune, name, old, new, shown):
    path = only(name)
    planned = path.read_text("utf-8")
    edit(path, old, new)
    edited = path.read_text("utf-8")
    code, _, err = mixtune("report", "study.yaml")
    assert code == 2
    assert all(text in err for text in [*shown, "changed since the study was planned"]), err
    assert mixtune("doctor", "study.yaml")[0] == 3
    assert mixtune(*REPAIR)[0] == 0
    assert path.read_text("utf-8") == planned
    assert only(f"{name}.before-repair").read_text("utf-8") == edited
    assert mixtune("report", "study.yaml")[0] == 0
    path.write_text(edited, "utf-8")
    code, _, err = mixtune("run", "study.yaml")
    assert (code, f"{name} was written again" in err) == (0, True), err
    assert path.read_text("utf-8") == planned


def test_a_folder_without_checksums_is_read_and_gets_them_at_the_next_run(mixtune):
    before = results(mixtune)
    sql(only("state.sqlite"), "DROP TABLE file")
    only("journal.jsonl").unlink()
    code, out, err = mixtune("results", "study.yaml", "--json")
    assert (code, out) == (0, before)
    assert mixtune("doctor", "study.yaml")[0] == 0
    code, _, err = mixtune("run", "study.yaml")
    assert (code, "0 to do" in err) == (0, True)
    edit(only("data.json"), '"dropped": 0', '"dropped": 5')
    assert mixtune("report", "study.yaml")[0] == 2
    only("state.sqlite").unlink()
    assert mixtune(*REPAIR)[0] == 0
    assert results(mixtune) == before


def test_repair_is_for_a_study(mixtune):
    code, _, err = mixtune("doctor", "--repair")
    assert (code, "mixtune doctor STUDY.yaml" in err) == (2, True)
    code, _, err = mixtune("doctor", "study.yaml", "--repair", "--runs-dir", "nowhere")
    assert (code, "no study here yet" in err) == (2, True)
