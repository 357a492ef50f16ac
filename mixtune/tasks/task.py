"""A task: the keys of its YAML file, the rules that they have to meet together, and its reader."""

from collections.abc import Collection
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from mixtune.errors import DataError, SpecError, did_you_mean
from mixtune.identity import digest
from mixtune.study.fields import Distinct, FaultContext, Frozen, Name, refusal
from mixtune.study.yaml import Origin, read_documents
from mixtune.tasks.characters import invisible, names, visible
from mixtune.tasks.context import Context, Policy
from mixtune.tasks.makers import Make
from mixtune.tasks.metrics import METRICS
from mixtune.tasks.metrics import VERSION as METRICS_VERSION
from mixtune.tasks.parsers import Parser
from mixtune.tasks.parsers.labels import PARSERS
from mixtune.tasks.parsers.stated_labels import fold
from mixtune.tasks.record import COLUMNS, FieldValues, Format, check_columns, spellings
from mixtune.tasks.record import Role as Speaker
from mixtune.tasks.source_spec import FILE_KEYS, Source, Text
from mixtune.tasks.templates import Template, variables

RENDERER = 1
"""Version of the prompt renderer; part of every prompt version."""

LABEL_METRICS = ("accuracy", "macro-f1", "weighted-f1")

Role = Literal["task", "probe", "ingredient", "judged"]
"""The use of a dataset.

`task`: mixtures are chosen by its score. `probe`: scored to see what training improved or damaged,
never used to choose. `ingredient`: trained on only. `judged`: free text that no parser scores.
"""


def _known(kind: str, names: Collection[str]) -> AfterValidator:
    """Validator of a name."""

    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"no such {kind}; {did_you_mean(name, names)}")
        return name

    return AfterValidator(check)


class Fields(Frozen):
    """Names of special fields; `id: null` numbers the records, `group: null` uses group_by.

    Rows of user files are numbered unless the task names an id.
    """

    label: str | None = None
    id: str | None = "id"
    group: str | None = None


class Task(Frozen):
    """A dataset to train on or to be scored on, as its YAML file describes it.

    `prompt`, `system`, `target` and `group_by` are jinja2 templates over the record's fields;
    `label` (target only), `labels` and, with `questions`, `question` are added. Rendered texts are
    stripped of white space at both ends. `labels` are the exact answers; `types` are those that may
    open an item of a list (relations: within it).
    `own_text` is a template of what the record itself says, without the task's words; splits are
    compared by it. Default: the fields that the prompt reads, or all user turns.
    `decimal` is the sign that golds and answers write decimals with; without it the data has to
    show which ("1.250" may be 1250).
    `columns` maps names used here to those of the file. Rows of a `format` other than fields are
    conversations: they need no prompt, `roles` maps speakers, and `turns` selects all of the
    assistant's turns or the last one. `make` adds fields and splits a record (makers.py), `context`
    is the long page that a prompt shows (context.py). `keep` and `leave_out` select records by the
    values of fields. `on_bad_rows: drop` drops and counts rows that cannot be used;
    `ignore_columns` are not read, even if they would be refused. `floor_by` is a template of the
    key that the majority floor looks up in train before it falls back on the commonest answer.
    """

    name: Name
    title: Text
    about: str = ""
    version: Annotated[int, Field(gt=0)] = 1
    kind: Literal["label", "open"]
    role: Role
    synthetic: bool = False
    scored: bool = True
    trainable: bool = True
    aliases: tuple[str, ...] = ()
    format: Format = "fields"
    columns: dict[str, str | None] = Field(default_factory=dict)
    roles: dict[str, Speaker] = Field(default_factory=dict)
    turns: Literal["all", "last"] = "all"
    make: Make | None = None
    context: Context | None = None
    keep: FieldValues = Field(default_factory=dict)
    leave_out: FieldValues = Field(default_factory=dict)
    labels: tuple[Text, ...] = ()
    label_values: dict[str, str] = Field(default_factory=dict)
    allow_prefix_labels: bool = False
    types: tuple[Text, ...] = ()
    system: Template | None = None
    prompt: Template | None = None
    target: Template = "{{ label }}"
    fields: Fields = Fields()
    on_bad_rows: Literal["error", "drop"] = "error"
    ignore_columns: tuple[str, ...] = ()
    may_be_empty: tuple[str, ...] = ()
    skip_if_empty: tuple[str, ...] = ()
    group_by: Template | None = None
    floor_by: Template | None = None
    own_text: Template | None = None
    questions: dict[str, Text] = Field(default_factory=dict)
    parser: Annotated[str, _known("parser", PARSERS)]
    decimal: Literal["comma", "point"] | None = None
    metrics: Annotated[tuple[Annotated[str, _known("metric", METRICS)], ...], Distinct]
    source: Source
    licence: Text = "not stated"
    citation: str = ""
    url: str = ""

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, raw: Any) -> Any:  # noqa: ANN401 - raw YAML
        """A raw task with the keys that a short file leaves out."""
        if not isinstance(raw, dict):
            return raw
        labelled = bool(raw.get("labels") or raw.get("questions"))
        kind = raw.get("kind", "label" if labelled else "open")
        unscored = raw.get("role") in ("ingredient", "judged")
        scored = raw.get("scored", not unscored and (kind == "label" or bool(raw.get("metrics"))))
        defaults = {
            "title": raw.get("name", "task"),
            "kind": kind,
            "role": "task" if scored else "ingredient",
            "parser": "label" if kind == "label" else "text",
            "metrics": LABEL_METRICS if kind == "label" and scored else (),
            "scored": scored,
        }
        fields, source = raw.get("fields", {}), raw.get("source")
        own = {*FILE_KEYS, "files", "given"}
        numbered = isinstance(source, str) or (isinstance(source, dict) and source.keys() & own)
        if numbered or raw.get("format", "fields") != "fields":
            fields = {"id": None, **fields} if isinstance(fields, dict) else fields
            raw = {**raw, "fields": fields}
        return {**defaults, **raw}

    @field_validator("label_values", mode="before")
    @classmethod
    def _string_keys(cls, value: Any) -> Any:  # noqa: ANN401 - raw YAML
        if not isinstance(value, dict):
            return value
        labels: dict[Any, Any] = {}
        for key, label in value.items():
            text = spellings(key)[0] if isinstance(key, str | int | float) else key
            if labels.setdefault(text, label) != label:
                raise ValueError(f"{text!r} appears twice, with two labels")
        return labels

    @model_validator(mode="after")
    def _agrees(self) -> "Task":
        for check in _CHECKS:
            check(self)
        return self

    @property
    def follow_up(self) -> str | None:
        """The template of later turns; None where the parts of a record are no dialogue."""
        return self.make.turns.follow_up if self.make and self.make.turns else None

    @property
    def judged(self) -> bool:
        """True if a judge, and no parser, scores its answers."""
        return self.role == "judged"

    @property
    def prompt_version(self) -> str:
        """Digest of everything that shapes the prompt and target of a given record."""
        keys = {"system", "prompt", "target", "labels", "questions"}
        # Included only where set: tasks that do not use these keys keep their digests.
        if self.format != "fields" or self.columns:
            keys |= {"format", "turns", "columns", "roles"}
        keys |= {key for key in ("make", "context") if getattr(self, key) is not None}
        parts = self.model_dump(include=keys)
        # Questions again as a list: a digest of a mapping does not see their order.
        return digest({"renderer": RENDERER, **parts, "questions": list(self.questions.items())})

    @property
    def parser_version(self) -> str:
        """Digest of the parser, its version, the words it looks for and the metrics."""
        parts = {"parser": self.parser, "version": PARSERS[self.parser].version}
        if self.decimal == "comma":  # Included only where it changes a reading.
            parts["decimal"] = self.decimal
        metrics = {"metrics": self.metrics, "metrics_version": METRICS_VERSION}
        # Included only where set: tasks without types keep their digests.
        types = {"types": self.types} if self.types else {}
        return digest({**parts, **metrics, "labels": self.labels, **types})

    @property
    def reader(self) -> Parser:
        """The parser of answers and gold answers, with the task's decimal sign."""
        parser = PARSERS[self.parser]
        return parser.comma if self.decimal == "comma" and parser.comma else parser

    @property
    def content_fields(self) -> list[str]:
        """Fields that the prompt reads, also through its context, sorted."""
        fields = variables(self.prompt, self.system)
        if self.context is not None:
            fields = (fields - {"context"}) | variables(self.context.text)
        return sorted(fields - {"labels", *(["question"] if self.questions else [])})

    @property
    def required_fields(self) -> set[str]:
        """Fields of the record that templates read, and those named as id and group."""
        templates = [self.prompt, self.system, self.target, self.follow_up]
        templates += [self.group_by, self.floor_by, self.own_text]
        computed = self.make.writes() if self.make is not None else set()
        added = {"labels", "label", *computed, *(["question"] if self.questions else [])}
        if self.context is not None:
            templates += [self.context.text, self.context.question]
            added.add("context")
        special = {field for field in (self.fields.id, self.fields.group) if field}
        return set(variables(*templates) - added) | (special - computed)

    def column(self, field: str) -> str:
        """The file's name of a field."""
        return self.columns.get(field) or field

    @property
    def filter_columns(self) -> set[str]:
        """Columns that keep and leave_out compare; at least one row must have them."""
        return {self.column(field) for field in {*self.keep, *self.leave_out}}

    @property
    def optional_columns(self) -> set[str]:
        """Columns that a row may lack: those of filters, and may_be_empty."""
        fields = {*self.keep, *self.leave_out, *self.skip_if_empty, *self.may_be_empty}
        computed = {"context"} | (self.make.writes() if self.make is not None else set())
        return {self.column(field) for field in fields - computed}

    def with_context(self, policy: Policy, words: int | None) -> "Task":
        """The same task under another policy for contexts of more than `words` words.

        Raises:
            SpecError: the task has no long context, or the policy cannot be used with it.
        """
        if self.context is None:
            raise SpecError(
                "the task has no long context, so it takes no policy for one",
                where=self.name,
                remedy="name a task whose file has context:",
            )
        try:
            changed = {"policy": policy, "words": words}
            context = Context.model_validate({**dict(self.context), **changed})
        except ValueError as error:
            raise SpecError(
                "the policy for long contexts cannot be used",
                where=self.name,
                found=f"{policy}, {words} words",
                wanted="error, or drop, evidence-first or truncate-middle with words",
            ) from error
        return self.model_copy(update={"context": context})


def shared_fields(task: Task) -> set[str]:
    """Columns of the file that both the prompt and the answer are made of."""
    answer = set(variables(task.target))
    if "label" in answer:
        labels = {task.fields.label} if task.fields.label else {*task.questions}
        answer = answer - {"label"} | labels
    prompt_columns, answer_columns = (
        {task.column(name) for name in names} for names in (task.content_fields, answer)
    )
    return prompt_columns & answer_columns


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
        raise ValueError(f"format: {task.format} rows have their own turns; remove {names}")
    if task.fields.label is not None:
        raise ValueError(f"fields.label: {task.format} rows have none; use columns")


def _check_filters(task: Task) -> None:
    """Filters name what templates name, not a column that has another name in them."""
    names = {column: name for name, column in task.columns.items()}
    for key in ("keep", "leave_out"):
        for field in getattr(task, key):
            if task.format == "fields" and field in names and field not in task.columns:
                raise ValueError(f"{key}: {field!r} is {names[field]!r} by columns; write that")


def _check_ignored(task: Task) -> None:
    """No column is both ignored and read."""
    fields = {*COLUMNS[task.format], *task.columns, *task.required_fields, *task.questions}
    columns = {COLUMNS[task.format].get(field) for field in fields - {*task.columns}}
    columns |= {task.column(field) for field in fields} | {task.fields.label}
    if read := columns & {*task.ignore_columns}:
        rule = "a column is either read or ignored; columns: {NAME: null} leaves optional ones out"
        raise ValueError(f"ignore_columns: the task reads {', '.join(map(str, read))}: {rule}")


def _check_labels(task: Task) -> None:
    for label in task.labels:
        if marks := invisible(label):
            rule = f"write {visible(label)!r}, and map values of the file to it by label_values"
            raise ValueError(f"labels: {label!r} has invisible characters, {marks}; {rule}")
    folded = sorted(fold(label) for label in task.labels)
    for short, long in pairwise(folded):
        if long.startswith(short) and long != short and not task.allow_prefix_labels:
            rule = "a longer answer can be either; rename one, or say allow_prefix_labels: true"
            raise ValueError(f"labels: {long!r} begins with {short!r}, so {rule}")
    if len(set(folded)) != len(folded):
        raise ValueError("labels: two labels are the same but for case or spacing")
    for raw, label in task.label_values.items():
        if label not in task.labels:
            raise ValueError(f"label_values: {raw!r} is mapped to {label!r}, which is no label")


def _check_kind(task: Task) -> None:
    if task.kind == "open":
        if task.labels or task.label_values or task.questions:
            raise ValueError("kind: an open task has no labels, label_values or questions")
        unlabelled = task.format == "fields" and task.fields.label is None
        if unlabelled and "label" in variables(task.target):
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
        raise ValueError("parser: label tasks use 'label', open tasks any other")
    if task.scored and not task.metrics:
        raise ValueError("metrics: a scored task needs at least one; else say scored: false")
    list_metric = PARSERS[task.parser].list_metric
    if task.decimal and PARSERS[task.parser].comma is None:
        raise ValueError(f"decimal: answers of the parser {task.parser!r} have no decimals")
    if task.kind == "open" and any(METRICS[name].counts == "labels" for name in task.metrics):
        raise ValueError("metrics: an open task has no labels, so accuracy or the F1 of a list")
    if any(METRICS[name].counts == "items" and name != list_metric for name in task.metrics):
        allowed = list_metric or "no F1 of a list"
        raise ValueError(f"metrics: parser {task.parser!r} allows {allowed}")
    if task.types and not list_metric:
        raise ValueError("types: only items of a list have types (parser spans or triplets)")


def _check_role(task: Task) -> None:
    if task.scored != (task.role in ("task", "probe")):
        state = "scored" if task.scored else "not scored"
        rule = "tasks and probes are scored, ingredients and judged sets are not"
        raise ValueError(f"role: {task.role}, but it is {state}; {rule}")


def _check_making(task: Task) -> None:
    """The prompt shows the context, and no maker's answer."""
    if task.make is None and task.context is None:
        return
    if task.format != "fields" or task.questions:
        raise ValueError("make and context: for rows of fields, without questions")
    shown = variables(task.prompt, task.system)
    if task.context is not None:
        if "context" not in shown:
            raise ValueError("prompt: the task has a context, so the prompt needs {{ context }}")
        shown |= variables(task.context.text, task.context.question)
    if task.make is not None and (answers := shown & task.make.answers()):
        raise ValueError(f"prompt: shows the answer ({', '.join(sorted(answers))})")


def _check_floor(task: Task) -> None:
    """The floor reads nothing that tells the answer."""
    if task.floor_by is None:
        return
    if task.kind != "label":
        raise ValueError("floor_by: only a label task has a majority floor")
    answers = {"label", task.fields.label, *task.questions}
    answers |= task.make.answers() if task.make else set()
    if leaked := set(variables(task.floor_by)) & answers:
        raise ValueError(f"floor_by: reads the answer ({', '.join(sorted(map(str, leaked)))})")


def _check_prompt(task: Task) -> None:
    """The prompt names every possible answer, and does not show the right one."""
    if task.format != "fields":
        return
    shown = variables(task.prompt, task.system)
    if leaked := (shown & {"label"}) or (task.kind == "label" and shared_fields(task)):
        raise ValueError(f"prompt: shows the answer ({', '.join(sorted(leaked))})")
    if task.questions and "question" not in shown:
        raise ValueError("prompt: the task has questions, so the prompt needs {{ question }}")
    if not task.content_fields:
        raise ValueError("prompt: reads no field of the record")
    if "labels" in shown:
        return
    texts = [f"{task.system or ''}\n{task.prompt}\n{q}" for q in task.questions.values() or [""]]
    for label in task.labels or task.types:
        if not all(names(text, label) for text in texts):
            rule = "a strict answer says it exactly, so the prompt has to ask for it"
            raise ValueError(f"prompt: does not name {label!r} letter for letter; {rule}")


_CHECKS = (
    _check_format, _check_filters, _check_ignored, _check_labels, _check_kind, _check_role,
    _check_scoring, _check_making, _check_floor, _check_prompt,
)  # fmt: skip


# ---- files ---------------------------------------------------------------------------------------


def parse_task(text: str, where: str, folder: Path | None = None) -> Task:
    """Read one task from the text of a YAML file; `where` names the file in messages.

    Raises:
        DataError: as `parse_tasks`, or another number of tasks than one.
    """
    tasks = parse_tasks(text, where, folder)
    if len(tasks) != 1:
        raise DataError("the file has to hold one task", where=where, found=f"{len(tasks)} tasks")
    return tasks[0]


def parse_tasks(text: str, where: str, folder: Path | None = None) -> list[Task]:
    """Read the tasks of a YAML file, one a document; paths in it start from `folder`.

    Raises:
        DataError: not YAML, an unknown key, a value that does not fit; one line per fault.
    """
    documents = read_documents(text, where, DataError)
    if not documents:
        raise DataError("the file is empty", where=where, wanted="name: …, prompt: …, source: …")
    tasks = []
    for number, document in enumerate(documents, start=1):
        place = f"{where}, task {number}" if len(documents) > 1 else where
        tasks.append(make_task(document.value, place, document.origin, folder))
    return tasks


def make_task(
    raw: Any,  # noqa: ANN401 - whatever the file holds
    where: str,
    origin: Origin | None = None,
    folder: Path | None = None,
) -> Task:
    """A task from plain values.

    Raises:
        DataError: no mapping, an unknown key, a value that does not fit; one line per fault.
    """
    if not isinstance(raw, dict):
        raise DataError("a task is a mapping", where=where, found=raw, wanted="key: value")
    try:
        task = Task.model_validate(raw)
    except ValidationError as error:
        context = FaultContext(Task, Origin(where, origin.lines if origin else {}))
        details = error.errors()
        for detail in details:  # keys of `source.files` may be written as keys of `source`
            if detail["loc"][:2] == ("source", "files"):
                detail["loc"] = ("source", *detail["loc"][2:])
        raise refusal(details, context, DataError) from None
    if task.source.files is None or folder is None:
        return task
    source = task.source.model_copy(update={"files": task.source.files.within(folder)})
    return task.model_copy(update={"source": source})
