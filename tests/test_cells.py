"""Cells: doses, controls, the published budget, and the flaws that can be switched on."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from study_kit import registry, study, training_rows

from mixtune.errors import SpecError
from mixtune.planning.cells import cells, sorted_title, title
from mixtune.planning.corpus import leaking_packs
from mixtune.planning.mixing import mix
from mixtune.planning.plan import Planner
from mixtune.study.reading import parse_study, trial
from mixtune.study.spec import RunLength, Study
from mixtune.tokens import Row

NAMES = ("a", "b", "c", "d")
AVAILABLE = {"a": 100, "b": 60, "c": 1000, "d": 30}


def asked(**changes) -> Study:
    raw = {
        "name": "x",
        "model": "m",
        "tasks": ["a", "b"],
        "ingredients": {name: {} for name in NAMES},
        "design": ["singles", "all"],
        "budget": {"steps": 10, "examples_per_step": 8},
    }
    return parse_study(raw | changes)


def by_name(given, available=None):
    return {cell.name: cell for cell in cells(given, available or AVAILABLE)}


BUDGET = {"kind": "as-published", "examples_per_step": 8}
TRAIN = {"warmup": 0}
LEVEL = {"name": "general", "add": ["c", "d"], "to": ["a", "b"], "shares": [0, 0.1, 0.5]}


class TestPublished:
    def test_steps_follow_from_rows_and_epochs(self):
        found = by_name(asked(budget=BUDGET, train=TRAIN, design=["singles", "all"]))
        assert found["a"].course == RunLength(300, 8, 0)
        assert found["a"].course.steps == 38
        whole = found["a+b+c+d"].course
        assert (whole.examples, whole.warmup_steps) == (2 * 1190, 10)

    def test_three_ingredients_are_few_and_four_are_not(self):
        listed = {"explicit": [["a", "b", "c"], ["a", "b", "c", "d"]]}
        found = by_name(asked(budget=BUDGET, train=TRAIN, design=listed))
        assert found["a+b+c"].course == RunLength(3 * 1160, 8, 0)
        assert found["a+b+c+d"].course == RunLength(2 * 1190, 8, 10)

    def test_rows_are_a_cap(self):
        amounts = {"a": {"rows": 5000}, "b": {"rows": 20}}
        found = by_name(asked(budget=BUDGET, train=TRAIN, ingredients=amounts))
        assert found["a+b"].course.examples == 3 * 120
        assert found["a"].amounts["a"].rows == 100

    def test_every_row_is_seen_once_in_each_epoch(self, data, files):
        planner = Planner(
            study(budget=BUDGET, train={"warmup": 0, "rank": 2, "alpha": 4}),
            registry(data),
            files,
        )
        run = next(run for run in planner.plan().runs if run.name == "north+south")
        seen = [row.example_id for row in training_rows(planner, run)]
        assert len(seen) == run.course.examples == 3 * 40
        assert set(map(seen.count, seen)) == {3}
        assert {row.repeats for row in run.mix} == {3.0}

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"train": {}}, "sets the warm-up"),
            ({"budget": BUDGET | {"steps": 7}}, "takes its steps from the rows"),
            ({"budget": BUDGET | {"more_epochs": 2}}, "sets the epochs"),
            ({"ingredients": {"a": {"share": 0.5}, "b": {}}}, "there are no shares"),
        ],
    )
    def test_what_it_sets_itself_cannot_be_set(self, changes, said):
        with pytest.raises(SpecError, match=said):
            asked(**{"budget": BUDGET, "train": TRAIN} | changes)

    def test_a_trial_has_few_rows(self):
        given = trial(asked(budget=BUDGET, train=TRAIN), 5)
        assert by_name(given)["a+b+c+d"].course.examples == 2 * 20


class TestLevels:
    def doses(self, **changes):
        design = {"levels": [LEVEL]}
        return by_name(
            asked(design=design, budget={"steps": 100, "examples_per_step": 16}, **changes)
        )

    def test_a_dose_is_its_part_of_the_examples_and_the_mix_keeps_its_proportions(self):
        found = self.doses()
        assert list(found) == [
            "a+b",
            "a+b+c+d (general 10%)",
            "a+b+c+d (general 50%)",
        ]
        for cell, dose in zip(found.values(), (0, 0.1, 0.5), strict=True):
            pools = {name: examples(name, AVAILABLE[name]) for name in cell.cocktail}
            got = {k: v.rows for k, v in mix(pools, cell.amounts, 1600, 1).counts.items()}
            assert sum(got.get(name, 0) for name in "cd") == 1600 * dose
            assert got["a"] / (got["a"] + got["b"]) == pytest.approx(100 / 160, abs=1e-3)
            if dose:
                assert got["c"] / (got["c"] + got["d"]) == pytest.approx(1000 / 1030, abs=0.01)

    def test_no_dose_is_the_plain_cocktail_for_every_series(self, data, files):
        """As in the preset finance, whose two series begin with the same mix."""
        levels = [
            {"name": name, "add": ["south"], "to": ["north"], "shares": [0, dose]}
            for name, dose in (("one", 0.25), ("other", 0.5))
        ]
        given = study(design={"families": ["singles"], "levels": levels})
        runs = [r for r in Planner(given, registry(data), files).plan().runs if r.seed]
        assert [run.name for run in runs] == [
            "north",
            "south",
            "north+south (one 25%)",
            "north+south (other 50%)",
        ]
        assert len({run.system for run in runs}) == len(runs)

    def test_two_cells_that_are_one_run_are_refused(self, data, files):
        levels = [
            {"name": name, "add": ["south"], "to": ["north"], "shares": [0.25]}
            for name in ("one", "other")
        ]
        given = study(design={"levels": levels})
        with pytest.raises(SpecError, match="train on the same rows"):
            Planner(given, registry(data), files).plan()

    def test_every_step_has_its_dose(self):
        cell = self.doses()["a+b+c+d (general 50%)"]
        pools = {name: examples(name, AVAILABLE[name]) for name in cell.cocktail}
        order = [name for name, _ in mix(pools, cell.amounts, 1600, 1).order]
        steps = [order[i : i + 16] for i in range(0, 1600, 16)]
        added = [sum(name in "cd" for name in step) for step in steps]
        assert max(added) - min(added) <= 4
        assert min(added) >= 6

    def test_base_and_addition_are_apart_and_known(self):
        for level, said in (
            (LEVEL | {"add": ["a"]}, "names an ingredient twice"),
            (LEVEL | {"add": ["zz"]}, "no ingredient"),
            (LEVEL | {"shares": [0.1, 0.1]}, "names the same thing twice"),
            (LEVEL | {"shares": [1]}, "less than 1"),
        ):
            with pytest.raises(SpecError, match=said):
                asked(design={"levels": [level]})

    def test_shares_of_tokens_do_not_go_with_parts_of_a_step(self):
        tokens = {n: {"share": 0.25, "unit": "tokens"} for n in NAMES}
        with pytest.raises(SpecError, match="levels are parts of the examples"):
            asked(design={"levels": [LEVEL]}, ingredients=tokens)


class TestControls:
    def test_a_single_task_on_what_each_cocktail_saw_of_it(self):
        budget = {"kind": "equal-exposure", "steps": 10, "examples_per_step": 8}
        found = by_name(asked(budget=budget, design=["all"]))
        whole = mix(
            {n: examples(n, AVAILABLE[n]) for n in NAMES}, found["a+b+c+d"].amounts, 80, 1
        ).counts
        a, b = whole["a"].rows, whole["b"].rows
        assert list(found) == ["a+b+c+d", f"a ({a} examples)", f"b ({b} examples)"]
        assert found[f"a ({a} examples)"].course.examples == a
        assert all(cell.course.examples_per_step == 8 for cell in found.values())

    @pytest.mark.parametrize("seed", [1, 2])
    def test_it_sees_exactly_the_targets_rows_in_the_cocktails_order(self, data, files, seed):
        budget = {"kind": "equal-exposure", "steps": 5, "examples_per_step": 3}
        planner = Planner(study(budget=budget, seeds=[seed]), registry(data), files)
        runs = {run.name: run for run in planner.plan().runs}
        both = training_rows(planner, runs["north+south"])
        for task in ("north", "south"):
            own = [row for row in both if row.ingredient == task]
            control = runs[f"{task} ({len(own)} examples)"]
            assert training_rows(planner, control) == own
            assert control.course.steps == -(-len(own) // 3)

    def test_single_tasks_for_longer(self):
        budget = {"steps": 10, "examples_per_step": 8, "more_epochs": 3}
        found = by_name(asked(budget=budget))
        assert found["a (240 examples)"].course == RunLength(240, 8)
        assert "c (240 examples)" not in found, "c is no task"

    def test_plain_cells_keep_their_ids_beside_controls(self, data, files):
        def ids(**budget):
            given = study(budget={"steps": 3, "examples_per_step": 4, **budget})
            runs = Planner(given, registry(data), files).plan().runs
            return {run.name: run.system for run in runs}

        plain, more = ids(), ids(kind="equal-exposure", more_epochs=2)
        assert plain.items() < more.items()
        assert len(set(more.values())) == len(more)


class TestNames:
    @given(st.lists(st.from_regex(r"[a-z0-9][a-z0-9-]{0,8}", fullmatch=True), min_size=1))
    def test_a_cocktail_may_be_typed_in_any_order(self, names):
        assert sorted_title("+".join(reversed(names))) == title(sorted(names))

    def test_a_row_of_the_plan_has_what_its_name_says_as_fields(self, data, files):
        budget = {"steps": 4, "examples_per_step": 2, "merged": True, "more_epochs": 2}
        asked = study(
            design=["singles", "all"], budget=budget, claims={"tune_lr": [0.5]}, seeds=[1]
        )
        rows = Planner(asked, registry(data), files).plan().rows()
        fields = {
            row.cocktail: (row.system_kind, row.ingredients, row.note, row.lr)
            for row in rows
            if row.kind == "answer"
        }
        assert fields["base"] == ("base", (), "", None)
        assert fields["majority"] == ("majority", (), "", None)
        assert fields["north+south"] == ("trained", ("north", "south"), "", None)
        assert fields["north+south (merged)"] == ("merged", ("north", "south"), "merged", None)
        assert fields["north (lr 0.5)"] == ("trained", ("north",), "lr 0.5", 0.5)
        assert fields["north (16 examples)"] == ("trained", ("north",), "16 examples", None)
        assert {row.strength for row in rows} == {1.0}
        assert {row.scaled_from for row in rows} == {""}


class TestFlaws:
    @given(
        st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=12),
        st.integers(4, 30),
        st.integers(1, 3),
    )
    def test_a_pack_is_what_stands_in_front(self, shapes, length, step):
        rows = [
            Row("a", str(i), tuple(range(p)), tuple(range(100, 100 + a)))
            for i, (p, a) in enumerate(shapes)
        ]
        grown, course = leaking_packs(rows, RunLength(len(rows), step), length)
        assert [row.answer for row in grown] == [row.answer for row in rows]
        before: tuple[int, ...] = ()
        packs = 0
        for plain, row in zip(rows, grown, strict=True):
            if len(before) + plain.length > length or not before:
                before = ()
                packs += 1
            assert row.prompt == before + plain.prompt
            before = row.prompt + row.answer
            assert row.length <= max(length, plain.length)
        assert sum(course.sizes) == len(rows)
        assert course.steps == -(-packs // step)

    def test_packing_changes_rows_steps_and_ids(self, data, files):
        given = {"train": {"rank": 2, "alpha": 4, "max_length": 256}}
        plain = Planner(study(**given), registry(data), files)
        flawed = Planner(study(**given, flaws={"packing_leaks": True}), registry(data), files)
        one, other = ({r.name: r for r in p.plan().runs}["north"] for p in (plain, flawed))
        assert one.system != other.system
        assert other.course.sizes
        assert sum(other.course.sizes) == one.course.examples
        alone, packed = (
            training_rows(plain, one),
            training_rows(flawed, other),
        )
        assert [row.answer for row in alone] == [row.answer for row in packed]
        assert max(row.length for row in packed) > max(row.length for row in alone)


def examples(name, count):
    from mixtune.records import Example, Message

    return [
        Example(
            name, f"{name}{i}", "train", f"{name}{i}", "", (Message("user", f"{name} {i}"),), "x"
        )
        for i in range(count)
    ]


def test_parts_add_up_exactly():
    """Shares in ten thousandths come from fractions, not from rounding."""
    level = {"name": "g", "add": ["c"], "to": ["a", "b"], "shares": [0.01]}
    (cell,) = cells(asked(design={"levels": [level]}), AVAILABLE)
    total = sum((Fraction(repr(one.share)) for one in cell.amounts.values()), Fraction(0))
    assert total == pytest.approx(1, abs=1e-12)
