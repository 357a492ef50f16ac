"""The embedded suite's relations, of a study whose learner is scripted: found as built in."""

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pack_kit import answers, train

from bench import relations
from mixtune.analysis.panel import panel_of
from mixtune.analysis.results import SystemInfo, measure_panels
from mixtune.derive import Derived
from mixtune.planning.facts import facts_of
from mixtune.planning.plan import Planner
from mixtune.store import Store
from mixtune.study_file import dump_study, load_study, parse_study
from mixtune.tasks.registry import Registry
from mixtune.tasks.toy import RELATIONS

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
    study = parse_study(raw)
    registry = Registry.of(study, None)
    planner = Planner(study, registry, files)
    store, plan = Store(folder / "runs" / study.name), planner.plan()
    store.save_plan(plan.rows(), dump_study(planner.study), facts_of(planner))
    say = learner(believed)
    for run in plan.runs:
        if run.kind == "trained":
            train(store, run)
            for answer in run.answers:
                answers(store, planner, run, answer, say)
    derived = Derived(store, registry)
    derived.score()
    return derived


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
    rows = json.loads(capsys.readouterr().out)["rows"]
    signed = [row for row in rows if row["expected"] != "0"]
    assert [row["target"] for row in signed] == [one.target for one in SIGNED]
    assert {row["verdict"] for row in signed} == {relations.FOUND}
    assert all((row["value"] > 0) == (row["expected"] == "+") for row in signed)
    controls = [row for row in rows if row["expected"] == "0"]
    assert {row["target"] for row in controls} == {"toy-topic", "toy-entity"}
    assert {row["verdict"] for row in controls} == {relations.CLEAN}
    assert all(row["seeds"] == 5 and row["n"] >= 120 for row in rows)


@dataclass(frozen=True)
class Open:
    """A task that is answered right or wrong."""

    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)


def measured(believed, n=300):
    """What is measured of such a learner on every target, without a store."""
    cells = [tuple(sorted(cell)) for cell in load_study(SUITE).design.explicit]
    found = []
    for target in dict.fromkeys(one.target for one in RELATIONS):
        shared, codes, infos = np.random.default_rng(1).random(n), {}, []
        for cell in cells:
            for seed in range(1, 6):
                rng = np.random.default_rng([cells.index(cell), seed, len(found)])
                easy = 0.85 * shared + 0.15 * rng.random(n)
                name = f"{'+'.join(cell)}/{seed}"
                right = easy < skill(cell, target, believed)
                codes[name] = np.zeros(n, dtype=np.int64), (~right).astype(np.int64)
                infos.append(SystemInfo(name, "+".join(cell), seed, cell))
        panel = panel_of((target, "test", "strict"), Open(), np.arange(n), codes)
        found += measure_panels([panel], infos)
    return found


def test_what_is_not_there_is_not_found_and_the_opposite_is_said():
    other = dict.fromkeys(AS_BUILT, "0") | {("toy-maths", "toy-table"): "-"}
    rows = relations.relations(measured(other))
    said = {row.target: row.verdict for row in rows if row.expected != "0"}
    assert said.pop("toy-table") == relations.OPPOSITE
    assert set(said.values()) == {relations.UNSEEN}


def test_a_study_without_the_pairs_says_nothing():
    assert relations.relations([]) == []


@pytest.mark.parametrize("one", SIGNED, ids=lambda one: f"{one.ingredient} to {one.target}")
def test_the_suites_cells_hold_every_relation(one):
    cells = {frozenset(cell) for cell in load_study(SUITE).design.explicit}
    zeros = [o.ingredient for o in RELATIONS if o.target == one.target and o.sign == "0"]
    assert {one.ingredient, one.target} in cells
    assert all(frozenset({zero, one.target}) in cells for zero in zeros)
