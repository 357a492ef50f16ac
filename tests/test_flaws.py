"""Each flaw of published studies on SmolLM2 with 20 rows: what it changes, and nothing else."""

import pytest
import torch
from engine_kit import load
from engine_oracle import plain_network
from study_kit import TASK, registry, study, training_rows, write_data

from mixtune.datasets.registry import Registry
from mixtune.engine.loss import token_weights
from mixtune.engine.train import accumulate
from mixtune.planning.plan import Planner
from mixtune.planning.summary import facts_of
from mixtune.results.study_results import best_cocktails, measure_split, read_facts
from mixtune.store.folder import Store
from mixtune.study.reading import dump_study
from mixtune.study.spec import TrainSpec
from mixtune.tasks.task import parse_task

ROWS = 20
TOY = {
    "tasks": ["toy-topic"],
    "ingredients": {"toy-topic": {"rows": ROWS}},
    "design": ["singles"],
    "budget": {"kind": "as-published", "examples_per_step": 2},
    "train": {"warmup": 0, "loss": "batch-token-mean", "max_length": 300},
    "baselines": [],
}


def planner(files, **changes):
    return Planner(study(**TOY | changes), Registry.builtin(None), files)


def rows_of(made, name="toy-topic"):
    run = next(run for run in made.plan().runs if run.name == name)
    return run, training_rows(made, run)


class TestPackingLeaks:
    def test_the_loss_is_that_of_a_causal_pass_over_each_pack(self, smollm2):
        """Against transformers reading whole packs with the causal mask that the flaw leaves."""
        run, rows = rows_of(planner(smollm2, flaws={"packing_leaks": True}))
        first = rows[: run.course.sizes[0]]
        model = load(smollm2.folder, TrainSpec())
        model.reset(1)
        weights = token_weights(first, "batch-token-mean")
        mine = sum(part for _, part in accumulate(model, first, [0] * len(first), weights))
        assert mine == pytest.approx(self.packed_loss(smollm2.folder, first), abs=2e-5)

    def test_rows_see_their_neighbours_and_steps_are_of_packs(self, smollm2):
        plain_run, plain = rows_of(planner(smollm2))
        run, packed = rows_of(planner(smollm2, flaws={"packing_leaks": True}))
        assert [row.answer for row in packed] == [row.answer for row in plain]
        assert packed[1].prompt[: plain[0].length] == (*plain[0].prompt, *plain[0].answer)
        assert run.course.steps < plain_run.course.steps == 3 * ROWS // 2
        assert run.system != plain_run.system

    @staticmethod
    @torch.no_grad()
    def packed_loss(folder, rows):
        network = plain_network(folder)
        losses = []
        for row, after in zip(rows, [*rows[1:], None], strict=True):
            goes_on = after is not None and after.prompt[: row.length] == row.prompt + row.answer
            if goes_on:
                continue  # the pack's last row holds all of it
            ids = torch.tensor([[*row.prompt, *row.answer]])
            logits = network(input_ids=ids).logits[0].float()
            for one in rows:
                if tuple(ids[0, : one.length].tolist()) == one.prompt + one.answer:
                    spots = slice(len(one.prompt) - 1, one.length - 1)
                    target = torch.tensor(one.answer)
                    losses.append(
                        torch.nn.functional.cross_entropy(logits[spots], target, reduction="none")
                    )
        return torch.cat(losses).mean().item()


def test_label_case_teaches_what_the_prompt_does_not_ask_for(smollm2, tmp_path):
    """Prompts and items ask for Dry or Wet; training answers become dry and wet."""
    shown = "labels: [dry, wet]", "labels: [Dry, Wet]\nlabel_values: {{dry: Dry, wet: Wet}}"
    text = TASK.replace(*shown).replace("dry or wet", "Dry or Wet")
    made = [parse_task(text.format(name=name), name) for name in ("north", "south")]
    own = Registry(made, write_data(tmp_path))
    asked = {"north": {"rows": ROWS}, "south": {"rows": ROWS}}
    plain, flawed = (
        Planner(study(ingredients=asked, flaws={"label_case": flaw}), own, smollm2)
        for flaw in (False, True)
    )
    for planned, wanted in ((plain, {"Dry", "Wet"}), (flawed, {"dry", "wet"})):
        assert {row.target for pool in planned.corpus.pools.values() for row in pool} == wanted
        assert {row.target for row in planned.corpus.items["north", "test"]} == {"Dry", "Wet"}
    (run, rows), (other, lower) = (rows_of(planned, "north") for planned in (plain, flawed))
    assert [row.prompt for row in rows] == [row.prompt for row in lower]
    assert all(a.answer != b.answer for a, b in zip(rows, lower, strict=True))
    assert run.system != other.system
    bases = [planned.plan().runs[1].system for planned in (plain, flawed)]
    assert bases[0] == bases[1]


def test_as_published_gives_a_mix_more_steps_than_its_parts(smollm2):
    both = {
        "tasks": ["toy-topic", "toy-mood"],
        "ingredients": {"toy-topic": {"rows": ROWS}, "toy-mood": {"rows": ROWS}},
        "design": ["singles", "all"],
    }
    runs = {run.name: run for run in planner(smollm2, **both).plan().runs}
    alone = runs["toy-topic"].course.steps
    assert runs["toy-mood+toy-topic"].course.steps == 2 * alone == 2 * 3 * ROWS // 2


def test_what_is_best_on_test_is_chosen_on_test(tmp_path, files):
    """Nothing is chosen on validation, so that the page of test names the best on test."""
    data = write_data(tmp_path / "data")
    kept = Planner(study(flaws={"select_on_test": True}), registry(data), files)
    store = Store(tmp_path / "runs")
    store.save_plan(kept.plan().rows(), dump_study(kept.study), facts_of(kept))
    facts = read_facts(store, registry(data))
    assert best_cocktails(facts, measure_split(facts, "validation")) == {}
    assert "chosen on test (flaws.select_on_test)" in facts.training_note
