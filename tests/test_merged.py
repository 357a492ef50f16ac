"""Merged single tasks as systems of a study: planned, made of what is trained, asked once."""

import pytest
import torch
from safetensors.torch import load_file
from study_kit import registry, study
from test_execution import Listener, run

from mixtune.engine.adapter_format import WEIGHTS_FILE
from mixtune.errors import SpecError
from mixtune.execution.assign import started
from mixtune.execution.extra_systems import answer_merged
from mixtune.planning.plan import Planner
from mixtune.results.study_results import measure_split, read_facts, score_study
from mixtune.store.folder import Store

BUDGET = {"steps": 3, "examples_per_step": 4}
MERGED = BUDGET | {"merged": True}
ALL = {"budget": MERGED, "seeds": [1, 2]}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs" / "weather")


def planner(data, files, **changes):
    return Planner(study(**changes), registry(data), files)


def merge_all(data, files, store, **changes):
    """What `mixtune run` does after its workers."""
    made, listener = planner(data, files, **changes), Listener()
    plan = made.plan()
    with store.lock(), started(plan, store, listener):
        return answer_merged(plan, made, store, listener), listener


class TestPlan:
    def test_each_cocktail_and_seed_has_one_weighed_by_its_rows(self, data, files):
        design = {"families": ["singles", "all"]}
        amounts = {"north": {"rows": 20, "share": 0.25}, "south": {"rows": 20, "share": 0.75}}
        runs = planner(data, files, **ALL, design=design, ingredients=amounts).plan().runs
        merged = [run for run in runs if run.kind == "merged"]
        assert [(run.name, run.seed) for run in merged] == [
            ("north+south (merged)", 1),
            ("north+south (merged)", 2),
        ]
        by_id = {run.system: run for run in runs}
        for one in merged:
            assert [by_id[part.system].name for part in one.parts] == ["north", "south"]
            assert {by_id[part.system].seed for part in one.parts} == {one.seed}
            assert [part.weight for part in one.parts] == [0.25, 0.75]

    def test_it_trains_nothing_and_changes_no_other_id(self, data, files):
        plain = planner(data, files, budget=BUDGET).plan().rows()
        more = planner(data, files, budget=MERGED).plan().rows()
        assert more[: len(plain)] == plain
        assert {row.kind for row in more[len(plain) :]} == {"answer"}

    def test_another_part_is_another_system(self, data, files):
        def ids(**changes):
            return {
                r.system
                for r in planner(data, files, budget=MERGED, **changes).plan().runs
                if r.kind == "merged"
            }

        assert ids() == ids()
        assert not ids() & ids(seeds=[3])

    def test_a_cocktail_needs_its_single_tasks(self, data, files):
        with pytest.raises(SpecError, match="has to be trained alone"):
            planner(data, files, budget=MERGED, design=["all"]).plan()

    def test_full_fine_tuning_has_no_adapters_to_add(self):
        with pytest.raises(SpecError, match=r"budget\.merged"):
            study(budget=MERGED, train={"method": "full"})


class TestRun:
    def test_the_adapter_is_the_weighted_sum(self, data, files, store):
        run(data, files, store, **ALL)
        failed, _ = merge_all(data, files, store, **ALL)
        assert failed == []
        for one in planner(data, files, **ALL).plan().runs:
            if one.kind != "merged":
                continue
            parts = [product(store, part.folder, part.weight * 2.0) for part in one.parts]
            whole = product(store, one.folder, 1.0)
            for layer, found in whole.items():
                wanted = sum(part[layer] for part in parts)
                assert torch.allclose(found, wanted, atol=1e-6)
            assert any(found.abs().max() > 1e-4 for found in whole.values())

    def test_it_is_a_cell_in_every_table(self, data, files, store):
        run(data, files, store, **ALL)
        merge_all(data, files, store, **ALL)
        facts = read_facts(store, registry(data))
        score_study(facts)
        measured = measure_split(facts, "validation")
        found = [row for row in measured.results if row.cocktail.endswith("(merged)")]
        assert {(row.task, row.seed) for row in found} == {
            (task, seed) for task in ("north", "south") for seed in (1, 2)
        }
        kinds = {row.quantity for row in measured.differences if "(merged)" in row.subject}
        assert {"difference-to-single", "difference-to-base"} <= kinds

    def test_what_is_done_is_not_done_again(self, data, files, store):
        run(data, files, store, **ALL)
        _, first = merge_all(data, files, store, **ALL)
        assert len(first.ran) == 2
        assert merge_all(data, files, store, **ALL)[1].ran == []

    def test_it_waits_for_its_parts(self, data, files, store):
        run(data, files, store, **ALL)
        unit = next(row.id for row in store.plan() if row.kind == "train" and row.seed == 2)
        store.fail(unit, "made to fail", 0.0)
        failed, listener = merge_all(data, files, store, **ALL)
        assert [(one.name, one.seed) for one in failed] == [("north+south (merged)", 2)]
        assert [seed for _, seed in listener.ran] == [1]
        assert "waits for adapters" in " ".join(listener.notes)


def product(store, folder, scale):
    """Layer → scaled B · A of a written adapter."""
    held = load_file(store.folder / folder / "adapter" / WEIGHTS_FILE)
    downs = {name: tensor for name, tensor in held.items() if ".lora_A." in name}
    return {
        name: scale * held[name.replace(".lora_A.", ".lora_B.")] @ down
        for name, down in downs.items()
    }
