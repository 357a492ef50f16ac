"""Tests for TSV files with and without quoting."""

import csv

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtune.datasets.rows import read_rows

HEADER = "text\ttopic"


def texts(path, lines):
    path.write_text("\n".join([HEADER, *lines, ""]), encoding="utf-8")
    return [row.record["text"] for row in read_rows(path)]


@pytest.mark.parametrize(
    "lines",
    [
        ['"Open it\tbox', "fine\tbag", 'shut it"\tbag', 'so it is"\tbox'],
        ['"now" she said\tbox', "fine\tbag"],
        ['"never\tbox', "fine\tbag"],
    ],
    ids=["joins lines", "quote closes inside", "never closed"],
)
def test_quotes_are_text_where_lines_have_every_cell(tmp_path, lines):
    assert texts(tmp_path / "a.tsv", lines) == [line.split("\t")[0] for line in lines]


@given(st.lists(st.text("ab\"' \n\t", min_size=1).filter(str.strip), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_a_quoted_file_comes_back_as_written(tmp_path_factory, cells):
    path = tmp_path_factory.mktemp("tsv") / "a.tsv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, "excel-tab", quoting=csv.QUOTE_ALL)
        writer.writerows([("text", "topic"), *((cell, "bag") for cell in cells)])
    assert [row.record["text"] for row in read_rows(path)] == cells
