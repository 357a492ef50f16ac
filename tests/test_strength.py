"""The verb that chooses adapter strengths, on a small finished study."""

import json

import pytest
from run_kit import finished_study

from mixtune.store.folder import Store

STUDY = {
    "name": "small",
    "tasks": ["toy-sentiment", "toy-mood"],
    "ingredients": {"toy-sentiment": {"rows": 40}, "toy-mood": {"rows": 40}},
    "design": ["singles", "all"],
    "budget": {"steps": 3, "examples_per_step": 8},
    "seeds": [1, 2],
    "train": {"rank": 2, "alpha": 4, "lr": 0.1},
    "evaluate": {"validation_items": 24, "test_items": 20, "forms": ["constrained"]},
}
BOTH = "toy-mood+toy-sentiment"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A finished study."""
    return finished_study(tmp_path_factory.mktemp("strength"), STUDY)


@pytest.fixture
def mixtune(place, monkeypatch, mixtune):
    """Run a verb in this process: exit code, standard output, standard error."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("MIXTUNE_CACHE", str(place / "cache"))
    return mixtune


def results(mixtune, split="validation"):
    """Cocktail → mean accuracy over tasks and seeds."""
    rows = json.loads(mixtune("results", "study.yaml", "--split", split, "--json")[1])
    found = {}
    for row in rows:
        if row["metric"] == "accuracy":
            found.setdefault(row["cocktail"], []).append(row["value"])
    return {name: sum(values) / len(values) for name, values in found.items()}


TRY = ("--strengths", "0,0.5,1.25")


def test_a_strength_is_chosen_on_validation_by_one_rule_for_every_cocktail(mixtune, place):
    systems = ("--system", "toy-sentiment+toy-mood", "--system", "toy-mood")
    code, out, err = mixtune("strength", "study.yaml", *systems, *TRY, "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert [row["strength"] for row in rows] == [0.0, 0.5, 1.0, 1.25] * 2
    assert {row["seeds"] for row in rows} == {2}
    plain = results(mixtune)
    for name in (BOTH, "toy-mood"):
        mine = {row["strength"]: row for row in rows if row["cocktail"] == name}
        assert mine[1.0]["value"] == pytest.approx(plain[name])
        assert mine[0.0]["value"] == pytest.approx(plain["base"])
        (best,) = [row for row in mine.values() if row["chosen"]]
        assert best["value"] == max(row["value"] for row in mine.values())
    kept = json.loads((place / "runs/small/strength.json").read_text())
    assert kept.keys() == {BOTH, "toy-mood"}
    assert kept[BOTH]["seeds"] == [1, 2]
    assert kept[BOTH]["split"] == "validation"
    answered = [row for row in Store(place / "runs/small").plan() if row.kind == "strength"]
    assert {row.split for row in answered} == {"validation"}
    assert len(answered) == 2 * 3 * 2 * 2


def test_strengths_are_in_no_table_and_are_not_answered_twice(mixtune, place):
    files = list((place / "runs/small").rglob("predictions.parquet"))
    before = {path: path.stat().st_mtime_ns for path in files}
    code, out, err = mixtune("strength", "study.yaml", "--system", "toy-mood", *TRY)
    assert code == 0, err
    assert "←" in out
    files = list((place / "runs/small").rglob("predictions.parquet"))
    assert before == {path: path.stat().st_mtime_ns for path in files}
    assert not any("@" in name for name in results(mixtune))
    code, _, err = mixtune("run", "study.yaml", "--workers", "1")
    assert code == 0
    assert "0 to do" in err


def test_on_test_only_what_was_chosen_is_answered_and_the_look_is_counted(mixtune, place):
    store = Store(place / "runs/small")
    kept = json.loads((store.folder / "strength.json").read_text())
    kept[BOTH]["strength"] = 0.5
    store.write_text("strength.json", json.dumps(kept))
    before = store.test_reads()
    asked = ("strength", "study.yaml", "--system", BOTH, "--split", "test", "--json")
    code, out, err = mixtune(*asked)
    assert code == 0, err
    assert store.test_reads() == before + 1
    found = json.loads(out)
    assert found["chosen"] == {BOTH: 0.5}
    assert {(row["subject"], row["reference"], row["target"]) for row in found["gained"]} == {
        (f"{BOTH}@0.5", BOTH, task) for task in STUDY["tasks"]
    }
    tested = [r for r in store.plan() if r.kind == "strength" and r.split == "test"]
    assert {row.cocktail for row in tested} == {f"{BOTH}@0.5"}
    code, _, err = mixtune("strength", "study.yaml", "--system", "toy-sentiment", "--split", "test")
    assert code == 2
    assert "no strength was chosen yet" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--system", "toy-moon"), "no trained cocktail"),
        (("--system", "base"), "no trained cocktail"),
        (("--system", "toy-mood", "--strengths", "1,x"), "no list of strengths"),
        (("--system", "toy-mood", "--strengths", "-1"), "no list of strengths"),
        (("--system", "toy-mood", "--strengths", "nan"), "no list of strengths"),
        ((), "system"),
    ],
)
def test_mistakes(mixtune, arguments, message):
    code, _, err = mixtune("strength", "study.yaml", *arguments)
    assert code == 2
    assert message in err


@pytest.mark.usefixtures("stopped_at_a_claim")
def test_stopped_it_leaves_nothing_running(mixtune, place):
    code, _, err = mixtune("strength", "study.yaml", "--system", BOTH, "--strengths", "0.75")
    assert code == 143
    assert "Go on with: " in err
    units = Store(place / "runs/small").units().values()
    assert {unit.state for unit in units if unit.attempts} == {"done", "planned"}
