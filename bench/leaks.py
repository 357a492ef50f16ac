"""`python -m bench.leaks --data-dir DATA`: time and memory of `mixtune data leaks` on a folder.

Knows: what the command prints. Does not know: how splits are compared.
"""

import argparse
import json
from pathlib import Path
from statistics import median

from bench.command import run
from bench.machine import provenance
from bench.results import write_or_print


def measure(data_dir: Path, repeats: int) -> dict[str, object]:
    """Every split of every dataset there against every other, several times."""
    took = [
        run(Path.cwd(), "data", "leaks", "--data-dir", str(data_dir), "--json")
        for _ in range(repeats)
    ]
    records = json.loads(took[0].printed)["records"]
    return {
        "records": sum(records.values()),
        "splits": len(records),
        "datasets": len({name.partition("/")[0] for name in records}),
        "seconds": median(one.seconds for one in took),
        "each": [one.seconds for one in took],
        "bytes": max(one.bytes for one in took),
        **provenance("python -m bench.leaks --data-dir DATA"),
    }


def main() -> None:
    """Print or write what it took."""
    parser = argparse.ArgumentParser(prog="python -m bench.leaks", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    write_or_print(measure(given.data_dir, given.repeats), given.out)


if __name__ == "__main__":
    main()
