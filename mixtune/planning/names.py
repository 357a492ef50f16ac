"""A study with every dataset under its own name; what cannot play the role it is given is refused.

Knows: roles, aliases, which roles exclude each other, forms of answers. Does not know: rows, plans,
ids.
"""

from collections.abc import Sequence
from typing import Any, Literal

from mixtune.datasets.registry import Registry
from mixtune.errors import SpecError, did_you_mean
from mixtune.records import Form
from mixtune.study.reading import parse_study
from mixtune.study.spec import Study
from mixtune.tasks.task import Task

SystemKind = Literal["trained", "merged", "base", "majority", "api", "adapter", "model"]
"""merged: a sum of trained adapters. api: behind an endpoint. The last two were made elsewhere and
brought in to be scored."""

_NEEDS = {
    "tasks": "scored",
    "judged": "judged",
    "ingredients": "trainable",
    "probes": "scored",
    "general": "trainable",
}


def canonical(study: Study, registry: Registry) -> Study:
    """The study with every dataset under its own name; aliases resolved.

    Raises:
        SpecError: one that does not exist, cannot be used as asked, or is named twice.
    """
    tasks = [_usable(name, registry, "tasks") for name in study.tasks]
    named = {name: _usable(name, registry, "ingredients") for name in study.ingredients}
    probe_keys = _probes(study, registry, tasks)
    judged = [_usable(name, registry, "judged") for name in study.judged]
    if len(set(judged)) < len(judged):
        raise SpecError("judged: two names mean the same dataset", found=list(study.judged))
    for name in [*tasks, *probe_keys["probes"]]:
        if not any(answerable(registry.get(name), f, "trained") for f in study.evaluate.forms):
            raise SpecError(
                f"task {name!r} has open answers, which cannot be ranked",
                found=list(study.evaluate.forms),
                remedy="add strict to evaluate.forms",
            )
    explicit = [[named[name] for name in cocktail] for cocktail in study.design.explicit]
    levels = [
        level.model_dump(mode="json")
        | {key: [named[name] for name in getattr(level, key)] for key in ("add", "to")}
        for level in study.design.levels
    ]
    raw = study.model_dump(mode="json")
    raw["tasks"], raw["judged"] = tasks, judged
    raw["ingredients"] = {named[name]: amount for name, amount in raw["ingredients"].items()}
    raw["design"] |= {"explicit": explicit, "levels": levels}
    raw["groups"] = {group: [named[n] for n in listed] for group, listed in study.groups.items()}
    raw |= probe_keys
    if len(raw["ingredients"]) < len(named):
        raise SpecError("ingredients: two names mean the same dataset", found=named)
    return parse_study(raw)


def answerable(task: Task, form: Form, kind: SystemKind) -> bool:
    """Constrained answers need labels; an open answer has no majority worth the name."""
    if task.kind == "open":
        return form == "strict" and kind != "majority"
    return True


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


def _probes(study: Study, registry: Registry, tasks: Sequence[str]) -> dict[str, Any]:
    """The keys `probes`, `general` and `gate`; nothing stands in two roles."""
    probes = [_usable(name, registry, "probes") for name in study.probes]
    general = None if study.general is None else _usable(study.general, registry, "general")
    twice = sorted({name for name in probes if probes.count(name) > 1 or name in tasks})
    if twice:
        raise SpecError(
            f"probes: {', '.join(twice)} is named twice, or is one of the tasks",
            wanted="tasks that the study does not aim at, each once",
            remedy="leave it out of the probes: tasks are answered in any case",
        )
    if general is not None and general in (*tasks, *probes):
        raise SpecError(
            f"general: {general} is answered as a task or probe",
            wanted="a dataset of general text, such as alpaca",
            remedy="name another dataset",
        )
    gate = study.gate.model_dump(mode="json")
    gate["probes"] = [_gated(name, probes, registry) for name in study.gate.probes]
    if study.gate.retention is not None and not probes:
        raise SpecError(
            "gate.retention is set and there are no probes, so that nothing can fall below it",
            found=study.gate.retention,
            remedy="name probes, or remove the gate",
        )
    return {"probes": probes, "general": general, "gate": gate}


def _gated(name: str, probes: Sequence[str], registry: Registry) -> str:
    own = registry.get(name).name if name in registry else name
    if own not in probes:
        raise SpecError(
            f"gate.probes: {name!r} is none of the study's probes",
            wanted=did_you_mean(name, probes) if probes else "a study with probes",
            remedy="add it to probes, or leave it out of the gate",
        )
    return own
