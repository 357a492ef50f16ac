"""One record of a task → its examples, or the reason why the task leaves it out.

Knows: templates' values, labels, groups, parts of a record. Does not know: files, other records.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mixtune.errors import DataError, shorten
from mixtune.records import Example, Message, Split
from mixtune.tasks.conversations import read_dialogue
from mixtune.tasks.makers import Part, Parts
from mixtune.tasks.record import (
    Record,
    blank,
    loose_text,
    missing_field,
    plain_text,
    spellings,
    text_group,
)
from mixtune.tasks.task import Task
from mixtune.tasks.templates import render

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rendered:
    """The examples of a record; `dropped` is the reason where the task leaves the record out.

    `notes`: what happened to a record that is used and is worth counting, such as a cut page.
    """

    examples: tuple[Example, ...] = ()
    notes: tuple[str, ...] = ()
    dropped: str | None = None


def render_record(
    task: Task,
    record: Record,
    split: Split,
    *,
    where: str = "record",
    number: int = 0,
    question: str | None = None,
) -> Rendered:
    """Render one record: one example, one per question, per part or per turn of the assistant.

    `number`: its place in the split, the id of records that have none. `question`: the only one,
    for sources that give a row per question.

    Raises:
        DataError: a field missing or empty, a label outside the set, a template that fails.
    """
    reason = _excluded(task, record)
    if reason is not None:
        return Rendered(dropped=reason)
    record = _rename(task, record, where)
    parts = Parts((Part("", {}),)) if task.make is None else task.make.parts(record, where)
    if parts.dropped is not None:
        return Rendered(dropped=parts.dropped)
    _require_fields(task, record, where)
    key = str(record[task.fields.id]) if task.fields.id else f"{split}-{number}"
    renderer = _Renderer(task, record, where, key, split)
    notes, context = parts.notes, task.context
    if context is not None and any(map(context.too_long, renderer.pages(parts))):
        if context.policy == "drop":
            return Rendered(dropped=f"context over {context.words:,} words")
        notes += (f"context cut to {context.words:,} words: {context.policy}",)
    return Rendered(tuple(renderer.examples(parts, question)), notes)


def _excluded(task: Task, record: Record) -> str | None:
    """The reason why the values of a record's fields exclude it, or None."""
    for field, values in task.keep.items():
        if field in record and str(record[field]) not in values:
            return f"another {field}"
    for field, values in task.leave_out.items():
        if field in record and str(record[field]) in values:
            return f"another {field}"
    for field in task.skip_if_empty:
        column = task.columns.get(field) or field
        if column in record and blank(record[column]):
            return f"empty {field}"
    return None


def _rename(task: Task, record: Record, where: str) -> Record:
    """The record under the names that the task file uses.

    Raises:
        DataError: a column that is missing.
    """
    if task.format != "fields" or not task.columns:
        return record
    for name, column in task.columns.items():
        if column not in record:
            missing_field(str(column), record, f"{where}: columns.{name}")
    columns = set(task.columns.values())
    unmapped = {name: value for name, value in record.items() if name not in columns}
    return unmapped | {name: record[str(column)] for name, column in task.columns.items()}


def _require_fields(task: Task, record: Record, where: str) -> None:
    """Check that every field in use exists and, unless it may be empty, is not blank.

    The fields of makers may be empty: the maker decides what follows.

    Raises:
        DataError: a field that is missing or empty.
    """
    required = task.required_fields
    read = task.make.reads() if task.make is not None else set()
    for field in sorted(required | read | {*task.keep, *task.leave_out}):
        if field not in record:
            missing_field(field, record, where)
        if field in required and field not in task.may_be_empty and blank(record[field]):
            raise DataError(
                "the field is empty",
                where=f"{where}: field {field!r}",
                found=repr(record[field]),
                wanted="text that is not blank",
                remedy="fix the row, or name the field in may_be_empty or skip_if_empty",
            )


@dataclass(frozen=True, slots=True)
class _PreparedPart:
    """The material of one example, or of all questions about a part of a record."""

    key: str
    values: Values
    group: str
    own_text: str


@dataclass(frozen=True, slots=True)
class _Renderer:
    """One record of a task, under the names that the task file uses; `key` is its id."""

    task: Task
    record: Record
    where: str
    key: str
    split: Split

    def examples(self, parts: Parts, question: str | None) -> Iterator[Example]:
        """One example, one per question, per part or per turn of the assistant.

        Raises:
            DataError: a label outside the set, an empty target, a template that fails.
        """
        task = self.task
        if task.format != "fields":
            return self._conversation()
        if task.make is not None and task.make.follow_up is not None:
            return self._dialogue(task.make.follow_up, parts.parts)
        fields: Sequence[str | None] = [None]
        if task.questions:
            fields = [*task.questions] if question is None else [question]
        prepared = map(self._prepare, parts.parts)
        return (self._example(part, field) for part in prepared for field in fields)

    def pages(self, parts: Parts) -> list[str]:
        """The uncut context of each part; a dialogue has one for all turns."""
        if self.task.context is None:
            return []
        dialogue = self.task.make is not None and self.task.make.follow_up is not None
        return [self._page(self._values(p)) for p in parts.parts[: 1 if dialogue else None]]

    def _conversation(self) -> Iterator[Example]:
        """An example for each of the assistant's turns to learn, with the turns before it."""
        task = self.task
        dialogue = read_dialogue(self.record, self.where, task.format, task.columns, task.roles)
        turns = dialogue.turns
        group = self._group(self.record, dialogue.own_text())
        own_text = self._own_text(self.record, [t.content for t in turns if t.role == "user"])
        system = () if turns[0].role == "system" else self._system({**self.record})
        answers = dialogue.answers()
        for place in answers if task.turns == "all" else answers[-1:]:
            # Numbered from 1 among all turns of the assistant, those not to learn included.
            number = sum(turn.role == "assistant" for turn in turns[: place + 1])
            yield Example(
                task=task.name,
                id=f"{self.key}/{number}",
                split=self.split,
                group=group,
                stratum="",
                messages=(*system, *turns[:place]),
                target=turns[place].content,
                record=self.key,
                own_text=own_text,
            )

    def _dialogue(self, follow_up: str, parts: Sequence[Part]) -> Iterator[Example]:
        """An example for each turn: the page and the first question, then turn by turn.

        A page that is cut by the question is cut again for each turn, by all questions so far.
        """
        history: list[Message] = []
        questions: list[str] = []
        opening = self._values(parts[0])
        for part in map(self._prepare, parts):
            questions.append(self._evidence(part.values))
            if history:
                text = self._render("follow_up", follow_up, part.values)
                history.append(Message("user", text))
            first = self._prompt(opening | self._context(opening, "\n".join(questions)))
            example = self._finish(part, {}, (*first, *history))
            yield example
            history.append(Message("assistant", example.target))

    def _example(self, part: _PreparedPart, field: str | None) -> Example:
        added = self._context(part.values, self._evidence(part.values))
        if field is not None:
            added["question"] = self.task.questions[field]
        return self._finish(part, added, self._prompt(part.values | added), field)

    def _finish(
        self,
        part: _PreparedPart,
        added: Values,
        messages: tuple[Message, ...],
        field: str | None = None,
    ) -> Example:
        """The example with its answer; `added` are the templates' values besides the fields."""
        task, values = self.task, part.values
        label_field = field or task.fields.label
        if label_field is not None:
            added = {**added, "label": self._label(values, label_field)}
        if task.kind == "label":  # whose target is the label itself
            target = str(added["label"]).strip()
        else:
            target = self._render("target", task.target, values | added)
        if not target:
            raise DataError(
                "the target is empty", where=self.where, remedy="skip_if_empty leaves such rows out"
            )
        cue = ""
        if task.floor_by is not None:
            cue = loose_text(self._render("floor_by", task.floor_by, values))
        return Example(
            task=task.name,
            id=part.key if field is None else f"{part.key}/{field}",
            split=self.split,
            group=part.group,
            stratum=field or "",
            messages=messages,
            target=target,
            choices=task.labels,
            cue=cue,
            record=self.key,
            own_text=part.own_text,
        )

    def _prepare(self, part: Part) -> _PreparedPart:
        values = self._values(part)
        content = [values[name] for name in self.task.content_fields]
        return _PreparedPart(
            key=f"{self.key}/{part.key}" if part.key else self.key,
            values=values,
            group=self._group(values, "\n".join(map(str, content))),
            own_text=self._own_text(values, content),
        )

    def _values(self, part: Part) -> Values:
        return {**self.record, **part.fields}

    def _group(self, values: Record, content: str) -> str:
        """The unit of independence: a field as it is, or the key of a text."""
        task = self.task
        if task.fields.group is not None:
            return str(values[task.fields.group])
        if task.group_by is not None:
            content = self._render("group_by", task.group_by, {**values})
        return text_group(content)

    def _own_text(self, values: Record, content: Iterable[object]) -> str:
        """The text that splits are compared by: the template's, else all of the content."""
        if self.task.own_text is not None:
            return render(self.task.own_text, values, f"{self.where}: own_text")
        return "\n".join(map(plain_text, content))

    def _prompt(self, values: Values) -> tuple[Message, ...]:
        """The system turn, where there is one, and the first of the user."""
        user = self._render("prompt", self.task.prompt or "", values)
        return (*self._system(values), Message("user", user))

    def _system(self, values: Values) -> tuple[Message, ...]:
        if self.task.system is None:
            return ()
        return (Message("system", self._render("system", self.task.system, values)),)

    def _page(self, values: Values) -> str:
        assert self.task.context is not None
        return self._render("context.text", self.task.context.text, values)

    def _evidence(self, values: Values) -> str:
        """The text whose words are looked for in the context."""
        context = self.task.context
        if context is None or context.question is None:
            return ""
        return self._render("context.question", context.question, values)

    def _context(self, values: Values, evidence: str) -> Values:
        context = self.task.context
        if context is None:
            return {}
        return {"context": context.fit(self._page(values), evidence, self.where)}

    def _render(self, key: str, template: str, values: Values) -> str:
        values = {**values, "labels": self.task.labels}
        return render(template, values, f"{self.where}: {key}")

    def _label(self, values: Values, field: str) -> str:
        task = self.task
        if field not in values:
            missing_field(field, values, self.where)
        raw = values[field]
        if task.kind == "open":
            return "" if blank(raw) else str(raw)
        known = {*task.labels, *task.label_values}
        text = next((t for t in spellings(raw) if t in known), spellings(raw)[-1])
        label = task.label_values.get(text, text)
        if isinstance(raw, list | dict | None) or label not in task.labels:
            raise DataError(
                "label outside the declared set",
                where=f"{self.where}: field {field!r}",
                found=raw if isinstance(raw, str) and raw.strip() else repr(raw),
                wanted=f"one of {shorten(', '.join(sorted(known)), 300)}",
                remedy="fix the row, or add the value to labels or label_values of the task file",
            )
        return label
