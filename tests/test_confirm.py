"""From a choice in writing to a claim, through the command line, on a tiny random model."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from run_kit import call, finished_study

from mixtune.datasets.registry import Registry
from mixtune.report.gather import disagreements, gather
from mixtune.report.page import render
from mixtune.results.study_results import measure_split, read_facts
from mixtune.store.folder import Store
from mixtune.study.reading import load_study

STUDY = {
    "name": "small",
    "tasks": ["toy-sentiment", "toy-rise"],
    "ingredients": {"toy-sentiment": {"rows": 40}, "toy-rise": {"rows": 40}},
    "design": ["singles", "all"],
    "budget": {"steps": 2, "examples_per_step": 4, "merged": True},
    "seeds": [1, 2],
    "train": {"rank": 2, "alpha": 4},
    "evaluate": {"validation_items": 16, "test_items": 16, "max_new_tokens": 4},
    "claims": {"fresh_seeds": 2, "single_runs": 4, "tune_lr": [0.01]},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a study that was run to its end."""
    folder = tmp_path_factory.mktemp("claims")
    return finished_study(folder, STUDY)


def run(folder):
    call(folder, "run", "study.yaml")


@pytest.fixture
def mixtune(place, monkeypatch, mixtune):
    """Run a verb in this process: exit code, standard output, standard error."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("MIXTUNE_CACHE", str(place / "cache"))
    return mixtune


def said(mixtune, *arguments):
    code, out, err = mixtune(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def store(place):
    return Store(place / "runs" / "small")


# The tests of this file tell one story and stand in its order.


def test_single_tasks_are_tuned_at_other_rates(place):
    names = {row.cocktail for row in store(place).plan() if row.kind == "train"}
    assert names >= {"toy-rise (lr 0.01)", "toy-sentiment (lr 0.01)"}
    rates = {
        row.cocktail: store(place).read_rows(f"{row.folder}/train.parquet")[0]["lr"]
        for row in store(place).plan()
        if row.kind == "train" and row.seed == 1
    }
    assert rates["toy-rise (lr 0.01)"] == pytest.approx(10 * rates["toy-rise"])


def test_what_is_not_written_down_is_exploratory(mixtune):
    found = said(mixtune, "claims", "study.yaml")
    assert {claim["target"] for claim in found} == {"toy-sentiment", "toy-rise"}
    for claim in found:
        assert (claim["verdict"], claim["split"]) == ("exploratory", "validation")
        assert "mixtune confirm" in claim["reason"]


def test_a_dry_run_writes_nothing(place, mixtune):
    before = store(place).plan()
    found = said(mixtune, "confirm", "study.yaml", "--dry-run")
    assert len({*found["fresh"]}) == 2 and min(found["fresh"]) >= 10**6
    assert said(mixtune, "confirm", "study.yaml", "--dry-run")["fresh"] == found["fresh"]
    assert store(place).plan() == before
    assert not (store(place).folder / "selection.json").exists()


def test_a_choice_is_written_and_its_runs_are_planned(place, mixtune):
    kept = said(mixtune, "results", "study.yaml")
    found = said(mixtune, "confirm", "study.yaml")
    written = json.loads((store(place).folder / "selection.json").read_text())
    assert {**found, "runs": None} == {**written, "runs": None}
    cells = {run["cell"] for run in found["runs"]}
    for choice in written["choices"]:
        target = choice["target"]
        assert {choice["cocktail"], *written["against"][target]} <= cells
        assert choice["tried_single"] == 4
        assert written["against"][target][:1] == [choice["single"]]
        assert target in written["against"][target]
    rows = [row for row in store(place).plan() if row.seed in written["fresh"]]
    assert {row.cocktail for row in rows} == cells
    assert said(mixtune, "results", "study.yaml") == kept
    code, out, _ = mixtune("confirm", "study.yaml")
    assert code == 0
    assert "it stands there" in out


def test_before_the_fresh_runs_nothing_can_be_said(mixtune):
    code, out, err = mixtune("claims", "study.yaml", "--json")
    assert code == 0
    assert {claim["reason"] for claim in json.loads(out)} == {"runs of the fresh seeds are missing"}
    assert "runs of fresh seeds are not done" in err


def test_the_fresh_runs_are_in_claims_and_in_no_other_table(place, mixtune):
    kept = said(mixtune, "results", "study.yaml")
    estimates = said(mixtune, "analyze", "study.yaml")
    run(place)
    assert said(mixtune, "results", "study.yaml") == kept
    assert said(mixtune, "analyze", "study.yaml") == estimates
    code, out, err = mixtune("claims", "study.yaml", "--json")
    assert code == 0
    assert "looked at" in err and "not done" not in err
    for claim in json.loads(out):
        assert claim["split"] == "test"
        assert claim["seeds"] == 2
        assert claim["verdict"] in ("not confirmed", "tie", "confirmed")
        assert claim["low"] <= claim["value"] <= claim["high"]
        assert "tuned with 4 runs" in claim["sentence"]
    code, _, err = mixtune("claims", "study.yaml", "--fail-unless", "confirmed")
    assert (code == 3) == ("gate not met" in err)


def test_another_choice_is_refused_unless_it_is_made_again(place, mixtune):
    code, _, err = mixtune("confirm", "study.yaml", "claims.margin=0.02")
    assert code == 2
    assert "margin: 0.01 → 0.02" in err and "--again" in err
    found = said(mixtune, "confirm", "study.yaml", "claims.margin=0.02", "--again")
    before = json.loads((store(place).folder / "selection-1.json").read_text())
    assert (found["spent"], found["again"]) == (before["fresh"], 1)
    assert not {*found["fresh"]} & {*found["spent"]}
    assert before["margin"] == 0.01
    seals = [row["added"][-1] for row in store(place).changes() if row["what"] == "chosen"]
    assert len({*seals}) == 2
    (seal,) = {claim["seal"] for claim in said(mixtune, "claims", "study.yaml")}
    assert seals[-1] == f"seal {seal}"
    sentences = [claim["sentence"] for claim in said(mixtune, "claims", "study.yaml")]
    assert all("Chosen again 1 times" in sentence for sentence in sentences)


def test_the_studys_own_seeds_cannot_be_fresh(place, mixtune):
    fresh = store(place).selection().fresh[0]
    code, _, err = mixtune("plan", "study.yaml", f"seeds=[1,2,{fresh}]")
    assert code == 2
    assert "reserved for claims" in err


@pytest.mark.parametrize("margin", [0.09, "wide", None])
def test_a_choice_that_was_changed_by_hand_is_refused(place, mixtune, margin):
    """Edited, spoilt or removed: it is refused, and can be restored as it was."""
    path = store(place).folder / "selection.json"
    kept = path.read_text()
    if margin is None:
        path.unlink()
    else:
        path.write_text(kept.replace('"margin": 0.02', f'"margin": {json.dumps(margin)}'))
    for verb in (["claims", "study.yaml"], ["confirm", "study.yaml"]):
        code, _, err = mixtune(*verb)
        assert code == 2
        assert "changed since" in err and "--repair" in err
        assert margin is None or '-"margin": 0.02' in err.replace(" ", "").replace(":", ": ")
    code, _, _ = mixtune("doctor", "study.yaml", "--repair")
    assert path.read_text() == kept
    assert said(mixtune, "claims", "study.yaml")


def test_unequal_budgets_are_said_when_the_choice_is_made(mixtune):
    found = said(mixtune, "confirm", "study.yaml", "claims.single_runs=9", "--again", "--dry-run")
    assert all("unequal budgets" in reason for reason in found["reasons"].values())
    assert set(found["reasons"]) == {"toy-sentiment", "toy-rise"}


def test_targets_that_are_not_trained_on_are_refused(mixtune):
    code, _, err = mixtune("confirm", "study.yaml", "claims.targets=[toy-mood]")
    assert code == 2
    assert "claims.targets" in err


def test_questions_are_answered_or_it_is_said_why_not(mixtune):
    found = {one["key"]: one for one in said(mixtune, "questions", "study.yaml")}
    assert set(found) == {"mixing", "general", "maths", "knowledge", "api", "models"}
    assert not found["mixing"]["answered"] and "2 targets" in found["mixing"]["answer"]
    for one in found.values():
        assert one["answered"] or one["answer"] == f"Not answered: {one['reason']}."
    code, out, _ = mixtune("questions", "study.yaml")
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("Not answered: ")]
    assert "effect of mixing (no terms over targets" in line and "agreement of base models" in line


def test_text_of_datasets_is_in_a_report_only_where_it_is_asked_for(place, mixtune):
    code, out, _ = mixtune("report", "study.yaml", "--with-text")
    assert code == 0 and Path(out.strip()).is_file()
    study = load_study(place / "study.yaml")
    facts = read_facts(store(place), Registry.of(study, None))
    rows = disagreements(
        facts, measure_split(facts, "validation"), "toy-rise", ("toy-rise", "majority")
    )
    assert 0 < len(rows) <= 20
    assert all(row.gold == row.said_right != row.said_wrong for row in rows)
    assert {frozenset((row.right, row.wrong)) for row in rows} == {
        frozenset(("toy-rise", "majority"))
    }
    page = gather(facts, "validation")
    assert page.disagreements == ()
    assert not any(row.text in render(page) for row in rows)
    shown = render(replace(page, disagreements=rows))
    assert "mind their licences" in shown
    assert all(row.text[:40] in shown for row in rows)


def test_where_looks_are_lost_claims_say_so_and_a_new_choice_stays_exploratory(place, mixtune):
    for name in ("state.sqlite", "journal.jsonl"):
        (store(place).folder / name).unlink()
    assert mixtune("doctor", "study.yaml", "--repair")[0] == 0
    for claim in said(mixtune, "claims", "study.yaml"):
        assert "Looks at test scores are not all known" in claim["sentence"]
    choice = said(mixtune, "confirm", "study.yaml", "--again", "--dry-run")
    assert {"is not known" in reason for reason in choice["reasons"].values()} == {True}
