"""The studies that ship with the package, and the outline of a study that is not here yet."""

import json
from itertools import combinations

import pytest
from study_kit import TASK

from mixtune.datasets.registry import Registry
from mixtune.datasets.sources import RegisteredTask
from mixtune.errors import SpecError
from mixtune.planning.outline import Rates, dataset_facts, outline
from mixtune.planning.runs import canonical
from mixtune.study.presets import names, preset
from mixtune.study.reading import load_studies, parse_study
from mixtune.tasks.task import parse_task

SEVEN = [
    "convfinqa",
    "fin-ner-cls",
    "finqa",
    "fpb",
    "headline",
    "twitter-sentiment",
    "twitter-topic",
]
NINE = sorted([*SEVEN, "open-orca", "orca-math"])
MODELS = ["phi-3-mini", "llama-3.1-8b", "mistral-7b", "phi-3.5-mini"]
ROWS = {
    "headline": 10_000,
    "fpb": 5_000,
    "fin-ner-cls": 5_000,
    "finqa": 2_000,
    "convfinqa": 2_000,
    "twitter-topic": 2_500,
    "twitter-sentiment": 5_000,
    "open-orca": 31_500,
    "orca-math": 15_750,
}
"""The published caps."""


@pytest.fixture(scope="module")
def published():
    return outline(load_studies(preset("brief2024")), Registry.builtin(None), Rates(400, 2.5))


class TestBrief2024:
    def test_220_cells_by_name(self, published):
        sets = [*combinations(NINE, 1), *combinations(NINE, 2)]
        sets += [tuple(n for n in NINE if n != left) for left in NINE] + [tuple(NINE)]
        wanted = {(model, "+".join(one)) for model in MODELS for one in sets}
        found = [(row.model, row.cell) for row in published.rows]
        assert len(found) == len(set(found)) == 220
        assert set(found) == wanted
        assert not any(row.resolved for row in published.rows)

    def test_leaving_out_finqa_keeps_convfinqa(self, published):
        left = [
            r
            for r in published.rows
            if len(r.ingredients) == 8 and "finqa" not in r.cell.split("+")
        ]
        assert [row.model for row in left] == MODELS
        assert all("convfinqa" in row.ingredients for row in left)

    def test_rows_epochs_and_steps_are_the_published_ones(self, published):
        cells = {row.cell: row for row in published.rows if row.model == "llama-3.1-8b"}
        for name, rows in ROWS.items():
            assert (cells[name].rows, cells[name].examples) == (rows, 3 * rows)
        whole = cells["+".join(NINE)]
        assert whole.rows == sum(ROWS.values()) == 78_750
        assert (whole.examples, whole.steps) == (2 * 78_750, -(-2 * 78_750 // 8))

    def test_every_part_says_where_it_comes_from(self, published):
        for found in published.datasets.values():
            assert {one.name for one in found} == {*NINE, "fiqa-sa"}
            for one in found:
                assert one.rows_from
                assert "tokeni" in one.tokens_from or "characters" in one.tokens_from
            assumed = [one.name for one in found if "assumed" in one.tokens_from]
            assert assumed == ["open-orca", "orca-math"]

    def test_cost_follows_from_weights_tokens_and_rates(self, published):
        for row in published.rows[::37]:
            weights = {"phi-3-mini": 3821079552, "llama-3.1-8b": 8030261248}.get(row.model)
            if weights is None:
                continue
            work = weights * (6 * row.training_tokens + 2 * row.scoring_tokens)
            assert row.gpu_hours == pytest.approx(work / 400e12 / 3600, rel=1e-3)
            assert row.dollars == pytest.approx(2.5 * row.gpu_hours)
            assert row.disk_gb == pytest.approx(2 * weights / 1e9)

    def test_settings(self):
        for study in load_studies(preset("brief2024")):
            train = study.train
            assert (train.method, train.lr, train.schedule) == ("full", 3e-6, "cosine")
            assert (train.max_length, study.budget.examples_per_step) == (4096, 8)
            assert study.seeds == (42,)
            assert study.budget.kind == "as-published"
            assert not any(study.flaws.model_dump().values())
            assert "fiqa-sa" in study.tasks
            assert "fiqa-sa" not in study.ingredients

    def test_the_command_prints_it_as_json(self, mixtune):
        code, out, _ = mixtune("plan", "brief2024", "--json", "--gpu-tflops", "100")
        made = json.loads(out)
        assert code == 0
        assert made["totals"]["cells"] == len(made["cells"]) == 220
        assert "100 TFLOP/s" in made["rates"]["about"]

    def test_and_as_a_table(self, mixtune):
        code, out, _ = mixtune("plan", "brief2024")
        assert code == 0
        assert "220 cells" in out
        assert "unverified" in out


@pytest.mark.parametrize("name", names())
def test_a_preset_is_a_study_of_known_names(name):
    registry = Registry.builtin(None)
    for study in load_studies(preset(name)):
        canonical(study, registry)


def test_init_writes_a_preset_under_a_name_of_its_own(mixtune, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = mixtune("init", "mine.yaml", "--preset", "finance-cpu")
    assert code == 0, err
    (study,) = load_studies(tmp_path / "mine.yaml")
    (kept,) = load_studies(preset("finance-cpu"))
    assert study == kept.model_copy(update={"name": "mine"})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--preset", "finace"], "did you mean"),
        (["--preset", "finance", "--steps", "3"], "leave out the other options"),
    ],
)
def test_what_init_does_not_take_with_a_preset(mixtune, tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    code, _, err = mixtune("init", "mine.yaml", *options)
    assert code == 2
    assert said in err
    assert not (tmp_path / "mine.yaml").exists()


SMALL = {
    "name": "x",
    "model": "smollm2-135m",
    "tasks": ["toy-topic"],
    "ingredients": {"toy-topic": {"rows": 50}, "toy-mood": {}},
    "design": ["singles"],
    "budget": {"steps": 5, "examples_per_step": 4},
}


class TestOutline:
    def test_what_is_here_is_read(self):
        made = outline([parse_study(SMALL)], Registry.builtin(None), Rates(1, 1))
        (found,) = made.datasets.values()
        assert {one.rows_from for one in found} == {"read"}
        assert all(row.examples == 20 for row in made.rows)

    def test_a_dataset_of_which_nothing_is_known_has_to_be_here(self):
        made = parse_task(TASK.format(name="north"), "north.yaml")
        registry = Registry.builtin(None).with_tasks([RegisteredTask(made, "here")])
        given = {**SMALL, "ingredients": {"north": {}}}
        with pytest.raises(SpecError, match="the size of 'north' is not known"):
            outline([parse_study(given)], registry, Rates(1, 1))

    def test_what_is_known_is_of_tasks_that_there_are(self):
        registry = Registry.builtin(None)
        assert all(name in registry for name in dataset_facts())
