"""Packs that strangers send: sizes, compression and the schema of the states are not believed."""

import sqlite3
import time
import zipfile
from contextlib import closing

import pytest

from mixtune.errors import StoreError
from mixtune.pack import archive
from mixtune.pack.archive import opened, zipped
from mixtune.store.states import States

ENDLESS = (
    "CREATE VIEW test_read AS WITH RECURSIVE n(at) AS (SELECT 1 UNION ALL SELECT at + 1 FROM n) "
    "SELECT at, 'x' AS command FROM n"
)


def pack(tmp_path, *statements, **files):
    states = States(tmp_path / "made")
    states.undone(["a"])
    path = tmp_path / "made" / "state.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        for statement in statements:
            connection.execute(statement)
    target = tmp_path / "a.zip"
    target.write_bytes(zipped("a", {"state.sqlite": path.read_bytes(), **files}, "1"))
    return target


def test_a_pack_with_plain_states_is_opened(tmp_path):
    folder = opened(pack(tmp_path))
    assert States(folder).units() == {}


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (["DROP TABLE test_read", ENDLESS], "view test_read"),
        (["CREATE VIEW more AS SELECT 1"], "view more"),
        (["ALTER TABLE unit ADD COLUMN extra TEXT"], "table unit, columns extra"),
        (["ALTER TABLE unit DROP COLUMN seconds"], "table unit, columns seconds"),
        (["ALTER TABLE unit RENAME COLUMN label TO name"], "table unit"),
        (["ALTER TABLE test_read ADD COLUMN c AS (at || command)"], "table test_read"),
        (["CREATE TABLE more (a)"], "table more"),
        (["CREATE INDEX i ON unit (label)"], "index i"),
        (["CREATE TRIGGER t AFTER INSERT ON unit BEGIN SELECT 1; END"], "trigger t"),
        (["DROP TABLE test_read"], "no table test_read"),
    ],
)
def test_states_with_anything_else_are_refused_by_name(tmp_path, statements, message):
    path, began = pack(tmp_path, *statements), time.monotonic()
    with pytest.raises(StoreError, match=f"(?s)not the file of states.*{message}"):
        opened(path)
    assert time.monotonic() - began < 5
    assert not path.with_suffix("").exists()


def test_a_file_of_states_that_is_none_is_refused(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(zipped("a", {"state.sqlite": b"SQLite format 3\0" + b"x" * 200}, "1"))
    with pytest.raises(StoreError, match="not the file of states"):
        opened(path)


@pytest.mark.parametrize(
    ("bound", "value", "message"),
    [
        ("MAX_FILES", 1, "2 files"),
        ("MAX_FILE", 1000, "a file above"),
        ("MAX_PACK", 1000, "bytes unpacked"),
        ("SMALL", 1, "bytes out of"),
        ("MAX_MANIFEST", 1, "no pack"),
    ],
)
def test_a_pack_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch, bound, value, message):
    monkeypatch.setattr(archive, bound, value)
    path = tmp_path / "a.zip"
    path.write_bytes(zipped("a", {"zeros.csv": bytes(10**6)}, "1"))
    with pytest.raises(StoreError, match=message):
        opened(path)
    assert not path.with_suffix("").exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_an_unknown_compression_is_refused(tmp_path, method):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as packed:
        packed.writestr("a/pack.json", "{}")
    with pytest.raises(StoreError, match="unknown compression"):
        opened(path)


def test_a_size_that_is_not_that_of_the_content_is_an_error(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(zipped("a", {"x.csv": bytes(1000)}, "1"))
    raw = path.read_bytes()
    path.write_bytes(raw.replace((1000).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    with pytest.raises(StoreError, match=r"cannot be read|missing, changed"):
        opened(path)
