"""The command line as a user meets it: verbs, JSON, messages, exit codes."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from engine_oracle import write_base

from mixtune.evaluation.answers import VERSIONS
from mixtune.store.folder import Store

STUDY = {
    "name": "small",
    "tasks": ["toy-sentiment", "toy-rise"],
    "ingredients": {"toy-sentiment": {"rows": 40}, "toy-rise": {"rows": 40}},
    "design": ["singles", "all"],
    "budget": {"steps": 2, "examples_per_step": 4},
    "train": {"rank": 2, "alpha": 4},
    "evaluate": {"validation_items": 16, "test_items": 16, "max_new_tokens": 4},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a study that was run to its end, through the real command."""
    folder = tmp_path_factory.mktemp("cli")
    base = write_base(folder / "base", "llama")
    study = yaml.safe_dump({**STUDY, "model": str(base)})
    (folder / "study.yaml").write_text(study, encoding="utf-8")
    code = "from mixtune.cli import main; main()"
    environment = {**os.environ, "MIXTUNE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, "run", "study.yaml", "--workers", "2"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (folder / "out.txt").write_text(done.stdout, encoding="utf-8")
    return folder


@pytest.fixture
def mixtune(place, monkeypatch, mixtune):
    """Run a verb in this process: exit code, standard output, standard error."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("MIXTUNE_CACHE", str(place / "cache"))
    return mixtune


def test_a_run_ends_with_a_table_and_the_reports_path(place):
    out = (place / "out.txt").read_text(encoding="utf-8")
    assert "synthetic data" in out
    assert "toy-rise+toy-sentiment" in out
    path = out.strip().splitlines()[-1].removeprefix("report: ")
    page = (place / path).read_text(encoding="utf-8")
    assert "toy-rise" in page
    assert "synthetic" in page.lower()


def test_results_has_one_row_per_system_task_form_and_metric(mixtune):
    code, out, _ = mixtune("results", "study.yaml", "--json")
    rows = json.loads(out)
    assert code == 0
    keys = {(r["system"], r["task"], r["form"], r["metric"]) for r in rows}
    assert len(keys) == len(rows) == 5 * 2 * 3 * 3
    wanted = "system cocktail seed task split form metric value low high n floor"
    assert set(wanted.split()) <= rows[0].keys()
    assert {row["split"] for row in rows} == {"validation"}
    assert all(0 <= row["value"] <= 1 for row in rows)
    assert {row["n"] for row in rows} == {16}


def test_the_summary_is_one_row_per_system(mixtune):
    code, out, _ = mixtune("results", "study.yaml", "--summary")
    assert code == 0
    rows = [line for line in out.splitlines() if line.startswith("│")]
    names = [row.split("│")[1].strip() for row in rows]
    singles = ["toy-rise", "toy-sentiment"]
    assert names == ["majority", "base", *singles, "toy-rise+toy-sentiment"]


def test_a_look_at_test_is_counted(mixtune, place):
    before = Store(place / "runs" / "small").test_reads()
    code, out, err = mixtune("results", "study.yaml", "--split", "test", "--json")
    assert code == 0
    assert {row["split"] for row in json.loads(out)} == {"test"}
    assert f"looked at {before + 1} times" in err


def test_a_run_can_end_in_json(mixtune, place):
    code, out, err = mixtune("run", "study.yaml", "--json")
    ended = json.loads(out)
    assert code == 0
    assert [run["state"] for run in ended["runs"]] == ["done"] * 5
    assert (place / ended["report"]).is_file()
    assert "5 done, 0 to do" in err
    plan = json.loads(mixtune("run", "study.yaml", "--dry-run", "--json")[1])
    assert len(plan["runs"]) == 5
    assert plan["todo"] == 0


def test_a_dry_run_is_refused_where_the_run_would_be(mixtune):
    code, out, err = mixtune("run", "study.yaml", "train.lr=0.01", "--dry-run")
    assert code == 2
    assert "would get another id" in err
    code, out, _ = mixtune("plan", "study.yaml", "seeds=[1,2]")
    assert code == 0
    assert "27 of 70 units of work to do" in out


def test_clean_results_stand_beside_the_full_ones(mixtune, place):
    code, out, _ = mixtune("results", "study.yaml", "--clean", "--json")
    rows = json.loads(out)
    plain = json.loads(mixtune("results", "study.yaml", "--json")[1])
    assert code == 0
    assert [{k: v for k, v in row.items() if k != "clean"} for row in rows] == plain
    flagged = json.loads((place / "runs/small/flagged.json").read_text(encoding="utf-8"))
    for row in rows:
        gone = len(flagged[f"{row['task']}/validation"])
        assert row["clean"]["n"] == row["n"] - gone
        assert gone or row["clean"]["value"] == row["value"]
    code, out, _ = mixtune("results", "study.yaml", "--clean")
    assert code == 0
    assert "no training row repeats" in out and "clean n" in out
    assert mixtune("results", "study.yaml", "--clean", "--summary")[0] == 2


def test_status_shows_every_run(mixtune):
    code, out, _ = mixtune("status", "study.yaml", "--json")
    state = json.loads(out)
    assert code == 0
    assert [run["state"] for run in state["runs"]] == ["done"] * 5
    code, out, _ = mixtune("status", "study.yaml")
    assert "5 done" in out


def test_plan_says_what_was_asked_and_got(mixtune):
    code, out, _ = mixtune("plan", "study.yaml", "--json")
    runs = {run["name"]: run for run in json.loads(out)["runs"]}
    assert code == 0
    both = runs["toy-rise+toy-sentiment"]
    assert [row["rows_got"] for row in both["mix"]] == [4, 4]
    assert [row["rows_asked"] for row in both["mix"]] == [40, 40]
    assert all(row["supervised_tokens"] > 0 for row in both["mix"])


def test_a_dry_run_changes_nothing(mixtune, place):
    code, out, _ = mixtune("run", "study.yaml", "name=other", "--dry-run")
    assert code == 0
    assert "toy-rise" in out
    assert not (place / "runs" / "other").exists()


def test_deleted_scores_and_reports_come_back_without_torch(mixtune, place, monkeypatch):
    store = Store(place / "runs" / "small")
    before = mixtune("results", "study.yaml", "--json")[1]
    for path in store.folder.rglob("scores/*.parquet"):
        path.unlink()
    code, _, err = mixtune("results", "study.yaml")
    assert code == 2
    assert "mixtune score" in err
    code = (
        "import sys; sys.argv = ['mixtune', 'score', 'study.yaml']\n"
        "from mixtune.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'transformers', 'peft'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=True
    )
    assert done.stdout == "scored 40, kept 0, not answered yet 0\n"
    assert mixtune("results", "study.yaml", "--json")[1] == before
    code, out, _ = mixtune("report", "study.yaml")
    assert (place / out.strip()).is_file()


def test_the_base_model_says_where_it_comes_from(place):
    facts = json.loads(next((place / "runs/small/cells").glob("*-s1/run.json")).read_text())
    assert facts["model"]["source"]
    assert facts["mix"][0]["rows_got"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "none.yaml"], "cannot read the file"),
        (["plan", "study.yaml", "tasks=[toy-sentimet]"], "toy-sentiment"),
        (["plan", "study.yaml", "sedes=[1]"], "did you mean 'seeds'"),
        (["plan", "study.yaml", "ingredients.toy-rise.rows=100000"], "fewer rows than"),
        (["plan", "study.yaml", "model=smollm2-135n"], "smollm2-135m"),
        (["plan", "study.yaml", "--data-dir", "nowhere"], "data directory is not there"),
        (["results", "study.yaml", "--split", "tset"], "no such split"),
        (["status", "study.yaml", "--runs-dir", "nowhere"], "no study here yet"),
        (["run", "study.yaml", "train.lr=0.01", "--workers", "1"], "would get another id"),
    ],
)
def test_a_users_error_is_one_message_and_exit_code_2(mixtune, arguments, message):
    code, _, err = mixtune(*arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_a_terminals_colours_stay_out_of_a_pipe(place):
    assert "\x1b" not in (place / "out.txt").read_text(encoding="utf-8")


def test_version_and_help(mixtune):
    assert mixtune("--version")[1].startswith("mixtune ")
    code, out, _ = mixtune("run", "--help")
    assert code == 0
    assert "resum" in out or "missing or failed" in out


def test_lenient_readings_are_shown_where_they_are_asked_for(mixtune):
    by_default = mixtune("results", "study.yaml")[1]
    assert "strict" in by_default and "constrained" in by_default and "lenient" not in by_default
    code, out, _ = mixtune("results", "study.yaml", "--form", "lenient")
    assert code == 0 and "lenient" in out and "strict" not in out
    every = json.loads(mixtune("results", "study.yaml", "--json", "--form", "all")[1])
    assert every == json.loads(mixtune("results", "study.yaml", "--json")[1])
    for form in ("strict", "lenient", "constrained"):
        own = json.loads(mixtune("results", "study.yaml", "--json", "--form", form)[1])
        assert own == [row for row in every if row["form"] == form]
    for verb in (["analyze"], ["compare", "toy-rise", "base"]):
        verb[1:1] = ["study.yaml"]
        rows = json.loads(mixtune(*verb, "--json")[1])
        # What is over several tasks is of the form "main".
        assert {row["form"] for row in rows} - {"main"} == {"strict", "lenient", "constrained"}
        assert "lenient" not in mixtune(*verb)[1]
        assert "lenient" in mixtune(*verb, "--form", "lenient")[1]


def test_a_summary_is_of_one_form(mixtune):
    main = mixtune("results", "study.yaml", "--summary")[1]
    lenient = mixtune("results", "study.yaml", "--summary", "--form", "lenient")[1]
    assert "lenient answers" in lenient and "lenient" not in main
    code, _, err = mixtune("results", "study.yaml", "--summary", "--form", "all")
    assert code == 2 and "one value for each task" in err


def test_scores_of_an_older_version_are_made_again_without_a_model(mixtune, place, monkeypatch):
    """Strict answers are read a second time; constrained ones keep their ids and their files."""
    folder = Store(place / "runs" / "small").folder
    now = mixtune("results", "study.yaml", "--json")[1]
    for path in folder.rglob("scores/*.parquet"):
        path.unlink()
    with monkeypatch.context() as older:
        older.setitem(VERSIONS, "strict", 1)
        assert mixtune("score", "study.yaml")[1] == "scored 40, kept 0, not answered yet 0\n"
    code, _, err = mixtune("results", "study.yaml")
    assert code == 2 and "mixtune score" in err
    assert mixtune("score", "study.yaml")[1] == "scored 20, kept 20, not answered yet 0\n"
    assert mixtune("results", "study.yaml", "--json")[1] == now
