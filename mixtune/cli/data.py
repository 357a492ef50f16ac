"""Verbs on datasets: tasks."""

from mixtune import terminal
from mixtune.cli.app import DataDir, Json, app, show
from mixtune.tasks.registry import Registry


@app.command()
def tasks(data_dir: DataDir = None, as_json: Json = False) -> None:
    """List tasks and ingredients. Next: mixtune plan STUDY.yaml."""
    registry = Registry.builtin(data_dir)
    rows = [terminal.task_row(registry, name) for name in registry.names()]
    show(rows, as_json, "Tasks and ingredients")
