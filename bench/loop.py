"""`python -m bench.loop train|score JSON`: a step of the loop that one would write without mixtune.

Knows: the peers, a file of rows, a folder for the adapter. Does not know: the engine, studies.
Each step is a fresh process, timed from outside with its start, imports and loading.
"""

import json
import sys
from pathlib import Path
from typing import Any

from bench.machine import use_threads


def train(arguments: dict[str, Any]) -> None:
    """Train one cell with TRL and save its adapter."""
    from transformers import TrainerCallback

    from bench.data import read_training
    from bench.peers_train import Plan, make_trl

    named = read_training(Path(arguments["rows"]))
    adapter = Path(arguments["adapter"])
    plan = Plan(Path(arguments["folder"]), arguments["device"], arguments["steps"], adapter)
    trainer = make_trl(plan, named, arguments["setting"], TrainerCallback())
    trainer.train()
    trainer.save_model(str(adapter))


def score(arguments: dict[str, Any]) -> None:
    """Score a task's items with lm-evaluation-harness and save the answers."""
    from bench.data import read_scoring
    from bench.peers_score import load
    from bench.peers_score import score as ask
    from mixtune.tokens import Tokens

    queries = read_scoring(Path(arguments["rows"]))
    model = load(arguments, arguments["setting"])
    sums = ask(model, Tokens.load(Path(arguments["folder"])), queries)
    said = [q.choices[row.index(max(row))] for q, row in zip(queries, sums, strict=True)]
    Path(arguments["answers"]).write_text(json.dumps(said), "utf-8")


if __name__ == "__main__":
    use_threads()
    {"train": train, "score": score}[sys.argv[1]](json.loads(sys.argv[2]))
