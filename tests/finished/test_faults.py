"""A user's faults beside a finished study: one message that helps, exit code 2, nothing lost."""

import json
from pathlib import Path

import pytest
from finished_kit import MORE, edit

TRAIN = "data/north/train.jsonl"


def line(number, change):
    """Change the text of one line of the train rows."""
    path = Path(TRAIN)
    lines = path.read_bytes().split(b"\n")
    lines[number - 1] = change(lines[number - 1])
    path.write_bytes(b"\n".join(lines))


def row(number, **keys):
    """Change fields of one row; None removes one."""

    def changed(text):
        made = json.loads(text) | keys
        return json.dumps({k: v for k, v in made.items() if v is not None}).encode()

    return lambda: line(number, changed)


def weights(change):
    return lambda: Path("base/model.safetensors").write_bytes(
        change(Path("base/model.safetensors").read_bytes())
    )


def no_template():
    for path in Path("base").glob("*.jinja"):
        path.unlink()
    config = Path("base/tokenizer_config.json")
    held = json.loads(config.read_text())
    held.pop("chat_template", None)
    config.write_text(json.dumps(held))


FAULTS = {
    "unknown key": ("sedes=[1]", ["did you mean 'seeds'"]),
    "unknown task": ("tasks=[nroth]", ["'nroth'", "did you mean 'north'"]),
    "unknown ingredient": ("ingredients.nroth.rows=3", ["'nroth'", "did you mean 'north'"]),
    "unknown model": ("model=smollm2-135n", ["did you mean 'smollm2-135m'"]),
    "more rows than there are": ("ingredients.north.rows=999", ["found:  999", "wanted: 1 to "]),
    "no seed": ("seeds=[]", ["seeds", "needs at least one"]),
    "contradictory": ("ingredients.north.unit=tokens", ["contradictory", "no share"]),
    "too long, error": ("train.max_length=20", ["too long", "at most 20", "train.over_long=drop"]),
    "malformed line": (
        lambda: line(7, lambda text: text[:-3]),
        [f"{TRAIN}:7", "not valid JSON", "one JSON object a line"],
    ),
    "missing field": (row(5, text=None), [f"{TRAIN}:5", "'text'", "found:  id, label"]),
    "label outside": (row(4, label="damp"), [f"{TRAIN}:4", "'label'", "damp", "dry, wet"]),
    "empty text": (row(3, text=" "), [f"{TRAIN}:3", "'text'", "empty"]),
    "id twice": (row(9, id="north-train-1"), [f"{TRAIN}:9", "twice", f"{TRAIN}:2"]),
    "wrong encoding": (
        lambda: line(2, lambda text: text.replace(b"sun", b"s\xfcn").replace(b"rain", b"r\xe4in")),
        [f"{TRAIN}:2", "wrong encoding", "UTF-8"],
    ),
    "a line of 50 MB": (
        lambda: line(2, lambda text: b'{"text": "' + b"a" * 50_000_000 + b'"}'),
        [f"{TRAIN}:2", "too long", "10000000"],
    ),
    "no folder for the task": (
        lambda: Path("data/north").rename("data/elsewhere"),
        ["no folder for this task", "elsewhere", "data/north"],
    ),
    "a label that begins another": (
        lambda: edit("north.yaml", "[dry, wet]", "[dry, dry cold, wet]"),
        ["north.yaml", "'dry cold'", "allow_prefix_labels"],
    ),
    "truncated weights": (weights(lambda held: held[:999]), ["base", "safetensors"]),
    "foreign weights": (weights(lambda held: b"PK\3\4" + held), ["base", "safetensors"]),
    "no chat template": (no_template, ["no chat template", "add a chat_template.jinja"]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_and_nothing_is_lost(mixtune, kept, name):
    fault, shown = FAULTS[name]
    more = [fault] if isinstance(fault, str) else []
    if not more:
        fault()
    code, _, err = mixtune("run", "study.yaml", MORE, *more)
    assert code == 2, err
    for text in ["remedy: ", *shown]:
        assert text in err
    north = Path("north.yaml").read_text(encoding="utf-8")
    Path("north.yaml").write_text(north.replace("dry cold, ", ""), encoding="utf-8")
    kept()


def test_what_is_too_long_can_be_dropped_and_is_counted(mixtune, kept, place):
    for number in range(3, 13):
        row(number, text=f"{number} " + "a long tale " * 120)()
    code, out, err = mixtune("plan", "study.yaml", "name=other", "train.over_long=drop", "--json")
    assert code == 0, err
    mixes = [m for run in json.loads(out)["runs"] for m in run["mix"] if m["ingredient"] == "north"]
    (dropped,) = {m["dropped_overlong"] for m in mixes}
    assert 1 <= dropped <= 10
    kept()
