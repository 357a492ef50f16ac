"""Parsers on the answers of real datasets, where their folder is at hand."""

import gzip
import json
import os
from pathlib import Path

import pytest

from mixtune.tasks.parsers.labels import PARSERS


@pytest.fixture(scope="module")
def rows():
    """Rows of a dataset's split, read from the folder of real datasets."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MIXTUNE_DATA_DIR") or default)
    if not (folder / "gsm8k").is_dir():
        pytest.skip(f"real datasets are not at {folder}; set MIXTUNE_DATA_DIR to their folder")

    def read(name, split):
        path = folder / name / f"{split}.jsonl"
        packed = path.with_suffix(".jsonl.gz")
        with gzip.open(packed, "rt") if packed.exists() else path.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    return read


@pytest.mark.data
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_answer_of_gsm8k_is_right_of_itself(rows, split):
    parser = PARSERS["final-number"]
    for row in rows("gsm8k", split):
        parsed = parser.strict(row["answer"], ())
        assert parsed is not None and parser.lenient(row["answer"], ()) == parsed, row["id"]
        assert parser.same(parsed, row["answer"], ())


@pytest.mark.data
@pytest.mark.parametrize(("split", "empty"), [("train", 2), ("test", 0)])
def test_every_solution_of_math_holds_its_answer(rows, split, empty):
    parser = PARSERS["boxed"]
    unread = []
    for row in rows("math", split):
        parsed = parser.strict(row["solution"], ())
        if parsed is None:
            unread.append(row["answer"])
            continue
        assert parser.same(parsed, row["answer"], ()), (row["id"], parsed)
        assert parser.same(parsed, row["solution"], ())
    assert unread == [""] * empty


@pytest.mark.data
def test_every_annotated_answer_of_finqa_is_an_amount(rows):
    """But for the few that are no answer: empty, or words."""
    parser = PARSERS["amount"]
    answers = [row["answer"] for row in rows("finqa", "test") if row["answer"]]
    odd = [answer for answer in answers if parser.strict(answer, ()) is None]
    assert len(odd) <= 0.02 * len(answers), odd
    read = [answer for answer in answers if answer not in odd]
    assert all(parser.same(parser.strict(answer, ()), answer, ()) for answer in read)


@pytest.mark.data
def test_triplets_of_finred_are_read_back(rows):
    parser = PARSERS["triplets"]
    found = [row["triplets"] for row in rows("finred", "test")]
    relations = tuple(sorted({t["relation"] for triplets in found for t in triplets}))
    for triplets in found:
        gold = "\n".join(f"{t['head']} | {t['relation']} | {t['tail']}" for t in triplets) or "none"
        parsed = parser.strict(gold, relations)
        assert parsed is not None and parser.same(parsed, gold, ()), gold
