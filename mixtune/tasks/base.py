"""What a task is: the keys of its file, and how one record becomes examples.

Knows: keys, labels, groups, digests of examples. Does not know: how files are read (files.py,
task_file.py), where records are stored (sources.py), which tasks exist (registry.py), tokens.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mixtune.errors import DataError, did_you_mean, shorten
from mixtune.fields import Frozen, Name
from mixtune.identity import canonical, digest
from mixtune.metrics import METRICS
from mixtune.metrics import VERSION as METRICS_VERSION
from mixtune.records import Example, Message, Query, Split
from mixtune.tasks.dialogue import (
    Dialogue,
    Format,
    Record,
    Role,
    blank,
    check_columns,
    read_dialogue,
)
from mixtune.tasks.parsers import PARSERS, fold
from mixtune.tasks.places import FILE_KEYS, Source, Text
from mixtune.tasks.templates import check as check_template
from mixtune.tasks.templates import render, variables

RENDERER = 1
"""Version of the prompt renderer; part of every prompt version."""

LABEL_METRICS = ("accuracy", "macro-f1", "weighted-f1")


class Fields(Frozen):
    """Which field holds what; `id: null` numbers the records, `group: null` uses group_by.

    Rows of a file of one's own are numbered unless the task names an id.
    """

    label: str | None = None
    id: str | None = "id"
    group: str | None = None


@dataclass(frozen=True, slots=True)
class _Spot:
    """What the examples of one record have in common: where it stands, id, split, group."""

    where: str
    key: str
    split: Split
    group: str


class Task(Frozen):
    """A dataset one can train on or be scored on, as its YAML file says.

    `prompt`, `system`, `target` and `group_by` are jinja2 templates over the record's fields;
    `label` (target only), `labels` and, with `questions`, `question` are added. Rendered texts are
    stripped of white space at both ends. `labels` are the exact strings asked for and answered.
    `columns` maps names used here to those of the file. Rows of another `format` than fields are
    conversations: they need no prompt, `roles` maps speakers, and `turns` says whether all of the
    assistant's turns are learnt or the last one.
    """

    name: Name
    title: Text
    about: str = ""
    version: Annotated[int, Field(gt=0)] = 1
    kind: Literal["label", "open"]
    synthetic: bool = False
    scored: bool = True
    trainable: bool = True
    aliases: tuple[str, ...] = ()
    format: Format = "fields"
    columns: dict[str, str | None] = Field(default_factory=dict)
    roles: dict[str, Role] = Field(default_factory=dict)
    turns: Literal["all", "last"] = "all"
    labels: tuple[Text, ...] = ()
    label_values: dict[str, str] = Field(default_factory=dict)
    allow_prefix_labels: bool = False
    system: Text | None = None
    prompt: Text | None = None
    target: Text = "{{ label }}"
    fields: Fields = Fields()
    may_be_empty: tuple[str, ...] = ()
    skip_if_empty: tuple[str, ...] = ()
    group_by: Text | None = None
    questions: dict[str, Text] = Field(default_factory=dict)
    parser: str
    metrics: tuple[str, ...]
    source: Source
    licence: Text = "not stated"
    citation: str = ""
    url: str = ""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, raw: Any) -> Any:  # noqa: ANN401 - raw YAML
        return _with_defaults(raw) if isinstance(raw, dict) else raw

    @field_validator("label_values", mode="before")
    @classmethod
    def _string_keys(cls, value: Any) -> Any:  # noqa: ANN401 - raw YAML
        if not isinstance(value, dict):
            return value
        made: dict[Any, Any] = {}
        for key, label in value.items():
            text = _spellings(key)[0] if isinstance(key, str | int | float) else key
            if made.setdefault(text, label) != label:
                raise ValueError(f"{text!r} is there twice, with two labels")
        return made

    @field_validator("prompt", "system", "target", "group_by")
    @classmethod
    def _compiles(cls, source: str | None) -> str | None:
        if source is not None:
            check_template(source)
        return source

    @field_validator("parser")
    @classmethod
    def _parser_known(cls, parser: str) -> str:
        if parser not in PARSERS:
            raise ValueError(f"no such parser; {did_you_mean(parser, PARSERS)}")
        return parser

    @field_validator("metrics")
    @classmethod
    def _metrics_known(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        for name in metrics:
            if name not in METRICS:
                raise ValueError(f"no metric {name!r}; {did_you_mean(name, METRICS)}")
        if len(set(metrics)) != len(metrics):
            raise ValueError("one is named twice")
        return metrics

    @model_validator(mode="after")
    def _agrees(self) -> "Task":
        for check in (_check_format, _check_labels, _check_kind, _check_scoring, _check_prompt):
            check(self)
        return self

    @property
    def prompt_version(self) -> str:
        """Digest of everything that shapes a prompt or its target, for one given record."""
        shown = {"system", "prompt", "target", "labels", "questions"}
        # Left out where they say nothing, so that prompts from before there were these keep theirs.
        if self.format != "fields" or self.columns:
            shown |= {"format", "turns", "columns", "roles"}
        parts = self.model_dump(include=shown)
        return digest({"renderer": RENDERER, **parts, "questions": list(self.questions.items())})

    @property
    def parser_version(self) -> str:
        """Digest of the parser, its version, the labels it looks for and the metrics."""
        parts = {"parser": self.parser, "version": PARSERS[self.parser].version}
        metrics = {"metrics": self.metrics, "metrics_version": METRICS_VERSION}
        return digest({**parts, **metrics, "labels": self.labels})

    def dropped(self, record: Record) -> str | None:
        """The reason why the task's own policy leaves a record out, or None."""
        for field in self.skip_if_empty:
            theirs = self.columns.get(field) or field
            if theirs in record and blank(record[theirs]):
                return f"empty {field}"
        return None

    def to_examples(
        self,
        record: Record,
        split: Split,
        *,
        where: str = "record",
        number: int = 0,
        only: str | None = None,
    ) -> list[Example]:
        """Render one record: one example, one per question or one per turn of the assistant.

        `number`: its place in the split, the id of records that have none. `only`: a single
        question, for sources that give a row per question.

        Raises:
            DataError: a field missing or empty, a label outside the set, a template that fails.
        """
        if self.format == "fields" and self.columns:
            record = _renamed(self, record, where)
        _require(self, record, where)
        key = str(record[self.fields.id]) if self.fields.id else f"{split}-{number}"
        if self.format != "fields":
            return self._turns(record, where, key, split)
        spot = _Spot(where, key, split, _group(self, record, where))
        if not self.questions:
            return [self._example(record, spot)]
        asked = self.questions if only is None else [only]
        return [self._example(record, spot, field) for field in asked]

    def _turns(self, record: Record, where: str, key: str, split: Split) -> list[Example]:
        """An example for each of the assistant's turns that is learnt, with the turns before it."""
        dialogue = read_dialogue(record, where, self.format, self.columns, self.roles)
        group = _group(self, record, where, dialogue.own_text())
        before: tuple[Message, ...] = ()
        if self.system is not None and dialogue.turns[0].role != "system":
            before = (Message("system", render(self.system, record, f"{where}: system")),)
        answers = dialogue.answers()
        return [
            Example(
                task=self.name,
                id=f"{key}/{_number(dialogue, place)}",
                split=split,
                group=group,
                stratum="",
                messages=(*before, *dialogue.turns[:place]),
                target=dialogue.turns[place].content,
            )
            for place in (answers if self.turns == "all" else answers[-1:])
        ]

    def _example(self, record: Record, spot: _Spot, field: str | None = None) -> Example:
        values: dict[str, Any] = {**record, "labels": self.labels}
        if field is not None:
            values["question"] = self.questions[field]
        label_field = field or self.fields.label
        user = render(self.prompt or "", values, f"{spot.where}: prompt")
        messages = [Message("user", user)]
        if self.system is not None:
            system = render(self.system, values, f"{spot.where}: system")
            messages.insert(0, Message("system", system))
        if label_field is not None:
            values["label"] = self._label(record, label_field, spot.where)
        target = render(self.target, values, f"{spot.where}: target")
        if not target:
            raise DataError(
                "the target is empty", where=spot.where, remedy="skip_if_empty leaves such rows out"
            )
        return Example(
            task=self.name,
            id=spot.key if field is None else f"{spot.key}/{field}",
            split=spot.split,
            group=spot.group,
            stratum=field or "",
            messages=tuple(messages),
            target=target,
            choices=self.labels,
        )

    def _label(self, record: Record, field: str, where: str) -> str:
        raw = record[field] if field in record else _missing(field, record, where)
        if self.kind == "open":
            return "" if blank(raw) else str(raw)
        known = {*self.labels, *self.label_values}
        text = next((t for t in _spellings(raw) if t in known), _spellings(raw)[-1])
        label = self.label_values.get(text, text)
        if isinstance(raw, list | dict | None) or label not in self.labels:
            raise DataError(
                "label outside the declared set",
                where=f"{where}: field {field!r}",
                found=raw if isinstance(raw, str) and raw.strip() else repr(raw),
                wanted=f"one of {shorten(', '.join(sorted(known)), 300)}",
                remedy="mend the row, or add the value to labels or label_values of the task file",
            )
        return label


def query_of(example: Example) -> Query:
    """What a model may see of an example."""
    return Query(example.id, example.stratum, example.messages, example.choices)


def fingerprint(examples: Iterable[Example]) -> str:
    """Digest over id, messages, target, choices, group and stratum of examples, in their order."""
    state = hashlib.sha256()
    for e in examples:
        turns = [[m.role, m.content] for m in e.messages]
        row = [e.id, turns, e.target, list(e.choices), e.group, e.stratum]
        state.update(canonical(row).encode("utf-8", "surrogatepass") + b"\n")
    return state.hexdigest()[:16]


def loose_text(text: str) -> str:
    """Lower case, without links, letters and digits only: what a group is compared by.

    Text that has no letters or digits left keeps its own characters, so that two such texts are
    one group only when they are equal.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = re.findall(r"[^\W_]+", re.sub(r"(?:https?://|www\.)\S+", " ", folded))
    return " ".join(words) or " ".join(folded.split())


def _with_defaults(raw: dict[str, Any]) -> dict[str, Any]:
    """A raw task with what a short file leaves out."""
    labelled = bool(raw.get("labels") or raw.get("questions"))
    kind = raw.get("kind", "label" if labelled else "open")
    scored = raw.get("scored", kind == "label" or bool(raw.get("metrics")))
    made = {
        "title": raw.get("name", "task"),
        "kind": kind,
        "parser": "label" if kind == "label" else "text",
        "metrics": LABEL_METRICS if kind == "label" and scored else (),
        "scored": scored,
    }
    fields = raw.get("fields", {})
    if isinstance(fields, dict) and "id" not in fields and _numbered(raw):
        made["fields"] = {**fields, "id": None}
        return {**made, **raw, "fields": made["fields"]}
    return {**made, **raw}


def _numbered(raw: dict[str, Any]) -> bool:
    """Whether rows have no id of their own unless the task names it."""
    source = raw.get("source")
    own = {*FILE_KEYS, "files", "given"}
    named = isinstance(source, str) or (isinstance(source, dict) and bool(source.keys() & own))
    return named or raw.get("format", "fields") != "fields"


def _check_format(task: Task) -> None:
    check_columns(task.format, task.columns)
    if task.format == "fields":
        if task.roles or "turns" in task.model_fields_set:
            raise ValueError("format: roles and turns are for rows that are conversations")
        if task.prompt is None:
            raise ValueError("prompt: missing; only rows of another format need none")
        return
    unused = {"prompt", "target", "labels", "questions", "may_be_empty"} & task.model_fields_set
    if unused:
        names = ", ".join(sorted(unused))
        raise ValueError(f"format: {task.format} rows bring their own turns; remove {names}")
    if task.fields.label is not None:
        raise ValueError(f"fields.label: {task.format} rows have none; use columns")


def _check_labels(task: Task) -> None:
    folded = sorted(fold(label) for label in task.labels)
    for short, long in pairwise(folded):
        if long.startswith(short) and long != short and not task.allow_prefix_labels:
            raise ValueError(
                f"labels: {short!r} is how {long!r} begins, so a longer answer can be read as "
                "either; rename one, or say allow_prefix_labels: true"
            )
    if len({fold(label) for label in task.labels}) != len(task.labels):
        raise ValueError("labels: two labels are the same but for case or spacing")
    for raw, label in task.label_values.items():
        if label not in task.labels:
            raise ValueError(f"label_values: {raw!r} is mapped to {label!r}, which is no label")


def _check_kind(task: Task) -> None:
    if task.kind == "open":
        if task.labels or task.label_values or task.questions:
            raise ValueError("kind: an open task has no labels, label_values or questions")
        if task.format != "fields":
            return
        if task.fields.label is None and "label" in variables(task.target):
            raise ValueError("target: {{ label }} needs fields.label to name a field")
        return
    if len(task.labels) < 2:
        raise ValueError("labels: a label task needs at least two")
    if task.target.replace(" ", "") != "{{label}}":
        raise ValueError("target: a label task answers with the label itself, '{{ label }}'")
    if (task.fields.label is None) == (not task.questions):
        raise ValueError("fields.label: a label task names its label field, or has questions")


def _check_scoring(task: Task) -> None:
    if (task.parser == "label") != (task.kind == "label"):
        raise ValueError("parser: label tasks use 'label', open tasks 'number' or 'text'")
    if task.scored and not task.metrics:
        raise ValueError("metrics: a scored task needs at least one; else say scored: false")
    if task.kind == "open" and any(METRICS[name].needs_labels for name in task.metrics):
        raise ValueError("metrics: an open task has no labels, so accuracy only")


def _check_prompt(task: Task) -> None:
    """The prompt asks for what the target says, and does not give it away."""
    if task.format != "fields":
        return
    seen = variables(task.prompt, task.system)
    given = (seen & {"label"}) or (task.kind == "label" and shared_fields(task))
    if given:
        raise ValueError(f"prompt: shows the answer ({', '.join(sorted(given))})")
    if task.questions and "question" not in seen:
        raise ValueError("prompt: the task has questions, so the prompt needs {{ question }}")
    if not _content_fields(task):
        raise ValueError("prompt: reads no field of the record")
    if "labels" in seen:
        return
    shown = [f"{task.system or ''}\n{task.prompt}\n{q}" for q in task.questions.values() or [""]]
    for label in task.labels:
        if not all(re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text) for text in shown):
            raise ValueError(
                f"prompt: does not name the label {label!r} letter for letter; a strict answer "
                "is the exact label, so the prompt has to ask for it"
            )


def shared_fields(task: Task) -> set[str]:
    """Fields of the file that both the prompt and the answer are made of, by whatever names."""
    told = set(variables(task.target))
    if "label" in told:
        told = told - {"label"} | ({task.fields.label} if task.fields.label else {*task.questions})
    sides = _content_fields(task), told
    shown, answered = ({task.columns.get(n) or n for n in names} for names in sides)
    return shown & answered


def _content_fields(task: Task) -> list[str]:
    """Record fields that the prompt reads, by name."""
    seen = variables(task.prompt, task.system)
    return sorted(seen - {"labels"} - ({"question"} if task.questions else set()))


def _require(task: Task, record: Record, where: str) -> None:
    """Every field that a template reads is there and, unless it may be empty, says something."""
    read = variables(task.prompt, task.system, task.target, task.group_by) - {"labels", "label"}
    named = {field for field in (task.fields.id, task.fields.group) if field}
    for field in sorted((read - ({"question"} if task.questions else set())) | named):
        if field not in record:
            _missing(field, record, where)
        if field not in task.may_be_empty and blank(record[field]):
            raise DataError(
                "the field is empty",
                where=f"{where}: field {field!r}",
                found=repr(record[field]),
                wanted="text that is not blank",
                remedy="mend the row, or name the field in may_be_empty or skip_if_empty",
            )


def _missing(field: str, record: Record, where: str) -> Any:  # noqa: ANN401 - never returns
    raise DataError(
        f"the record has no field {field!r}",
        where=where,
        found=", ".join(sorted(map(str, record))) or "an empty record",
        wanted=field,
        remedy=did_you_mean(field, map(str, record)) if record else "mend the row",
    )


def _renamed(task: Task, record: Record, where: str) -> Record:
    """The record by the names that the task file uses."""
    for ours, theirs in task.columns.items():
        if theirs not in record:
            _missing(str(theirs), record, f"{where}: columns.{ours}")
    taken = set(task.columns.values())
    kept = {name: value for name, value in record.items() if name not in taken}
    return kept | {ours: record[str(theirs)] for ours, theirs in task.columns.items()}


def _spellings(raw: object) -> tuple[str, ...]:
    """How a stored label may be written in a task file; the last is what it is without a mapping.

    CSV keeps texts only, and other programs write whole numbers as 1.0 where a row has none.
    """
    if isinstance(raw, bool):
        return (str(raw).lower(), str(raw))
    if isinstance(raw, float) and raw.is_integer():
        return (str(raw), str(int(raw)))
    text = raw.strip() if isinstance(raw, str) else str(raw)
    return (text.lower(), text) if text.lower() in ("true", "false") else (text,)


def _number(dialogue: Dialogue, place: int) -> int:
    """Which of the assistant's turns stands at a place, from 1."""
    return sum(turn.role == "assistant" for turn in dialogue.turns[: place + 1])


def _group(task: Task, record: Record, where: str, asked: str = "") -> str:
    """The unit of independence: a field as it stands, or a text loosely normalised."""
    if task.fields.group is not None:
        return str(record[task.fields.group])
    if task.group_by is not None:
        text = render(task.group_by, {**record, "labels": task.labels}, f"{where}: group_by")
    elif task.format != "fields":
        text = asked
    else:
        text = "\n".join(str(record[field]) for field in _content_fields(task))
    loose = loose_text(text)
    # Long texts are cut, with a digest of the whole: the group is stored with every score.
    return loose if len(loose) <= 200 else f"{loose[:160]} #{digest(loose)}"
