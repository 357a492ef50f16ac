"""What a stored value means: filters, empty values, bytes."""

import json
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_kit import registry

from mixtune.errors import DataError
from mixtune.tasks.record import blank, equal_values, plain_value

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

    @pytest.mark.parametrize(
        "keys", ["keep: {y: [a]}", "leave_out: {y: [a]}", "skip_if_empty: [y]"]
    )
    def test_refuse_a_column_that_no_row_has(self, tmp_path, keys):
        with pytest.raises(DataError, match="the rows have no field 'y'"):
            split_of(tmp_path, keys + "\n", plants("x", ["a", "b"]))

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
