"""Judged datasets in a study: free answers on test, in no table of scores, read by a judge."""

import json
import zipfile

import pytest
import yaml
from engine_oracle import write_base
from run_kit import call
from scripted import ScriptedModel

from mixtune.datasets.registry import Registry
from mixtune.errors import SpecError
from mixtune.planning.plan import Planner
from mixtune.records import Prediction
from mixtune.store.folder import Store
from mixtune.study.reading import parse_study

TASK = {
    "name": "filings",
    "kind": "open",
    "role": "judged",
    "trainable": False,
    "aliases": ["notes"],
    "prompt": "{{ page }}\n\nQuestion: {{ question }}",
    "target": "{{ answer }}",
    "group_by": "{{ page }}",
    "source": {"local": {"folder": "filings", "files": {"test": "rows.jsonl"}}},
}
ROWS = [
    {
        "id": f"f{n}",
        "page": f"Firm {n} earned {n} million in 2021.",
        "question": f"What did firm {n} earn?",
        "answer": f"It earned {n} million.",
    }
    for n in range(20)
]
STUDY = {
    "name": "small",
    "model": "smollm2-135m",
    "tasks": ["toy-sentiment"],
    "judged": ["notes"],
    "task_files": ["filings.yaml"],
    "ingredients": {"toy-sentiment": {"rows": 40}},
    "design": ["singles"],
    "budget": {"steps": 1, "examples_per_step": 4},
    "train": {"rank": 2, "alpha": 4},
    "evaluate": {"validation_items": 20, "test_items": 16, "max_new_tokens": 6},
}
DATA = ("--data-dir", "data")
ENDPOINT = {"base_url": "http://127.0.0.1:1", "price_in": 0, "price_out": 0}


def write(folder, **changes):
    """The data, the task's file and the study's."""
    data = folder / "data/filings"
    data.mkdir(parents=True)
    text = "".join(f"{json.dumps(row)}\n" for row in ROWS)
    (data / "rows.jsonl").write_text(text, encoding="utf-8")
    (folder / "filings.yaml").write_text(yaml.safe_dump(TASK), encoding="utf-8")
    raw = {**STUDY, **changes}
    (folder / "study.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return raw


def planned(folder, **changes):
    study = parse_study(write(folder, **changes))
    study = study.model_copy(update={"task_files": (str(folder / "filings.yaml"),)})
    return Planner(study, Registry.of(study, folder / "data"), None)


# ---- plans ---------------------------------------------------------------


def test_every_system_but_the_floor_answers_on_test_in_text(tmp_path):
    planner = planned(tmp_path, evaluate={"test_items": 16, "forms": ["constrained"]})
    assert planner.study.judged == ("filings",)
    asked = {
        run.name: [(a.split, a.form, a.items) for a in run.answers if a.task == "filings"]
        for run in planner.plan().runs
    }
    text = [("test", "strict", 16)]
    assert asked == {"majority": [], "base": text, "toy-sentiment": text}


def test_they_change_no_other_id(tmp_path):
    def ids(folder, **changes):
        folder.mkdir()
        runs = planned(folder, **changes).plan().runs
        return [(r.system, a.id) for r in runs for a in r.answers if a.task != "filings"]

    assert ids(tmp_path / "with") == ids(tmp_path / "without", judged=[])


def test_their_rows_are_kept_out_of_training(tmp_path):
    planner = planned(tmp_path)
    assert {row.id for row in planner.corpus.held_out if row.task == "filings"} == {
        row["id"] for row in ROWS
    }
    data = [row for row in planner.leaks.data_rows() if row["dataset"] == "filings"]
    assert [(row["split"], row["examples"]) for row in data] == [("test", 20)]


def test_a_model_behind_an_api_is_asked_without_shots(tmp_path):
    entry = {"name": "mine", "model": "m", "shots": 3, **ENDPOINT}
    changes = {"evaluate": {"test_items": 16}}
    models = [{**entry, "variants": ["", "Be brief."]}]
    planner = planned(tmp_path, api_models=models, **changes)
    run = next(run for run in planner.plan().runs if run.kind == "api")
    found = [a for a in run.answers if a.task == "filings"]
    assert [(a.split, a.form) for a in found] == [("test", "strict")]
    assert found[0].max_new_tokens >= len("It earned 19 million.")
    system = planner.remote[run.system]
    assert planner.remote.shots(system, "filings") == ()
    assert len(planner.remote.shots(system, "toy-sentiment")) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judged": ["toy-sentiment"]}, "judged: 'toy-sentiment' is not judged"),
        ({"judged": ["filings", "notes"]}, "two names mean the same"),
        ({"judged": ["filing"]}, "filings"),
        ({"tasks": ["filings"]}, "tasks: 'filings' is not scored"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, changes, message):
    with pytest.raises(SpecError, match=message):
        planned(tmp_path, **changes)


# ---- from the run to the page --------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A finished study."""
    folder = tmp_path_factory.mktemp("judged")
    write(folder, model=str(write_base(folder / "base", "llama")))
    call(folder, "run", "study.yaml", "--data-dir", "data")
    store = Store(folder / "runs/small")
    for row in store.plan():
        if row.task == "filings":  # a random model never ends its turn: answers put in its mouth
            name = f"{row.folder}/answers/{row.id}/predictions.parquet"
            said = [
                Prediction(**raw | {"output": "It did.", "finish": "stop"})
                for raw in store.read_rows(name)
            ]
            store.write_rows(name, Prediction, said)
    return folder


@pytest.fixture
def mixtune(place, monkeypatch, mixtune):
    monkeypatch.chdir(place)
    monkeypatch.setenv("MIXTUNE_CACHE", str(place / "cache"))
    model = ScriptedModel(lambda query: "Verdict: 2", system="scripted-judge")
    monkeypatch.setattr("mixtune.execution.extra_systems.local_judge", lambda name: model)
    return lambda verb, *rest: mixtune(verb, "study.yaml", *rest)


def test_they_are_in_no_table_of_scores(mixtune):
    for split in ("validation", "test"):
        code, out, err = mixtune("results", "--split", split, "--json")
        assert code == 0, err
        assert {row["task"] for row in json.loads(out)} == {"toy-sentiment"}
        code, _, err = mixtune("analyze", "--split", split)
        assert code == 0, err


def test_they_are_answered_on_test_only(mixtune):
    code, _, err = mixtune("judge", *DATA, "--by", "anyone")
    assert code == 2
    assert "filings is answered on test only" in err
    assert "--split test" in err


def test_what_a_judge_says_of_them_is_on_the_page_of_test(mixtune, place):
    code, out, err = mixtune(
        "judge", *DATA, "--by", "anyone", "--split", "test", "--again", "0", "--json"
    )
    assert code == 0, err
    found = {row["cocktail"]: row for row in json.loads(out)["rows"]}
    assert set(found) == {"base", "toy-sentiment"}
    assert {(row["answers"], row["right"], row["value"]) for row in found.values()} == {
        (16, 16, 1.0)
    }
    code, out, err = mixtune("report", "--split", "test", "--format", "md")
    assert code == 0, err
    assert "## Judged by a model" in out and "0 / 0 / 16" in out
    code, out, err = mixtune("report", "--split", "test")
    assert code == 0, err


def test_a_pack_has_what_was_said_of_them_without_their_texts(mixtune, place):
    assert mixtune("judge", *DATA, "--by", "anyone", "--split", "test", "--again", "0")[0] == 0
    code, _, err = mixtune("pack", "--out", "small.zip")
    assert code == 0, err
    with zipfile.ZipFile(place / "small.zip") as pack:
        held = {name: pack.read(name) for name in pack.namelist()}
    assert any(name.endswith("judged.parquet") for name in held)
    assert any(name.endswith("prompts/filings.yaml") for name in held)
    for text in (b"earned 3 million", b"What did firm 3 earn", b"It did."):
        assert not [name for name, data in held.items() if text in data]


def test_questions_and_status_take_no_notice_of_them(mixtune):
    for verb in ("questions", "status"):
        code, out, err = mixtune(verb)
        assert code == 0, err
    code, out, err = mixtune("plan", *DATA)
    assert code == 0, err
    assert "filings" in out
