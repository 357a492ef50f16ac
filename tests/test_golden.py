"""The small golden copy: what the program does from outside, against what is committed."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import golden
import pytest
from golden_kit import INPUTS, REPOSITORY

COMMITTED = INPUTS / "small.json"
HOW = "where it is meant to change: python tests/golden.py record DIR --small, then copy small.json"


@pytest.fixture(scope="module")
def recorded():
    """A small recording of this code, made by a process of its own.

    In a folder with a short name wherever the tests' own lie: messages shorten long paths.
    """
    with tempfile.TemporaryDirectory(prefix="g") as folder:
        yield record(Path(folder) / "new")


def record(folder):
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, golden.__file__, "record", folder, "--small"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"recording {REPOSITORY}\n")
    return folder / "small.json"


def test_the_program_does_what_it_did(recorded):
    differences = golden.compare(COMMITTED, recorded)
    assert not differences, "\n".join([*differences, HOW])


@pytest.mark.parametrize("study", ["plain", "exposure", "judged", "full", "top"])
def test_a_committed_plan_keeps_its_ids(recorded, study):
    """A key that is added to study files defaults to nothing in the ids."""
    name = f"plan plan-{study}.yaml --json"
    old, new = (json.loads(Path(path).read_text("utf-8"))[name] for path in (COMMITTED, recorded))
    assert len(old["ids"]) > 5
    assert new["ids"] == old["ids"]


def test_a_difference_is_said_with_its_command(tmp_path):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text(json.dumps({"plan": {"exit": 0, "out": ["a", "b"]}, "gone": 1}))
    two.write_text(json.dumps({"plan": {"exit": 2, "out": ["a", "b"]}}))
    assert golden.compare(one, one) == []
    said = "\n".join(golden.compare(one, two))
    assert "== plan" in said and '- "exit": 0' in said and '+ "exit": 2' in said
    assert f"== gone\n   only in {one}" in said
