"""`python -m bench.worker NAME JSON`: one measured thing in a process of its own.

Knows: which name means which function. Does not know: cases, repeats.
"""

import importlib
import json
import sys

from bench.errors import NotThere
from bench.pipe import Channel

WORKERS = {
    "prepare": "bench.ours:prepare_model",
    "bookkeeping": "bench.bookkeeping:measure_bookkeeping",
    "matmul": "bench.matmul:measure_matmul",
    "ours-train": "bench.ours:measure_training",
    "ours-score": "bench.ours:measure_scoring",
    "ours-bank": "bench.ours:measure_bank",
    "ours-adapter": "bench.ours:make_adapter",
    "trl": "bench.peers_train:measure_trl",
    "peft": "bench.peers_train:measure_peft",
    "trl-grid": "bench.peers_train:try_settings",
    "lm-eval": "bench.peers_score:measure_scoring",
    "lm-eval-grid": "bench.peers_score:try_settings",
}
"""Name → module:function(arguments, channel). Imported only when run: each loads its own peer."""


def main() -> None:
    """Find the function, give it its arguments and the channel."""
    name, arguments = sys.argv[1:]
    module, function = WORKERS[name].split(":")
    channel = Channel.take_over()
    try:
        getattr(importlib.import_module(module), function)(json.loads(arguments), channel)
    except NotThere as error:
        channel.refuse(error)


if __name__ == "__main__":
    main()
