"""Length limits from gold answers: what they follow from, and what they do not."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from study_kit import registry, study, write_rows
from study_kit import tasks as weather

from mixtune.datasets.registry import Registry
from mixtune.errors import DataError, SpecError
from mixtune.identity import digest
from mixtune.planning.corpus import gold_answers
from mixtune.planning.mixing import longest_answer
from mixtune.planning.plan import Planner
from mixtune.planning.summary import facts_of, size_lines, sizes_of
from mixtune.study.reading import trial
from mixtune.tasks.task import parse_task
from mixtune.tokens import Tokens

OPEN = """
name: {name}
title: Sums
about: Invented sums.
version: 1
kind: open
prompt: "{{{{ text }}}}"
target: "{{{{ label }}}}"
fields: {{label: label}}
group_by: "{{{{ text }}}}"
parser: text
metrics: [accuracy]
source: {{local: {{folder: {name}}}}}
licence: none
"""


@pytest.fixture(scope="module")
def tokens(files):
    return Tokens.load(files.folder)


class Counted:
    """A tokenizer of one token a letter, and the end of turn."""

    reasoning = False

    def batch_answer_ids(self, answers):
        return ([0] * (len(text) + 1) for _, text in answers)


def evaluate(**changes):
    return {**study().evaluate.model_dump(mode="json"), **changes}


def planner(data, files, own=None, **changes):
    changes = {"evaluate": evaluate(max_new_tokens=None), **changes}
    return Planner(study(**changes), own or registry(data), files)


def ids(plan):
    return {row.key: row.id for row in plan.rows()}


class TestPercentile:
    @pytest.mark.parametrize(
        ("lengths", "wanted"),
        [
            ([5], 5),
            ([1] * 99 + [9], 1),
            ([1] * 98 + [7, 9], 7),
            ([1] * 199 + [9], 1),
            ([1] * 197 + [8, 9, 9], 8),
            (range(1, 101), 99),
            (range(1, 51), 50),
        ],
    )
    def test_is_the_nearest_rank(self, lengths, wanted):
        assert longest_answer(["x" * length for length in lengths], Counted()) == wanted + 1

    @given(st.lists(st.integers(0, 40), min_size=1, max_size=300))
    def test_is_that_of_the_definition(self, lengths):
        found = longest_answer(["x" * length for length in lengths], Counted()) - 1
        assert found == sorted(lengths)[math.ceil(len(lengths) * 99 / 100) - 1]

    def test_counts_the_end_of_turn(self, tokens):
        assert longest_answer(["wet"], tokens) == len(tokens.answer_ids("wet")) == 4

    def test_of_nothing_is_refused(self, tokens):
        with pytest.raises(DataError, match="no answers"):
            longest_answer([], tokens)


def write_sums(data, lengths, split="train", name="sums"):
    """Rows whose answers have so many letters, and as many tokens but the end of turn."""
    rows = [
        {"id": f"{split}{i}", "text": f"{split} sum number {i} of {name}", "label": "7" * n}
        for i, n in enumerate(lengths)
    ]
    write_rows(data, name, split, rows)


def sums(data, files, tasks=("sums",), trained=("sums",)):
    """A planner of a study with a task of open answers, of the rows that lie there now."""
    own = Registry([parse_task(OPEN.format(name="sums"), "sums.yaml"), *weather()], data)
    changes = {"tasks": tasks, "ingredients": {name: {"rows": 20} for name in trained}}
    return planner(data, files, own, **changes)


class TestWhatItFollowsFrom:
    def test_is_the_train_split_as_the_study_sees_it(self, data, files):
        write_sums(data, [1] * 50 + [5] * 10)
        write_sums(data, [3] * 20, "test")
        made = sums(data, files)
        gold = gold_answers(made.corpus.datasets["sums"])
        assert 40 < len(gold) < 60  # the rest became validation
        assert made.max_new_tokens("sums") == 6

    def test_each_task_has_its_own(self, data, files):
        write_sums(data, [9] * 60)
        write_sums(data, [3] * 20, "test")
        made = sums(data, files, ("north", "sums"))
        wanted = {"north": 4, "sums": 10}
        assert sizes_of(made)["max_new_tokens"] == wanted
        for run in made.plan().runs:
            for answer in run.answers:
                generated = answer.form == "strict" and run.kind != "majority"
                assert answer.max_new_tokens == (wanted[answer.task] if generated else 0)

    def test_test_rows_play_no_part(self, data, files):
        write_sums(data, [1] * 60)
        found = []
        for longest in (1, 40):
            write_sums(data, [longest] * 20, "test")
            made = sums(data, files)
            assert made.max_new_tokens("sums") == 2
            found.append({k: i for k, i in ids(made.plan()).items() if k[4] != "test"})
        assert found[0] == found[1]

    def test_a_train_row_that_leaks_counts_all_the_same(self, data, files):
        """Else another test row, or another task in the study, could move the limit."""
        write_sums(data, [30] * 60)
        write_sums(data, [3] * 20, "test")
        before = sums(data, files)
        rows = [{"id": f"x{i}", "text": e.messages[-1].content, "label": "7"}
                for i, e in enumerate(before.corpus.pools["sums"][:20])]  # fmt: skip
        write_rows(data, "sums", "test", rows)
        after = sums(data, files)
        assert (before.corpus.leaked_train, after.corpus.leaked_train) == (
            {"sums": 0},
            {"sums": 20},
        )
        assert after.max_new_tokens("sums") == before.max_new_tokens("sums") == 31

    def test_validation_stands_in_where_there_is_no_train_row(self, data, files):
        write_sums(data, [8] * 5, "validation")
        write_sums(data, [20] * 20, "test")
        assert sums(data, files, trained=("north",)).max_new_tokens("sums") == 9

    def test_a_trial_keeps_it(self, data, files):
        write_sums(data, [1] * 50 + [5] * 10)
        write_sums(data, [3] * 20, "test")
        made = sums(data, files)
        cut = Planner(trial(made.study, 3), made.registry, files)
        assert cut.study.evaluate.max_new_tokens is None
        assert cut.max_new_tokens("sums") == made.max_new_tokens("sums")


class TestIds:
    def test_the_same_number_given_gives_the_same_ids(self, data, files):
        found, given = planner(data, files), study(evaluate=evaluate(max_new_tokens=4))
        assert found.max_new_tokens("north") == 4
        assert ids(found.plan()) == ids(Planner(given, registry(data), files).plan())

    def test_only_strict_answers_depend_on_it(self, data, files):
        before, after = ids(planner(data, files).plan()), ids(
            Planner(study(evaluate=evaluate(max_new_tokens=9)), registry(data), files).plan()
        )  # fmt: skip
        changed = {key for key in before if before[key] != after[key]}
        assert changed and {key[5] for key in changed} == {"strict"}

    def test_a_given_number_keeps_the_ids_that_it_had(self, data, files):
        """Ids as they were made before a limit could follow from the data."""
        plan = Planner(study(), registry(data), replace(files, digest="0" * 16)).plan()
        base = next(run for run in plan.runs if run.kind == "base")
        found = {
            form: digest(sorted(a.id for a in base.answers if a.form == form))
            for form in ("strict", "constrained")
        }
        assert found == {"strict": "a14f263794fdfea9", "constrained": "d5839ea44a9fd7b4"}
        assert {(a.form, a.max_new_tokens) for a in base.answers} == {
            ("strict", 6),
            ("constrained", 0),
        }


class TestShown:
    def test_with_the_plan(self, data, files):
        made = planner(data, files)
        assert sizes_of(made) == {"max_new_tokens": {"north": 4, "south": 4}, "top_layers": None}
        assert facts_of(made)["sizes"] == sizes_of(made)
        (line,) = size_lines(made)
        assert line == (
            "longest answer in tokens: north 4, south 4 (99th percentile of the gold answers)"
        )

    def test_a_number_given(self, data, files):
        made = Planner(study(), registry(data), files)
        assert size_lines(made) == [
            "longest answer in tokens: north 6, south 6 (evaluate.max_new_tokens)"
        ]

    def test_nothing_where_nothing_is_generated(self, data, files):
        made = planner(data, files, evaluate=evaluate(max_new_tokens=None, forms=["constrained"]))
        assert (sizes_of(made)["max_new_tokens"], size_lines(made)) == ({}, [])

    def test_open_before_there_is_a_tokenizer(self, data):
        made = planner(data, None)
        assert (sizes_of(made)["max_new_tokens"], size_lines(made)) == ({}, [])
        made.plan()
        with pytest.raises(SpecError, match="cannot be resolved"):
            made.max_new_tokens("north")
        assert Planner(study(), registry(data), None).max_new_tokens("north") == 6
