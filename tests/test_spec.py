import pytest
import yaml
from pydantic import ValidationError

from mixtune.errors import SpecError
from mixtune.spec import apply_override, dump_study, load_study, parse_study, trial

SMALL = {"name": "x", "model": "m", "tasks": ["a"], "ingredients": {"a": {"rows": 5}}}


def test_every_default_is_visible_in_the_resolved_file():
    resolved = yaml.safe_load(dump_study(parse_study(SMALL)))
    assert resolved["train"]["lr"] == 1e-3
    assert resolved["budget"] == {"kind": "equal-steps", "steps": 100, "examples_per_step": 16}
    assert resolved["baselines"] == ["majority", "base"]
    assert parse_study(resolved) == parse_study(SMALL)


def test_a_study_is_frozen():
    study = parse_study(SMALL)
    with pytest.raises(ValidationError, match="frozen"):
        study.name = "y"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sedes": [1]}, "sedes: no such key; did you mean 'seeds'"),
        ({"train": {"learn": 1}}, "train.learn: no such key; known: alpha"),
        ({"ingredients": {"a": {"row": 1}}}, "ingredients.a.row: no such key; did you mean 'rows'"),
        ({"seeds": []}, "seeds: .*at least 1 item"),
        ({"seeds": [1, 1]}, "names the same thing twice"),
        ({"budget": {"steps": 0}}, "budget.steps: .*greater than 0"),
        ({"design": []}, "at least one family"),
        ({"design": {"explicit": [["a", "b"]]}}, "'b', no ingredient"),
        ({"design": {"explicit": [["a", "a"]]}}, "repeats a name"),
        ({"tasks": ["A b"]}, r"tasks\.0: "),
        ({"evaluate": {"forms": []}}, "forms"),
        ({"train": {"compute": "float16"}}, "train.compute: .*float32"),
    ],
)
def test_a_bad_study_says_where_and_what(change, message):
    with pytest.raises(SpecError, match=message):
        parse_study(SMALL | change)


def test_ingredients_may_be_a_list_and_design_a_list():
    study = parse_study(SMALL | {"ingredients": ["a", "b"], "design": ["pairs"]})
    assert list(study.ingredients) == ["a", "b"]
    assert study.design.families == ("pairs",)


def test_overrides_reach_into_the_study(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(SMALL), encoding="utf-8")
    study = load_study(path, ["train.lr=0.01", "seeds=[3, 4]", "ingredients.a.rows=7"])
    assert study.train.lr == 0.01
    assert study.seeds == (3, 4)
    assert study.ingredients["a"].rows == 7


@pytest.mark.parametrize("override", ["seeds", "=3", "name.sub=1", "train.lr=[1"])
def test_a_bad_override_is_refused(override):
    with pytest.raises(SpecError):
        apply_override({"name": "x"}, override)


@pytest.mark.parametrize("text", ["- a\n", "name: [\n", ""])
def test_a_file_that_is_no_study_is_refused(tmp_path, text):
    path = tmp_path / "s.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match=r"s\.yaml"):
        load_study(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(SpecError, match="cannot read the study file"):
        load_study(tmp_path / "none.yaml")


def test_a_trial_is_another_study():
    cut = trial(parse_study(SMALL), 3)
    assert cut.name == "x-limit3"
    assert cut.budget.steps == 3
    assert (cut.evaluate.validation_items, cut.evaluate.test_items) == (3, 3)
