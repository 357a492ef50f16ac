"""The page docs/tasks.md, written by `make docs` from the task files that ship.

Knows: the keys of a task file. Does not know: the data.
"""

from collections.abc import Iterator

from mixtune.datasets.registry import Registry
from mixtune.tasks.metrics import METRICS
from mixtune.tasks.source_spec import HubSource
from mixtune.tasks.task import Task

HEAD = """# Tasks and ingredients

The built-in tasks, from the task files in `mixtune/tasks/builtin`. The generated toy tasks are in
[embedded-suite.md](embedded-suite.md). `mixtune tasks` lists all available tasks, and
`mixtune data show TASK` shows examples as a model gets them.

Cocktails are selected by their scores on a **task**. A **probe** is scored on its test split, to
show what training improved or damaged, but never used for selection. An **ingredient** is only
trained on; a task or probe with a train split can also be an ingredient. A **judged** dataset has
free-text answers that no parser scores: with `judged` in a study every system answers it, and
`mixtune judge` scores the answers.

↑: higher is better. Chance: the expected accuracy of guessing labels uniformly; answers without
labels have none. Hub entries marked "not checked" were never compared with the hub;
`mixtune doctor --hub` compares them.
"""

FORMS = {
    "label": "one of {labels} labels",
    "amount": "a number, a percentage, yes or no",
    "final-number": "reasoning, then a number",
    "boxed": "reasoning, then a boxed answer",
    "spans": "entities, one per line",
    "triplets": "triplets, one per line",
    "number": "a number",
    "text": "free text",
}
ORDER = ("task", "probe", "judged", "ingredient")


def tasks_page() -> str:
    """The page on the tasks that ship."""
    registry = Registry.builtin()
    tasks = [task for task in map(registry.get, registry.names()) if not task.synthetic]
    tasks.sort(key=lambda task: (ORDER.index(task.role), task.name))
    lines = [HEAD, *_overview(tasks)]
    for task in tasks:
        lines += ["", *_section(task)]
    return "\n".join(lines) + "\n"


def _overview(tasks: list[Task]) -> Iterator[str]:
    yield "| name | role | trained on | answer | metrics | chance | licence |"
    yield "|---|---|---|---|---|---|---|"
    for task in tasks:
        trained = "yes" if task.trainable else "no"
        cells = (
            f"[{task.name}](#{task.name})", task.role, trained, _form(task), _metrics(task),
            _chance(task), task.licence,
        )  # fmt: skip
        yield f"| {' | '.join(map(_cell, cells))} |"


def _section(task: Task) -> Iterator[str]:
    yield f"## {task.name}"
    yield ""
    yield f"{task.title}, version {task.version}. {task.about}"
    yield ""
    yield "| | |"
    yield "|---|---|"
    for key, text in _facts(task).items():
        if text:
            yield f"| {key} | {_cell(text)} |"


def _facts(task: Task) -> dict[str, str]:
    hub, local = task.source.hub, task.source.local
    return {
        "also called": ", ".join(f"`{alias}`" for alias in task.aliases),
        "labels": ", ".join(f"`{label}`" for label in task.labels or task.types),
        "questions": ", ".join(f"`{question}`" for question in task.questions),
        "in the data folder": f"`{local.folder}`" if local else "no",
        "on the hub": _hub(hub) if hub else "no",
        "licence": task.licence,
        "citation": task.citation,
        "page": f"<{task.url}>" if task.url else "",
    }


def _hub(hub: HubSource) -> str:
    place = f"`{hub.path}`"
    parts = (("configuration", hub.config or hub.data_dir), ("revision", hub.revision))
    place += "".join(f", {word} `{value}`" for word, value in parts if value)
    checked = " (not checked)" if hub.unverified else ""
    return f"{place}{checked}{f'. {hub.note}' if hub.note else ''}"


def _form(task: Task) -> str:
    form = FORMS[task.parser].format(labels=len(task.labels))
    return f"{len(task.questions)} questions, each {form}" if task.questions else form


def _metrics(task: Task) -> str:
    arrows = {True: "↑", False: "↓"}
    return ", ".join(f"{name} {arrows[METRICS[name].higher_is_better]}" for name in task.metrics)


def _chance(task: Task) -> str:
    return f"{1 / len(task.labels):.3f}" if task.labels else "–"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
