"""A small task of invented support tickets, for tests of tasks of the user's own."""

import csv
import io

import yaml

from mixtune.datasets.registry import Registry
from mixtune.tasks.rendering import render_record

TEN_LINES = """\
name: ticket-topic
labels: [billing, delivery, returns]
prompt: |-
  What is this ticket about? Answer with one word: billing, delivery or returns.

  {{ text }}
fields: {label: topic}
source: tickets.csv
"""
ROWS = [
    ("Where is order 7?", "delivery"),
    ("Charged twice, 9", "billing"),
    ("Too small", "returns"),
]


MESSAGES = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def changed(**keys):
    """The task file with some keys changed; None removes one."""
    raw = yaml.safe_load(TEN_LINES) | keys
    return yaml.safe_dump({k: v for k, v in raw.items() if v is not None}, sort_keys=False)


def csv_text(rows, header=("text", "topic")):
    out = io.StringIO()
    csv.writer(out).writerows([header, *rows])
    return out.getvalue()


def many(count=60):
    return [(f"{text} number {n}", topic) for n in range(count // 3) for text, topic in ROWS]


def registry(folder, text=TEN_LINES, name="task.yaml"):
    (folder / name).write_text(text, encoding="utf-8")
    return Registry.open([str(folder / name)])


def examples(folder, text=TEN_LINES, task="ticket-topic", split="train"):
    return registry(folder, text).dataset(task, 0.1).examples(split)


def examples_of(task, record, split, **keys):
    """The examples of one record."""
    return render_record(task, record, split, **keys).examples
