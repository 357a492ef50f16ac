"""The size of what train.top_layers keeps, against the files that the engine writes."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from study_kit import registry, study, tasks, training_rows, write_data, write_rows

from mixtune.datasets.registry import Registry
from mixtune.engine.activation_cache import ActivationCache
from mixtune.engine.model import LocalModel
from mixtune.engine.rank import ChoiceTrie
from mixtune.engine.train import accumulate
from mixtune.errors import ModelError
from mixtune.planning.plan import Planner
from mixtune.planning.summary import activation_cache_size, size_lines, sizes_of, trie_of
from mixtune.tasks.examples import query_of
from mixtune.tasks.task import parse_task

TRAIN = {"rank": 2, "alpha": 4, "top_layers": 1}
LETTERS = """
name: letters
title: Which letter
about: Multiple choice.
version: 1
kind: label
labels: [A, B, B flat, dry]
allow_prefix_labels: true
prompt: "A, B, B flat or dry? {{ text }}"
fields: {label: label}
group_by: "{{ text }}"
parser: label
metrics: [accuracy]
source: {local: {folder: letters}}
licence: none
"""


@pytest.fixture
def made(tmp_path, files):
    """Rows that come twice, labels that share starts, two seeds, two design families."""
    data = write_data(tmp_path / "data")
    for split, count in (("train", 40), ("test", 12)):
        rows = [
            {"id": f"{split}{i}", "text": f"{split} {i // 2}", "label": ("A", "B flat")[i // 2 % 2]}
            for i in range(count)
        ]
        write_rows(data, "letters", split, rows)

    def planner(**changes):
        named = ["north", "letters"]
        changes = {
            "tasks": named,
            "ingredients": {name: {"rows": 20} for name in named},
            "seeds": [1, 2],
            "train": TRAIN,
            **changes,
        }
        own = Registry([*tasks(), parse_task(LETTERS, "letters.yaml")], data)
        return Planner(study(**changes), own, files)

    return planner


def written(planner, files, folder):
    """All that the study trains on and answers, through the engine."""
    model = LocalModel.load(
        files.folder, planner.tokens, planner.study.train, planner.study.evaluate
    )
    model.activation_cache = ActivationCache(model.decoder, folder, "base")
    model.reset(1)
    plan = planner.plan()
    for run in plan.runs:
        if run.kind == "trained":
            rows = training_rows(planner, run)
            accumulate(model, rows, [0] * len(rows), [0.1] * len(rows))
    for answer in plan.runs[1].answers:
        asked = [query_of(example) for example in planner.items(answer)]
        if answer.form == "strict":
            model.generate(asked, answer.max_new_tokens)
        else:
            model.rank(asked)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_the_plan_says_what_the_engine_writes(made, files, tmp_path, compute):
    planner = made(train={**TRAIN, "compute": compute})
    found = activation_cache_size(planner)
    files_ = written(planner, files, tmp_path / "states")
    states = [np.load(path) for path in files_]
    assert found.texts == len(states) > 40
    assert found.tokens == sum(len(each) for each in states)
    assert found.bytes == sum(each.nbytes for each in states)
    assert sum(path.stat().st_size for path in files_) == found.bytes + 128 * found.texts


def test_strict_answers_of_label_tasks_alone_are_ranked_as_well(made, files, tmp_path):
    evaluate = {"forms": ["strict"], "validation_items": 6, "test_items": 8, "batch_size": 4}
    planner = made(evaluate=evaluate)
    assert activation_cache_size(planner).texts == len(written(planner, files, tmp_path / "states"))


def test_nothing_without_top_layers_or_a_tokenizer(made, tmp_path, files):
    assert activation_cache_size(made(train={"rank": 2})) is None
    unresolved = Planner(study(train=TRAIN), registry(tmp_path / "data"), None)
    assert activation_cache_size(unresolved) is None


def test_it_is_shown_with_the_plan(made):
    planner = made()
    found = activation_cache_size(planner)
    assert sizes_of(planner)["top_layers"] == asdict(found)
    assert size_lines(planner)[1] == (
        f"kept on disk for train.top_layers: {found.texts} texts, {found.tokens:,} tokens, "
        f"{found.bytes / 1e6:.1f} MB"
    )


def test_a_model_without_a_width_is_refused(made, tmp_path):
    planner = made()
    (tmp_path / "config.json").write_text(json.dumps({"n_embd": 64}))
    planner.files = replace(planner.files, folder=tmp_path)
    with pytest.raises(ModelError, match="size of its hidden states"):
        activation_cache_size(planner)


@pytest.mark.parametrize(
    "choices", [[[1, 2, 9], [1, 9], [3, 9], [1, 2, 4, 9]], [[9]], [[5, 9], [5, 9]], [[1], [2, 3]]]
)
def test_the_tree_is_the_engines(choices):
    tree = ChoiceTrie.build(choices)
    assert trie_of(choices) == (tree.tokens, tree.parents)
