"""The study file: defaults, limits, contradictions, and what a bad one is told."""

import copy

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from mixtune.errors import SpecError
from mixtune.study.reading import dump_study, load_studies, load_study, parse_study, trial
from mixtune.study.spec import Ingredient, Study

SMALL = {"name": "x", "model": "m", "tasks": ["a"], "ingredients": {"a": {"rows": 5}}}
FULL = """\
name: x
model: m
tasks: [a, b]
ingredients:
  a: {rows: 5}
  b: {share: 0.2, unit: tokens}
seeds: [1, 2]
train:
  lr: 1e-4
"""


@pytest.fixture
def load(tmp_path):
    """Load a study from text or bytes, with overrides."""
    path = tmp_path / "s.yaml"

    def call(text, *overrides):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_study(path, overrides)

    return call


def test_every_default_is_visible_in_the_resolved_file():
    resolved = yaml.safe_load(dump_study(parse_study(SMALL)))
    assert resolved["train"]["lr"] == 1e-3
    budget = {"kind": "equal-steps", "steps": 100, "examples_per_step": 16, "more_epochs": None}
    budget["merged"] = False
    assert resolved["budget"] == budget
    assert resolved["baselines"] == ["majority", "base"]
    assert parse_study(resolved) == parse_study(SMALL)


def test_a_resolved_file_is_read_as_the_same_study(load):
    study = load(FULL)
    assert load(dump_study(study)) == study


def test_a_study_is_frozen():
    study = parse_study(SMALL)
    with pytest.raises(ValidationError, match="frozen"):
        study.name = "y"  # type: ignore[misc]


def models(kind):
    """A model and those inside it."""
    found = [kind]
    for field in kind.model_fields.values():
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            plain = getattr(inner, "__origin__", inner)  # without what Annotated adds
            if isinstance(plain, type) and issubclass(plain, BaseModel):
                found += models(plain)
    return found


def test_every_field_of_every_model_is_described():
    found = set(models(Study))
    assert Ingredient in found
    assert len(found) == 13
    for kind in found:
        for name, field in kind.model_fields.items():
            assert field.description, f"{kind.__name__}.{name}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # keys
        ({"sedes": [1]}, "sedes: no such key; did you mean 'seeds'"),
        ({"lr": 1}, "lr: no such key; lr belongs under train"),
        ({"train": {"seeds": 1}}, "train.seeds: no such key; seeds belongs at the top level"),
        ({"schedul": "linear"}, "did you mean 'train.schedule'"),
        ({"learning_rat": 1}, "did you mean 'learning_rate'"),
        ({"train": {"frobnicate": 1}}, "train.frobnicate: no such key; known: alpha"),
        ({"ingredients": {"a": {"row": 1}}}, "ingredients.a.row: no such key; did you mean 'rows'"),
        ({"\x1b[31m": 1}, r"\\x1b\[31m: no such key"),
        # seeds
        ({"seeds": []}, "seeds: needs at least one item"),
        ({"seeds": [1, 1]}, "names the same thing twice"),
        ({"seeds": [-1]}, "seeds.0: should be greater than or equal to 0"),
        ({"seeds": [2**63]}, r"seeds\.0: should be less than"),
        ({"seeds": [True]}, "seeds.0: should be a number, not true or false"),
        ({"seeds": 3}, "seeds: should be a list"),
        # amounts
        ({"ingredients": {}}, "ingredients: "),
        ({"ingredients": None}, "ingredients: should be a mapping"),
        ({"ingredients": {"a": 5}}, "ingredients.a: should be a mapping"),
        ({"ingredients": {"a": {"rows": 0}}}, "rows: should be greater than 0"),
        ({"ingredients": {"a": {"rows": float("inf")}}}, "rows: should be a finite number"),
        ({"ingredients": {"a": {"rows": 1.5}}}, "rows: should be a valid integer"),
        ({"ingredients": {"a": {"share": 0}}}, "share: should be greater than 0"),
        ({"ingredients": {"a": {"share": 1.1}}}, "share: should be less than or equal to 1"),
        ({"ingredients": {"a": {"repeat": -1}}}, "repeat: should be greater than 0"),
        ({"ingredients": {"a": {"repeat": float("nan")}}}, "repeat: should be a finite number"),
        ({"ingredients": {"a": {"when_exhausted": "x"}}}, "should be 'stop', 'repeat' or 'error'"),
        # contradictions
        (
            {"ingredients": {"a": {"share": 0.1, "repeat": 1}}},
            r"(?s)ingredients.a: contradictory settings: share and repeat.*remedy: keep one",
        ),
        (
            {"ingredients": {"a": {"unit": "tokens"}}},
            "(?s)contradictory settings: unit .*no share.*remedy: add share, or remove unit",
        ),
        (
            {
                "ingredients": {
                    "a": {"share": 0.1, "unit": "rows"},
                    "b": {"share": 0.1, "unit": "tokens"},
                }
            },
            "contradictory settings: shares are measured in rows and tokens",
        ),
        (
            {"ingredients": {"a": {"share": 0.9}, "c": {"share": 0.1}, "b": {}}},
            "contradictory settings: the shares of a, c add up to 1, which leaves nothing for b",
        ),
        # the rest
        ({"budget": {"steps": 0}}, "budget.steps: .*greater than 0"),
        ({"budget": {"steps": True}}, "budget.steps: .*not true or false"),
        ({"budget": {"steps": 10**30}}, "budget.steps: should be less"),
        ({"budget": {"steps": 10**9}}, "budget: steps × examples_per_step is more than"),
        ({"budget": [100]}, "budget: should be a mapping"),
        ({"train": None}, "train: should be a mapping"),
        ({"train": {"alpha": float("inf")}}, "train.alpha: should be a finite number"),
        ({"train": {"compute": "float16"}}, "train.compute: .*float32"),
        ({"design": []}, "at least one family"),
        ({"design": {"explicit": [["a", "b"]]}}, "'b', no ingredient"),
        ({"design": {"explicit": [["a", "a"]]}}, "repeats a name"),
        ({"tasks": ["A b"]}, r"tasks\.0: "),
        ({"tasks": "a"}, "tasks: should be a list"),
        ({"tasks": []}, "tasks: needs at least one item"),
        ({"name": "a/b"}, "name: "),
        ({"name": 2024}, "(?s)name: should be a word.*quotes"),
        ({"model": "x\x1b[2J"}, r"(?s)model: holds control characters.*\\x1b\[2J"),
        ({"model": "x" * 5000}, r"model: .*400"),
        ({"evaluate": {"forms": []}}, "forms"),
    ],
)
def test_a_bad_study_says_where_what_and_the_remedy(change, message):
    with pytest.raises(SpecError, match=message) as caught:
        parse_study(SMALL | change)
    said = str(caught.value)
    assert "remedy" in said
    assert said.replace("\n", "").isprintable()


def test_several_faults_are_told_at_once_and_not_too_many():
    with pytest.raises(SpecError, match="2 faults") as caught:
        parse_study(SMALL | {"seeds": [], "budget": {"steps": 0}})
    assert "seeds: needs" in str(caught.value)
    assert "budget.steps: should" in str(caught.value)
    with pytest.raises(SpecError, match="and 95 more"):
        parse_study(SMALL | {"tasks": ["A B"] * 100})


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (FULL.replace("rows: 5", "rows: 0"), 5, "ingredients.a.rows: should be greater"),
        (FULL.replace("lr:", "lear:"), 9, "train.lear: no such key"),
        (FULL.replace("lr: 1e-4", "learning_rate: 7"), 9, "read as train.lr"),
        (FULL.replace("lr: 1e-4", "lora_dropout: 0.1"), 9, "without dropout"),
        (FULL + "name: y\n", 10, "the key 'name' is given twice"),
        (FULL + "\tname: y\n", 10, "indent with spaces"),
        (FULL.encode() + b"# caf\xe9\n", 10, "not UTF-8"),
    ],
)
def test_a_fault_names_file_and_line(load, text, line, message):
    with pytest.raises(SpecError, match=rf"s\.yaml, line {line}\b") as caught:
        load(text)
    assert message in str(caught.value)


def test_an_override_takes_the_line_of_what_it_replaces_away(load):
    with pytest.raises(SpecError, match=r"s\.yaml: seeds: needs"):
        load(FULL, "seeds=[]")


def test_ingredients_may_be_a_list_and_design_a_list():
    study = parse_study(SMALL | {"ingredients": ["a", "b"], "design": ["pairs"]})
    assert list(study.ingredients) == ["a", "b"]
    assert study.design.families == ("pairs",)


def test_numbers_may_be_written_as_people_write_them(load):
    study = load(FULL, "budget.steps=1e3", "ingredients.a.rows=10_000", "train.lr=2e-5")
    assert study.budget.steps == 1000
    assert study.ingredients["a"].rows == 10_000
    assert study.train.lr == 2e-5


def test_one_unit_holds_for_the_whole_study():
    shares = {"a": {"share": 0.1}, "b": {"share": 0.2, "unit": "supervised_tokens"}, "c": None}
    assert parse_study(SMALL | {"ingredients": shares}).unit == "supervised_tokens"
    assert parse_study(SMALL).unit == "rows"


def test_shares_that_add_up_to_one_are_fine_when_all_have_one():
    shares = {name: {"share": 0.1} for name in "abcdefghij"}
    assert parse_study(SMALL | {"ingredients": shares})
    # Ten times 0.1 is exactly one, though not in floats.
    with pytest.raises(SpecError, match="add up to 1"):
        parse_study(SMALL | {"ingredients": shares | {"k": None}})


@pytest.mark.parametrize("text", ["- a\n", "name: [\n", "", "# nothing\n", "null\n", "5\n"])
def test_a_file_that_is_no_study_is_refused(load, text):
    with pytest.raises(SpecError, match=r"s\.yaml"):
        load(text)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "nul\0l"):
        with pytest.raises(SpecError, match="cannot read the file"):
            load_study(path)


def test_a_trial_is_another_study():
    cut = trial(parse_study(SMALL), 3)
    assert cut.name == "x-limit3"
    assert cut.budget.steps == 3
    assert (cut.evaluate.validation_items, cut.evaluate.test_items) == (3, 3)


# mutated studies

COMPLETE = parse_study(
    SMALL | {"ingredients": {"a": {"rows": 5}, "b": {"share": 0.2}}, "design": ["pairs"]}
).model_dump(mode="json")
KEYS = ["name", "rows", "share", "lr", "train", "seed", "lora_r", "datasets", "bf16", "a", "zz", ""]
KEYS += ["gradient_accumulation_steps", "micro_batch_size", "num_epochs", "target_modules"]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**30, -1, 0]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["\x1b[2J", "a" * 10_000, "a:5, b", "0.5*a", "a*b*c", "1e400", "all", "../x"]),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=4)), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(raw, path=()):
    """Every place in a study."""
    yield path
    for key in raw if isinstance(raw, dict) else range(len(raw)) if isinstance(raw, list) else []:
        yield from places(raw[key], (*path, key))


@st.composite
def mutated(draw):
    raw = copy.deepcopy(COMPLETE)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(raw))))
        here = raw
        for key in path[:-1]:
            here = here[key]
        new = draw(values)
        if path and draw(st.booleans()):
            here[path[-1]] = new
        elif isinstance(here, dict):
            here[draw(st.sampled_from(KEYS))] = new
    return raw


@settings(deadline=None, max_examples=300)
@given(mutated())
def test_a_mutated_study_is_read_or_refused_with_a_printable_message(raw):
    before = copy.deepcopy(raw)
    try:
        study = parse_study(raw)
    except SpecError as error:
        assert str(error).replace("\n", "").isprintable()
    else:
        assert parse_study(study.model_dump(mode="json")) == study
    assert repr(raw) == repr(before)


@settings(deadline=None, max_examples=200)
@given(
    data=st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60).map(str.encode),
        st.tuples(
            st.integers(0, len(FULL)), st.text("[]{}:,*&!%@`'\"|>#?- \t\n0ae", max_size=5)
        ).map(lambda cut: (FULL[: cut[0]] + cut[1] + FULL[cut[0] :]).encode()),
    ),
    overrides=st.lists(st.text("abdelnrst_.=[]{}:*&0159- \n", max_size=20), max_size=2),
)
def test_a_damaged_file_is_read_or_refused(tmp_path_factory, data, overrides):
    path = tmp_path_factory.getbasetemp() / "damaged.yaml"
    path.write_bytes(data)
    try:
        load_study(path, overrides)
    except SpecError as error:
        assert str(error).replace("\n", "").isprintable()


class TestSeveralModels:
    TEXT = "name: mine\nmodel: [smollm2-135m, org/Phi-3.5_mini]\ntasks: [a]\ningredients: [a]\n"

    @pytest.fixture
    def file(self, tmp_path):
        path = tmp_path / "study.yaml"
        path.write_text(self.TEXT)
        return path

    def test_a_list_is_a_study_for_each(self, file):
        found = load_studies(file)
        assert [(study.name, study.model) for study in found] == [
            ("mine-smollm2-135m", "smollm2-135m"),
            ("mine-phi-3-5-mini", "org/Phi-3.5_mini"),
        ]

    def test_one_is_picked_under_its_own_name(self, file):
        assert load_study(file, ["model=smollm2-135m"]) == load_studies(file)[0]

    def test_what_takes_one_says_how_to_pick_it(self, file):
        with pytest.raises(SpecError, match=r"2 base models[\s\S]*model=smollm2-135m"):
            load_study(file)

    def test_a_single_name_is_no_list(self, file):
        file.write_text(self.TEXT.replace("[smollm2-135m, org/Phi-3.5_mini]", "smollm2-135m"))
        assert [study.name for study in load_studies(file)] == ["mine"]

    def test_an_empty_list_is_refused(self, file):
        file.write_text(self.TEXT.replace("[smollm2-135m, org/Phi-3.5_mini]", "[]"))
        with pytest.raises(SpecError, match="model"):
            load_studies(file)
