"""2,000 generated studies, rows and task files through the real commands: never a traceback or a
hang, always a documented exit code, and always a message that a terminal can show."""

import contextlib
import io
import json
import signal
import sys
from collections import Counter

import pytest
import yaml
from engine_oracle import write_base
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_kit import TEN_LINES, csv_text, many
from study_kit import STUDY, TASK, write_data
from test_own_anything import keys, rows, values
from test_spec import KEYS, places
from test_spec import values as study_values

from mixtune import cli

SECONDS = 20
"""Longest that one command may take on these few rows, on a busy machine."""

FULL = {
    **STUDY,
    "task_files": ["north.yaml", "south.yaml"],
    "ingredients": {"north": {"rows": 20}, "south": {"share": 0.5, "unit": "rows"}},
    "train": {"rank": 2, "alpha": 4, "lr": 1e-3, "over_long": "drop"},
    "baselines": ["majority"],
}
USUAL = [
    {"seeds": [1, 2]},
    {"baselines": []},
    {"tasks": ["north"]},
    {"design": {"explicit": [["south"]]}},
    {"ingredients": "north:5*2, south"},
    {"ingredients": ["0.3*north", "south"]},
    {"lora_r": 2},
    {"evaluate": {"forms": ["strict"], "carve": 0.3}},
]
"""Changes that a study survives."""
seen: Counter[str] = Counter()


def many_times(count):
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("anything")
    write_data(folder / "data")
    for name in ("north", "south"):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name), encoding="utf-8")
    write_base(folder / "base", "llama")
    (folder / "task.yaml").write_text(TEN_LINES, encoding="utf-8")
    (folder / "tickets.csv").write_text(csv_text(many()), encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MIXTUNE_CACHE", str(folder / "cache"))
        patch.setenv("MIXTUNE_DATA_DIR", str(folder / "data"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield folder


def typed(kind, *arguments):
    """Run a command; its exit code is documented, and nothing that it says moves the cursor."""
    out, err = io.StringIO(), io.StringIO()

    def too_long(signum, frame):
        raise AssertionError(f"{arguments} hangs")

    before = signal.signal(signal.SIGALRM, too_long), sys.argv
    signal.alarm(SECONDS)
    try:
        sys.argv = ["mixtune", *map(str, arguments)]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before[0])
        sys.argv = before[1]
    said = out.getvalue() + err.getvalue()
    assert code in (0, 2), said
    assert "Traceback" not in said
    assert said.replace("\n", "").isprintable()
    assert code == 0 or any(word in said for word in ("found", "wanted", "remedy", "Usage"))
    seen[f"{kind} {code}"] += 1


@st.composite
def studies(draw):
    raw = json.loads(json.dumps(FULL)) | {"model": "base"}
    if draw(st.booleans()):
        return raw | draw(st.sampled_from(USUAL)) | draw(st.sampled_from(USUAL))
    for _ in range(draw(st.integers(0, 2))):
        path = draw(st.sampled_from(list(places(raw))[1:]))
        here = raw
        for key in path[:-1]:
            here = here[key]
        new = draw(study_values | st.sampled_from(["base", "north", 1, 2, 0.5, ["north"], ["all"]]))
        if draw(st.booleans()) or not isinstance(here, dict):
            here[path[-1]] = new
        else:
            here[draw(st.sampled_from(KEYS))] = new
    return raw


@many_times(800)
@given(studies())
def test_studies(place, raw):
    # A budget of millions of examples is a study that may take its time.
    budget = raw.get("budget")
    for key in ("steps", "examples_per_step"):
        if isinstance(budget, dict) and type(budget.get(key)) is int and budget[key] < 10**30:
            budget[key] = min(budget[key], 50)
    (place / "study.yaml").write_text(yaml.safe_dump(raw, allow_unicode=True), encoding="utf-8")
    typed("study", "plan", "study.yaml", "--json")


words = st.dictionaries(st.sampled_from(["title", "about", "licence", "citation"]), st.text())
odd = st.dictionaries(keys, values | st.sampled_from(["alpaca", "messages", "label"]), max_size=3)


@many_times(600)
@given(words | odd)
def test_task_files(place, changes):
    raw = yaml.safe_load(TEN_LINES) | changes
    (place / "task.yaml").write_text(yaml.safe_dump(raw, allow_unicode=True), encoding="utf-8")
    typed("task", "data", "check", "task.yaml")


good = st.fixed_dictionaries({"text": st.text(min_size=1, max_size=9), "topic": st.just("billing")})
base_rows = [{"text": text, "topic": topic} for text, topic in many()]


@many_times(600)
@given(
    st.lists(good | rows, max_size=2).map(
        lambda made: "\n".join(json.dumps(row) for row in base_rows + made).encode()
    )
    | st.binary(max_size=80),
    st.just("rows.jsonl")
    | st.sampled_from(["rows.json", "rows.csv", "rows.parquet", "rows.jsonl.gz"]),
)
def test_rows(place, body, name):
    (place / name).write_bytes(body)
    task = TEN_LINES.replace("tickets.csv", name)
    (place / "own.yaml").write_text(task, encoding="utf-8")
    typed("rows", "data", "check", "own.yaml", "--json")


def test_both_good_and_bad_ones_came_up():
    """Otherwise the tests above would say little."""
    wanted = {f"{kind} {code}" for kind in ("study", "task", "rows") for code in (0, 2)}
    assert {name for name, times in seen.items() if times >= 20} == wanted, seen
