"""What a record says by itself, and how such a text names a group.

Knows: texts, values of fields. Does not know: task files, which fields a prompt reads.

One record → examples: the fields it needs, its turns and answers, its group.

Knows: templates' values, labels, groups, parts of a record. Does not know: keys of task files and
what they may say (base.py), which records a task leaves out (base.py), files.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from mixtune.errors import DataError, did_you_mean, shorten
from mixtune.identity import digest
from mixtune.records import Example, Message, Split
from mixtune.tasks.conversations import Dialogue, Record, blank, read_dialogue
from mixtune.tasks.templates import render, variables

if TYPE_CHECKING:
    from mixtune.tasks.task import Task


def own_text(
    template: str | None, record: Mapping[str, object], told: Iterable[object], where: str
) -> str:
    """What splits are compared by: the template's text, else all that the record tells.

    Raises:
        DataError: the template fails.
    """
    if template is not None:
        return render(template, record, f"{where}: own_text")
    return "\n".join(map(_said, told))


def _said(value: object) -> str:
    """The words of a field: those of a list or mapping one after another, without its signs."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return " ".join(filter(None, map(_said, value)))
    return "" if value is None else str(value)


def loose_text(text: str) -> str:
    """Lower case, without links, letters and digits only: what a group is compared by.

    Text that has no letters or digits left keeps its own characters, so that two such texts are
    one group only when they are equal.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = re.findall(r"[^\W_]+", re.sub(r"(?:https?://|www\.)\S+", " ", folded))
    return " ".join(words) or " ".join(folded.split())


def grouped(text: str) -> str:
    """The group that a text is; long ones are cut, with a digest of the whole.

    The group is stored with every score.
    """
    loose = loose_text(text)
    return loose if len(loose) <= 200 else f"{loose[:160]} #{digest(loose)}"


Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Part:
    """What one example, or all questions about a record, are made of."""

    key: str
    fields: Values
    group: str
    own_text: str


@dataclass(frozen=True, slots=True)
class Rendering:
    """One record of a task being rendered; `record` has the names that the task file uses.

    `where`: its place, for messages. `key`: its id.
    """

    task: "Task"
    record: Record
    where: str
    key: str
    split: Split

    def examples(self, only: str | None = None) -> list[Example]:
        """One example, one per question, per part or per turn of the assistant.

        Raises:
            DataError: a label outside the set, an empty target, a template that fails.
        """
        task = self.task
        if task.format != "fields":
            return self._conversation()
        if task.make is not None:
            return self._made()
        (part,) = self._parts()
        if not task.questions:
            return [self._example(part)]
        asked = task.questions if only is None else [only]
        return [self._example(part, field) for field in asked]

    def pages(self) -> list[str]:
        """The context of each part before anything is cut; a dialogue has one for all turns."""
        if self.task.context is None:
            return []
        pages = [self._page(fields) for fields in self._fields().values()]
        return pages[:1] if self._follow_up() else pages

    def _conversation(self) -> list[Example]:
        """An example for each of the assistant's turns that is learnt, with the turns before it."""
        task = self.task
        dialogue = read_dialogue(self.record, self.where, task.format, task.columns, task.roles)
        group = group_of(task, self.record, self.where, dialogue.own_text())
        asked = [turn.content for turn in dialogue.turns if turn.role == "user"]
        told = own_text(task.own_text, self.record, asked, self.where)
        own = dialogue.turns[0].role == "system"
        before = () if own else self._system({**self.record})
        answers = dialogue.answers()
        return [
            Example(
                task=task.name,
                id=f"{self.key}/{_number(dialogue, place)}",
                split=self.split,
                group=group,
                stratum="",
                messages=(*before, *dialogue.turns[:place]),
                target=dialogue.turns[place].content,
                record=self.key,
                own_text=told,
            )
            for place in (answers if task.turns == "all" else answers[-1:])
        ]

    def _made(self) -> list[Example]:
        follow_up = self._follow_up()
        if follow_up is not None:
            return self._dialogue(follow_up, self._parts())
        return [self._example(part) for part in self._parts()]

    def _parts(self) -> list[_Part]:
        return [self._part(key, fields) for key, fields in self._fields().items()]

    def _part(self, key: str, fields: Values) -> _Part:
        group = group_of(self.task, fields, self.where)
        told = [fields[name] for name in content_fields(self.task)]
        return _Part(key, fields, group, own_text(self.task.own_text, fields, told, self.where))

    def _fields(self) -> dict[str, Values]:
        """Ids of parts, with the record's fields and those that were made."""
        if self.task.make is None:
            return {self.key: {**self.record}}
        return {
            f"{self.key}/{part.key}" if part.key else self.key: {**self.record, **part.fields}
            for part in self.task.make.made(self.record, self.where).parts
        }

    def _follow_up(self) -> str | None:
        """The template of later turns; None where the parts of a record are no dialogue."""
        turns = self.task.make.turns if self.task.make is not None else None
        return turns.follow_up if turns is not None else None

    def _dialogue(self, follow_up: str, parts: Sequence[_Part]) -> list[Example]:
        """An example for each turn: the page and the first question, then turn by turn.

        A page that is cut by what is asked is cut anew for each turn, by all that was asked so far.
        """
        examples: list[Example] = []
        said: list[Message] = []
        asked: list[str] = []
        for part in parts:
            asked.append(self._evidence(part.fields))
            if said:
                said.append(Message("user", self._render("follow_up", follow_up, part.fields)))
            opening = parts[0].fields
            first = self._prompt({**opening, **self._context(opening, "\n".join(asked))})
            made = self._finish(part, {}, (*first, *said))
            examples.append(made)
            said.append(Message("assistant", made.target))
        return examples

    def _example(self, part: _Part, field: str | None = None) -> Example:
        added = self._context(part.fields, self._evidence(part.fields))
        if field is not None:
            added["question"] = self.task.questions[field]
        return self._finish(part, added, self._prompt({**part.fields, **added}), field)

    def _finish(
        self, part: _Part, added: Values, messages: tuple[Message, ...], field: str | None = None
    ) -> Example:
        """The example, with its answer; `added` is what templates see beside the fields."""
        task = self.task
        label_field = field or task.fields.label
        if label_field is not None:
            added = {**added, "label": self._label(part.fields, label_field)}
        if task.kind == "label":  # whose target is the label itself
            target = str(added["label"]).strip()
        else:
            target = self._render("target", task.target, {**part.fields, **added})
        if not target:
            raise DataError(
                "the target is empty", where=self.where, remedy="skip_if_empty leaves such rows out"
            )
        cue = ""
        if task.floor_by is not None:
            cue = loose_text(self._render("floor_by", task.floor_by, part.fields))
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
        """What evidence is looked for in the context."""
        context = self.task.context
        if context is None or context.question is None:
            return ""
        return self._render("context.question", context.question, values)

    def _context(self, values: Values, asked: str) -> Values:
        context = self.task.context
        if context is None:
            return {}
        return {"context": context.fit(self._page(values), asked, self.where)}

    def _render(self, key: str, template: str, values: Values) -> str:
        values = {**values, "labels": self.task.labels}
        return render(template, values, f"{self.where}: {key}")

    def _label(self, fields: Values, field: str) -> str:
        task = self.task
        raw = fields[field] if field in fields else missing(field, fields, self.where)
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
                remedy="mend the row, or add the value to labels or label_values of the task file",
            )
        return label


def content_fields(task: "Task") -> list[str]:
    """Fields that the prompt reads, through its context too, by name."""
    seen = variables(task.prompt, task.system)
    if task.context is not None:
        seen = (seen - {"context"}) | variables(task.context.text)
    return sorted(seen - {"labels"} - ({"question"} if task.questions else set()))


def require(task: "Task", record: Record, where: str) -> None:
    """Every field that a template reads is there and, unless it may be empty, says something.

    What a maker reads has to be there, and may be empty: the maker says what is done then.

    Raises:
        DataError: a field that is missing or empty.
    """
    given = {"labels", "label"} | ({"question"} if task.questions else set())
    made, raw = set[str](), set[str]()
    if task.make is not None:
        made, raw = task.make.gives(), task.make.reads()
    named = {field for field in (task.fields.id, task.fields.group) if field} - made
    read = set(variables(*_templates(task))) - ({"context"} if task.context else set())
    needed = (read - given - made) | named
    for field in sorted(needed | raw | {*task.keep, *task.leave_out}):
        if field not in record:
            missing(field, record, where)
        if field in needed and field not in task.may_be_empty and blank(record[field]):
            raise DataError(
                "the field is empty",
                where=f"{where}: field {field!r}",
                found=repr(record[field]),
                wanted="text that is not blank",
                remedy="mend the row, or name the field in may_be_empty or skip_if_empty",
            )


def _templates(task: "Task") -> list[str | None]:
    """Every template of a task."""
    found = [task.prompt, task.system, task.target, task.group_by, task.floor_by, task.own_text]
    if task.context is not None:
        found += [task.context.text, task.context.question]
    if task.make is not None and task.make.turns is not None:
        found.append(task.make.turns.follow_up)
    return found


def missing(field: str, record: Record, where: str) -> NoReturn:
    """Say that a record lacks a field.

    Raises:
        DataError: always.
    """
    raise DataError(
        f"the record has no field {field!r}",
        where=where,
        found=", ".join(sorted(map(str, record))) or "an empty record",
        wanted=field,
        remedy=did_you_mean(field, map(str, record)) if record else "mend the row",
    )


def renamed(task: "Task", record: Record, where: str) -> Record:
    """The record by the names that the task file uses.

    Raises:
        DataError: a column that is not there.
    """
    if task.format != "fields" or not task.columns:
        return record
    for ours, theirs in task.columns.items():
        if theirs not in record:
            missing(str(theirs), record, f"{where}: columns.{ours}")
    taken = set(task.columns.values())
    kept = {name: value for name, value in record.items() if name not in taken}
    return kept | {ours: record[str(theirs)] for ours, theirs in task.columns.items()}


def spellings(raw: object) -> tuple[str, ...]:
    """How a stored label may be written in a task file; the last is what it is without a mapping.

    CSV keeps texts only, and other programs write whole numbers as 1.0 where a row has none.
    """
    if isinstance(raw, bool):
        return (str(raw).lower(), str(raw))
    if isinstance(raw, float) and raw.is_integer():
        return (str(raw), str(int(raw)))
    text = raw.strip() if isinstance(raw, str) else str(raw)
    return (text.lower(), text) if text.lower() in ("true", "false") else (text,)


def group_of(task: "Task", values: Record, where: str, asked: str = "") -> str:
    """The unit of independence: a field as it stands, or a text loosely normalised."""
    if task.fields.group is not None:
        return str(values[task.fields.group])
    if task.group_by is not None:
        text = render(task.group_by, {**values, "labels": task.labels}, f"{where}: group_by")
    elif task.format != "fields":
        text = asked
    else:
        text = "\n".join(str(values[field]) for field in content_fields(task))
    return grouped(text)


def _number(dialogue: Dialogue, place: int) -> int:
    """Which of the assistant's turns stands at a place, from 1."""
    return sum(turn.role == "assistant" for turn in dialogue.turns[: place + 1])
