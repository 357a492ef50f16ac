"""What is unusual in how a study trains is said wherever its results are."""

from dataclasses import replace

import pytest
from report_kit import page_of

from mixtune.analysis.measures import SystemInfo, measure, results
from mixtune.datasets.registry import Registry
from mixtune.records import Score
from mixtune.report.page import render
from mixtune.study.spec import Flaws, TrainSpec, training_note

TOP = "adapters in the top 10 layers only (train.top_layers)"


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({}, ""),
        ({"rank": 4, "lr": 0.1, "compute": "bfloat16", "gradient_checkpointing": True}, ""),
        ({"top_layers": 10}, TOP),
        ({"top_layers": 1}, "adapters in the top layer only (train.top_layers)"),
        ({"method": "full"}, "all weights trained, no adapters (train.method full)"),
        (
            {"top_layers": 10, "loss": "batch-token-mean"},
            f"{TOP}; long answers weigh more than short ones (train.loss batch-token-mean)",
        ),
    ],
)
def test_only_what_makes_it_another_method(train, said):
    assert training_note(TrainSpec(**train), Flaws()) == said


@pytest.mark.parametrize("name", Flaws.model_fields)
def test_every_flaw_that_is_on_is_said(name):
    assert f"(flaws.{name})" in training_note(TrainSpec(), Flaws(**{name: True}))


def test_results_of_trained_systems_say_it():
    task = Registry.builtin().get("toy-mood")
    infos = [SystemInfo("b", "base", None, ()), SystemInfo("s", "toy-mood", 1, ("toy-mood",), TOP)]
    scores = [
        Score(
            system=info.system, task=task.name, split="validation", example=str(i),
            form="constrained", group=str(i), stratum="", parsed=task.labels[0],
            gold=task.labels[i % 2], value=1.0 - i % 2, status="ok",
        )
        for info in infos
        for i in range(12)
    ]  # fmt: skip
    rows = results(measure(scores, infos, {task.name: task}))
    assert {(row.cocktail, row.training) for row in rows} == {("base", ""), ("toy-mood", TOP)}


def test_the_page_says_it_where_it_says_how_numbers_were_made():
    page = page_of()
    assert "is unusual" not in render(page)
    train = page.study.train.model_copy(update={"top_layers": 10})
    text = render(replace(page, study=page.study.model_copy(update={"train": train})))
    assert text.count(TOP) == 2
    assert TOP in text[text.index('id="methods"') :]


def test_full_fine_tuning_has_no_rank_on_the_page():
    page = page_of()
    full = page.study.model_copy(update={"train": TrainSpec(method="full", rank=77)})
    assert "lora, rank 16" in render(page)
    assert "rank 77" not in render(replace(page, study=full))
