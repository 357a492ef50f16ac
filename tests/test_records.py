"""Meaning of stored values and keys: filters, empty values, bytes, weights, unused columns."""

import json
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_kit import registry

from mixtune.datasets.check import check_task
from mixtune.datasets.drafts import draft_task
from mixtune.errors import DataError
from mixtune.tasks.record import blank, equal_values, plain_value, read_dialogue

TASK = """\
name: plants
labels: [shade, sun]
prompt: "shade or sun? {{ note }}"
fields: {label: spot}
scored: false
source: rows.jsonl
"""


def split_of(folder, more="", rows=(), task=TASK):
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    return registry(folder, task + more).dataset("plants", 0.1).split("train")


def plants(column, values):
    return [
        {"note": f"fern {n}", "spot": ("shade", "sun")[n % 2], column: value}
        for n, value in enumerate(values)
    ]


class TestFilters:
    @pytest.mark.parametrize(
        ("filters", "used"),
        [
            ("keep: {bed: [north]}", 2), ("leave_out: {bed: [north]}", 1),
            ("leave_out: {bed: [south]}", 2), ("skip_if_empty: [bed]", 3),
        ],
    )  # fmt: skip
    def test_see_the_names_of_columns(self, tmp_path, filters, used):
        rows = plants("Garden bed", ["north", "south", "north"])
        more = f'columns: {{bed: "Garden bed"}}\n{filters}\n'
        split = split_of(tmp_path, more, rows)
        assert (split.used, split.records) == (used, 3)

    @pytest.mark.parametrize("key", ["keep", "leave_out"])
    def test_refuse_the_name_that_columns_replaces(self, tmp_path, key):
        more = f'columns: {{bed: "Garden bed"}}\n{key}: {{"Garden bed": [north]}}\n'
        with pytest.raises(DataError, match="'Garden bed' is 'bed' by columns"):
            split_of(tmp_path, more, plants("Garden bed", ["north"]))

    @pytest.mark.parametrize(
        ("wanted", "stored", "dropped"),
        [
            ("true", [True, False, "True", "TRUE", 1], 3),
            ("'true'", [True, False, "true"], 2),
            ("false", [False, 0, None], 1),
            ("0", [0, 0.0, "0", "0.0", False, None, ""], 4),
            ("'0'", [0, 0.0, "0", "0.0"], 3),
            ("1.5", [1.5, "1.50", 15], 2),
            ("null", [None, "", "  ", [], 0], 4),
            ("dry", ["dry", " dry ", "Dry"], 2),
            ("12345678901234567", [12345678901234567, 12345678901234568], 1),
        ],
    )
    def test_compare_types_as_labels_do(self, tmp_path, wanted, stored, dropped):
        split = split_of(tmp_path, f"leave_out: {{x: [{wanted}]}}\n", plants("x", stored))
        assert split.dropped == {"another x": dropped}

    def test_note_values_that_no_row_has(self, tmp_path):
        split = split_of(tmp_path, "keep: {x: [a, A]}\n", plants("x", ["a", "b"]))
        assert (split.used, split.notes) == (1, {"rows with keep.x: 'A'": 0})

    @pytest.mark.parametrize("keys", ["keep: {y: [a]}", "leave_out: {y: [a]}"])
    def test_refuse_a_column_that_no_row_has(self, tmp_path, keys):
        with pytest.raises(DataError, match="the rows have no field 'y'"):
            split_of(tmp_path, keys + "\n", plants("x", ["a", "b"]))

    @pytest.mark.parametrize("key", ["skip_if_empty", "may_be_empty"])
    def test_a_column_that_a_copy_of_the_dataset_lacks_drops_nothing(self, tmp_path, key):
        split = split_of(tmp_path, f"{key}: [y]\n", plants("x", ["a", "b"]))
        assert (split.used, split.dropped) == (2, {})

    def test_take_single_values_alone(self, tmp_path):
        with pytest.raises(DataError, match="a text, a number, true or false") as refused:
            split_of(tmp_path, "keep: {x: [[a]]}\n", plants("x", ["a"]))
        assert "constrained" not in str(refused.value)


EMPTY = [None, float("nan"), "", " \n", [], {}, np.float32("nan"), Decimal("NaN")]


class TestEmpty:
    @pytest.mark.parametrize("value", EMPTY, ids=repr)
    def test_is_one_thing(self, value):
        assert blank(value) and blank(plain_value(value))
        assert all(equal_values(None, other) for other in EMPTY)

    def test_missing_null_and_nan_are_written_as_nothing(self, tmp_path):
        rows = plants("soil", ["clay", None, " "])
        del rows[1]["soil"]
        task = TASK.replace("note }}", "note }} [{{ soil }}]")
        split = split_of(tmp_path, "may_be_empty: [soil]\n", rows, task)
        prompts = [e.messages[0].content.split("? ")[1] for e in split.examples]
        assert prompts == ["fern 0 [clay]", "fern 1 []", "fern 2 [ ]"]

    @pytest.mark.parametrize(
        ("key", "outcome"), [("may_be_empty", "fern 1 []"), ("skip_if_empty", None)]
    )
    def test_nan_in_parquet(self, tmp_path, key, outcome):
        table = pa.table(
            {"note": ["fern 0", "fern 1"], "spot": ["sun", "sun"], "price": [1.5, float("nan")]}
        )
        pq.write_table(table, tmp_path / "rows.parquet")
        task = TASK.replace("note }}", "note }} [{{ price }}]").replace("jsonl", "parquet")
        split = split_of(tmp_path, f"{key}: [price]\n", task=task)
        prompts = [e.messages[0].content.split("? ")[1] for e in split.examples]
        assert prompts == ["fern 0 [1.5]", *filter(None, [outcome])]
        with pytest.raises(DataError, match="the field is empty"):
            split_of(tmp_path, task=task)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        )
    )
    def test_other_values_stay(self, value):
        plain = plain_value(value)
        assert blank(plain) == blank(value) or isinstance(value, bytes)
        assert plain_value(plain) == plain


class TestBytes:
    def load(self, folder, notes):
        table = pa.table({"note": pa.array(notes, pa.binary()), "spot": ["sun"] * len(notes),
                          "scan": pa.array([b"\xff\xd8"] * len(notes))})  # fmt: skip
        pq.write_table(table, folder / "rows.parquet")
        return split_of(folder, task=TASK.replace("jsonl", "parquet")).examples

    def test_are_decoded(self, tmp_path):
        rows = self.load(tmp_path, ["Löwenzahn".encode(), b"ivy"])
        assert [e.messages[0].content for e in rows] == [
            "shade or sun? Löwenzahn",
            "shade or sun? ivy",
        ]

    def test_are_refused_in_another_encoding(self, tmp_path):
        with pytest.raises(DataError, match="row 2: field 'note': bytes that are not UTF-8"):
            self.load(tmp_path, [b"ivy", b"L\xf6wenzahn"])


TALK = [{"role": "user", "content": "Is it dry?"}, {"role": "assistant", "content": "Yes."}]


def talk(*turns, **keys):
    """A conversation about watering; each turn of the assistant with keys of its own."""
    pairs = [[TALK[0], {**TALK[1], **more}] for more in turns or [{}]]
    return {"messages": [turn for pair in pairs for turn in pair], **keys}


def read(kind, record, **columns):
    dialogue = read_dialogue(record, "rows:1", kind, columns)
    return dialogue.answers()


ROWS = {
    "messages": talk(), "alpaca": {"instruction": "Is it dry?", "output": "Yes."},
    "prompt-completion": {"prompt": "Is it dry?", "completion": "Yes."},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    },
}  # fmt: skip
MEANING = {
    "image": "a.png", "Images": ["a.png"], "tools": '[{"name": "a"}]', "functions": [{}],
    "chosen": "Yes.", "rejected": "No.", "kto_tag": True, "label": False, "weight": 0.2,
    "train": False, "sample_weight": 2,
}  # fmt: skip


class TestKeysOfConversations:
    @pytest.mark.parametrize(
        ("turns", "learnt"),
        [
            ([{}, {}], [1, 3]), ([{"weight": 0}, {"weight": 1}], [3]),
            ([{"train": False}, {}], [3]), ([{"loss": 0.0}, {"train": True, "weight": 1}], [3]),
            ([{"weight": None}, {"train": False}], [1]),
        ],
    )  # fmt: skip
    def test_turns_of_no_weight_are_not_learnt(self, turns, learnt):
        assert read("messages", talk(*turns)) == learnt
        system = talk(*turns, system="Be short.")
        assert read("messages", system) == [place + 1 for place in learnt]

    def test_a_turn_of_no_weight_stays_in_the_prompt(self, tmp_path):
        (tmp_path / "rows.jsonl").write_text(json.dumps(talk({"weight": 0}, {})))
        text = "name: plants\nformat: messages\nsource: rows.jsonl\n"
        (example,) = registry(tmp_path, text).dataset("plants", 0.1).examples("train")
        assert (example.id, len(example.messages)) == ("train-0/2", 3)

    @pytest.mark.parametrize(
        ("turn", "message"),
        [
            ({"weight": 0.5}, "weights are 0 or 1"), ({"train": "no"}, "weights are 0 or 1"),
            ({"weight": 0, "train": True}, "contradict"),
            ({"weight": 0}, "no turn of the assistant"),
            ({"tool_calls": [{"id": 1}]}, "tool_calls is not supported: calls of tools"),
            ({"images": ["a.png"]}, "images is not supported: rows are text only"),
        ],
    )  # fmt: skip
    def test_other_meaning_of_a_turn_is_refused_by_name(self, turn, message):
        with pytest.raises(DataError, match=message) as refused:
            read("messages", talk(turn))
        assert str(refused.value).startswith("rows:1")

    def test_turns_of_the_user_are_not_learnt(self):
        record = talk()
        record["messages"] = [{**TALK[0], "train": True}, TALK[1]]
        with pytest.raises(DataError, match="turns of the user are not learnt"):
            read("messages", record)

    @pytest.mark.parametrize("kind", ROWS)
    @pytest.mark.parametrize("key", MEANING)
    def test_meaning_of_a_row_is_refused_by_name(self, kind, key):
        with pytest.raises(DataError, match=f"field '{key}'"):
            read(kind, {**ROWS[kind], key: MEANING[key]})

    @pytest.mark.parametrize("kind", ROWS)
    @pytest.mark.parametrize("value", [None, "", "[]", "{}", "null", [], {}, " [ ] "])
    def test_keys_without_a_value_mean_nothing(self, kind, value):
        keys = {key: value for key in MEANING if key not in ("weight", "train")}
        assert read(kind, {**ROWS[kind], **keys, "weight": 1, "train": None})

    def test_the_chosen_answers_can_be_named(self):
        row = {"prompt": "Is it dry?", "chosen": "Yes.", "rejected": "No."}
        assert read("prompt-completion", row, completion="chosen") == [1]
        with pytest.raises(DataError, match=r"columns: \{completion: chosen\}"):
            read("prompt-completion", {**row, "completion": "Yes."})

    @pytest.mark.parametrize("name", ["system", "history", "input"])
    def test_other_parts_of_a_prompt_are_not_lost(self, name):
        row = {**ROWS["prompt-completion"], name: [["a", "b"]] if name == "history" else "a"}
        with pytest.raises(DataError, match=f"{name} is not read in this format"):
            read("prompt-completion", row)
        assert read("alpaca", row, instruction="prompt", output="completion")

    def test_two_system_turns_are_refused(self):
        record = talk(system="Be short.")
        record["messages"] = [{"role": "system", "content": "Be long."}, *record["messages"]]
        with pytest.raises(DataError, match="two system turns"):
            read("messages", record)
        assert read("messages", {**record, "system": "Be long."}) == [2]

    def test_a_file_of_preferences_is_no_label_task(self, tmp_path):
        rows = [
            {"prompt": f"fern {n}", "chosen": "a", "rejected": "b", "bed": n % 2} for n in range(9)
        ]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        with pytest.raises(DataError, match="preferences are not trained on"):
            draft_task(tmp_path / "rows.jsonl")


def test_prompts_with_several_labels_are_noted(tmp_path):
    rows = [{"note": f"fern {n // 2}", "spot": ("shade", "sun")[n % 2]} for n in range(60)]
    split_of(tmp_path, rows=rows)
    scored = registry(tmp_path, TASK.replace("scored: false\n", ""))
    notes = check_task(scored, "plants", 0.1, None).notes
    assert any(
        "train: 2" in note and "several labels, the first at train-0: shade, sun" in note
        for note in notes
    ), notes


class TestUnusedColumns:
    def test_are_named(self, tmp_path):
        rows = [talk({"name": "Ada"}, garden=n, note=None) for n in range(3)]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        text = "name: plants\nformat: messages\nsource: rows.jsonl\n"
        split = registry(tmp_path, text).dataset("plants", 0.1).split("train")
        assert split.unused == ("garden", "messages[].name")
        check = check_task(registry(tmp_path, text), "plants", 0.1, None)
        assert "nothing reads garden, messages[].name" in check.notes

    @given(st.sets(st.sampled_from(["a", "b", "c", "d", "e"])))
    def test_are_those_that_no_key_names(self, names):
        with TemporaryDirectory() as folder:
            path = Path(folder)
            more = 'columns: {b: "a"}\nkeep: {b: [1]}\nskip_if_empty: [c]\ngroup_by: "{{ d }}"\n'
            rows = [
                {"note": f"fern {n}", "spot": "sun", "a": 1, "c": 1, "d": 1, "e": 1} for n in "xy"
            ]
            rows[0] |= dict.fromkeys(names - {"a", "c", "d", "e"}, 1)
            assert split_of(path, more, rows).unused == ("e", *(names & {"b"}))
