"""The embedded suite's relations, of a study whose learner is scripted: found as built in."""

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pack_kit import fill

from bench import relations
from bench.statistics import measured_of
from mixtune.datasets.toy import RELATIONS
from mixtune.study.reading import load_study, parse_study

SUITE = Path(__file__).parent.parent / "studies" / "suite.yaml"
GAIN = {"+": 0.15, "-": -0.2, "0": 0.0}


def skill(cocktail, task, believed):
    """How often a cocktail is right: what it trained on, and what the relations do to that."""
    if task not in cocktail:
        return 0.4
    return 0.65 + sum(
        GAIN[believed[one.ingredient, one.target]]
        for one in RELATIONS
        if one.target == task and one.ingredient in cocktail
    )


def learner(believed):
    """Right where an item is easy for this skill; most of what makes it easy all runs share."""

    def say(run, item):
        own = random.Random(f"{run.name}/{run.seed}/{item.id}")
        easy = 0.85 * random.Random(item.id).random() + 0.15 * own.random()
        luck = 0.01 * random.Random(f"{run.name}/{run.seed}/{item.task}").gauss(0, 1)
        if easy < skill(run.cocktail, item.task, believed) + luck:
            return item.target
        wrong = [choice for choice in item.choices if choice != item.target]
        return own.choice(wrong) if wrong else f"{item.target}1"

    return say


def studied(folder, files, believed):
    """The committed suite on fewer items, its answers those of a scripted learner."""
    raw = json.loads(load_study(SUITE).model_dump_json(exclude_unset=True))
    raw["evaluate"] = {"validation_items": 4, "test_items": 120}
    return fill(folder, parse_study(raw), files, said=learner(believed))


AS_BUILT = {(one.ingredient, one.target): one.sign for one in RELATIONS}
SIGNED = [one for one in RELATIONS if one.sign != "0"]


@pytest.fixture(scope="module")
def built(tmp_path_factory, files):
    """The folder of the study of a learner to whom the relations are as built in."""
    folder = tmp_path_factory.mktemp("suite")
    studied(folder, files, AS_BUILT)
    return folder


def test_every_relation_is_found_and_the_unrelated_pair_is_the_control(built, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["relations", str(SUITE), "--runs-dir", str(built / "runs")])
    relations.main()
    printed = capsys.readouterr()
    assert "looked at 1 times" in printed.err
    assert json.loads(printed.out)["missing"] == []
    rows = json.loads(printed.out)["rows"]
    signed = [row for row in rows if row["expected"] != "0"]
    assert [row["target"] for row in signed] == [one.target for one in SIGNED]
    assert {row["verdict"] for row in signed} == {relations.FOUND}
    assert all((row["value"] > 0) == (row["expected"] == "+") for row in signed)
    controls = [row for row in rows if row["expected"] == "0"]
    assert {row["target"] for row in controls} == {"toy-topic", "toy-entity"}
    assert {row["verdict"] for row in controls} == {relations.CLEAN}
    assert all(row["seeds"] == 5 and row["n"] >= 120 for row in rows)


def measured(believed, n=300):
    """What is measured of such a learner on every target, without a store."""
    cells = ["+".join(sorted(cell)) for cell in load_study(SUITE).design.explicit]
    named = [(cell, seed) for cell in cells for seed in range(1, 6)]
    rng = np.random.default_rng(1)
    found = []
    for target in dict.fromkeys(one.target for one in RELATIONS):
        easy = 0.85 * rng.random(n) + 0.15 * rng.random((len(named), n))
        level = np.array([skill(cell.split("+"), target, believed) for cell, _ in named])
        right = (easy < level[:, None]).astype(float)
        found.append(measured_of(named, right, np.arange(n), (target, "test")))
    return found


def test_what_is_not_there_is_not_found_and_the_opposite_is_said():
    other = dict.fromkeys(AS_BUILT, "0") | {("toy-maths", "toy-table"): "-"}
    rows = relations.relations(measured(other))
    said = {row.target: row.verdict for row in rows if row.expected != "0"}
    assert said.pop("toy-table") == relations.OPPOSITE
    assert set(said.values()) == {relations.UNSEEN}


def test_a_study_without_the_pairs_says_nothing():
    assert relations.relations([]) == []
    assert len(relations.missing([])) == len(SIGNED)


def test_one_seed_says_nothing():
    one = [
        replace(m, values={s: v for s, v in m.values.items() if s.endswith("/1")})
        for m in measured(AS_BUILT)
    ]
    rows = relations.relations(one)
    assert rows and {row.verdict for row in rows} == {"cannot be said: one seed"}


@pytest.mark.parametrize("one", SIGNED, ids=lambda one: f"{one.ingredient} to {one.target}")
def test_the_suites_cells_hold_every_relation(one):
    cells = {frozenset(cell) for cell in load_study(SUITE).design.explicit}
    zeros = [o.ingredient for o in RELATIONS if o.target == one.target and o.sign == "0"]
    assert {one.ingredient, one.target} in cells
    assert all(frozenset({zero, one.target}) in cells for zero in zeros)


def test_the_page_says_what_the_committed_study_found():
    """docs/embedded-suite.md against bench/results/relations.json: each row, and none left out."""
    root = Path(__file__).parent.parent
    kept = json.loads((root / "bench/results/relations.json").read_text(encoding="utf-8"))
    page = (root / "docs/embedded-suite.md").read_text(encoding="utf-8")
    assert kept["missing"] == []
    for row in kept["rows"]:
        points = [f"{100 * row[end]:+.1f}".replace("-", "−") for end in ("value", "low", "high")]
        names = "` | `".join(row[name] for name in ("target", "subject", "reference"))
        line = next(line for line in page.splitlines() if line.startswith(f"| `{names}` |"))
        assert "{} ({} to {})".format(*points) in line
        assert line.endswith(f"{row['verdict']} |")
        assert row["seeds"] == 5
    assert len(kept["rows"]) == len(SIGNED) + 5
