"""A small report for tests: three cocktails on two tasks, with values chosen by hand.

Knows: the parts of a report's input. Does not know: pages, figures.
"""

from dataclasses import replace

from mixtune.records import (
    Claim,
    DataRow,
    Estimate,
    MixRow,
    Question,
    Result,
    TrainStep,
)
from mixtune.report.gather import LengthRow, ReportInput
from mixtune.results.study_results import RunRow
from mixtune.study.reading import dump_study, parse_study

TASKS = {"toy-sentiment": "Sentiment of headlines", "toy-topic": "Topic"}
COCKTAILS = ("toy-sentiment", "toy-topic", "toy-sentiment+toy-topic")
VALUES = {
    ("toy-sentiment", "toy-sentiment"): 0.8123,
    ("toy-sentiment", "toy-topic"): 0.3311,
    ("toy-topic", "toy-sentiment"): 0.4044,
    ("toy-topic", "toy-topic"): 0.7055,
    ("toy-sentiment+toy-topic", "toy-sentiment"): 0.8666,
    ("toy-sentiment+toy-topic", "toy-topic"): 0.6877,
}
"""(cocktail, task) → accuracy of every seed."""


def result(cocktail, task, value, seed=1, split="validation", form="strict"):
    """One system's row."""
    return Result(
        system=f"{cocktail}-{seed}", cocktail=cocktail, seed=seed, task=task, split=split,
        form=form, metric="accuracy", value=value, low=value - 0.051, high=value + 0.047, n=150,
        clusters=150, unparsed=0.0, chance=1 / 3, majority=0.4111, floor=0.4111, method="Wilson",
    )  # fmt: skip


def on_test(**changes):
    """The page of the test split: the same numbers, read there."""
    page = page_of()
    moved = {
        name: [replace(row, split="test") for row in getattr(page, name)]
        for name in ("results", "means", "differences")
    }
    return replace(page, **{"split": "test", **moved, **changes})


def estimate(quantity, cocktail, task, value, reference="", half=0.0313):
    """One mean or difference."""
    return Estimate(
        quantity=quantity, subject=cocktail, reference=reference, target=task, split="validation",
        form="strict", metric="accuracy", value=value, low=value - half, high=value + half, n=150,
        clusters=150, seeds=1, method=f"bootstrap for {quantity}, given this run", seed=0,
        adjusted=0.01 if reference else None,
    )  # fmt: skip


def claim(task, verdict, value=0.021, half=0.013, reason=""):
    """What may be said of a task."""
    return Claim(
        target=task, subject="toy-sentiment+toy-topic", reference=task, split="test", form="strict",
        metric="accuracy", value=value, low=value - half, high=value + half, p=0.004,
        adjusted=0.008, n=150, clusters=150, seeds=5, margin=0.01, tried=9, tried_single=6,
        verdict=verdict, reason=reason, sentence=f"On {task} this is {verdict}. {reason}".strip(),
        method="t", seed=0, alpha=0.04,
    )  # fmt: skip


def without_ends(row):
    """A number that has no interval."""
    return replace(row, low=None, high=None)


def evidence():
    """Claims, questions and estimates of every kind that the page has a place for."""
    both, (first, second) = "toy-sentiment+toy-topic", TASKS
    rows = [
        estimate("ingredient-effect", second, first, 0.054, first),
        estimate("leave-one-out", first, second, -0.041, second),
        estimate("synergy", both, first, 0.002),
        estimate("transfer", second, first, -0.05, "base"),
        without_ends(estimate("best-of-n", both, first, 0.0123, "3 cells")),
        replace(estimate("tie", second, first, -0.002, both), tied=True, margin=0.01),
    ]
    rows += [
        replace(
            estimate("tuning-curve", arm, task, 0.6 + 0.02 * k, f"{k} runs"), low=None, high=None
        )
        for task in TASKS
        for arm, most in (("cocktails", 6), ("single task", 2))
        for k in range(1, most + 1)
    ]
    questions = [
        Question("mixing", "Does mixing help?", "By +2.0 points, above the single.", True, ()),
        Question("maths", "Does maths transfer?", "", False, (), "transfer of maths", "no group"),
    ]
    return {
        "claims": [claim(first, "confirmed"), claim(second, "tie", 0.001, 0.004)],
        "questions": questions,
        "estimates": [replace(row, p=0.01, adjusted=0.02) for row in rows],
        "clean": [replace(result(both, first, 0.85), n=140)],
        "data": [
            DataRow(first, "train", "local", 600, 0, "", 3, 597, "", {"exact": 2, "loose": 1})
        ],
    }


def page_of(**changes):
    """The whole input, with parts replaced."""
    study = parse_study(
        {
            "name": "toy",
            "model": "smollm2-135m",
            "tasks": list(TASKS),
            "ingredients": list(TASKS),
        }
    )
    rows = [result("majority", t, 0.4111, None) for t in TASKS]
    rows += [result("base", t, 0.3777, None) for t in TASKS]
    rows += [result(c, t, v) for (c, t), v in VALUES.items()]
    gaps = [
        estimate("difference-to-single", c, t, v - VALUES[t, t], t)
        for (c, t), v in VALUES.items()
        if c != t
    ]
    runs = [
        RunRow(f"id{i}", f"{c}-1", c, 1, "done", None, 1, 61.5 + i, f"cells/id{i}-{i}")
        for i, c in enumerate(COCKTAILS)
    ]
    steps = [TrainStep(s, 3.0 / s, 1e-3, 1.0, 16, 40, 900, 0.5) for s in range(1, 101)]
    mix = MixRow("toy-topic", 400, 390, 380, 190, 2.0, 12345, 67890, 3, 7, "rows", None, None, "")
    page = ReportInput(
        study=study,
        resolved_yaml=dump_study(study),
        model_note="4-bit source",
        synthetic=True,
        split="validation",
        results=rows,
        means=[estimate("mean", c, t, v) for (c, t), v in VALUES.items()],
        differences=gaps,
        mixes=[(runs[2].id, mix)],
        runs=runs,
        curves={run.id: steps for run in runs},
        created="2025-01-31 12:00 UTC",
        tasks=TASKS,
        version="0.1.0",
        test_reads=4,
        looks_lost=False,
        main_forms=dict.fromkeys(TASKS, "strict"),
    )
    return replace(page, **changes)


LENGTHS = LengthRow("toy-topic", 600, 600, 2, 34000, 51, 52, 58, 63, 67, 1500, 2, 2, 3, 3, 4)

NASTY = (
    "\u202e\x1b[31m</script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&{{ 7 * 7 }}"
)


def nasty_page():
    """Text from outside that is none of it harmless, everywhere."""
    page = page_of()
    runs = [
        RunRow(NASTY, NASTY, NASTY, 1, NASTY, NASTY, 1, None, NASTY),
        replace(page.runs[0], state="failed", error=NASTY),
    ]
    means = [replace(page.means[0], subject=NASTY, method=NASTY), *page.means]
    rows = [replace(page.results[2], cocktail=NASTY, unparsed=0.5), *page.results]
    return replace(
        page,
        runs=runs,
        means=means,
        results=rows,
        mixes=[(NASTY, replace(page.mixes[0][1], ingredient=NASTY))],
        curves={NASTY: page.curves["id0"]},
        model_note=NASTY,
        resolved_yaml=NASTY,
        created=NASTY,
        data=[DataRow(NASTY, NASTY, NASTY, 1, 1, NASTY, 1, 1, "", {})],
        claims=[replace(claim(NASTY, "tie"), subject=NASTY, sentence=NASTY, reason=NASTY)],
        questions=[
            Question(NASTY, NASTY, NASTY, answered, (), NASTY, NASTY) for answered in (0, 1)
        ],
        estimates=[
            replace(row, subject=NASTY) if row.subject != "cocktails" else row
            for row in evidence()["estimates"]
        ],
        clean=[replace(result(NASTY, "toy-topic", 0.5), n=3)],
        version=NASTY,
        tasks={**TASKS, "toy-topic": NASTY},
        lengths=[replace(LENGTHS, ingredient=NASTY)],
    )


def big_page(count=55, seeds=5):
    """Cocktails × nine tasks × seeds, in two forms and two metrics, with steps and counts."""
    page = page_of()
    tasks = {f"task-{t}": f"Task number {t}" for t in range(9)}
    cocktails = [*tasks, *(f"task-{c % 9}+task-{c // 9}+other-{c}" for c in range(count - 9))]
    runs = [
        RunRow(f"{c}/{s}", f"{c}/{s}", c, s, "done", None, 1, 100.0, f"cells/{c}-{s}")
        for c in cocktails
        for s in range(seeds)
    ]
    ways = [(f, m) for m in ("accuracy", "macro-f1") for f in ("constrained", "strict")]
    rows = [result(r.cocktail, t, 0.7, r.seed) for r in runs for t in tasks]
    means = [
        estimate("mean", c, t, 0.7 + 0.001 * i) for i, c in enumerate(cocktails) for t in tasks
    ]
    gaps = [
        estimate(f"difference-to-{side}", c, t, 0.01, t if side == "single" else "base")
        for side in ("single", "base")
        for c in cocktails
        for t in tasks
        if side == "base" or c != t
    ]
    mixed = [replace(page.mixes[0][1], ingredient=f"task-{i}") for i in range(4)]
    return replace(
        page,
        tasks=tasks,
        main_forms=dict.fromkeys(tasks, "constrained"),
        runs=runs,
        results=[replace(row, form=f, metric=m) for f, m in ways for row in rows],
        means=[replace(row, form=f, metric=m) for f, m in ways for row in means],
        differences=[replace(row, form=f, metric=m) for f, m in ways for row in gaps],
        mixes=[(run.id, mix) for run in runs for mix in mixed],
        curves={run.id: page.curves["id0"] for run in runs},
    )
