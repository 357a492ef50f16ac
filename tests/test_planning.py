"""Ids, mixes and the corpus: what a plan promises before anything runs."""

import dataclasses

import pytest
from study_kit import record, registry, study, tasks, training_rows, write_data, write_rows

from mixtune.cli.tables import plan_json, show_plan
from mixtune.datasets.registry import Registry
from mixtune.errors import DataError, SpecError
from mixtune.evaluation.answers import VERSIONS
from mixtune.planning.corpus import load_corpus
from mixtune.planning.plan import Planner
from mixtune.results.study_results import score_id
from mixtune.tasks.examples import query_of


def plan(data, files, **changes):
    return Planner(study(**changes), registry(data), files).plan()


def ids(plan):
    return {(r.kind, r.cocktail, r.task, r.split, r.form): r.id for r in plan.rows()}


def trained(plan):
    return {run.name: run.system for run in plan.runs if run.kind == "trained"}


def test_rows_that_changed_under_a_plan_are_not_trained_on(data, files):
    """What a worker process reads has to be what the ids were made of."""
    planned = plan(data, files)
    run = next(run for run in planned.runs if run.name == "north")
    write_rows(data, "north", "train", [record("north", "train", i) for i in range(59)])
    write_rows(data, "north", "test", [record("north", "test", i) for i in range(3, 20)])
    later = Planner(study(), registry(data), files)
    with pytest.raises(DataError, match=r"north: the data is no longer what was planned"):
        training_rows(later, run)
    answer = next(a for a in run.answers if (a.task, a.split) == ("north", "test"))
    with pytest.raises(DataError, match=r"north/test: the data is no longer what was planned"):
        later.items(answer)
    other = next(a for a in run.answers if (a.task, a.split) == ("south", "test"))
    assert len(later.items(other)) == other.items


def test_a_mix_that_cannot_be_made_is_named(data, files):
    stop = {"north": {"rows": 5, "when_exhausted": "stop"}, "south": {"rows": 20}}
    with pytest.raises(SpecError, match="cocktail north: "):
        plan(data, files, ingredients=stop)


class TestIds:
    def test_the_same_study_gets_the_same_ids_wherever_its_data_lie(self, data, files, tmp_path):
        elsewhere = write_data(tmp_path / "else" / "where")
        assert ids(plan(data, files)) == ids(plan(elsewhere, files))

    def test_paths_workers_and_the_studys_name_change_nothing(self, data, files, tmp_path):
        moved = dataclasses.replace(files, name="other", source="elsewhere")
        assert ids(plan(data, files)) == ids(plan(data, moved, name="renamed"))

    @pytest.mark.parametrize(
        "changes",
        [
            {"train": {"rank": 2, "alpha": 4, "lr": 0.002}},
            {"train": {"rank": 4, "alpha": 4}},
            {"budget": {"steps": 4, "examples_per_step": 4}},
            {"seeds": [2]},
            {"ingredients": {"north": {"rows": 9}, "south": {"rows": 11}}},
        ],
    )
    def test_what_can_change_the_weights_changes_the_train_id(self, data, files, changes):
        before, after = trained(plan(data, files)), trained(plan(data, files, **changes))
        assert before.keys() == after.keys()
        assert all(before[name] != after[name] for name in before)

    def test_another_base_model_changes_every_id_but_the_majoritys(self, data, files):
        other = dataclasses.replace(files, digest="0" * 16)
        before, after = ids(plan(data, files)), ids(plan(data, other))
        same = {key for key in before if before[key] == after[key]}
        assert {key[1] for key in same} == {"majority"}

    def test_a_changed_row_retrains_what_used_it_and_nothing_else(self, data, files):
        before = Planner(study(), registry(data), files)
        run = next(r for r in before.plan().runs if r.name == "north")
        used = training_rows(before, run)[0].example_id
        rows = [record("north", "train", i) for i in range(60)]
        for row in rows:
            if row["id"] == used:
                row["label"] = "wet" if row["label"] == "dry" else "dry"
        write_rows(data, "north", "train", rows)
        old, new = trained(before.plan()), trained(plan(data, files))
        assert {name for name in old if old[name] != new[name]} == {"north", "north+south"}

    def test_a_changed_test_row_asks_again_and_retrains_nothing(self, data, files):
        before = plan(data, files)
        rows = [record("south", "test", i) for i in range(20)]
        for row in rows:
            row["text"] += " today"
        write_rows(data, "south", "test", rows)
        after = plan(data, files)
        assert trained(before) == trained(after)
        changed = {k for k, v in ids(before).items() if ids(after)[k] != v}
        assert {(key[2], key[3]) for key in changed} == {("south", "test")}

    def test_decoding_is_in_the_answer_id_where_it_matters(self, data, files):
        longer = {**study().evaluate.model_dump(mode="json"), "max_new_tokens": 9}
        before, after = ids(plan(data, files)), ids(plan(data, files, evaluate=longer))
        changed = {key for key in before if before[key] != after[key]}
        assert changed
        assert {key[4] for key in changed} == {"strict"}
        assert "majority" not in {key[1] for key in changed}

    def test_a_mended_parser_scores_again_and_changes_no_other_id(self, data, files, monkeypatch):
        before = plan(data, files)
        task = tasks()[0]
        score_before = score_id("a", task, "strict")
        monkeypatch.setitem(VERSIONS, "strict", 99)
        assert score_id("a", task, "strict") != score_before
        assert ids(plan(data, files)) == ids(before)

    def test_one_system_has_one_folder_and_answers_have_ids_of_their_own(self, data, files):
        rows = plan(data, files).rows()
        assert len({row.id for row in rows}) == len(rows)
        assert {row.folder.split("/")[0] for row in rows} == {"cells"}


class TestMix:
    def test_an_ingredient_contributes_a_prefix_of_the_same_order(self, data, files):
        planner = Planner(study(), registry(data), files)
        runs = {run.name: run for run in planner.plan().runs if run.kind == "trained"}
        alone = [row.example_id for row in training_rows(planner, runs["north"])]
        mixed = [
            row.example_id
            for row in training_rows(planner, runs["north+south"])
            if row.ingredient == "north"
        ]
        assert len(mixed) == 6
        assert mixed == alone[:6]

    def test_every_cocktail_gets_the_same_number_of_examples(self, data, files):
        for run in plan(data, files).runs:
            if run.kind == "trained":
                assert sum(row.rows_got for row in run.mix) == 12
                assert all(row.supervised_tokens > 0 for row in run.mix)

    def test_more_rows_than_there_are_is_refused(self, data, files):
        with pytest.raises(SpecError, match="has fewer rows than requested"):
            plan(data, files, ingredients={"north": {"rows": 500}})

    def test_over_long_examples_follow_the_policy_and_are_counted(self, data, files):
        short = {"rank": 2, "alpha": 4, "max_length": 99}
        with pytest.raises(DataError, match="too long"):
            plan(data, files, train=short)
        planner = Planner(study(train={**short, "over_long": "drop"}), registry(data), files)
        row = next(r for r in planner.plan().runs if r.name == "north").mix[0]
        whole = len(load_corpus(study(), registry(data)).pools["north"])
        assert 0 < row.dropped_overlong < whole
        assert row.rows_available + row.dropped_overlong == whole


SHARES = {
    "north": {"share": 0.7, "unit": "tokens"},
    "south": {"rows": 20},
}


def cells(plan):
    return {run.name: run for run in plan.runs if run.kind == "trained"}


class TestAmounts:
    def test_shares_of_tokens_are_met_to_within_a_row(self, data, files):
        """South's prompts are made three times as long: rows alone would not give the share."""
        rows = [record("south", "train", i) for i in range(60)]
        for row in rows:
            row["text"] *= 3
        write_rows(data, "south", "train", rows)
        budget = {"steps": 20, "examples_per_step": 4}
        made = plan(data, files, ingredients=SHARES, budget=budget)
        north, south = cells(made)["north+south"].mix
        assert (north.unit, north.share_asked, south.share_asked) == ("tokens", 0.7, 0.3)
        assert north.share_got == pytest.approx(0.7, abs=0.01)
        assert north.share_got == north.tokens / (north.tokens + south.tokens)
        assert north.rows_got + south.rows_got == 80
        assert north.rows_got / 80 > 0.8
        alone = cells(made)["north"].mix[0]
        assert (alone.share_asked, alone.share_got, alone.rows_got) == (1.0, 1.0, 80)

    def test_every_seed_gets_the_same_mix(self, data, files):
        made = plan(data, files, ingredients=SHARES, seeds=[1, 2, 3])
        got = {tuple(row.rows_got for row in run.mix) for run in made.runs if len(run.mix) == 2}
        assert len(got) == 1

    def test_supervised_tokens_are_another_measure(self, data, files):
        shares = {"north": {"share": 0.5, "unit": "supervised_tokens"}, "south": {"share": 0.5}}
        north, south = cells(plan(data, files, ingredients=shares))["north+south"].mix
        total = north.supervised_tokens + south.supervised_tokens
        assert north.unit == "supervised_tokens"
        assert north.share_got == north.supervised_tokens / total

    def test_shares_of_rows_need_no_tokenizer(self, data):
        shares = {"north": {"share": 0.25}, "south": {"rows": 20, "repeat": 2}}
        north, south = cells(plan(data, None, ingredients=shares))["north+south"].mix
        assert (north.rows_got, south.rows_got) == (3, 9)
        assert (north.unit, north.share_asked, north.share_got) == ("rows", 0.25, 0.25)

    def test_shares_of_tokens_without_a_tokenizer_are_open(self, data, capsys):
        planner = Planner(study(ingredients=SHARES), registry(data), None)
        made = planner.plan()
        for run in cells(made).values():
            assert (run.system, run.mix, run.tokens) == ("", (), 0)
        show_plan(made, planner)
        assert "shares of tokens need the base model's tokenizer" in capsys.readouterr().out

    def test_a_plan_shows_asked_against_got(self, data, files, capsys):
        stop = {"north": {"rows": 2, "when_exhausted": "stop"}, "south": {"rows": 4}}
        planner = Planner(study(ingredients=stop, design=["all"]), registry(data), files)
        made = planner.plan()
        north, south = cells(made)["north+south"].mix
        assert (north.rows_got, north.exhausted) == (2, "stopped")
        assert (south.rows_got, south.exhausted) == (10, "repeated")
        assert (north.share_asked, north.share_got) == (1 / 3, 1 / 6)
        show_plan(made, planner)
        text = " ".join(capsys.readouterr().out.split())
        for piece in ("north:2", "south:10 (×2.5)", "north 33.3% → 16.7%, used up", "stop"):
            assert piece in text
        assert plan_json(made)["runs"][-1]["mix"][0]["share_asked"] == 1 / 3

    def test_supplies_that_cannot_fill_the_budget_are_refused(self, data, files):
        stop = {name: {"rows": 2, "when_exhausted": "stop"} for name in ("north", "south")}
        with pytest.raises(SpecError, match="cannot fill the budget of 12 examples"):
            plan(data, files, ingredients=stop)
        error = {"north": {"rows": 2, "when_exhausted": "error"}}
        with pytest.raises(SpecError, match="12 examples needed, 2 available"):
            plan(data, files, ingredients=error, design=["singles"])

    def test_another_way_of_asking_for_the_same_rows_changes_no_id(self, data, files):
        plain = trained(plan(data, files))
        for keys in ({"when_exhausted": "stop"}, {"repeat": 2}, {"rows": None, "share": 0.5}):
            asked = {name: {"rows": 20} | keys for name in ("north", "south")}
            assert trained(plan(data, files, ingredients=asked)) == plain
        other = {"north": {"rows": 20, "repeat": 2}, "south": {"rows": 20}}
        changed = trained(plan(data, files, ingredients=other))
        assert {name for name in plain if changed[name] != plain[name]} == {"north+south"}


class TestCorpus:
    def test_validation_is_carved_from_train_where_there_is_none(self, data):
        corpus = load_corpus(study(), registry(data))
        train = {e.id for e in corpus.pools["north"]}
        held = {e.id for e in registry(data).dataset("north", 0.1).examples("validation")}
        assert held
        assert not train & held
        assert len(train) + len(held) == 60

    def test_a_train_row_that_stands_in_test_is_dropped_and_counted(self, data):
        before = load_corpus(study(), registry(data))
        rows = [record("south", "test", i) for i in range(20)]
        rows[3]["text"] = before.pools["north"][0].messages[-1].content.split("\n")[-1].upper()
        write_rows(data, "south", "test", rows)
        after = load_corpus(study(), registry(data))
        assert after.leaked_train == {"north": 1, "south": 0}
        gone = {e.id for e in before.pools["north"]} - {e.id for e in after.pools["north"]}
        assert gone == {before.pools["north"][0].id}

    def test_leaks_stop_the_plan_when_asked_to(self, data):
        rows = [record("south", "test", i) for i in range(20)]
        rows[3]["text"] = record("north", "train", 1)["text"]
        write_rows(data, "south", "test", rows)
        strict = {**study().evaluate.model_dump(mode="json"), "leaked": "error"}
        with pytest.raises(DataError, match="also stand in an evaluation split"):
            load_corpus(study(evaluate=strict), registry(data))

    def test_more_items_add_items_and_change_no_training_row(self, data, files):
        more = {**study().evaluate.model_dump(mode="json"), "test_items": 15}
        small, large = plan(data, files), plan(data, files, evaluate=more)
        assert trained(small) == trained(large)


class TestRenderer:
    def test_training_and_evaluation_share_one_renderer(self, data, files):
        """The prompt part of a training row is the evaluation prompt, token for token."""
        planner = Planner(study(), registry(data), files)
        run = next(r for r in planner.plan().runs if r.name == "north")
        pool = {e.id: e for e in planner.corpus.pools["north"]}
        for row in training_rows(planner, run):
            asked = query_of(pool[row.example_id])
            assert list(row.prompt) == planner.tokens.prompt_ids(asked.messages)

    @pytest.mark.weights
    def test_also_for_every_built_in_toy_task_and_the_real_tokenizer(self, smollm2):
        builtin = Registry.builtin()
        names = [n for n in builtin.names() if builtin.get(n).synthetic]
        scored = [n for n in names if builtin.get(n).scored]
        assert len(scored) >= 5
        toy = study(
            tasks=scored,
            ingredients={name: {"rows": 20} for name in names},
            design=["all"],
            train={},
        )
        planner = Planner(toy, builtin, smollm2)
        run = next(r for r in planner.plan().runs if r.kind == "trained")
        pools = {n: {e.id: e for e in planner.corpus.pools[n]} for n in names}
        rows = training_rows(planner, run)
        assert len(rows) == 12
        for row in rows:
            asked = query_of(pools[row.ingredient][row.example_id])
            assert list(row.prompt) == planner.tokens.prompt_ids(asked.messages)


class TestNames:
    def test_an_unknown_task_gets_a_suggestion(self, data, files):
        with pytest.raises(SpecError, match="'north'"):
            plan(data, files, tasks=["nort"])

    def test_an_ingredient_that_is_not_scored_cannot_be_a_task(self):
        with pytest.raises(SpecError, match="is not scored"):
            Planner(study(tasks=["toy-general"]), Registry.builtin(), None)

    def test_aliases_become_names(self):
        asked = study(
            tasks=["toy_sentiment"], ingredients={"toy_sentiment": {"rows": 9}}, design=["singles"]
        )
        made = Planner(asked, Registry.builtin(), None).plan()
        assert made.study.tasks == ("toy-sentiment",)
        assert {run.name for run in made.runs} == {"majority", "base", "toy-sentiment"}

    def test_without_weights_cells_are_listed_and_unresolved(self, data):
        made = Planner(study(), registry(data), None).plan()
        assert {run.system for run in made.runs if run.kind != "majority"} == {""}
        assert all(row.rows_got == 12 or row.rows_got == 6 for r in made.runs for row in r.mix)
