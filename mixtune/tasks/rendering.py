"""One record of a task → its examples, or the reason why the task leaves it out."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from mixtune.errors import DataError, shorten
from mixtune.records import REASONING_KEYS, Example, Message, Split
from mixtune.tasks.characters import invisible, normal_form, visible
from mixtune.tasks.makers import Part, Parts
from mixtune.tasks.parsers.stated_labels import fold
from mixtune.tasks.reasoning import stored_reasoning
from mixtune.tasks.record import (
    COLUMNS,
    WEIGHTS,
    Record,
    Scalar,
    blank,
    equal_values,
    loose_text,
    plain_text,
    plain_value,
    read_dialogue,
    spellings,
    text_group,
    value_of,
)  # fmt: skip
from mixtune.tasks.task import Task
from mixtune.tasks.templates import render

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rendered:
    """The examples of a record; `dropped` is the reason where the task leaves the record out.

    `notes`: what happened to a record that is used and is worth counting, such as a cut page.
    `matched`: the values of filters that the record has.
    """

    examples: tuple[Example, ...] = ()
    notes: tuple[str, ...] = ()
    dropped: str | None = None
    matched: frozenset[str] = frozenset()


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
    record = plain_value(record)
    reason, matched = _filtered(task, record)
    if reason is not None:
        return Rendered(dropped=reason, matched=matched)
    rendered = _render_used(task, record, split, where, number, question)
    return replace(rendered, matched=matched)


def _render_used(
    task: Task, record: Record, split: Split, where: str, number: int, question: str | None
) -> Rendered:
    """Render a record that no filter excludes."""
    record = _rename(task, record, where)
    parts = Parts((Part("", record),)) if task.make is None else task.make.parts(record, where)
    if parts.dropped is not None:
        return Rendered(dropped=parts.dropped)
    _require_fields(task, record, where)
    key = str(record[task.fields.id]) if task.fields.id else f"{split}-{number}"
    renderer = _Renderer(task, record, where, key, split)
    notes, context = parts.notes, task.context
    if context is not None:
        # A dialogue has one page for all turns.
        pages = map(renderer.page, parts.parts[: 1 if task.follow_up else None])
        if any(map(context.too_long, pages)):
            if context.policy == "drop":
                return Rendered(dropped=f"context over {context.words:,} words")
            notes += (f"context cut to {context.words:,} words: {context.policy}",)
    return Rendered(tuple(renderer.examples(parts.parts, question)), notes)


def turns_column(task: Task) -> str | None:
    """The column that holds a conversation's turns."""
    return {**COLUMNS[task.format], **task.columns}.get("messages")


def read_columns(task: Task) -> set[str]:
    """Columns that something reads; keys of a conversation's turns as turns[].key."""
    names = {task.column(field) for field in task.required_fields} | task.optional_columns
    names.update(task.ignore_columns, (f"{turns_column(task)}[].{k}" for k in task.ignore_columns))
    if task.format == "fields":
        made = task.make.reads() if task.make is not None else set()
        label = {task.fields.label} if task.fields.label else set()
        return names | {task.column(field) for field in {*label, *task.questions, *made}}
    columns = {**COLUMNS[task.format], **task.columns}
    keys = [columns.get("role"), columns.get("content"), *WEIGHTS, *REASONING_KEYS]
    names.update(REASONING_KEYS if turns_column(task) is None else ())
    return names.union(
        filter(None, columns.values()), (f"{turns_column(task)}[].{k}" for k in keys)
    )


def filter_values(task: Task) -> set[str]:
    """Each value that a task's filters name, in words."""
    filters = (("keep", task.keep), ("leave_out", task.leave_out))
    return {
        _filter_text(key, field, value)
        for key, columns in filters
        for field, values in columns.items()
        for value in values
    }


def _filter_text(key: str, field: str, value: Scalar) -> str:
    return f"{key}.{field}: {value!r}"


class _Filtered(NamedTuple):
    """The reason why filters exclude a record, or None; the values of filters that it has."""

    reason: str | None
    matched: frozenset[str]


def _filtered(task: Task, record: Record) -> _Filtered:
    reasons: list[str] = []
    matched: set[str] = set()
    for key, filters in (("keep", task.keep), ("leave_out", task.leave_out)):
        for field, values in filters.items():
            stored = record.get(task.column(field))
            equal = [value for value in values if equal_values(value, stored)]
            matched.update(_filter_text(key, field, value) for value in equal)
            if bool(equal) != (key == "keep"):
                reasons.append(f"another {field}")
    # A column that the dataset does not have is not empty: copies of a dataset differ in columns.
    present = [field for field in task.skip_if_empty if task.column(field) in record]
    empty = [field for field in present if blank(record[task.column(field)])]
    reasons += [f"empty {field}" for field in empty]
    return _Filtered(reasons[0] if reasons else None, frozenset(matched))


def _rename(task: Task, record: Record, where: str) -> Record:
    """The record under the names that the task file uses; what may be empty may be missing."""
    if task.format != "fields":
        return record
    missing = [f for f in task.may_be_empty if task.column(f) not in record]
    record = {**record, **dict.fromkeys(map(task.column, missing))} if missing else record
    if not task.columns:
        return record
    columns = set(task.columns.values())
    unmapped = {name: value for name, value in record.items() if name not in columns}
    return unmapped | {
        name: value_of(record, str(column), f"{where}: columns.{name}")
        for name, column in task.columns.items()
    }


def _require_fields(task: Task, record: Record, where: str) -> None:
    """Check that every field in use exists and, unless it may be empty, is not blank.

    The fields of makers may be empty: the maker decides what follows.
    """
    required = task.required_fields
    read = task.make.reads() if task.make is not None else set()
    for field in sorted(required | read):
        value = value_of(record, field, where)
        if isinstance(value, bytes):
            raise DataError(
                "bytes that are not UTF-8",
                where=f"{where}: field {field!r}",
                found=value[:40],
                wanted="text",
                remedy="decode the column before it is written to the file, or use another one",
            )
        if field in required and field not in task.may_be_empty and blank(value):
            raise DataError(
                "the field is empty",
                where=f"{where}: field {field!r}",
                found=repr(value),
                wanted="text that is not blank",
                remedy="fix the row, or name the field in may_be_empty or skip_if_empty",
            )


@dataclass(frozen=True, slots=True)
class _Renderer:
    """One record of a task, under the names that the task file uses; `key` is its id."""

    task: Task
    record: Record
    where: str
    key: str
    split: Split

    def examples(self, parts: Sequence[Part], question: str | None) -> Iterator[Example]:
        """One example, one per question, per part or per turn of the assistant.

        Raises:
            DataError: a label outside the set, an empty target, a template that fails.
        """
        if self.task.format != "fields":
            return self._conversation()
        if self.task.follow_up is not None:
            return self._dialogue(self.task.follow_up, parts)
        named = self.task.questions
        fields = [question] if question is not None and named else [*named]
        return self._separate(parts, fields or [None])

    def page(self, part: Part) -> str:
        """The uncut context of a part."""
        assert self.task.context is not None
        return self._render("context.text", self.task.context.text, part.values)

    def _conversation(self) -> Iterator[Example]:
        """An example for each of the assistant's turns to learn, with the turns before it."""
        task = self.task
        names = task.columns, task.roles, task.ignore_columns
        dialogue = read_dialogue(self.record, self.where, task.format, *names)
        turns, answers = dialogue.turns, dialogue.answers()
        questions = [turn.content for turn in turns if turn.role == "user"]
        draft = self._draft(self.record, questions, dialogue.about)
        system = () if turns[0].role == "system" else self._system(self.record)
        for place in answers if task.turns == "all" else answers[-1:]:
            # Numbered from 1 among all turns of the assistant, those not to learn included.
            number = sum(turn.role == "assistant" for turn in turns[: place + 1])
            draft = replace(draft, target=turns[place].content, reasoning=turns[place].reasoning)
            messages = (*system, *turns[:place])
            yield replace(draft, id=f"{self.key}/{number}", messages=messages)

    def _dialogue(self, follow_up: str, parts: Sequence[Part]) -> Iterator[Example]:
        """An example for each turn: the page and the first question, then turn by turn.

        A page that is cut by the question is cut again for each turn, by all questions so far.
        """
        history: list[Message] = []
        questions: list[str] = []
        for part in parts:
            draft = self._draft_of(part)
            questions.append(self._evidence(part))
            if history:
                text = self._render("follow_up", follow_up, part.values)
                history.append(Message("user", text))
            opening = {**parts[0].values, **self._context(parts[0], "\n".join(questions))}
            example = self._finish(draft, part, {}, (*self._prompt(opening), *history))
            yield example
            history.append(Message("assistant", example.target, example.reasoning))

    def _separate(self, parts: Sequence[Part], fields: Sequence[str | None]) -> Iterator[Example]:
        """An example for each part and question; `fields` are the questions' names."""
        for part in parts:
            draft = self._draft_of(part)
            added = self._context(part, self._evidence(part))
            for field in fields:
                if field is not None:
                    added["question"] = self.task.questions[field]
                messages = self._prompt({**part.values, **added})
                yield self._finish(draft, part, added, messages, field)

    def _draft_of(self, part: Part) -> Example:
        draft = self._draft(part.values, [part.values[name] for name in self.task.content_fields])
        return replace(draft, id=f"{self.key}/{part.key}") if part.key else draft

    def _draft(self, values: Values, content: Sequence[object], about: str = "") -> Example:
        """An example but for its messages and target.

        Its group, the unit of independence, is a field as it is, or the key of a text: `about`,
        else the content.
        """
        task = self.task
        text = about or "\n".join(map(str, content))
        if task.group_by is not None and task.fields.group is None:
            text = self._render("group_by", task.group_by, values)
        own_text = "\n".join(map(plain_text, content))
        if task.own_text is not None:
            own_text = render(task.own_text, values, f"{self.where}: own_text")
        cue = self._render("floor_by", task.floor_by, values) if task.floor_by else ""
        return Example(
            task=task.name,
            id=self.key,
            split=self.split,
            group=str(values[task.fields.group]) if task.fields.group else text_group(text),
            stratum="",
            messages=(),
            target="",
            choices=task.labels,
            cue=loose_text(cue),
            record=self.key,
            own_text=own_text,
            place=self.where,
            group_text="" if task.fields.group or text == own_text else text,
        )

    def _finish(
        self,
        draft: Example,
        part: Part,
        added: Values,
        messages: tuple[Message, ...],
        field: str | None = None,
    ) -> Example:
        """The example with its answer; `added` are the templates' values besides the fields."""
        task = self.task
        label_field = field or task.fields.label
        label = None if label_field is None else self._label(part.values, label_field)
        if label is not None and task.kind == "label":  # the target is the label itself
            target = label.strip()
        else:
            values = {**part.values, **added, **({} if label is None else {"label": label})}
            target = self._render("target", task.target, values)
        reasoning, target = stored_reasoning(target, self.where)
        if not target:
            raise DataError(
                "the target is empty", where=self.where, remedy="skip_if_empty leaves such rows out"
            )
        example_id = draft.id if field is None else f"{draft.id}/{field}"
        draft = replace(draft, id=example_id, stratum=field or "", messages=messages)
        return replace(draft, target=target, reasoning=reasoning)

    def _prompt(self, values: Values) -> tuple[Message, ...]:
        """The system turn, where there is one, and the first of the user."""
        user = self._render("prompt", self.task.prompt or "", values)
        return (*self._system(values), Message("user", user))

    def _system(self, values: Values) -> tuple[Message, ...]:
        if self.task.system is None:
            return ()
        return (Message("system", self._render("system", self.task.system, values)),)

    def _evidence(self, part: Part) -> str:
        """The text whose words are looked for in the context."""
        context = self.task.context
        if context is None or context.question is None:
            return ""
        return self._render("context.question", context.question, part.values)

    def _context(self, part: Part, evidence: str) -> dict[str, str]:
        context = self.task.context
        if context is None:
            return {}
        return {"context": context.fit(self.page(part), evidence, self.where)}

    def _render(self, key: str, template: str, values: Values) -> str:
        return render(template, {**values, "labels": self.task.labels}, f"{self.where}: {key}")

    def _label(self, values: Values, field: str) -> str:
        task = self.task
        hint = "fix the row, or fields.label of the task file; "
        raw = value_of(values, field, self.where, hint)
        if task.kind == "open":
            return "" if blank(raw) else str(raw)
        known = {*task.labels, *task.label_values}
        written = spellings(raw)
        text = next((t for t in written if t in known), None)
        if text is None:
            composed = {normal_form(label): label for label in known}
            texts = [composed[t] for t in map(normal_form, written) if t in composed]
            text = texts[0] if texts else written[-1]
        label = task.label_values.get(text, text)
        if isinstance(raw, list | dict | None) or label not in task.labels:
            raise _unknown_label(task, raw, field, self.where)
        return label


def _unknown_label(task: Task, raw: object, field: str, where: str) -> DataError:
    """The error for a label outside the set; one that only looks like another is mapped to it."""
    known = sorted({*task.labels, *task.label_values})
    problem = "label outside the declared set"
    remedy = "fix the row, or add the value to labels or label_values of the task file"
    text = "" if blank(raw) or isinstance(raw, list | dict) else spellings(raw)[-1]
    like = [label for label in known if fold(visible(label)) == fold(visible(text))]
    if blank(raw):
        problem = "the label is empty"
        remedy = f"fix the row, or leave such rows out with skip_if_empty: [{field}]"
    elif marks := invisible(text):
        problem = f"the label has invisible characters: {marks}"
    elif like:
        problem = f"the label differs from {shorten(like[0])!r} in case or spacing"
    if like:
        label = task.label_values.get(like[0], like[0])
        pair = ascii(text)[1:-1].replace('"', r"\""), json.dumps(label, ensure_ascii=False)
        remedy = f'fix the row, or add label_values: {{"{pair[0]}": {pair[1]}}} to the task file'
    return DataError(
        problem,
        where=f"{where}: field {field!r}",
        found=raw if isinstance(raw, str) and raw.strip() else repr(raw),
        wanted=f"one of {shorten(', '.join(known), 300)}",
        remedy=remedy,
    )
