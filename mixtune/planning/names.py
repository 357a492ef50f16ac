"""Names that a study uses → those of tasks there are; which of them can be asked how.

Knows: roles of tasks, forms of answers, kinds of systems. Does not know: rows, ids, models.
"""

from typing import Literal

from mixtune.errors import SpecError, did_you_mean
from mixtune.records import Form
from mixtune.spec import Study
from mixtune.study_file import parse_study
from mixtune.tasks.base import Task
from mixtune.tasks.registry import Registry

SystemKind = Literal["trained", "base", "majority", "api", "adapter", "model"]
"""api: behind an endpoint. The last two were made elsewhere and brought in to be scored."""


def canonical(study: Study, registry: Registry) -> Study:
    """The study with tasks and ingredients under their own names; aliases resolved.

    Raises:
        SpecError: one that does not exist, cannot be used as asked, or is named twice.
    """
    tasks = [_usable(name, registry, "tasks") for name in study.tasks]
    named = {name: _usable(name, registry, "ingredients") for name in study.ingredients}
    for name in tasks:
        if not any(answerable(registry.get(name), f, "trained") for f in study.evaluate.forms):
            raise SpecError(
                f"task {name!r} has open answers, which cannot be ranked",
                found=list(study.evaluate.forms),
                remedy="add strict to evaluate.forms",
            )
    explicit = [[named[name] for name in cocktail] for cocktail in study.design.explicit]
    levels = [
        one.model_dump(mode="json")
        | {key: [named[name] for name in getattr(one, key)] for key in ("add", "to")}
        for one in study.design.levels
    ]
    raw = study.model_dump(mode="json")
    raw["tasks"] = tasks
    raw["ingredients"] = {named[name]: amount for name, amount in raw["ingredients"].items()}
    raw["design"] |= {"explicit": explicit, "levels": levels}
    if len(raw["ingredients"]) < len(named):
        raise SpecError("ingredients: two names mean the same dataset", found=named)
    return parse_study(raw)


def _usable(name: str, registry: Registry, key: str) -> str:
    task = registry.get(name)
    if not getattr(task, _NEEDS[key]):
        fit = [n for n in registry.names() if getattr(registry.get(n), _NEEDS[key])]
        raise SpecError(
            f"{key}: {name!r} is not {_NEEDS[key]}",
            wanted=did_you_mean(name, fit),
            remedy="mixtune tasks lists what there is",
        )
    return task.name


_NEEDS = {"tasks": "scored", "ingredients": "trainable"}


def answerable(task: Task, form: Form, kind: SystemKind) -> bool:
    """Constrained answers need labels; an open answer has no majority worth the name."""
    if task.kind == "open":
        return form == "strict" and kind != "majority"
    return True
