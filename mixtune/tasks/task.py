"""What a task is: the keys of its file, what they may say together, which records it takes.

Knows: keys, labels, versions, digests of examples. Does not know: how a record becomes examples
(rendering.py, making.py, context.py), how files are read (files.py, task_file.py), where records
are stored (sources.py), which tasks exist (registry.py), tokens.
"""

import hashlib
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mixtune.errors import SpecError, did_you_mean
from mixtune.identity import canonical, digest
from mixtune.records import Example, Query, Split
from mixtune.study.fields import Frozen, Name
from mixtune.tasks.context import Context, Policy
from mixtune.tasks.conversations import Format, Record, blank, check_columns
from mixtune.tasks.conversations import Role as Speaker
from mixtune.tasks.makers import Make
from mixtune.tasks.metrics import METRICS
from mixtune.tasks.metrics import VERSION as METRICS_VERSION
from mixtune.tasks.parsers.labels import PARSERS, fold
from mixtune.tasks.rendering import Rendering, content_fields, renamed, require, spellings
from mixtune.tasks.source_spec import FILE_KEYS, Source, Text
from mixtune.tasks.templates import check as check_template
from mixtune.tasks.templates import variables

RENDERER = 1
"""Version of the prompt renderer; part of every prompt version."""

LABEL_METRICS = ("accuracy", "macro-f1", "weighted-f1")

Role = Literal["task", "probe", "ingredient", "judged"]
"""What a dataset is there for.

`task`: one wants to be good at it, and chooses by it. `probe`: it is scored to see what training
took away or brought along, and nothing is chosen by it. `ingredient`: it is trained on only.
`judged`: its answers are free text, so no parser scores them.
"""

Kept = dict[str, tuple[str, ...]]


class Fields(Frozen):
    """Which field holds what; `id: null` numbers the records, `group: null` uses group_by.

    Rows of a file of one's own are numbered unless the task names an id.
    """

    label: str | None = None
    id: str | None = "id"
    group: str | None = None


class Task(Frozen):
    """A dataset one can train on or be scored on, as its YAML file says.

    `prompt`, `system`, `target` and `group_by` are jinja2 templates over the record's fields;
    `label` (target only), `labels` and, with `questions`, `question` are added. Rendered texts are
    stripped of white space at both ends. `labels` are the exact strings asked for and answered,
    `types` those that may stand before an item of a list (relations: within it).
    `own_text` is a template, too: what the record says without the task's words, which splits are
    compared by; by default the fields that the prompt reads, or all that the user says.
    `columns` maps names used here to those of the file. Rows of another `format` than fields are
    conversations: they need no prompt, `roles` maps speakers, and `turns` says whether all of the
    assistant's turns are learnt or the last one. `make` adds fields and parts a record (making.py),
    `context` names the long page that a prompt shows (context.py). `keep` and `leave_out` say which
    records are this task's, by the values of fields. `floor_by` is a template of what the majority
    floor may look up in train before it falls back on the commonest answer.
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
    keep: Kept = Field(default_factory=dict)
    leave_out: Kept = Field(default_factory=dict)
    labels: tuple[Text, ...] = ()
    label_values: dict[str, str] = Field(default_factory=dict)
    allow_prefix_labels: bool = False
    types: tuple[Text, ...] = ()
    system: Text | None = None
    prompt: Text | None = None
    target: Text = "{{ label }}"
    fields: Fields = Fields()
    may_be_empty: tuple[str, ...] = ()
    skip_if_empty: tuple[str, ...] = ()
    group_by: Text | None = None
    floor_by: Text | None = None
    own_text: Text | None = None
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
            text = spellings(key)[0] if isinstance(key, str | int | float) else key
            if made.setdefault(text, label) != label:
                raise ValueError(f"{text!r} is there twice, with two labels")
        return made

    @field_validator("prompt", "system", "target", "group_by", "floor_by", "own_text")
    @classmethod
    def _compiles(cls, source: str | None) -> str | None:
        if source is not None:
            check_template(source)
        return source

    @field_validator("make", "context")
    @classmethod
    def _all_compile(cls, holder: Make | Context | None) -> Make | Context | None:
        found: list[str | None] = []
        if isinstance(holder, Context):
            found = [holder.text, holder.question]
        elif holder is not None and holder.turns is not None:
            found = [holder.turns.follow_up]
        for template in found:
            if template is not None:
                check_template(template)
        return holder

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
        for check in _CHECKS:
            check(self)
        return self

    @property
    def judged(self) -> bool:
        """Whether a judge, and no parser, says how good its answers are."""
        return self.role == "judged"

    @property
    def prompt_version(self) -> str:
        """Digest of everything that shapes a prompt or its target, for one given record."""
        shown = {"system", "prompt", "target", "labels", "questions"}
        # Left out where they say nothing, so that prompts from before there were these keep theirs.
        if self.format != "fields" or self.columns:
            shown |= {"format", "turns", "columns", "roles"}
        shown |= {key for key in ("make", "context") if getattr(self, key) is not None}
        parts = self.model_dump(include=shown)
        return digest({"renderer": RENDERER, **parts, "questions": list(self.questions.items())})

    @property
    def parser_version(self) -> str:
        """Digest of the parser, its version, the words it looks for and the metrics."""
        parts = {"parser": self.parser, "version": PARSERS[self.parser].version}
        metrics = {"metrics": self.metrics, "metrics_version": METRICS_VERSION}
        # Left out without any, so that scores from before there were types keep their ids.
        types = {"types": self.types} if self.types else {}
        return digest({**parts, **metrics, "labels": self.labels, **types})

    def with_context(self, policy: Policy, words: int | None) -> "Task":
        """The same task under another policy for contexts of more than `words` words.

        Raises:
            SpecError: the task has no long context, or the policy cannot be used with it.
        """
        if self.context is None:
            raise SpecError(
                "the task has no long context, so no policy for one",
                where=self.name,
                remedy="name a task whose file has context:",
            )
        try:
            changed = {"policy": policy, "words": words}
            context = Context.model_validate({**self.context.model_dump(), **changed})
        except ValueError as error:
            raise SpecError(
                "the policy for long contexts cannot be used",
                where=self.name,
                found=f"{policy}, {words} words",
                wanted="error, or drop, evidence-first or truncate-middle with words",
            ) from error
        return self.model_copy(update={"context": context})

    def dropped(self, record: Record, where: str = "record") -> str | None:
        """The reason why the task's own policy leaves a record out, or None.

        Raises:
            DataError: what is made of the record cannot be made.
        """
        for field, values in self.keep.items():
            if field in record and str(record[field]) not in values:
                return f"another {field}"
        for field, values in self.leave_out.items():
            if field in record and str(record[field]) in values:
                return f"another {field}"
        for field in self.skip_if_empty:
            theirs = self.columns.get(field) or field
            if theirs in record and blank(record[theirs]):
                return f"empty {field}"
        made = self.make.made(renamed(self, record, where), where) if self.make else None
        if made is not None and made.dropped is not None:
            return made.dropped
        if self.context is not None and self.context.policy == "drop":
            long = self._too_long(record, where)
            return f"context over {self.context.words:,} words" if long else None
        return None

    def notes(self, record: Record, where: str = "record") -> list[str]:
        """What happened to a record that is kept and is worth counting: parts left out, a cut page.

        Raises:
            DataError: what is made of the record cannot be made.
        """
        found: list[str] = []
        if self.make is not None:
            found += self.make.made(renamed(self, record, where), where).notes
        context = self.context
        if context is not None and context.policy not in ("error", "drop"):
            cut = f"context cut to {context.words:,} words: {context.policy}"
            found += [cut] if self._too_long(record, where) else []
        return found

    def to_examples(
        self,
        record: Record,
        split: Split,
        *,
        where: str = "record",
        number: int = 0,
        only: str | None = None,
    ) -> list[Example]:
        """Render one record: one example, one per question, per part or per turn of the assistant.

        `number`: its place in the split, the id of records that have none. `only`: a single
        question, for sources that give a row per question.

        Raises:
            DataError: a field missing or empty, a label outside the set, a template that fails.
        """
        record = renamed(self, record, where)
        require(self, record, where)
        key = str(record[self.fields.id]) if self.fields.id else f"{split}-{number}"
        return Rendering(self, record, where, key, split).examples(only)

    def _too_long(self, record: Record, where: str) -> bool:
        assert self.context is not None
        record = renamed(self, record, where)
        require(self, record, where)
        pages = Rendering(self, record, where, "", "train").pages()
        return any(map(self.context.too_long, pages))


def query_of(example: Example) -> Query:
    """What a model may see of an example."""
    return Query(example.id, example.stratum, example.messages, example.choices, example.cue)


def fingerprint(examples: Iterable[Example]) -> str:
    """Digest over id, messages, target, choices, group, stratum and cue of examples, in order."""
    state = hashlib.sha256()
    for e in examples:
        turns = [[m.role, m.content] for m in e.messages]
        # Only where there is one, so that examples from before there were cues keep theirs.
        cue = [e.cue] if e.cue else []
        row = [e.id, turns, e.target, list(e.choices), e.group, e.stratum, *cue]
        state.update(canonical(row).encode("utf-8", "surrogatepass") + b"\n")
    return state.hexdigest()[:16]


def _with_defaults(raw: dict[str, Any]) -> dict[str, Any]:
    """A raw task with what a short file leaves out."""
    labelled = bool(raw.get("labels") or raw.get("questions"))
    kind = raw.get("kind", "label" if labelled else "open")
    unscored = raw.get("role") in ("ingredient", "judged")
    scored = raw.get("scored", not unscored and (kind == "label" or bool(raw.get("metrics"))))
    made = {
        "title": raw.get("name", "task"),
        "kind": kind,
        "role": "task" if scored else "ingredient",
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
        raise ValueError("parser: label tasks use 'label', open tasks any other")
    if task.scored and not task.metrics:
        raise ValueError("metrics: a scored task needs at least one; else say scored: false")
    lists = PARSERS[task.parser].lists
    if task.kind == "open" and any(METRICS[name].counts == "labels" for name in task.metrics):
        raise ValueError("metrics: an open task has no labels, so accuracy or the F1 of a list")
    if any(METRICS[name].counts == "items" and name != lists for name in task.metrics):
        raise ValueError(f"metrics: parser {task.parser!r} allows {lists or 'no F1 of a list'}")
    if task.types and not lists:
        raise ValueError("types: only items of a list have types (parser spans or triplets)")


def _check_role(task: Task) -> None:
    if task.scored != (task.role in ("task", "probe")):
        state = "scored" if task.scored else "not scored"
        raise ValueError(
            f"role: {task.role}, but it is {state}; tasks and probes are scored, ingredients and "
            "judged sets are not"
        )


def _check_making(task: Task) -> None:
    """What is made and what is cut is shown in the prompt, and the answer is not."""
    if task.make is None and task.context is None:
        return
    if task.format != "fields" or task.questions:
        raise ValueError("make and context: for rows of fields, without questions")
    seen = variables(task.prompt, task.system)
    if task.context is not None:
        if "context" not in seen:
            raise ValueError("prompt: the task has a context, so the prompt needs {{ context }}")
        seen |= variables(task.context.text, task.context.question)
    if task.make is not None and (given := seen & task.make.answers()):
        raise ValueError(f"prompt: shows the answer ({', '.join(sorted(given))})")


def _check_floor(task: Task) -> None:
    """The floor looks up what the prompt shows, and not the answer."""
    if task.floor_by is None:
        return
    if task.kind != "label":
        raise ValueError("floor_by: only a label task has a majority floor")
    answers = {"label", task.fields.label, *task.questions}
    answers |= task.make.answers() if task.make else set()
    if given := set(variables(task.floor_by)) & answers:
        raise ValueError(f"floor_by: reads the answer ({', '.join(sorted(map(str, given)))})")


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
    if not content_fields(task):
        raise ValueError("prompt: reads no field of the record")
    if "labels" in seen:
        return
    shown = [f"{task.system or ''}\n{task.prompt}\n{q}" for q in task.questions.values() or [""]]
    for label in task.labels or task.types:
        if not all(re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text) for text in shown):
            raise ValueError(
                f"prompt: does not name {label!r} letter for "
                "letter; a strict answer says it exactly, so the prompt has to ask for it"
            )


def shared_fields(task: Task) -> set[str]:
    """Fields of the file that both the prompt and the answer are made of, by whatever names."""
    told = set(variables(task.target))
    if "label" in told:
        told = told - {"label"} | ({task.fields.label} if task.fields.label else {*task.questions})
    sides = content_fields(task), told
    shown, answered = ({task.columns.get(n) or n for n in names} for names in sides)
    return shown & answered


_CHECKS = (
    _check_format, _check_labels, _check_kind, _check_role, _check_scoring, _check_making,
    _check_floor, _check_prompt,
)  # fmt: skip
