"""What a task is: the YAML form it is written in, and how one record becomes examples.

Knows: the task file's keys, the prompt renderer, groups, digests of examples. Does not know:
where records are stored (sources.py), which tasks exist (registry.py), models, tokens.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, get_args

import jinja2
import jinja2.meta
import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from mixtune.errors import DataError, did_you_mean, shorten
from mixtune.identity import canonical, digest
from mixtune.metrics import METRICS
from mixtune.metrics import VERSION as METRICS_VERSION
from mixtune.records import Example, Message, Query, Split
from mixtune.spec import Frozen, Name
from mixtune.tasks.parsers import PARSERS, fold

RENDERER = 1
"""Version of the prompt renderer; part of every prompt version."""

Text = Annotated[str, Field(min_length=1)]
Record = Mapping[str, Any]


class LocalSource(Frozen):
    """A folder below the data directory; a file per split, `<split>.jsonl` or `.jsonl.gz`."""

    folder: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    files: dict[Split, Annotated[str, Field(pattern=r"^[^/\\]+\.jsonl(\.gz)?$")]] = Field(
        default_factory=dict
    )


class FlatQuestions(Frozen):
    """How a hub set that gives one row per question says which question a row is about."""

    question: Text
    answer: Text
    values: Annotated[dict[str, str], Field(min_length=1)]


class HubSource(Frozen):
    """A dataset on the hub, as `datasets.load_dataset` takes it.

    `splits` maps our splits to the hub's. `rename` maps hub fields to ours. `carve_test` is the
    share of train groups that become test where the hub has one split only. `unverified` says
    that the entry was written without a look at the hub.
    """

    path: Text
    config: str | None = None
    data_dir: str | None = None
    revision: str | None = None
    splits: Annotated[dict[Split, str], Field(min_length=1)]
    rename: dict[str, str] = Field(default_factory=dict)
    flat: FlatQuestions | None = None
    carve_test: Annotated[float, Field(gt=0, lt=1)] | None = None
    unverified: bool = False
    note: str = ""


class ToySource(Frozen):
    """Records come from the seeded generator under the task's own name."""


class Source(Frozen):
    """Where records can be read from; `toy` stands alone."""

    local: LocalSource | None = None
    hub: HubSource | None = None
    toy: ToySource | None = None

    @model_validator(mode="after")
    def _some(self) -> "Source":
        if self.toy is None and self.local is None and self.hub is None:
            raise ValueError("a task needs a source: local, hub or toy")
        if self.toy is not None and (self.local or self.hub):
            raise ValueError("a toy source stands alone, without local and hub")
        return self


class Fields(Frozen):
    """Which field holds what; `id: null` numbers the records, `group: null` uses group_by."""

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
    """

    name: Name
    title: Text
    about: Text
    version: Annotated[int, Field(gt=0)]
    kind: Literal["label", "open"]
    synthetic: bool = False
    scored: bool = True
    trainable: bool = True
    aliases: tuple[str, ...] = ()
    labels: tuple[Text, ...] = ()
    label_values: dict[str, str] = Field(default_factory=dict)
    system: Text | None = None
    prompt: Text
    target: Text = "{{ label }}"
    fields: Fields = Fields()
    may_be_empty: tuple[str, ...] = ()
    skip_if_empty: tuple[str, ...] = ()
    group_by: Text | None = None
    questions: dict[str, Text] = Field(default_factory=dict)
    parser: str
    metrics: tuple[str, ...]
    source: Source
    licence: Text
    citation: str = ""
    url: str = ""

    @field_validator("label_values", mode="before")
    @classmethod
    def _string_keys(cls, value: Any) -> Any:  # noqa: ANN401 - raw YAML
        if not isinstance(value, dict):
            return value
        return {str(k) if type(k) is int else k: v for k, v in value.items()}

    @field_validator("prompt", "system", "target", "group_by")
    @classmethod
    def _compiles(cls, source: str | None) -> str | None:
        if source is not None:
            try:
                _template(source)
            except jinja2.TemplateSyntaxError as error:
                raise ValueError(f"not a template, line {error.lineno}: {error.message}") from error
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
        for check in (_check_labels, _check_kind, _check_scoring, _check_prompt):
            check(self)
        return self

    @property
    def main_metric(self) -> str | None:
        """The first metric; None for a set that is not scored."""
        return self.metrics[0] if self.metrics else None

    @property
    def prompt_version(self) -> str:
        """Digest of everything that shapes a prompt or its target, for one given record."""
        parts = self.model_dump(include={"system", "prompt", "target", "labels", "questions"})
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
            if field in record and _blank(record[field]):
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
        """Render one record: one example, or one per question.

        `number`: its place in the split, the id of records that have none. `only`: a single
        question, for sources that give a row per question.

        Raises:
            DataError: a field missing or empty, a label outside the set, a template that fails.
        """
        _require(self, record, where)
        key = str(record[self.fields.id]) if self.fields.id else f"{split}-{number}"
        spot = _Spot(where, key, split, _group(self, record, where))
        if not self.questions:
            return [self._example(record, spot)]
        asked = self.questions if only is None else [only]
        return [self._example(record, spot, field) for field in asked]

    def _example(self, record: Record, spot: _Spot, field: str | None = None) -> Example:
        values: dict[str, Any] = {**record, "labels": self.labels}
        if field is not None:
            values["question"] = self.questions[field]
        label_field = field or self.fields.label
        user = _render(self.prompt, values, f"{spot.where}: prompt")
        messages = [Message("user", user)]
        if self.system is not None:
            system = _render(self.system, values, f"{spot.where}: system")
            messages.insert(0, Message("system", system))
        if label_field is not None:
            values["label"] = self._label(record, label_field, spot.where)
        target = _render(self.target, values, f"{spot.where}: target")
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
            return "" if _blank(raw) else str(raw)
        text = raw.strip() if isinstance(raw, str) else str(raw)
        label = self.label_values.get(text, text)
        if isinstance(raw, bool | float | list | dict | None) or label not in self.labels:
            known = sorted({*self.labels, *self.label_values})
            raise DataError(
                "label outside the declared set",
                where=f"{where}: field {field!r}",
                found=raw if isinstance(raw, str) else repr(raw),
                wanted=f"one of {', '.join(known)}",
                remedy="mend the row, or add the value to labels or label_values of the task file",
            )
        return label


def chance(task: Task) -> float | None:
    """Accuracy of guessing evenly among the labels; None for open tasks."""
    return 1 / len(task.labels) if task.kind == "label" else None


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


def parse_task(text: str, where: str) -> Task:
    """Read a task from the text of a YAML file; `where` names the file in messages.

    Raises:
        DataError: not YAML, an unknown key, a value that does not fit; one line per fault.
    """
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"not valid YAML: {error}", where=where) from error
    if not isinstance(raw, dict):
        raise DataError("a task is a mapping", where=where, found=raw, wanted="key: value")
    try:
        return Task.model_validate(raw)
    except ValidationError as error:
        faults = "; ".join(_explain(fault) for fault in error.errors())
        raise DataError(faults, where=where, remedy="mend the keys named") from error


def _explain(fault: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    """One fault in the user's words: key, what, what was found."""
    key = ".".join(str(part) for part in fault["loc"]) or "task"
    if fault["type"] == "extra_forbidden":
        return f"{key}: no such key; {did_you_mean(str(fault['loc'][-1]), _keys_at(fault['loc']))}"
    if fault["type"] == "missing":
        return f"{key}: missing"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "string_type" and isinstance(fault["input"], bool):
        message += "; YAML reads yes, no, on and off as true and false: put quotes around the word"
    found = "" if not fault["loc"] else f" (found {shorten(fault['input'])})"
    return f"{key}: {message}{found}"


def _keys_at(path: Sequence[Any]) -> list[str]:
    """The keys that are allowed where the last part of `path` stands."""
    here: type[BaseModel] = Task
    for part in path[:-1]:
        if part not in here.model_fields:
            break
        kinds = [here.model_fields[part].annotation, *get_args(here.model_fields[part].annotation)]
        models = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        here = models[0] if models else here
    return list(here.model_fields)


def _check_labels(task: Task) -> None:
    if len({fold(label) for label in task.labels}) != len(task.labels):
        raise ValueError("labels: two labels are the same but for case or spacing")
    for raw, label in task.label_values.items():
        if label not in task.labels:
            raise ValueError(f"label_values: {raw!r} is mapped to {label!r}, which is no label")


def _check_kind(task: Task) -> None:
    if task.kind == "open":
        if task.labels or task.label_values or task.questions:
            raise ValueError("kind: an open task has no labels, label_values or questions")
        if task.fields.label is None and "label" in _variables(task.target):
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
    seen = _variables(task.prompt, task.system)
    answers = {"label", *([task.fields.label] if task.kind == "label" else []), *task.questions}
    if seen & answers:
        raise ValueError(
            f"prompt: shows the answer ({', '.join(sorted(map(str, seen & answers)))})"
        )
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


def _regex_replace(text: str, pattern: str, replacement: str = "") -> str:
    """The template filter `regex_replace`: re.sub."""
    try:
        return re.sub(pattern, replacement, str(text))
    except re.error as error:
        raise jinja2.exceptions.FilterArgumentError(f"regex_replace: {error}") from error


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)
    environment.filters["regex_replace"] = _regex_replace
    return environment


@lru_cache(maxsize=1024)
def _template(source: str) -> jinja2.Template:
    return _environment().from_string(source)


@lru_cache(maxsize=1024)
def _variables(*sources: str | None) -> frozenset[str]:
    """Names that templates take from outside."""
    parsed = [_environment().parse(source) for source in sources if source is not None]
    return frozenset().union(*map(jinja2.meta.find_undeclared_variables, parsed))


def _render(source: str, values: Record, where: str) -> str:
    """Render and strip a template; what goes wrong inside it is a fault of task file or record."""
    try:
        return _template(source).render(values).strip()
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise DataError(
            f"the template fails: {error}", where=where, remedy="mend the task file or the record"
        ) from error


def _content_fields(task: Task) -> list[str]:
    """Record fields that the prompt reads, by name."""
    seen = _variables(task.prompt, task.system)
    return sorted(seen - {"labels"} - ({"question"} if task.questions else set()))


def _require(task: Task, record: Record, where: str) -> None:
    """Every field that a template reads is there and, unless it may be empty, says something."""
    read = _variables(task.prompt, task.system, task.target, task.group_by) - {"labels", "label"}
    named = {field for field in (task.fields.id, task.fields.group) if field}
    for field in sorted((read - ({"question"} if task.questions else set())) | named):
        if field not in record:
            _missing(field, record, where)
        if field not in task.may_be_empty and _blank(record[field]):
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


def _blank(value: object) -> bool:
    """Nothing to read: null, white space, an empty list or mapping."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value == [] or value == {}


def _group(task: Task, record: Record, where: str) -> str:
    """The unit of independence: a field as it stands, or a text loosely normalised."""
    if task.fields.group is not None:
        return str(record[task.fields.group])
    if task.group_by is not None:
        text = _render(task.group_by, {**record, "labels": task.labels}, f"{where}: group_by")
    else:
        text = "\n".join(str(record[field]) for field in _content_fields(task))
    loose = loose_text(text)
    # Long texts are cut, with a digest of the whole: the group is stored with every score.
    return loose if len(loose) <= 200 else f"{loose[:160]} #{digest(loose)}"
