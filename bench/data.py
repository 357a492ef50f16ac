"""What is trained on and asked: real rows from a data folder, or the embedded suite without one.

Knows: mixtune's tasks and mixtures, which of them a workload is made of, how rows are handed to
workers. Does not know: engines, peers, time.

The parent draws the rows once and hands them to every side of a comparison in one file (in a
temporary folder that goes with the run), so all sides get the same messages in the same order.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixtune.datasets.registry import Registry
from mixtune.identity import digest
from mixtune.planning.mixing import mix, select_evaluation
from mixtune.records import Example, Message, Query, TrainExample
from mixtune.study.spec import Ingredient

SEED = 1
CARVE = 0.1

_SHARES = {
    "fpb": ({"fpb": 1.0}, {"toy-sentiment": 1.0}),
    "finance-mix": (
        {"fpb": 0.8, "twitter-sentiment": 0.8, "headline": 0.8, "alpaca": 0.3, "gsm8k": 0.3},
        {
            "toy-sentiment": 0.8,
            "toy-mood": 0.8,
            "toy-topic": 0.8,
            "toy-general": 0.3,
            "toy-maths": 0.3,
        },
    ),
}
"""Training workloads: relative shares of rows, on real data and on the embedded suite. The mix is
four fifths labels in equal parts, a tenth instructions, a tenth maths."""

_ASKED = {"labels-3": ("fpb", "toy-sentiment"), "labels-20": (None, "toy-topic")}
"""Scoring workloads: a task on real data (None: see `_topics`) and on the embedded suite, whose
largest set has four labels."""

_TOPICS = "twitter_topic"
_TOPIC_PROMPT = (
    "What is the topic of this tweet about financial markets? Answer with one of these topics: "
    "{labels}.\n\n{text}"
)


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows come from: a folder of datasets, or None for the embedded suite."""

    data_dir: Path | None

    @property
    def kind(self) -> str:
        """For a result: which data it was measured on."""
        return "real" if self.data_dir else "embedded suite (synthetic)"

    def training(self, workload: str, count: int) -> list[TrainExample]:
        """The first `count` rows of a workload, mixed as a study would mix them."""
        shares = _SHARES[workload][0 if self.data_dir else 1]
        registry = Registry.builtin(self.data_dir)
        pools = {name: registry.dataset(name, CARVE).examples("train") for name in shares}
        amounts = {name: Ingredient(share=share) for name, share in shares.items()}
        return mix(pools, amounts, count, SEED).order

    def scoring(self, workload: str, count: int) -> list[Query]:
        """Questions of a workload with their choices; fewer where the test split is smaller."""
        real, embedded = _ASKED[workload]
        if self.data_dir and real is None:
            return _topics(self.data_dir / _TOPICS, count)
        name = real if self.data_dir and real else embedded
        items = Registry.builtin(self.data_dir).dataset(name, CARVE).examples("test")
        chosen = select_evaluation(items, count)[:count]
        return [Query(item.id, item.stratum, item.messages, item.choices) for item in chosen]


def write_training(path: Path, rows: Sequence[TrainExample]) -> None:
    """Hand training rows to workers."""
    path.write_text(json.dumps([[name, asdict(example)] for name, example in rows]), "utf-8")


def read_training(path: Path, count: int | None = None) -> list[TrainExample]:
    """The first `count` rows (None: all of them) that `write_training` wrote."""
    held = json.loads(path.read_text(encoding="utf-8"))[:count]
    return [TrainExample(name, Example(**_frozen(fields))) for name, fields in held]


def write_scoring(path: Path, queries: Sequence[Query]) -> None:
    """Hand questions to workers."""
    path.write_text(json.dumps([asdict(query) for query in queries]), "utf-8")


def read_scoring(path: Path) -> list[Query]:
    """What `write_scoring` wrote."""
    held = json.loads(path.read_text(encoding="utf-8"))
    return [Query(**_frozen(fields)) for fields in held]


def fingerprint(rows: Sequence[TrainExample] | Sequence[Query]) -> str:
    """Names rows by their messages; goes into results, where the rows themselves do not."""
    messages = [row[1].messages if isinstance(row, tuple) else row.messages for row in rows]
    return digest([[[m.role, m.content] for m in each] for each in messages])


def _frozen(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that records have."""
    messages = tuple(Message(**message) for message in fields["messages"])
    return fields | {"messages": messages, "choices": tuple(fields["choices"])}


def _topics(folder: Path, count: int) -> list[Query]:
    """Tweets of the test split spread over it, under one header that lists all labels."""
    rows = list(_read(folder, "test"))
    labels = tuple(sorted({str(row["label"]) for row in rows}))
    step = max(len(rows) // count, 1)
    asked = []
    for row in rows[::step][:count]:
        text = _TOPIC_PROMPT.format(labels=", ".join(labels), text=row["text"])
        asked.append(Query(str(row["id"]), "", (Message("user", text),), labels))
    return asked


def _read(folder: Path, split: str) -> Iterator[dict[str, Any]]:
    """Rows of `split.jsonl` or `split.jsonl.gz`."""
    plain, packed = folder / f"{split}.jsonl", folder / f"{split}.jsonl.gz"
    held = plain.read_bytes() if plain.is_file() else gzip.decompress(packed.read_bytes())
    for line in filter(None, held.decode("utf-8").split("\n")):
        yield json.loads(line)
