"""API models in a study: planned, asked, scored, shown; stopped by a ceiling or a kill, gone on."""

import json
import os
import re
import signal
import time

import pytest
import yaml
from api_server import fault, say, serving
from engine_oracle import write_base
from process_kit import Command
from report_kit import page_of
from study_kit import TASK, base_files, registry, study, write_data

from mixtune.analysis.readings import published
from mixtune.api.client import Patience
from mixtune.api.ledger import Ledger
from mixtune.errors import SpecError
from mixtune.execution.api import answer_remote
from mixtune.execution.assign import started
from mixtune.planning.plan import Planner
from mixtune.planning.runs import Events
from mixtune.planning.summary import facts_of
from mixtune.report.page import render
from mixtune.results.study_results import best_cocktails, measure_split, read_facts, score_study
from mixtune.store.folder import PlanRow, Store
from mixtune.study.reading import dump_study, load_study, parse_study

KEY = "sk-study-9876543210-not-a-real-key"
ITEMS = 6 + 8
STUDY = {
    "name": "weather",
    "model": "base",
    "tasks": ["north"],
    "ingredients": {"north": {"rows": 20}},
    "task_files": ["north.yaml"],
    "design": ["singles"],
    "budget": {"steps": 1, "examples_per_step": 4},
    "train": {"rank": 2, "alpha": 4},
    "evaluate": {"validation_items": 6, "test_items": 8, "carve": 0.3, "max_new_tokens": 4},
}


def started_run(place):
    """`mixtune run` in a process of its own."""
    return Command(place, "run", "study.yaml", "--workers", "1", environment=os.environ)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with data, a task and a tiny base model; and no proxy in the way."""
    pytest.importorskip("openai")
    write_data(tmp_path / "data")
    (tmp_path / "north.yaml").write_text(TASK.format(name="north"), encoding="utf-8")
    write_base(tmp_path / "base", "llama")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIXTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MIXTUNE_DATA_DIR", "data")
    monkeypatch.setenv("WEATHER_KEY", KEY)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return tmp_path


def write(place, server, entries=({},), **changes):
    given = {
        "name": "mine",
        "model": "m",
        "base_url": server.url,
        "key_env": "WEATHER_KEY",
        "price_in": 1.0,
        "price_out": 2.0,
    }
    raw = STUDY | {"api_models": [given | entry for entry in entries]} | changes
    (place / "study.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")


def sky(body):
    """What a good reader says to a report of the weather."""
    return "wet" if "rain and clouds" in body["messages"][-1]["content"] else "dry"


def reader(body, _):
    """Right in both forms."""
    right = sky(body)
    return say(json.dumps({"answer": right}) if "response_format" in body else right)


def ask(place, runs="runs", **changes):
    """Plan the study and have its API models answer, and nothing else: left, results, notes."""
    asked = load_study(place / "study.yaml").model_copy(update=changes)
    known = registry(place / "data")
    planner = Planner(asked, known, base_files(place / "base"))
    plan, store, events = planner.plan(), Store(place / runs / "weather"), Said()
    with store.lock():
        store.save_plan(plan.rows(), dump_study(planner.study), facts_of(planner))
        with started(plan, store, events):
            left = answer_remote(plan, planner, store, events, Patience(5, 1, 0.001))
        facts = read_facts(store, known)
        score_study(facts)
    return left, facts, "\n".join(events.lines)


class Said(Events):
    """Keeps what a person would read."""

    def __init__(self):
        self.lines = []

    def note(self, text):
        self.lines.append(text)

    def run_failed(self, run, error):
        self.lines.append(error)


def states(place, name="mine"):
    store = Store(place / "runs" / "weather")
    units = store.units()
    return {units[row.id].state for row in store.plan() if row.cocktail == name}


def test_an_api_model_is_a_system_like_the_others_and_its_key_is_nowhere(place, mixtune):
    with serving(reader) as server:
        write(place, server)
        code, planned, err = mixtune("run", "study.yaml", "--dry-run", "--json")
        assert code == 0, err
        (row,) = json.loads(planned)["api"]
        assert (row["requests"], row["kept"]) == (2 * ITEMS, 0)
        assert row["cost_about"] < row["cost_most"]
        assert server.asked == [], "a plan asked something"
        code, out, err = mixtune("run", "study.yaml", "--workers", "1")
        assert code == 0, err
        assert len(server.asked) == 2 * ITEMS
        said = planned + out + err
        code, again, err = mixtune("run", "study.yaml", "--workers", "1")
        assert code == 0, err
        assert len(server.asked) == 2 * ITEMS
        said += again + err
    assert "Models behind APIs" in out
    assert "label by JSON schema" in out
    cost = re.search(r"have cost \$([0-9.]+)", out)
    assert float(cost[1]) == pytest.approx(2 * ITEMS * (20 + 3 * 2) / 1e6, abs=1e-4)
    for verb in ("results", "status", "report", "analyze"):
        code, out, err = mixtune(verb, "study.yaml")
        assert code == 0, err
        said += out + err
    _, out, _ = mixtune("plan", "study.yaml", "--json")
    assert json.loads(out)["api"][0]["kept"] == 2 * ITEMS
    assert json.loads(out)["todo"] == 0
    files = [path for path in place.rglob("*") if path.is_file()]
    assert any(path.name == "api.sqlite" for path in files)
    assert any(path.name == "env.json" for path in files)
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path
    assert KEY not in said
    labels_by_schema_have_a_floor_and_meet_no_likelihood(place, mixtune)


def labels_by_schema_have_a_floor_and_meet_no_likelihood(place, mixtune):
    """Of the study that the test before has run."""
    _, out, _ = mixtune("results", "study.yaml", "--split", "test", "--json")
    rows = [row for row in json.loads(out) if row["form"] != "lenient"]  # strict, read again
    forms = {(r["cocktail"], r["form"]) for r in rows}
    assert {f for name, f in forms if name == "mine"} == {"strict", "schema"}
    assert {f for name, f in forms if name == "majority"} == {"strict", "constrained", "schema"}
    assert {f for name, f in forms if name in ("north", "base")} == {"strict", "constrained"}
    mine = [r for r in rows if (r["cocktail"], r["metric"]) == ("mine", "accuracy")]
    assert {r["value"] for r in mine} == {1.0}
    assert all(r["floor"] is not None and r["floor"] < 1 for r in mine)
    _, out, _ = mixtune("compare", "study.yaml", "mine", "north", "--json")
    assert {row["form"] for row in json.loads(out)} == {"strict", "lenient"}
    code, _, _ = mixtune("compare", "study.yaml", "mine", "north", "--no-worse-than", "0.5")
    assert code == 3, "text was taken for the main form, which is by likelihood"
    facts = read_facts(Store(place / "runs" / "weather"), registry(place / "data"))
    assert facts.main_metrics["north"].form == "constrained"
    assert best_cocktails(facts, measure_split(facts, "validation")) == {"north": "north"}
    page = (place / "runs/weather/report/index.html").read_text(encoding="utf-8")
    assert "they are not ranked by likelihood" in page
    usage = next((place / "runs").rglob("usage.parquet"))
    rows = Store(usage.parent).read_rows("usage.parquet")
    assert {(r["tokens_in"], r["tokens_out"], r["served"]) for r in rows} == {
        (20, 3, "served-by-this")
    }


def test_a_new_folder_pays_nothing_again(place):
    with serving(reader) as server:
        write(place, server)
        assert ask(place)[0] == []
        write(place, server, seeds=[2], api={"max_cost": 1e-9})
        assert ask(place, "elsewhere")[0] == []
        assert len(server.asked) == 2 * ITEMS
    assert Ledger(place / "elsewhere/weather/api.sqlite", None).spent() == (0, 0)


def test_a_ceiling_stops_before_it_is_passed_and_raised_it_goes_on(place, mixtune):
    with serving(reader) as server:
        write(place, server, api={"max_cost": 0.0008, "concurrency": 3})
        code, _, err = mixtune("run", "study.yaml", "--workers", "1")
        assert code == 1
        assert "raise api.max_cost" in err
        assert "Traceback" not in err
        first = len(server.asked)
        assert 0 < first < 2 * ITEMS
        assert states(place) == {"planned"} or states(place) == {"planned", "done"}
        assert states(place, "north") == {"done"}, "the ceiling stopped the training"
        spent = sum(Ledger(place / "runs/weather/api.sqlite", None).spent())
        assert 0 < spent <= 0.0008 * 1e12
        code, _, err = mixtune("run", "study.yaml", "api.max_cost=1", "--workers", "1")
        assert code == 0, err
        assert len(server.asked) == 2 * ITEMS, "asked again what was answered"
    assert states(place) == {"done"}


def test_a_wrong_key_is_said_at_once_and_one_that_is_not_set_before_anything(
    place, mixtune, monkeypatch
):
    with serving(lambda body, _: fault(401, f"Incorrect key {KEY}")) as server:
        write(place, server)
        left, _, said = ask(place)
        assert [run.name for run in left] == ["mine"]
        assert "check the key" in said
        assert KEY not in said
        assert len(server.asked) <= 8
        assert states(place) == {"failed", "planned"}
        _, out, _ = mixtune("status", "study.yaml", "--json")
        assert "check the key" in out
        assert KEY not in out
    with serving(reader) as server:
        monkeypatch.delenv("WEATHER_KEY")
        write(place, server, name="keyless")
        code, _, err = mixtune("run", "study.yaml", "--workers", "1")
        assert code == 2
        assert "WEATHER_KEY" in err
        assert server.asked == []


def test_killed_in_the_middle_it_goes_on_where_it_was(place):
    """SIGKILL, twice; what the dead had in flight may be asked again, nothing else is."""

    def slow(body, before):
        time.sleep(0.05)
        return reader(body, before)

    with serving(slow) as server:
        write(place, server, api={"concurrency": 2, "max_cost": 1})
        for enough in (8, 18):
            process = started_run(place)
            while sum(server.answered.values()) < enough:
                assert process.poll() is None
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert "done" not in states(place, "north")
        assert started_run(place).wait() == 0
        twice = sum(server.answered.values()) - len(server.answered)
        assert len(server.answered) == 2 * ITEMS
        assert twice <= 2 * 2, "more was paid twice than two kills had in flight"
    assert states(place) == states(place, "north") == {"done"}
    paid, lost = Ledger(place / "runs/weather/api.sqlite", None).spent()
    assert paid > 0
    assert lost >= 0


def test_shots_come_from_train_and_the_instruction_is_chosen_on_validation(place, mixtune):
    def obeys(body, before):
        told = any(t["content"] == "Look at the sky." for t in body["messages"])
        wrong = say('{"answer": "damp"}' if "response_format" in body else "damp")
        return reader(body, before) if told else wrong

    variants = ["", "Look at the sky.", "Guess."]
    with serving(obeys) as server:
        write(place, server, [{"shots": 2, "variants": variants}])
        _, out, _ = mixtune("plan", "study.yaml", "--json")
        (row,) = json.loads(out)["api"]
        assert row["requests"] == 3 * 6 + 6 + 2 * 8
        assert (row["shots"], row["variants"]) == (2, 3)
        left, _, said = ask(place)
        assert left == []
        assert len(server.asked) == row["requests"]
        assert ask(place)[0] == []
        assert len(server.asked) == row["requests"]
    assert "instruction 2 of 3 is used, with 6 of 6 right" in said
    (path,) = (place / "runs").rglob("instruction-north.json")
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert (kept["chosen"], kept["right"], kept["items"]) == (1, [0, 6, 0], 6)
    shown = {t["content"] for body in server.asked for t in body["messages"][:-1]}
    questions = {body["messages"][-1]["content"] for body in server.asked}
    trained = {s for s in shown if "station" in s}
    assert len(trained) == 2
    assert not trained & questions
    assert all("north train station" in text for text in trained)
    _, out, _ = mixtune("results", "study.yaml", "--split", "test", "--json")
    mine = [r for r in json.loads(out) if r["cocktail"] == "mine"]
    assert {r["value"] for r in mine if r["metric"] == "accuracy"} == {1.0}
    assert all("instruction chosen from 3" in r["training"] for r in mine)


# ---- plans --------------------------------------------------------------------------------------


def planned(data, **entry):
    given = {"name": "mine", "model": "m", "base_url": "http://127.0.0.1:9/v1", **entry}
    return Planner(study(api_models=[given]), registry(data), None)


def answer_ids(planner):
    (run,) = [run for run in planner.plan().runs if run.kind == "api"]
    return {(a.task, a.split, a.form): a.id for a in run.answers}


def test_api_models_change_no_other_id(data, files):
    def others(**changes):
        runs = Planner(study(**changes), registry(data), files).plan().runs
        known = {run.system: {a.id for a in run.answers} for run in runs if run.kind != "api"}
        return known

    without, beside = others(), others(api_models=["gpt-4o"], api={"max_cost": 1})
    assert without.keys() == beside.keys()
    more = {system for system in without if without[system] != beside[system]}
    assert len(more) == 1, "only the majority class answers more, as the floor of labels by schema"
    assert all(without[system] <= beside[system] for system in without)


def test_shots_are_drawn_by_names_and_change_the_answers_only_where_they_differ(data):
    plain, shown = planned(data), planned(data, shots=3)
    assert not set(answer_ids(plain).values()) & set(answer_ids(shown).values())
    rows = shown.remote.shots(shown.remote.systems[0], "north")
    assert [r.id for r in rows] == [
        r.id for r in planned(data, shots=4).remote.shots(_first(data, 4), "north")[:3]
    ]
    assert {row.split for row in rows} == {"train"}
    other = planned(data, shots=3, seed=2)
    assert rows != other.remote.shots(other.remote.systems[0], "north")
    alone = Planner(
        study(api_models=[{"name": "mine", "model": "m", "shots": 3}], tasks=["north"]),
        registry(data),
        None,
    )
    assert alone.remote.shots(alone.remote.systems[0], "north") == rows
    with pytest.raises(SpecError, match="fewer train rows than shots"):
        planned(data, shots=60).plan()


def _first(data, shots):
    return planned(data, shots=shots).remote.systems[0]


def test_an_answer_may_be_as_long_as_the_gold_ones_are_in_bytes(data):
    changes = {"evaluate": {"validation_items": 6, "test_items": 8}}
    entry = {"name": "mine", "model": "m", "base_url": "http://127.0.0.1:9/v1"}
    free = Planner(study(api_models=[entry], **changes), registry(data), None)
    task = free.registry.get("north")
    (what,) = free.remote.systems
    assert free.remote.longest(what, task, "strict") == 16
    assert free.remote.longest(what, task, "schema") == 16 + len('{"answer": ""}')
    given = planned(data, max_new_tokens=99)
    assert given.remote.longest(given.remote.systems[0], task, "strict") == 99


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"api": {"max_cost": 1}}, "nobody has said what this model costs"),
        ({"evaluate": {"forms": ["constrained"]}, "structured": False}, "nothing that it could"),
        ({"name": "majority"}, "is the name of another system"),
        ({"name": "north"}, "is the name of another system"),
        ({"model": None}, "needs a model or a preset"),
        ({"price_in": 1}, "belong together"),
        ({"variants": ["a", "a"]}, "same instruction twice"),
        ({"key": "sk-secret"}, "no such key"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is(data, changes, message):
    top = {key: changes[key] for key in ("api", "evaluate") if key in changes}
    entry = {"name": "mine", "model": "m", "base_url": "http://127.0.0.1:9/v1"}
    entry |= {key: value for key, value in changes.items() if key not in top}
    with pytest.raises(SpecError, match=message):
        Planner(study(api_models=[entry], **top), registry(data), None)


# ---- published figures --------------------------------------------------------------------------


def test_published_figures_stand_apart_with_their_source():
    rows = published(["headline", "fpb", "north"])
    assert [row.task for row in rows] == ["headline"] * 3 + ["fpb"] * 7
    gpt = {row.task: row.value for row in rows if row.system == "GPT-4o"}
    assert gpt == {"headline": 0.805, "fpb": 0.811}
    assert {row.note for row in rows} == {"published, not measured here"}
    assert all(row.source and row.split and row.scorer for row in rows)
    assert all(0 < row.value < 1 for row in rows)


def test_the_page_shows_published_figures_in_a_section_of_their_own():
    rows = published(["headline"])
    page = render(page_of(published=rows))
    (section,) = re.findall(r'<section id="published">.*?</section>', page, re.DOTALL)
    assert "Published, not measured here" in section
    assert "GPT-4o" in section
    assert "GPT-4o" not in page.replace(section, "")
    assert 'id="published"' not in render(page_of())


def test_published_figures_are_printed_apart_from_results(mixtune, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fpb = {"name": "a", "model": "m", "tasks": ["fpb"], "ingredients": {"fpb": {"rows": 5}}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(fpb), encoding="utf-8")
    row = PlanRow("answer", "1", "s", "cells/s", "mine", None, "fpb", "test", "strict", 1, 0, "d")
    Store(tmp_path / "runs/a").save_plan([row], dump_study(parse_study(fpb)), {})
    code, out, err = mixtune("results", "study.yaml", "--published", "--json")
    assert code == 0, err
    assert {(r["task"], r["note"]) for r in json.loads(out)} == {
        ("fpb", "published, not measured here")
    }
    code, out, _ = mixtune("results", "study.yaml", "--published")
    assert out.startswith("published, not measured here")
    assert "0.811" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_on_purpose_it_keeps_what_was_under_way_and_says_how_to_go_on(place, number):
    def slow(body, before):
        time.sleep(0.1)
        return reader(body, before)

    with serving(slow) as server:
        write(place, server, api={"concurrency": 2})
        process = started_run(place)
        while sum(server.answered.values()) < 4:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Go on with: " in err
    assert "Traceback" not in err
    assert "running" not in states(place) | states(place, "north")
    kept = len(list((place / "cache" / "api").rglob("*.json")))
    assert kept == sum(server.answered.values()), "an answer that was under way is lost"
