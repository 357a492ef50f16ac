"""From a tag for each token to entities: where they begin, where they end, what they are.

Knows: IOB1, IOB2 and tags whose letter stands behind ("PER_B"). Does not know: tokens, tasks.

An entity begins at a B tag, and at an I tag that goes on with nothing of its type: so IOB1, in
which B only parts neighbours, is read as it is meant, and so is an entity that starts with an
inside tag by mistake, as seqeval reads it by default.

Tokens of a corpus back to text as people write it.

Knows: English punctuation, one sentence at a time. Does not know: tags, tasks, tokenizers of
models. What was lost in tokenising is guessed by these rules:

- closing marks (`, . ; : ? ! ) ] } ” %`) stand at the word before them, opening ones (`( [ { “ $`)
  at the word after them; `/` at both;
- straight quotes open and close in turn; `'` before `s t re ve ll d m` belongs to both its
  neighbours, as do "'s" and "n't" to the word before;
- between digits, `.`, `:` and a comma before three digits part no words: 6 . 6 → 6.6;
- hyphens and dashes keep their spaces: "short - term" and "Agreement - Silicium" look alike.

`make:` of a task file: fields that are made of a record's own, and the parts it falls into.

Three makers, all declared in YAML:

- `spans`: tagged tokens → `text` and `spans`; or one part per entity, with `text` (the entity in
  double brackets), `sentence`, `entity` and `type`;
- `turns`: lists that run side by side → one part per turn of a dialogue;
- `amount`: an executed result and what the annotators wrote → `amount` (amount_text.py).

Knows: which fields a maker reads and gives, what is left out and why. Does not know: prompts,
examples, files.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mixtune.errors import DataError, did_you_mean
from mixtune.study.fields import Frozen
from mixtune.tasks.amount_text import write_amount
from mixtune.tasks.conversations import Record, blank
from mixtune.tasks.source_spec import Text

_BEFORE = re.compile(r"([BI])-(.+)")
_BEHIND = re.compile(r"(.+)_([BI])")


@dataclass(frozen=True, slots=True)
class Span:
    """An entity: its type, and the places of its first and last token."""

    type: str
    first: int
    last: int


def read_spans(tags: Sequence[str], where: str) -> list[Span]:
    """The entities of a sentence, in their order.

    Raises:
        DataError: a tag that is none of "O", "B-TYPE", "I-TYPE", "TYPE_B", "TYPE_I".
    """
    found: list[Span] = []
    running = ""
    for place, tag in enumerate(tags):
        letter, kind = _read(tag, where)
        if kind and letter == "I" and kind == running:
            found[-1] = Span(kind, found[-1].first, place)
        elif kind:
            found.append(Span(kind, place, place))
        running = kind
    return found


def _read(tag: str, where: str) -> tuple[str, str]:
    """Letter and type of a tag; nothing of "O"."""
    if tag == "O":
        return "", ""
    if hit := _BEFORE.fullmatch(tag):
        return hit[1], hit[2]
    if hit := _BEHIND.fullmatch(tag):
        return hit[2], hit[1]
    raise DataError(
        "a tag that is not understood",
        where=where,
        found=tag,
        wanted="O, B-TYPE, I-TYPE, TYPE_B or TYPE_I",
        remedy="mend the row, or name numbered tags under make.spans.tag_names",
    )


_CLOSING = re.compile(r"[,.;:?!)\]}”’»%…]+[\"”]?")
_OPENING = re.compile(r"[(\[{“‘«$€£¥#@]+[\"“]?")
_ENDINGS = re.compile(r"(?:['’](?:s|t|re|ve|ll|d|m)|n['’]t)", re.IGNORECASE)
_AFTER_APOSTROPHE = {"s", "t", "re", "ve", "ll", "d", "m"}
_MONEY = {"$", "€", "£", "¥", "#"}


def detokenise(tokens: Sequence[str]) -> str:
    """The text of a sentence; tokens are taken as they are, only white space is chosen."""
    return "".join(gap + token for gap, token in zip(gaps(tokens), tokens, strict=True))


def gaps(tokens: Sequence[str]) -> list[str]:
    """The white space before each token: "" or one space."""
    found: list[str] = []
    glued, quoted = True, False  # glued: at the start, and after an opening mark
    for place, token in enumerate(tokens):
        after = tokens[place + 1] if place + 1 < len(tokens) else ""
        before = tokens[place - 1] if place else ""
        if not token:
            found.append("")
            continue
        closes = _stands_close(before, token, after) or (token == '"' and quoted)
        found.append("" if glued or closes else " ")
        if token == '"':
            quoted = not quoted
        glued = _holds_next(before, token, after) or (token == '"' and quoted)
    return found


def _stands_close(before: str, token: str, after: str) -> bool:
    """Whether a token stands at the one before it."""
    if token == "'":
        return bool(before) and (after in _AFTER_APOSTROPHE or before.endswith("s"))
    return token == "/" or bool(_CLOSING.fullmatch(token) or _ENDINGS.fullmatch(token))


def _holds_next(before: str, token: str, after: str) -> bool:
    """Whether the next token stands at this one."""
    if token == "'":
        return after in _AFTER_APOSTROPHE
    if token in _MONEY:
        return after[:1].isdigit()
    if token in ".:," and before[-1:].isdigit() and after[:1].isdigit():
        return token != "," or (len(after) == 3 and after.isdigit())
    return token == "/" or bool(_OPENING.fullmatch(token))


Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """What one example is made of: the end of its id ("": the record's own) and made fields."""

    key: str
    fields: Values


@dataclass(frozen=True, slots=True)
class Made:
    """The parts of a record; `dropped` says why there are none.

    `notes`: what was left out of a record that is kept, or taken from elsewhere; one a case.
    """

    parts: tuple[Part, ...] = ()
    notes: tuple[str, ...] = ()
    dropped: str | None = None


class Spans(Frozen):
    """Tagged tokens; `types` maps the corpus's types to the names asked for, others are left out.

    `tag_names`: the tags by number, for sets that keep numbers.
    """

    tokens: Text = "tokens"
    tags: Text = "ner_tags"
    types: Annotated[dict[str, Text], Field(min_length=1)]
    tag_names: tuple[str, ...] = ()
    each: Literal["sentence", "entity"] = "sentence"

    def reads(self) -> set[str]:
        """Fields of the record."""
        return {self.tokens, self.tags}

    def gives(self) -> set[str]:
        """Fields that are made."""
        entity = {"text", "sentence", "entity", "type"}
        return entity if self.each == "entity" else {"text", "spans"}

    def made(self, record: Record, where: str) -> Made:
        """One part, or one for each entity of a type that is asked for.

        Raises:
            DataError: no lists of one length, a tag that is not understood.
        """
        tokens, tags = self._read(record, where)
        spans = read_spans(tags, where)
        kept = [span for span in spans if span.type in self.types]
        others = [span.type for span in spans if span.type not in self.types]
        notes = tuple(f"entity of type {kind} left out" for kind in others)
        if self.each == "sentence":
            found = [{"type": self.types[s.type], "text": _text(tokens, s)} for s in kept]
            return Made((Part("", {"text": _text(tokens), "spans": found}),), notes)
        if not kept:
            only = ", ".join(sorted(set(others)))
            return Made(dropped=f"no entity but of type {only}" if only else "no entity")
        parts = (
            Part(str(number), self._entity(tokens, span))
            for number, span in enumerate(spans, start=1)
            if span.type in self.types
        )
        return Made(tuple(parts), notes)

    def _entity(self, tokens: list[str], span: Span) -> Values:
        return {
            "text": _text(tokens, marked=span),
            "sentence": _text(tokens),
            "entity": _text(tokens, span),
            "type": self.types[span.type],
        }

    def _read(self, record: Record, where: str) -> tuple[list[str], list[str]]:
        tokens, tags = (_listed(record, field, where) for field in (self.tokens, self.tags))
        if len(tokens) != len(tags):
            raise DataError(
                "there is not one tag to each token",
                where=f"{where}: field {self.tags!r}",
                found=f"{len(tokens)} tokens, {len(tags)} tags",
                remedy="mend the row",
            )
        return [str(token) for token in tokens], [self._tag(tag, where) for tag in tags]

    def _tag(self, tag: object, where: str) -> str:
        if not isinstance(tag, int):
            return str(tag)
        if not 0 <= tag < len(self.tag_names):
            raise DataError(
                "a numbered tag that has no name",
                where=f"{where}: field {self.tags!r}",
                found=tag,
                wanted=f"one of {len(self.tag_names)} names under make.spans.tag_names",
                remedy="name the tags in the task file, in the order of their numbers",
            )
        return self.tag_names[tag]


class Turns(Frozen):
    """A dialogue kept as lists that run side by side; `fields` maps names for templates to them.

    `follow_up`: the template of every user turn but the first, which is the task's prompt.
    """

    fields: Annotated[dict[str, Text], Field(min_length=1)]
    follow_up: Text

    def reads(self) -> set[str]:
        """Fields of the record."""
        return set(self.fields.values())

    def gives(self) -> set[str]:
        """Fields that are made."""
        return {*self.fields, "turn"}

    def made(self, record: Record, where: str) -> Made:
        """A part for each turn, by its number from 1.

        Raises:
            DataError: no lists of one length.
        """
        lists = {name: _listed(record, field, where) for name, field in self.fields.items()}
        sizes = {self.fields[name]: len(values) for name, values in lists.items()}
        if len(set(sizes.values())) != 1:
            raise DataError(
                "the lists of a dialogue are not of one length",
                where=where,
                found=", ".join(f"{field}: {size}" for field, size in sizes.items()),
                remedy="mend the row",
            )
        rows = zip(*lists.values(), strict=True)
        parts = tuple(
            Part(str(turn), {**dict(zip(lists, row, strict=True)), "turn": turn})
            for turn, row in enumerate(rows, start=1)
        )
        return Made(parts, dropped=None if parts else "no turn")


class Amounts(Frozen):
    """A numeric answer: fields with the executed result, the annotators' text, the question."""

    value: Text
    told: Text | None = None
    question: Text | None = None

    def reads(self) -> set[str]:
        """Fields of the record, or of a turn."""
        return {field for field in (self.value, self.told, self.question) if field is not None}

    def gives(self) -> set[str]:
        """Fields that are made."""
        return {"amount"}

    def made(self, fields: Values, where: str) -> tuple[str | None, str | None]:
        """The answer's text (None: there is none), and where it was taken from if not the result.

        Raises:
            DataError: a field that is not there.
        """
        value, told, question = (
            None if field is None else _field(fields, field, where)
            for field in (self.value, self.told, self.question)
        )
        value = None if blank(value) else value
        written = write_amount(value, told, "" if question is None else str(question))
        note = f"{self.value} is empty, so {self.told} is the truth" if value is None else None
        return written, note


class Make(Frozen):
    """The makers of a task, at least one; `amount` works on each turn where there are `turns`."""

    spans: Spans | None = None
    turns: Turns | None = None
    amount: Amounts | None = None

    @model_validator(mode="after")
    def _agrees(self) -> "Make":
        if self.spans is None and self.turns is None and self.amount is None:
            raise ValueError("nothing is made; name spans, turns or amount")
        if self.spans is not None and (self.turns is not None or self.amount is not None):
            raise ValueError("spans stands alone")
        return self

    def reads(self) -> set[str]:
        """Fields that a record has to have."""
        read = {field for maker in self._makers() for field in maker.reads()}
        return read - (self.turns.gives() if self.turns else set())

    def gives(self) -> set[str]:
        """Fields that templates can use beside the record's own."""
        return {field for maker in self._makers() for field in maker.gives()}

    def answers(self) -> set[str]:
        """Fields that say the answer, made or read, which no prompt may show."""
        found = self.gives() & {"spans", "type", "amount"}
        found |= {self.spans.tags} if self.spans else set()
        told = (self.amount.value, self.amount.told) if self.amount else ()
        return found | {field for field in told if field is not None}

    def made(self, record: Record, where: str) -> Made:
        """The parts of a record, with every made field.

        Raises:
            DataError: a field that is missing or of another form than the maker reads.
        """
        made = Made((Part("", {}),))
        if self.spans is not None:
            made = self.spans.made(record, where)
        elif self.turns is not None:
            made = self.turns.made(record, where)
        return made if self.amount is None else self._answered(made, record, where)

    def _makers(self) -> "Iterator[Spans | Turns | Amounts]":
        for maker in (self.spans, self.turns, self.amount):
            if maker is not None:
                yield maker

    def _answered(self, made: Made, record: Record, where: str) -> Made:
        """The parts with their answers; a dialogue ends before a turn that has none."""
        assert self.amount is not None
        parts: list[Part] = []
        notes = list(made.notes)
        for part in made.parts:
            written, note = self.amount.made({**record, **part.fields}, where)
            if written is None:
                break
            parts.append(replace(part, fields={**part.fields, "amount": written}))
            notes += [note] if note else []
        lost = len(made.parts) - len(parts)
        if not parts:
            return Made(dropped=made.dropped or "no answer")
        return Made(tuple(parts), (*notes, *["turn without an answer, or after one"] * lost))


def _text(tokens: list[str], span: Span | None = None, marked: Span | None = None) -> str:
    """The sentence, one with an entity marked, or an entity as it stands in the sentence."""
    before = gaps(tokens)
    first, last = (span.first, span.last) if span else (0, len(tokens) - 1)
    written = []
    for place in range(first, last + 1):
        opening = "[[" if marked and place == marked.first else ""
        closing = "]]" if marked and place == marked.last else ""
        written.append(f"{before[place]}{opening}{tokens[place]}{closing}")
    return "".join(written).strip()


def _listed(record: Record, field: str, where: str) -> list[Any]:
    value = _field(record, field, where)
    if not isinstance(value, list):
        raise DataError(
            "not a list",
            where=f"{where}: field {field!r}",
            found=type(value).__name__,
            wanted="a list, one entry a token or turn",
            remedy="mend the row, or the field's name under make in the task file",
        )
    return value


def _field(record: Record, field: str, where: str) -> Any:  # noqa: ANN401 - any field
    if field not in record:
        raise DataError(
            f"the record has no field {field!r}",
            where=where,
            found=", ".join(sorted(map(str, record))) or "an empty record",
            wanted=field,
            remedy=did_you_mean(field, map(str, record)) if record else "mend the row",
        )
    return record[field]
