"""The benchmark's small tools: commands, rankings of two studies, kinds of operations, rounding."""

import json
import math

import pytest

from bench import command, rounding
from bench.rankings import compare, means
from bench.where import kind_of, shares


def row(task, cocktail, seed, value, form="constrained", metric="accuracy"):
    fields = {"task": task, "cocktail": cocktail, "seed": seed, "value": value}
    return {**fields, "form": form, "metric": metric}


ROWS = [
    row("t", "a", 1, 0.8),
    row("t", "a", 2, 0.6),
    row("t", "b", 1, 0.5),
    row("t", "a+b", 1, 0.4),
    row("t", "a", 1, 0.1, form="strict"),
    row("t", "a", 1, 0.1, metric="macro_f1"),
    row("t", "majority", None, 0.9),
]


class TestRankings:
    def test_means_are_of_seeds_in_one_form_and_metric(self):
        assert means(ROWS) == {"t": {"a": pytest.approx(0.7), "b": 0.5, "a+b": 0.4}}

    def test_what_choosing_by_the_other_costs(self):
        mine = {"t": {"a": 0.7, "b": 0.5, "a+b": 0.4}}
        (same,) = compare(mine, mine)
        assert (same["kendall_tau_b"], same["lost_by_choosing_it"]) == (1.0, 0.0)
        (found,) = compare(mine, {"t": {"a": 0.3, "b": 0.5, "a+b": 0.4}})
        assert found["best_of_other"] == "b"
        assert found["lost_by_choosing_it"] == pytest.approx(0.2)
        assert found["kendall_tau_b"] == pytest.approx(-1 / 3, abs=1e-3)

    def test_all_equal_is_no_ranking(self):
        (found,) = compare({"t": {"a": 0.5, "b": 0.4}}, {"t": {"a": 0.5, "b": 0.5}})
        assert found["kendall_tau_b"] is None

    def test_other_cocktails_are_refused(self):
        with pytest.raises(ValueError, match="differ in tasks or cocktails"):
            compare({"t": {"a": 0.5}}, {"t": {"b": 0.5}})


def test_products_are_told_apart_by_the_rank():
    assert kind_of("aten::mm", [[700, 576], [576, 16]], 16) == "products of adapters"
    assert kind_of("aten::addmm_", [[700, 576], [576, 576]], 16) == "products of the base"
    assert kind_of("aten::bmm", [], 16) == "attention: products"
    found = shares([("aten::mm", [[4, 4]], 3.0), ("aten::mul", [], 1.0), ("other", [], 9.0)], 16)
    assert found == {"products of the base": 0.75, "elementwise, norms, rotations, optimiser": 0.25}


class TestRounding:
    def test_banked_and_solo_are_equally_good_in_bfloat16(self):
        """Five seeds; the difference of their means within three standard errors, or one item."""
        found = rounding.measure(5, rounding.How(items=120))
        error = found["sd_of_difference"] / math.sqrt(5)
        assert abs(found["mean_difference"]) <= max(3 * error, 1 / 120)
        assert min(found["solo"]) > 0.6, "the task was not learnt, so nothing is compared"
        assert 0 <= found["flip_rate"] < 0.2

    def test_in_float32_hardly_an_answer_flips(self):
        spec = rounding.SPEC.model_copy(update={"compute": "float32"})
        found = rounding.measure(2, rounding.How(spec=spec, items=60))
        assert found["flip_rate"] <= 1 / 60
        assert max(found["weights_apart"]) < 1e-4


class TestCommand:
    """A command of mixtune in a process of its own."""

    def test_it_is_run_timed_and_weighed(self, tmp_path):
        took = command.run(tmp_path, "data", "leaks", "--task", "toy-mood", "--json")
        assert json.loads(took.printed)["records"]["toy-mood/train"] > 0
        assert took.seconds > 0
        assert 1e7 < took.bytes < 1e10

    def test_what_a_failure_said_is_passed_on(self, tmp_path):
        with pytest.raises(SystemExit, match="nowhere"):
            command.run(tmp_path, "plan", "nowhere.yaml")
