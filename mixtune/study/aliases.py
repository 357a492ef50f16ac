"""What people type → the study's own keys and values.

Keys that other tools have taught (`learning_rate`, `lora_r`, `cutoff_len`) are read as the
study's own; amounts may be written short: `headline:10000, fpb, ner*3, 0.2*orca`. What cannot be
taken over is refused with the reason: nothing is left out silently.

Knows: other spellings. Does not know: the limits of a value (spec.py), which datasets exist.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mixtune.errors import SpecError, shorten
from mixtune.study.yaml import Origin, read_yaml

Raw = dict[str, Any]
Path = tuple[str, ...]

ALIASES = {
    "model_name_or_path": "model",
    "base_model": "model",
    "dataset": "ingredients",
    "datasets": "ingredients",
    "seed": "seeds",
    "finetuning_type": "train.method",
    "adapter": "train.method",
    "lora_target": "train.targets",
    "lora_target_modules": "train.targets",
    "target_modules": "train.targets",
    "lora_r": "train.rank",
    "lora_rank": "train.rank",
    "r": "train.rank",
    "lora_alpha": "train.alpha",
    "learning_rate": "train.lr",
    "lr_scheduler_type": "train.schedule",
    "lr_scheduler": "train.schedule",
    "warmup_ratio": "train.warmup",
    "weight_decay": "train.weight_decay",
    "max_grad_norm": "train.clip",
    "bf16": "train.compute",
    "fp32": "train.compute",
    "torch_dtype": "train.compute",
    "dtype": "train.compute",
    "cutoff_len": "train.max_length",
    "max_seq_length": "train.max_length",
    "sequence_len": "train.max_length",
    "model_max_length": "train.max_length",
    "max_steps": "budget.steps",
    "per_device_train_batch_size": "budget.examples_per_step",
    "train_batch_size": "budget.examples_per_step",
    "micro_batch_size": "budget.examples_per_step",
    "gradient_accumulation_steps": "budget.examples_per_step",
}
"""Other tools' keys → the study's own. They may stand at the top level or in their section."""

FIXED = {
    "lora_dropout": (0, "adapters are trained without dropout"),
    "fp16": (False, "float16 is not offered: train.compute is float32 or bfloat16"),
    "num_train_epochs": (None, "every cocktail gets the same number of examples: budget.steps"),
    "num_epochs": (None, "every cocktail gets the same number of examples: budget.steps"),
}
"""Keys that cannot be taken over: the one value that changes nothing and is accepted, and why."""

FORMS = "name, name:rows, name*repeat, name:rows*repeat, share*name or share*name:rows"
"""The short forms of an ingredient's amount."""

_ACCUMULATION = "gradient_accumulation_steps"
_SECTIONS = ("train", "budget")
_NUMBER = r"(?:[0-9][0-9_]{0,17}(?:\.[0-9]{1,17})?|\.[0-9]{1,17})"
_PIECE = re.compile(
    rf"(?:(?P<share>{_NUMBER})\s*\*\s*)?(?P<name>[A-Za-z0-9][A-Za-z0-9_-]*)"
    rf"(?:\s*:\s*(?P<rows>[0-9][0-9_]{{0,17}}))?(?:\s*\*\s*(?P<repeat>{_NUMBER}))?"
)


@dataclass(frozen=True, slots=True)
class Spelled:
    """A study under its own keys; `typed`: own key → the key that was typed for it."""

    raw: Raw
    typed: dict[Path, str]


def own_keys(raw: Raw, origin: Origin) -> Spelled:
    """The study with every other spelling read as the study's own.

    Raises:
        SpecError: two spellings of one key with different values, a key or value that cannot be
            taken over, a short amount that cannot be read.
    """
    study = {key: dict(value) if isinstance(value, dict) else value for key, value in raw.items()}
    taken = _take(study)
    typed: dict[Path, str] = {}
    for alias, name, value in _factored(taken, origin):
        own = _path(ALIASES[alias])
        _settle(study, own, (name, _READ.get(alias, _as_is)(value, name, origin)), typed, origin)
        typed[own] = name
    if "ingredients" in study:
        study["ingredients"] = amounts(study["ingredients"], origin)
    _refuse_fixed(study, origin)
    return Spelled(study, typed)


def amounts(value: Any, origin: Origin) -> Any:  # noqa: ANN401 - raw YAML
    """Ingredients as a mapping of name to keys; what is neither short nor a mapping is left as is.

    Raises:
        SpecError: a piece that is none of the short forms, or a name given twice.
    """
    if isinstance(value, dict):
        return {name: {} if amount is None else amount for name, amount in value.items()}
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple):
        return value
    found: dict[str, Raw] = {}
    here = origin.at("ingredients")
    pieces = [piece for item in value for piece in _split(item, origin)]
    for position, piece in enumerate(pieces, start=1):
        name, amount = _amount(piece, f"{here}: ingredients, piece {position}")
        if name in found:
            raise SpecError(
                f"ingredients, piece {position}: {name!r} is there already",
                where=here,
                found=piece,
                remedy="name each ingredient once",
            )
        found[name] = amount
    return found


def apply_override(raw: Raw, override: str) -> None:
    """Set one `key.sub=value` in a raw study, whatever the key was called; the value is YAML.

    Raises:
        SpecError: no "=", a path through something that is not a mapping, or a value that is not
            YAML.
    """
    text, equals, value = override.partition("=")
    path = tuple(text.strip().split("."))
    if not equals or not text.strip() or len(path) > 3:
        raise SpecError("not an override", found=override, wanted="key=value or key.sub=value")
    if path[0] == "ingredients" or ALIASES.get(path[0]) == "ingredients":
        path = ("ingredients", *path[1:])
        _spread(raw)
    if len(path) < 3:
        _forget(raw, path)
    here = raw
    for key in path[:-1]:
        if here.get(key) is None:
            here[key] = {}
        here = here[key]
        if not isinstance(here, dict):
            raise SpecError(
                f"{shorten(key)} in {shorten(text)} holds no keys", found=here, wanted="a mapping"
            )
    here[path[-1]] = read_yaml(value, f"the value of {shorten(text)}", SpecError).value


# ---- keys -----------------------------------------------------------------------------------


def _path(dotted: str) -> Path:
    return tuple(dotted.split("."))


def _take(study: Raw) -> list[tuple[str, str, Any]]:
    """Take the aliases out of a study: (alias, as it was typed, value) each."""
    taken = [(alias, alias, study.pop(alias)) for alias in ALIASES if alias in study]
    for section in _SECTIONS:
        held = study.get(section)
        if not isinstance(held, dict):
            continue
        for alias, own in ALIASES.items():
            if alias in held and own != f"{section}.{alias}" and own.startswith(f"{section}."):
                taken.append((alias, f"{section}.{alias}", held.pop(alias)))
    return taken


def _factored(taken: list[tuple[str, str, Any]], origin: Origin) -> list[tuple[str, str, Any]]:
    """The same with batch size × accumulation steps as one: the examples of an optimiser step."""
    folds = [item for item in taken if item[0] == _ACCUMULATION]
    own = ALIASES[_ACCUMULATION]
    sizes = [item for item in taken if ALIASES[item[0]] == own and item not in folds]
    if not folds:
        return taken
    if (
        not sizes
        or len(folds) > 1
        or any(type(value) is not int for _, _, value in (*sizes, *folds))
    ):
        raise SpecError(
            f"{folds[0][1]} multiplies a batch size, and there is none that it can multiply",
            where=origin.at(folds[0][1]),
            found=", ".join(f"{name}: {value}" for _, name, value in (*sizes, *folds)),
            wanted="whole numbers for both",
            remedy=f"give {own}, the examples of one optimiser step",
        )
    factor = folds[0][2]
    named = [(a, f"{name} × {folds[0][1]}", value * factor) for a, name, value in sizes]
    return [item for item in taken if ALIASES[item[0]] != own] + named


def _settle(
    study: Raw, own: Path, given: tuple[str, Any], typed: dict[Path, str], origin: Origin
) -> None:
    """Set an own key to what was typed under another name; refuse it when the two differ."""
    name, value = given
    here = study
    for section in own[:-1]:
        if here.get(section) is None:
            here[section] = {}
        here = here[section]
        if not isinstance(here, dict):
            raise SpecError(
                f"{section} holds no keys", where=origin.at(section), found=here, wanted="a mapping"
            )
    key = own[-1]
    if key in here and here[key] != value:
        other = typed.get(own, ".".join(own))
        raise SpecError(
            f"contradictory settings: {name} and {other} are the same setting",
            where=origin.at(name.split()[0]),
            found=f"{name}: {shorten(value)}, {other}: {shorten(here[key])}",
            remedy=f"keep one of them ({'.'.join(own)} is the study's own name)",
        )
    here[key] = value


def _refuse_fixed(study: Raw, origin: Origin) -> None:
    """Take out keys that change nothing, and refuse those that would."""
    for section in ("", *_SECTIONS):
        held = study.get(section) if section else study
        if not isinstance(held, dict):
            continue
        for key in [key for key in FIXED if key in held]:
            allowed, reason = FIXED[key]
            name = f"{section}.{key}" if section else key
            value = held.pop(key)
            if allowed is None or value != allowed:
                raise SpecError(
                    f"{name} cannot be taken over: {reason}",
                    where=origin.at(name),
                    found=value,
                    remedy=_epochs(study) if "epochs" in key else f"leave {key} out",
                )


def _epochs(study: Raw) -> str:
    """How many examples so many passes over the pools are, where the study says it."""
    given = study.get("ingredients")
    pools = given.values() if isinstance(given, dict) else []
    rows = [pool.get("rows") if isinstance(pool, dict) else None for pool in pools]
    sizes = [size for size in rows if type(size) is int]
    budget = "give budget.steps (times budget.examples_per_step examples)"
    if not sizes or len(sizes) < len(rows):
        return budget
    return f"{budget}; one pass over all the pools is {sum(sizes)} examples"


def _forget(raw: Raw, path: Path) -> None:
    """Take every spelling of a setting out: an override stands in its place.

    Batch size and accumulation steps are two halves of one setting: one half leaves the other.
    """
    alias = path[-1]
    own = _path(ALIASES[alias]) if _is_alias(path) else path
    spellings = [name for name, dotted in ALIASES.items() if _path(dotted) == own]
    if alias == _ACCUMULATION:
        spellings = [_ACCUMULATION]
    elif _is_alias(path) and _ACCUMULATION in spellings:
        spellings.remove(_ACCUMULATION)
    section = raw.get(own[0]) if len(own) > 1 else raw
    for place in (raw, section):
        for name in spellings:
            if isinstance(place, dict) and (place, name) != (section, own[-1]):
                place.pop(name, None)
    if isinstance(section, dict):
        section.pop(own[-1], None)


def _is_alias(path: Path) -> bool:
    """Whether another tool's key is meant: at the top level, or in its section."""
    own = ALIASES.get(path[-1])
    return own is not None and path != _path(own) and path[:-1] in ((), _path(own)[:-1])


def _spread(raw: Raw) -> None:
    """Write ingredients out under their own key, so that an override can reach into one."""
    for name in (alias for alias, own in ALIASES.items() if own == "ingredients"):
        if name in raw and "ingredients" not in raw:
            raw["ingredients"] = raw.pop(name)
    if "ingredients" in raw:
        raw["ingredients"] = amounts(raw["ingredients"], Origin("study"))


# ---- values ---------------------------------------------------------------------------------


def _as_is(value: Any, name: str, origin: Origin) -> Any:  # noqa: ANN401 - raw YAML
    return value


def _seeds(value: Any, name: str, origin: Origin) -> Any:  # noqa: ANN401 - raw YAML
    return value if isinstance(value, list | tuple) else [value]


def _targets(value: Any, name: str, origin: Origin) -> str:  # noqa: ANN401 - raw YAML
    if value in ("all", "all-linear", ["all"], ["all-linear"]):
        return "all-linear"
    raise SpecError(
        f"{name} cannot be taken over: adapters are put on every linear layer",
        where=origin.at(name),
        found=value,
        wanted="all or all-linear",
        remedy=f"leave {name} out",
    )


def _compute(value: Any, name: str, origin: Origin) -> str:  # noqa: ANN401 - raw YAML
    """A number format's own name."""
    switched = {("bf16", True): "bfloat16", ("bf16", False): "float32", ("fp32", True): "float32"}
    named = {"bf16": "bfloat16", "fp32": "float32", "float": "float32"}
    alias = name.rpartition(".")[2]
    if alias in ("bf16", "fp32"):
        made = switched.get((alias, value)) if isinstance(value, bool) else None
    else:
        text = value.removeprefix("torch.") if isinstance(value, str) else ""
        made = named.get(text, text)
    if made not in ("float32", "bfloat16"):
        raise SpecError(
            f"{name}: not a number format that is offered",
            where=origin.at(name),
            found=value,
            wanted="train.compute: float32 or bfloat16",
            remedy="set train.compute",
        )
    return made


_READ: dict[str, Callable[[Any, str, Origin], Any]] = {
    "seed": _seeds,
    "lora_target": _targets,
    "lora_target_modules": _targets,
    "target_modules": _targets,
    "bf16": _compute,
    "fp32": _compute,
    "torch_dtype": _compute,
    "dtype": _compute,
}


def _split(item: object, origin: Origin) -> list[str]:
    if isinstance(item, str):
        return item.split(",")
    raise SpecError(
        "ingredients: a list holds short amounts only",
        where=origin.at("ingredients"),
        found=item,
        wanted=f"{FORMS}; or a mapping: {{name: {{rows: 100}}}}",
        remedy="a `datasets:` list of another tool is read from its own file, under task_files",
    )


def _amount(piece: str, where: str) -> tuple[str, Raw]:
    """One short amount: the name and its keys."""
    match = _PIECE.fullmatch(piece.strip())
    if match is None:
        raise SpecError(
            "not an amount that can be read",
            where=where,
            found=piece,
            wanted=f"{FORMS}; numbers as 10000 or 10_000",
        )
    share, name, rows, repeat = match.group("share", "name", "rows", "repeat")
    if (share or repeat) and name.replace("_", "").isdigit():
        raise SpecError(
            "a number times a number: which is the name?",
            where=where,
            found=piece,
            remedy=f"write it out: {{{name}: {{repeat: 2}}}}",
        )
    if share and _number(share) > 1:
        raise SpecError(
            "a share is at most 1",
            where=where,
            found=piece,
            remedy=f"{name}*{share} gives {share} passes over it",
        )
    made: Raw = {"rows": int(rows.replace("_", ""))} if rows else {}
    made |= {"share": _number(share)} if share else {}
    return name, made | ({"repeat": _number(repeat)} if repeat else {})


def _number(text: str) -> float:
    return float(text.replace("_", ""))
