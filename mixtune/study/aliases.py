"""Other tools' keys (`learning_rate`, `lora_r`) and short amounts → a study's own keys and values.

Anything that cannot be taken over is refused with the reason: nothing is ignored in silence.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mixtune.errors import SpecError, shorten
from mixtune.study.yaml import Origin, Place, read_yaml

Raw = dict[str, Any]
Key = tuple[str, ...]
"""A key of a study and the sections around it."""

_SPELLINGS = {
    "model": "model_name_or_path base_model",
    "ingredients": "dataset datasets",
    "seeds": "seed",
    "train.method": "finetuning_type adapter",
    "train.targets": "lora_target lora_target_modules target_modules",
    "train.rank": "lora_r lora_rank r",
    "train.alpha": "lora_alpha",
    "train.lr": "learning_rate",
    "train.schedule": "lr_scheduler_type lr_scheduler",
    "train.warmup": "warmup_ratio",
    "train.weight_decay": "weight_decay",
    "train.clip": "max_grad_norm",
    "train.compute": "bf16 fp32 torch_dtype dtype",
    "train.max_length": "cutoff_len max_seq_length sequence_len model_max_length",
    "budget.steps": "max_steps",
    "budget.examples_per_step": "per_device_train_batch_size train_batch_size micro_batch_size "
    "gradient_accumulation_steps",
}
ALIASES = {alias: own for own, names in _SPELLINGS.items() for alias in names.split()}
"""Other tools' keys → the study's own. They may stand at the top level or in their section.

pydantic's AliasChoices would take the first of two that contradict each other, and find none
outside its own section.
"""

FIXED = {
    "lora_dropout": (0, "adapters are trained without dropout"),
    "fp16": (False, "float16 is not offered: train.compute is float32 or bfloat16"),
    "num_train_epochs": (None, "every cocktail gets the same number of examples: budget.steps"),
    "num_epochs": (None, "every cocktail gets the same number of examples: budget.steps"),
}
"""Keys that cannot be taken over: the one value that changes nothing and is accepted, and why."""

FORMS = "name, name:rows, name*repeat, name:rows*repeat, share*name or share*name:rows"
"""The short forms of an ingredient's amount."""

_STEP = ("budget", "examples_per_step")
_SIZE = ("budget", "micro_batch_size")
_ACCUMULATION = ("budget", "gradient_accumulation_steps")
_PLACES: dict[str, Key] = {
    alias: _SIZE if dotted == ".".join(_STEP) else tuple(dotted.split("."))
    for alias, dotted in ALIASES.items()
} | {_ACCUMULATION[1]: _ACCUMULATION}
"""Alias → its own key. Batch size and accumulation steps are multiplied once all are read, so that
an override can replace either."""
_REPLACES: dict[Key, tuple[Key, ...]] = {
    _STEP: (_SIZE, _ACCUMULATION),
    _SIZE: (_STEP,),
    _ACCUMULATION: (_STEP,),
}
"""Own key → keys that an override of it makes void."""
_FORMATS = {
    **dict.fromkeys(("float32", "fp32", "float", "fp32 True", "bf16 False"), "float32"),
    **dict.fromkeys(("bfloat16", "bf16", "bf16 True"), "bfloat16"),
}
"""Name of a number format, or a switch and its value → train.compute."""
_NUMBER = r"(?:[0-9][0-9_]{0,17}(?:\.[0-9]{1,17})?|\.[0-9]{1,17})"
_PIECE = re.compile(
    rf"(?:(?P<share>{_NUMBER})\s*\*\s*)?(?P<name>[A-Za-z0-9][A-Za-z0-9_-]*)"
    rf"(?:\s*:\s*(?P<rows>[0-9][0-9_]{{0,17}}))?(?:\s*\*\s*(?P<repeat>{_NUMBER}))?"
)


@dataclass(slots=True)
class Spelling:
    """A study under its own keys; `typed`: place of a value → another tool's key in the file."""

    raw: Raw
    origin: Origin
    typed: dict[Place, str] = field(default_factory=dict)

    def name(self, place: Key) -> str:
        """The key of a value as it was typed."""
        return self.typed.get(place, ".".join(place))

    def section(self, place: Key) -> Raw:
        """The mapping that holds a value, made where there is none; other values are refused."""
        section = self.raw
        for key in place[:-1]:
            if section.get(key) is None:
                section[key] = {}
            section = section[key]
            if not isinstance(section, dict):
                where, problem = self.origin.at(key), f"{shorten(key)} holds no keys"
                raise SpecError(problem, where=where, found=section, wanted="a mapping")
        return section

    def put(self, place: Key, name: str, value: Any) -> None:  # noqa: ANN401 - raw YAML
        """Set an own key to what was typed under another name; another value is refused."""
        section, key = self.section(place), place[-1]
        if key in section and section[key] != value:
            typed = self.name(place)
            raise SpecError(
                f"contradictory settings: {name} and {typed} are the same setting",
                where=self.origin.at(name.split()[0]),
                found=f"{name}: {shorten(value)}, {typed}: {shorten(section[key])}",
                remedy="keep one of them",
            )
        section[key] = value
        self.typed[place] = name

    def not_taken_over(self, name: str, reason: str, value: object, remedy: str) -> SpecError:
        """The error for a key that has no counterpart here."""
        problem = f"{name} cannot be taken over: {reason}"
        return SpecError(problem, where=self.origin.at(name), found=value, remedy=remedy)

    def sections(self) -> Iterator[tuple[str, Raw]]:
        """The study and its sections that take other tools' keys: what precedes a key, the keys."""
        yield "", self.raw
        for section in ("train", "budget"):
            if isinstance(keys := self.raw.get(section), dict):
                yield f"{section}.", keys


def read_spelling(raw: Raw, origin: Origin) -> Spelling:
    """The study with other tools' keys and short amounts written as its own.

    Raises:
        SpecError: two spellings of one key with different values, a value that cannot be taken
            over, a short amount that cannot be read.
    """
    study = {key: dict(value) if isinstance(value, dict) else value for key, value in raw.items()}
    spelling = Spelling(study, origin)
    for prefix, keys in spelling.sections():
        for alias, place in _PLACES.items():
            name, own = f"{prefix}{alias}", ".".join(place)
            if alias in keys and own.startswith(prefix) and name != own:
                spelling.put(place, name, _converted(alias, keys.pop(alias), name, spelling))
    if "ingredients" in study:
        study["ingredients"] = amounts(study["ingredients"], origin)
    return spelling


def override(spelling: Spelling, text: str) -> None:
    """Set one `key.sub=value`, whatever the key is called; the value is YAML.

    Raises:
        SpecError: no "=", a path through something that is not a mapping, a value that is not YAML
            or cannot be taken over.
    """
    name, equals, value = text.partition("=")
    path = tuple(name.strip().split("."))
    if not equals or not name.strip() or len(path) > 3:
        raise SpecError("not an override", found=text, wanted="key=value or key.sub=value")
    read = read_yaml(value, f"the value of {shorten(name.strip())}", SpecError).value
    place = _own_place(path)
    # What an override has touched no longer stands in a line of the file.
    lines = {at: line for at, line in spelling.origin.lines.items() if at[:1] != path[:1]}
    spelling.origin = Origin(spelling.origin.name, lines)
    section = spelling.section(place)
    for replaced in (place, *_REPLACES.get(place, ())):
        section.pop(replaced[-1], None)
        spelling.typed.pop(replaced, None)
    if place == path:
        section[place[-1]] = read
    else:
        spelling.put(place, name.strip(), _converted(path[-1], read, name.strip(), spelling))
    if place == ("ingredients",):
        spelling.raw["ingredients"] = amounts(read, spelling.origin)


def own_keys(spelling: Spelling) -> Raw:
    """The study's own keys alone, with batch size × accumulation steps as the examples of a step.

    Raises:
        SpecError: accumulation steps that multiply nothing, a key of FIXED that would change
            something.
    """
    _multiply_batch(spelling)
    for prefix, keys in spelling.sections():
        for key in FIXED.keys() & keys.keys():
            accepted, reason = FIXED[key]
            value = keys.pop(key)
            if accepted is None or value != accepted:
                epochs = "epochs" in key
                remedy = _steps_of_an_epoch(spelling.raw) if epochs else f"leave {key} out"
                raise spelling.not_taken_over(f"{prefix}{key}", reason, value, remedy)
    return spelling.raw


def _own_place(path: Key) -> Key:
    """The own key that a typed one sets."""
    if ALIASES.get(path[0]) == "ingredients":
        return ("ingredients", *path[1:])
    place = _PLACES.get(path[-1], path)
    return place if path[:-1] in ((), place[:-1]) else path


def _multiply_batch(spelling: Spelling) -> None:
    """Make one setting of batch size and accumulation steps."""
    budget = spelling.raw.get("budget")
    if not isinstance(budget, dict):
        return
    size_name, factor_name = spelling.name(_SIZE), spelling.name(_ACCUMULATION)
    has_size, has_factor = _SIZE[1] in budget, _ACCUMULATION[1] in budget
    size, factor = budget.pop(_SIZE[1], None), budget.pop(_ACCUMULATION[1], None)
    if not has_factor:
        if has_size:
            spelling.put(_STEP, size_name, size)
        return
    if type(size) is not int or type(factor) is not int:
        raise SpecError(
            f"{factor_name} multiplies a batch size, and there is none that it can multiply",
            where=spelling.origin.at(factor_name),
            found=f"{size_name}: {size}, {factor_name}: {factor}",
            wanted="whole numbers for both",
            remedy="give budget.examples_per_step, the examples of one optimiser step",
        )
    spelling.put(_STEP, f"{size_name} × {factor_name}", size * factor)


def _steps_of_an_epoch(study: Raw) -> str:
    """The remedy for epochs, with the examples of one pass where every pool has its rows."""
    pools: Any = study.get("ingredients")
    pools = pools.values() if isinstance(pools, dict) else []
    rows: list[Any] = [pool.get("rows") if isinstance(pool, dict) else None for pool in pools]
    remedy = "give budget.steps (times budget.examples_per_step examples)"
    if rows and all(type(size) is int for size in rows):
        remedy += f"; one pass over all the pools is {sum(rows)} examples"
    return remedy


def _converted(alias: str, value: Any, name: str, spelling: Spelling) -> Any:  # noqa: ANN401
    """The own key's value for another tool's."""
    match ALIASES.get(alias):
        case "seeds":
            return value if isinstance(value, list | tuple) else [value]
        case "train.targets":
            if value in ("all", "all-linear", ["all"], ["all-linear"]):
                return "all-linear"
            reason = "adapters are put on every linear layer"
            raise spelling.not_taken_over(name, reason, value, f"leave {name} out")
        case "train.compute":
            switch = alias in ("bf16", "fp32")
            text = f"{alias} {value!r}" if switch else str(value).removeprefix("torch.")
            if text in _FORMATS:
                return _FORMATS[text]
            reason = "not a number format that is offered (float32, bfloat16)"
            raise spelling.not_taken_over(name, reason, value, "set train.compute")
    return value


def amounts(value: Any, origin: Origin) -> Any:  # noqa: ANN401 - raw YAML
    """Ingredients as a mapping of name to keys; what is neither short nor a mapping is unchanged.

    Raises:
        SpecError: a piece that is none of the short forms, or a name given twice.
    """
    if isinstance(value, dict):
        return {name: {} if amount is None else amount for name, amount in value.items()}
    if not isinstance(value, str | list | tuple):
        return value
    where = origin.at("ingredients")
    pieces: list[str] = []
    for item in [value] if isinstance(value, str) else value:
        if not isinstance(item, str):
            raise SpecError(
                "ingredients: a list holds short amounts only",
                where=where,
                found=item,
                wanted=f"{FORMS}; or a mapping: {{name: {{rows: 100}}}}",
                remedy="a `datasets:` list of another tool is read from its own file, under "
                "task_files",
            )
        pieces += item.split(",")
    ingredients: dict[str, Raw] = {}
    for position, piece in enumerate(pieces, start=1):
        name, amount = _amount(piece, f"{where}: ingredients, piece {position}")
        if name in ingredients:
            problem = f"ingredients, piece {position}: {name!r} is there already"
            raise SpecError(problem, where=where, found=piece, remedy="name each ingredient once")
        ingredients[name] = amount
    return ingredients


def _amount(piece: str, where: str) -> tuple[str, Raw]:
    """One short amount: the name and its keys."""
    match = _PIECE.fullmatch(piece.strip())
    if match is None:
        forms = f"{FORMS}; numbers as 10000 or 10_000"
        raise SpecError("not an amount that can be read", where=where, found=piece, wanted=forms)
    share, name, rows, repeat = match.group("share", "name", "rows", "repeat")
    if (share or repeat) and name.replace("_", "").isdigit():
        problem = "a number times a number: which is the name?"
        remedy = f"write it out: {{{name}: {{repeat: 2}}}}"
        raise SpecError(problem, where=where, found=piece, remedy=remedy)
    texts = {"rows": rows, "share": share, "repeat": repeat}
    numbers = {key: text.replace("_", "") for key, text in texts.items() if text}
    amount: Raw = {k: int(text) if k == "rows" else float(text) for k, text in numbers.items()}
    if amount.get("share", 0) > 1:
        remedy = f"{name}*{share} gives {share} passes over it"
        raise SpecError("a share is at most 1", where=where, found=piece, remedy=remedy)
    return name, amount
