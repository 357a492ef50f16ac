"""Hostile names, narrow terminals, pipes and encodings."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from finished_kit import HOSTILE, MORE, RUN, environment
from study_kit import record, write_rows


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
