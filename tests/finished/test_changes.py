"""A study that changes: refused where an id would, extended and logged where it grows."""

import json
from pathlib import Path

import pytest
from engine_oracle import write_base
from finished_kit import MORE, edit


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ("train.lr=0.01", ["-  lr: 0.001", "+  lr: 0.01"]),
        ("train.rank=2", ["-  rank: 16", "+  rank: 2"]),
        (lambda: edit("north.yaml", "Is it dry", "Is it rather dry"), ["content.json", '"north"']),
        (
            lambda: edit("data/north/train.jsonl", "station", "place"),
            ["content.json", '"north/train"'],
        ),
        (lambda: write_base(Path("base"), "qwen2"), ["content.json", '"digest"']),
    ],
    ids=["lr", "rank", "prompt", "data", "base"],
)
def test_what_would_change_an_id_is_refused_with_the_difference(mixtune, kept, change, shown):
    more = [change] if isinstance(change, str) else []
    if not more:
        change()
    code, _, err = mixtune("run", "study.yaml", *more)
    assert code == 2
    for text in [*shown, "would get another id", "remedy: give the changed study another name"]:
        assert text in err
    kept()


@pytest.mark.parametrize(
    ("change", "added"),
    [
        (MORE, "north+south seed 2"),
        ("design=[singles, all]", "south seed 1"),
        ("tasks=[north,south]", "extended"),
    ],
    ids=["seeds", "cocktails", "tasks"],
)
def test_a_study_is_extended_and_says_so(mixtune, kept, place, change, added):
    times = {path: path.stat().st_mtime_ns for path in place.rglob("*.safetensors")}
    code, _, err = mixtune("run", "study.yaml", change)
    assert code == 0, err
    assert all(path.stat().st_mtime_ns == then for path, then in times.items())
    code, out, _ = mixtune("status", "study.yaml")
    assert added in out
    assert out.index("planned 20") < out.index("extended 20")
    assert [c["what"] for c in json.loads(mixtune("status", "study.yaml", "--json")[1])["changes"]]
    kept(more=True)
