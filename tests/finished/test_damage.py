"""A damaged folder: refused with the file and the remedy, or made again."""

import shutil
from pathlib import Path

import pytest
from finished_kit import ADAPTER, digest, only, outcome


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


def rename(name, key):
    path = only(f"cells/*-s1/{name}")
    path.write_text(path.read_text("utf-8").replace(f'"{key}"', f'"{key}_"'), "utf-8")


ANSWERS = "cells/*-s1/answers/*/predictions.parquet"
SCORES = "cells/*/scores/*.parquet"
REFUSED = [
    (lambda: cut("plan.parquet"), "status run results", ["plan.parquet", "remove it and run"]),
    (
        lambda: shutil.copy(only(SCORES), only("plan.parquet")),
        "status run",
        ["plan.parquet: changed since the study was planned", "remove it and run"],
    ),
    (lambda: put("state.sqlite", "no database " * 99), "status run", ["state.sqlite", "--repair"]),
    (
        lambda: put("state.sqlite", ""),
        "status run",
        ["states of the study's units are gone", "--repair"],
    ),
    (lambda: only("state.sqlite").unlink(), "status run results", ["--repair"]),
    (lambda: only("study.yaml").unlink(), "status results", ["study.yaml", "mixtune run"]),
    (lambda: put("study.yaml", "a: [b"), "status report", ["study.yaml", "mixtune run"]),
    (lambda: put("study.yaml", "- a"), "status", ["study.yaml"]),
    (lambda: put("changes.jsonl", "{"), "status", ["changes.jsonl", "remove the line"]),
    (
        lambda: put("changes.jsonl", '{"at": 1e99, "what": "", "units": 1, "added": []}'),
        "status",
        ["changes.jsonl", "remove the line"],
    ),
    (lambda: put("changes.jsonl", '{"when": 3}'), "status", ["changes.jsonl", "remove the line"]),
    (lambda: put("data.json", "[}"), "report", ["data.json", "mixtune run"]),
    (lambda: put("cells/*-s1/run.json", "{"), "report", ["run.json", "mixtune run"]),
    (lambda: rename("run.json", "mix"), "results report", ["run.json, mix", "mixtune run"]),
    (lambda: rename("run.json", "source"), "report", ["run.json, model.source", "mixtune run"]),
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
