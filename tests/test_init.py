"""`mixtune init` and `mixtune schema`: what they write loads; what cannot be used is refused."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from engine_oracle import write_base
from hypothesis import given, settings
from hypothesis import strategies as st
from study_kit import TASK

from mixtune import cli
from mixtune.cli.app import complete_models, complete_tasks
from mixtune.cli.init import InitOptions, draft, json_schema, study_text
from mixtune.datasets.registry import Registry
from mixtune.errors import SpecError
from mixtune.models.catalog import catalogue
from mixtune.study.reading import load_study, parse_study
from mixtune.study.spec import Study
from mixtune.tasks.task import parse_task

STUDIES = Path(__file__).parent.parent / "studies"
REGISTRY = Registry.open(())
LABELLED = ["toy-sentiment", "toy-mood", "toy-rise", "toy-topic"]


@pytest.fixture
def mixtune(tmp_path, monkeypatch, mixtune):
    """Run a verb in this process, in an empty folder: exit code, standard output and error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIXTUNE_CACHE", str(tmp_path / "cache"))
    return mixtune


# ---- what is written ----------------------------------------------------------------------------


def test_without_options_it_is_the_quickstart(mixtune, tmp_path):
    code, out, _ = mixtune("init")
    assert code == 0
    assert out.splitlines()[-1] == "next: mixtune plan study.yaml"
    wanted = load_study(STUDIES / "quickstart.yaml").model_copy(update={"name": "study"})
    assert load_study(tmp_path / "study.yaml") == wanted


def test_options_are_live_and_the_rest_is_the_default(mixtune, tmp_path):
    options = "--model smollm2-135m --task toy-rise --ingredient toy-rise:300 "
    options += "--ingredient 0.25*toy-fall --design singles,toy-rise+toy-fall --steps 7 "
    options += "--seeds 3,1 --name other"
    assert mixtune("init", "a.yaml", *options.split())[0] == 0
    wanted = {
        "name": "other",
        "model": "smollm2-135m",
        "tasks": ["toy-rise"],
        "ingredients": {"toy-rise": {"rows": 300}, "toy-fall": {"share": 0.25}},
        "design": {"families": ["singles"], "explicit": [["toy-rise", "toy-fall"]]},
        "budget": {"steps": 7},
        "seeds": [3, 1],
    }
    assert yaml.safe_load((tmp_path / "a.yaml").read_text(encoding="utf-8")) == wanted
    assert load_study(tmp_path / "a.yaml") == parse_study(wanted)


@pytest.mark.parametrize(
    ("options", "tasks", "ingredients"),
    [
        ("--task toy-rise --task toy-mood", ["toy-rise", "toy-mood"], ["toy-rise", "toy-mood"]),
        ("--ingredient toy-rise*2 --ingredient toy-maths", ["toy-rise"], ["toy-rise", "toy-maths"]),
        ("--task toy-rise --ingredient toy-maths", ["toy-rise"], ["toy-maths"]),
    ],
)
def test_what_is_not_named_follows_from_what_is(mixtune, tmp_path, options, tasks, ingredients):
    assert mixtune("init", *options.split())[0] == 0
    study = load_study(tmp_path / "study.yaml")
    assert (list(study.tasks), list(study.ingredients)) == (tasks, ingredients)


def test_tasks_of_ones_own_are_taken_from_their_file(mixtune, tmp_path):
    own = tmp_path / "tasks" / "north.yaml"
    own.parent.mkdir()
    own.write_text(TASK.format(name="north"), encoding="utf-8")
    assert mixtune("init", "studies/a.yaml", "--task-file", "tasks/north.yaml")[0] == 0
    text = (tmp_path / "studies" / "a.yaml").read_text(encoding="utf-8")
    assert '\ntask_files: ["../tasks/north.yaml"]\n' in text
    study = load_study(tmp_path / "studies" / "a.yaml")
    assert study.task_files == (str(own),)
    assert study.tasks == ("north",)
    assert list(study.ingredients) == ["north"]


def test_a_base_model_is_named_as_seen_from_the_study_file(mixtune, tmp_path):
    base = write_base(tmp_path / "models" / "base", "llama")
    assert mixtune("init", "studies/a.yaml", "--model", "models/base")[0] == 0
    text = (tmp_path / "studies" / "a.yaml").read_text(encoding="utf-8")
    assert '\nmodel: "../models/base"\n' in text
    assert load_study(tmp_path / "studies" / "a.yaml").model == str(base)
    assert mixtune("init", "studies/b.yaml", "--model", str(base))[0] == 0
    assert load_study(tmp_path / "studies" / "b.yaml").model == str(base)


def test_a_folder_named_like_a_model_of_the_catalogue_changes_nothing(mixtune, tmp_path):
    (tmp_path / "smollm2-135m").mkdir()
    assert mixtune("init", "a.yaml", "--model", "smollm2-135m")[0] == 0
    assert yaml.safe_load((tmp_path / "a.yaml").read_text("utf-8"))["model"] == "smollm2-135m"


def test_the_number_of_questions_is_that_of_both_splits(mixtune, tmp_path):
    assert mixtune("init", "--items", "7")[0] == 0
    found = load_study(tmp_path / "study.yaml").evaluate
    assert (found.validation_items, found.test_items) == (7, 7)
    code, _, err = mixtune("init", "other.yaml", "--items", "0")
    assert code == 2 and "validation_items" in err


def test_what_is_written_can_be_planned(mixtune, tmp_path):
    base = write_base(tmp_path / "base", "llama")
    assert mixtune("init", "--model", base)[0] == 0
    code, out, err = mixtune("plan", "study.yaml", "--json")
    assert code == 0, err
    runs = [run["name"] for run in json.loads(out)["runs"]]
    assert len(runs) == 9
    assert {"majority", "base", "toy-mood+toy-sentiment+toy-topic"} <= set(runs)


def test_every_key_is_there_with_its_description_and_its_true_default():
    study = parse_study(
        {"name": "a", "model": "m", "tasks": ["t"], "ingredients": {"t": {"rows": 3}}}
    )
    text = study_text(study, "head")
    live = uncommented(text)
    assert parse_study(yaml.safe_load(live)) == study
    resolved = study.model_dump(mode="json")
    assert yaml.safe_load(live) == resolved | {"ingredients": {"t": {"rows": 3}}}
    words = " ".join(text.replace("#", " ").split())
    for described in descriptions(Study):
        assert described in words


def uncommented(text):
    """The file with every default live: the # goes from lines that hold a key."""
    return re.sub(r"^( *)# ([a-z_]+:( \S.*)?)$", r"\1\2", text, flags=re.MULTILINE)


def descriptions(model):
    """Every field's description, sections below it among them."""
    for field in model.model_fields.values():
        yield " ".join(field.description.split())
        if hasattr(field.annotation, "model_fields"):
            yield from descriptions(field.annotation)


# Names that another YAML reader would take for numbers, words or dates belong to it.
names = st.one_of(
    st.sampled_from(["no", "null", "on", "1e4", "010", "1_000", "2026-11-22", "0x1f", "y", "1-"]),
    st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True),
)
texts = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=30)
amounts = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={
            "rows": st.integers(1, 10**9),
            "repeat": st.floats(0.01, 100),
            "when_exhausted": st.sampled_from(["stop", "repeat", "error"]),
        },
    ),
    st.fixed_dictionaries({"share": st.floats(0.001, 0.009)}, optional={"unit": st.just("tokens")}),
)
studies = st.fixed_dictionaries(
    {
        "name": names,
        "model": texts,
        "tasks": st.lists(names, min_size=1, max_size=4, unique=True),
        "ingredients": st.dictionaries(names, amounts, min_size=1, max_size=4),
    },
    optional={
        "task_files": st.lists(texts, max_size=2),
        "design": st.fixed_dictionaries({"families": st.just(["pairs"])}),
        "budget": st.fixed_dictionaries({}, optional={"steps": st.integers(1, 10_000)}),
        "seeds": st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3, unique=True),
        "train": st.fixed_dictionaries(
            {}, optional={"lr": st.floats(1e-8, 1), "schedule": st.just("cosine")}
        ),
        "evaluate": st.fixed_dictionaries({}, optional={"test_items": st.none()}),
        "baselines": st.lists(st.sampled_from(["majority", "base"]), unique=True),
    },
)


@settings(deadline=None)
@given(studies, texts)
def test_what_is_written_is_what_was_asked(tmp_path_factory, raw, head):
    study = parse_study(raw)
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    path.write_text(study_text(study, head), encoding="utf-8")
    loaded = load_study(path)
    assert loaded.model_copy(update={"task_files": study.task_files}) == study
    unset = study.model_dump(mode="json", exclude_unset=True)
    kept = loaded.model_dump(mode="json", exclude_unset=True)
    empty = {key for key in ("budget", "train", "evaluate") if not unset.get(key)}
    assert kept.keys() - {"task_files"} == unset.keys() - empty - {"task_files"}


@settings(deadline=None)
@given(
    names,
    st.builds(
        InitOptions,
        tasks=st.lists(st.sampled_from([*LABELLED, "toy-maths", "nothing"]), max_size=3),
        ingredients=st.lists(
            st.one_of(st.sampled_from([*LABELLED, "toy-rise:3*2", "0.1*toy-mood"]), texts),
            max_size=3,
        ),
        design=st.lists(
            st.one_of(st.sampled_from(["singles", "pairs,all", "toy-rise+toy-mood"]), texts),
            max_size=2,
        ),
        steps=st.none() | st.integers(-1, 5),
        seeds=st.lists(st.integers(0, 3), max_size=3).map(lambda seeds: ",".join(map(str, seeds))),
    ),
)
def test_any_options_give_a_study_or_a_clear_error(name, asked):
    try:
        study = draft(name, asked, REGISTRY)
    except SpecError as error:
        assert str(error)
        return
    assert parse_study(yaml.safe_load(study_text(study, "head"))) == study


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "toy-sentimet"], "did you mean 'toy-sentiment'"),
        (["--ingredient", "toy-moood:3"], "did you mean 'toy-mood'"),
        (["--ingredient", "toy-mood:x"], "toy-mood:x"),
        (["--task", "toy-maths"], "not scored"),
        (["--ingredient", "toy-maths"], "--task"),
        (["--model", "smollm2-135n"], "smollm2-135m"),
        (["--design", "singels"], "singles"),
        (["--design", "toy-mood+toy-none"], "toy-none"),
        (["--steps", "0"], "budget.steps"),
        (["--seeds", "1,x"], "whole numbers"),
        (["--seeds", "1,1"], "seeds"),
        (["--name", "a/b"], "a/b"),
        (["--name", "\x1b[31m"], "\\x1b"),
        (["--task-file", "none.yaml"], "none.yaml"),
        (["--data-dir", "nowhere"], "nowhere"),
        (["--what"], "--what"),
    ],
)
def test_bad_options_are_refused_and_nothing_is_written(mixtune, tmp_path, options, message):
    code, _, err = mixtune("init", *options)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert "\x1b" not in err
    assert not (tmp_path / "study.yaml").exists()


def test_a_file_that_is_there_is_kept_unless_forced(mixtune, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("mine", encoding="utf-8")
    code, _, err = mixtune("init")
    assert code == 2
    assert "study.yaml" in err
    assert "--force" in err
    assert path.read_text(encoding="utf-8") == "mine"
    assert mixtune("init", "--force")[0] == 0
    assert load_study(path).name == "study"


def test_a_files_name_cannot_colour_the_terminal_or_break_the_file(mixtune, tmp_path):
    name = "a\x1b[31m\n: b [bold].yaml"
    code, out, _ = mixtune("init", name)
    assert code == 0
    assert "\x1b" not in out
    assert load_study(tmp_path / name).tasks
    code, _, err = mixtune("init", name)
    assert code == 2
    assert "\x1b" not in err


def test_a_place_that_cannot_be_written_is_named(mixtune, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    code, _, err = mixtune("init", "file/study.yaml")
    assert code == 2
    assert "study.yaml" in err
    assert "Traceback" not in err


def test_on_standard_output_stands_the_file_and_nothing_is_written(mixtune, tmp_path):
    code, out, _ = mixtune("init", "--stdout")
    assert code == 0
    assert yaml.safe_load(out)["name"] == "study"
    assert not (tmp_path / "study.yaml").exists()


def test_as_json_it_is_the_study_with_every_default(mixtune, tmp_path):
    code, out, _ = mixtune("init", "--json", "--task", "toy-rise")
    assert code == 0
    assert json.loads(out) == load_study(tmp_path / "study.yaml").model_dump(mode="json")


# ---- the schema ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study_schema():
    schema = json_schema("study")
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_every_study_here_fits_the_schema(study_schema):
    paths = [*STUDIES.glob("*.yaml"), *(STUDIES.parent / "examples").rglob("study*.yaml")]
    assert len(paths) >= 2
    for path in paths:
        study_schema.validate(yaml.safe_load(path.read_text(encoding="utf-8")))


@settings(deadline=None)
@given(studies)
def test_what_loads_fits_the_schema(study_schema, raw):
    parse_study(raw)
    study_schema.validate(raw)


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 1e-4},
        {"train": {"lora_r": 8, "weight_decay": 0.1}},
        {"ingredients": "fpb:3, headline*2"},
        {"ingredients": ["fpb:3"]},
        {"ingredients": {"fpb": None}},
        {"design": ["singles"]},
        {"model": None, "base_model": "m"},
        {"lora_dropout": 0},
    ],
)
def test_short_forms_and_other_tools_keys_fit_it_too(study_schema, change):
    raw = changed(change)
    parse_study(raw)
    study_schema.validate(raw)


@pytest.mark.parametrize(
    "change",
    [
        {"sedes": [1]},
        {"train": {"rnak": 8}},
        {"model": None},
        {"tasks": []},
        {"budget": {"steps": 0}},
        {"train": {"lr": 2}},
        {"train": {"compute": "float16"}},
        {"lora_dropout": 0.1},
        {"name": "a/b"},
    ],
)
def test_what_does_not_fit_is_refused_by_both(study_schema, change):
    raw = changed(change)
    with pytest.raises(SpecError):
        parse_study(raw)
    with pytest.raises(jsonschema.ValidationError):
        study_schema.validate(raw)


def changed(change):
    """A small study with keys replaced; None takes a key away."""
    raw = {"name": "a", "model": "m", "tasks": ["fpb"], "ingredients": {"fpb": {}}} | change
    return {key: value for key, value in raw.items() if value is not None}


def test_limits_and_descriptions_are_in_the_schema(mixtune):
    code, out, _ = mixtune("schema")
    schema = json.loads(out)
    assert code == 0
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    lr = schema["$defs"]["TrainSpec"]["properties"]["lr"]
    assert (lr["exclusiveMinimum"], lr["maximum"], lr["default"]) == (0, 1, 0.001)
    assert lr["description"]


def test_tasks_that_ship_fit_the_schema_of_a_task(mixtune):
    code, out, _ = mixtune("schema", "--of", "task")
    assert code == 0
    validator = jsonschema.Draft202012Validator(json.loads(out))
    shipped = sorted((Path(cli.__file__).parent.parent / "tasks" / "builtin").glob("*.yaml"))
    own = [f for f in (STUDIES.parent / "examples").rglob("*.yaml") if "study" not in f.name]
    assert shipped
    assert own
    for file in [*shipped, *own]:
        for task in yaml.safe_load_all(file.read_text(encoding="utf-8")):
            validator.validate(task)
    ten_lines = {
        "name": "a",
        "labels": ["x", "y"],
        "prompt": "x or y? {{ text }}",
        "source": "a.csv",
    }
    ten_lines["fields"] = {"label": "topic"}
    parse_task(yaml.safe_dump(ten_lines), "a.yaml")
    validator.validate(ten_lines)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(ten_lines | {"lables": []})


def test_the_schema_of_something_else_is_refused(mixtune):
    code, _, err = mixtune("schema", "--of", "model")
    assert code == 2
    assert "task" in err


# ---- completion ---------------------------------------------------------------------------------


COMPLETIONS = {
    "mixtune plan st": {"study.yaml", "studies/"},
    "mixtune plan studies/": {"studies/a.yml"},
    "mixtune init --task toy-s": {"toy-sentiment"},
    "mixtune init --model smollm2-1": {"smollm2-135m"},
    "mixtune init --design sin": {"singles"},
    "mixtune sche": {"schema"},
    "mixtune plan none/": set(),
}
COMPLETE = """
import contextlib, io, json, os, sys
import mixtune.cli
from mixtune.cli.app import app

printed = []
for words in json.loads(sys.argv[1]):
    os.environ |= {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        app(prog_name="mixtune")
    printed.append(out.getvalue())
print(json.dumps(printed))
"""
"""Asks for every completion as bash does, in one process: starting one takes a second."""


def test_tab_completes(tmp_path):
    (tmp_path / "studies").mkdir()
    for name in ("study.yaml", "study.txt", "studies/a.yml"):
        (tmp_path / name).touch()
    done = subprocess.run(
        [sys.executable, "-c", COMPLETE, json.dumps(list(COMPLETIONS))],
        cwd=tmp_path,
        env={**os.environ, "_MIXTUNE_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    completions = [set(text.split()) for text in json.loads(done.stdout)]
    assert dict(zip(COMPLETIONS, completions, strict=True)) == COMPLETIONS


def test_completion_knows_every_name_there_is():
    assert complete_tasks() == Registry.builtin().names()
    assert set(catalogue()) <= set(complete_models(""))


def test_a_command_starts_without_what_only_numbers_need():
    """Each of these takes a good part of a second, which every command would wait for."""
    heavy = {"sklearn", "scipy", "pandas", "torch"}
    code = f"import sys, mixtune.cli; print(*{heavy} & set(sys.modules))"
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
