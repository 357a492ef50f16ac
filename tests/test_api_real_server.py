"""Strict text through a real server: what `transformers serve` says is what the model says here.

Needs the embedded weights and `pip install 'transformers[serving]'`; skipped without them.
"""

import os
import socket
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from mixtune.api.client import Endpoint, Patience
from mixtune.api.entries import ApiSystem
from mixtune.api.ledger import Ledger
from mixtune.api.model import ApiModel, Asking, Prompting
from mixtune.datasets.registry import Registry
from mixtune.evaluation.answers import predict, score
from mixtune.tasks.examples import query_of

STARTS = 120.0
"""Seconds that the server has to load the model."""
ITEMS = 6
SERVE = "from transformers.cli.transformers import main; main()"


@pytest.fixture(scope="module")
def url(smollm2):
    """A server with the embedded model, on a port of its own."""
    for package in ("openai", "fastapi", "uvicorn"):
        pytest.importorskip(package, reason="transformers[serving] is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVE, "serve", str(smollm2.folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, **quiet)
    try:
        _wait(process, f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait(process, health):
    deadline = time.monotonic() + STARTS
    while time.monotonic() < deadline:
        assert process.poll() is None, "transformers serve ended by itself"
        try:
            with urlopen(health, timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(f"transformers serve was not there after {STARTS:.0f} s")


@pytest.mark.weights
def test_text_through_a_real_server_is_what_the_model_says(smollm2, url, tmp_path, monkeypatch):
    from mixtune.engine.model import LocalModel
    from mixtune.study.spec import EvalSpec, TrainSpec
    from mixtune.tokens import Tokens

    monkeypatch.setenv("MIXTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    registry = Registry.open((), None)
    items = registry.dataset("toy-sentiment", 0.1).examples("test")[:ITEMS]
    what = ApiSystem("smollm2", str(smollm2.folder), url, None, None)
    asking = Asking(Endpoint(what, Patience(timeout=120)), Ledger(tmp_path / "api.sqlite", None))
    remote = ApiModel(what, asking, Prompting())
    tokens = Tokens.load(smollm2.folder)
    local = LocalModel.load(smollm2.folder, tokens, TrainSpec(), EvalSpec())
    local.use_base()
    for limit in (24, 3):
        queries = [query_of(item) for item in items]
        said, meant = remote.generate(queries, limit), local.generate(queries, limit)
        assert [a.output.strip() for a in said] == [a.output.strip() for a in meant]
        assert [a.finish for a in said] == [a.finish for a in meant]
    assert {a.finish for a in said} == {"length"}
    for item, usage in zip(items, remote.usage, strict=True):
        assert usage.tokens_in == len(tokens.prompt_ids(item.messages))
    # This server knows no schemas and says so to nobody: its text breaks the form, and is unread.
    rows = predict(remote, items, "schema", "test", 24, remote.prompt_hash)
    assert {row.status for row in score(rows, items, registry.get("toy-sentiment"))} <= {
        "unparsed",
        "truncated",
    }
