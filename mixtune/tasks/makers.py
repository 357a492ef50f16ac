"""`make:` of a task file: fields computed from a record's own, and the parts it is split into.

Three makers, all declared in YAML:

- `spans`: tagged tokens → `text` and `spans`; or one part per entity, with `text` (the entity in
  double brackets), `sentence`, `entity` and `type`;
- `turns`: parallel lists → one part per turn of a dialogue;
- `amount`: an executed result and its annotation → `amount` (parsers/amounts.py).
"""

import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from mixtune.errors import DataError
from mixtune.study.fields import Frozen
from mixtune.tasks.parsers.amounts import write_amount
from mixtune.tasks.record import Record, blank, value_of
from mixtune.tasks.source_spec import Text
from mixtune.tasks.templates import Template


@dataclass(frozen=True, slots=True)
class Part:
    """The material of one example: the end of its id ("": the record's own), and all fields."""

    key: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a record; `dropped` is the reason why there are none.

    `notes`: one for each thing left out of a record that is used, or taken from another field.
    """

    parts: tuple[Part, ...] = ()
    notes: tuple[str, ...] = ()
    dropped: str | None = None


class SpanMaker(Frozen):
    """Tagged tokens; `types` maps the corpus's types to those of the task, others are left out.

    `tag_names`: the tags by number, for corpora that store numbers.
    """

    tokens: Text = "tokens"
    tags: Text = "ner_tags"
    types: Annotated[dict[str, Text], Field(min_length=1)]
    tag_names: tuple[str, ...] = ()
    each: Literal["sentence", "entity"] = "sentence"

    def reads(self) -> set[str]:
        """Fields of the record."""
        return {self.tokens, self.tags}

    def writes(self) -> set[str]:
        """Fields that are computed."""
        entity = {"text", "sentence", "entity", "type"}
        return entity if self.each == "entity" else {"text", "spans"}

    def parts(self, record: Record, where: str) -> Parts:
        """One part, or one for each entity whose type is in `types`.

        Raises:
            DataError: no lists of one length, an unknown tag.
        """
        lists = _parallel_lists(record, (self.tokens, self.tags), where)
        spans = read_spans([self._tag(tag, where) for tag in lists[self.tags]], where)
        unused = [span.type for span in spans if span.type not in self.types]
        notes = tuple(f"entity of type {kind} left out" for kind in unused)
        # Numbered among all entities, so that an id does not depend on `types`.
        entities = {n: span for n, span in enumerate(spans, start=1) if span.type in self.types}
        if self.each == "entity" and not entities:
            only = ", ".join(sorted(set(unused)))
            return Parts(dropped=f"no entity but of type {only}" if only else "no entity")
        tokens = [str(token) for token in lists[self.tokens]]
        gaps = _gaps(tokens)
        sentence = detokenise(tokens, gaps).strip()
        texts = {
            n: detokenise(tokens[span.place], gaps[span.place]).strip()
            for n, span in entities.items()
        }
        if self.each == "sentence":
            listed = [{"type": self.types[s.type], "text": texts[n]} for n, s in entities.items()]
            return Parts((Part("", {**record, "text": sentence, "spans": listed}),), notes)
        parts = []
        for number, span in entities.items():
            marked = list(tokens)
            marked[span.first] = f"[[{marked[span.first]}"
            marked[span.last] += "]]"
            computed = {
                "text": detokenise(marked, gaps).strip(),
                "sentence": sentence,
                "entity": texts[number],
                "type": self.types[span.type],
            }
            parts.append(Part(str(number), {**record, **computed}))
        return Parts(tuple(parts), notes)

    def _tag(self, tag: object, where: str) -> str:
        if not isinstance(tag, int):
            return str(tag)
        if not 0 <= tag < len(self.tag_names):
            raise DataError(
                "a numbered tag has no name",
                where=f"{where}: field {self.tags!r}",
                found=tag,
                wanted=f"one of {len(self.tag_names)} names under make.spans.tag_names",
                remedy="name the tags in the task file, in the order of their numbers",
            )
        return self.tag_names[tag]


class TurnMaker(Frozen):
    """A dialogue stored as parallel lists; `fields` maps names for templates to their fields.

    `follow_up`: the template of every user turn but the first, which is the task's prompt.
    """

    fields: Annotated[dict[str, Text], Field(min_length=1)]
    follow_up: Template

    def reads(self) -> set[str]:
        """Fields of the record."""
        return set(self.fields.values())

    def writes(self) -> set[str]:
        """Fields that are computed."""
        return {*self.fields, "turn"}

    def parts(self, record: Record, where: str) -> Parts:
        """A part for each turn, numbered from 1.

        Raises:
            DataError: no lists of one length.
        """
        lists = _parallel_lists(record, self.fields.values(), where)
        columns = [lists[field] for field in self.fields.values()]
        parts = tuple(
            Part(str(turn), {**record, **dict(zip(self.fields, row, strict=True)), "turn": turn})
            for turn, row in enumerate(zip(*columns, strict=True), start=1)
        )
        return Parts(parts, dropped=None if parts else "no turn")


class AmountMaker(Frozen):
    """A numeric answer: the fields of the executed result, of its annotation, of the question."""

    model_config = ConfigDict(serialize_by_alias=True)

    value: Text
    annotation: Text | None = Field(None, alias="told")
    question: Text | None = None

    def reads(self) -> set[str]:
        """Fields of the record, or of a turn."""
        return {f for f in (self.value, self.annotation, self.question) if f is not None}

    def writes(self) -> set[str]:
        """Fields that are computed."""
        return {"amount"}

    def answer(self, parts: Parts, where: str) -> Parts:
        """The parts with their answers; a dialogue ends before the first turn without one.

        Raises:
            DataError: a field that is missing.
        """
        answered: list[Part] = []
        notes = list(parts.notes)
        for part in parts.parts:
            annotation, question, value = (
                None if name is None else value_of(part.values, name, where)
                for name in (self.annotation, self.question, self.value)
            )
            result = None if blank(value) else value
            amount = write_amount(result, annotation, "" if question is None else str(question))
            if amount is None:
                break
            answered.append(replace(part, values={**part.values, "amount": amount}))
            if result is None:
                notes.append(f"{self.value} is empty, so {self.annotation} is the truth")
        if not answered:
            return Parts(dropped=parts.dropped or "no answer")
        notes += ["turn without an answer, or after one"] * (len(parts.parts) - len(answered))
        return Parts(tuple(answered), tuple(notes))


class Make(Frozen):
    """The makers of a task, at least one; `amount` applies to each turn where there are `turns`."""

    spans: SpanMaker | None = None
    turns: TurnMaker | None = None
    amount: AmountMaker | None = None

    @model_validator(mode="after")
    def _agrees(self) -> "Make":
        if self.spans is None and self.turns is None and self.amount is None:
            raise ValueError("nothing is made; name spans, turns or amount")
        if self.spans is not None and (self.turns is not None or self.amount is not None):
            raise ValueError("spans cannot be combined with turns or amount")
        return self

    def reads(self) -> set[str]:
        """Fields that a record needs."""
        fields = {field for maker in self._makers() for field in maker.reads()}
        return fields - (self.turns.writes() if self.turns else set())

    def writes(self) -> set[str]:
        """Fields that templates can use besides the record's own."""
        return {field for maker in self._makers() for field in maker.writes()}

    def answers(self) -> set[str]:
        """Fields that tell the answer, computed or read, which no prompt may show."""
        fields = self.writes() & {"spans", "type", "amount"}
        if self.spans is not None:
            fields.add(self.spans.tags)
        if self.amount is not None:
            fields |= {f for f in (self.amount.value, self.amount.annotation) if f is not None}
        return fields

    def parts(self, record: Record, where: str) -> Parts:
        """The parts of a record, with every computed field.

        Raises:
            DataError: a field that is missing or of another form than the maker reads.
        """
        splitter = self.spans or self.turns
        parts = splitter.parts(record, where) if splitter else Parts((Part("", record),))
        return parts if self.amount is None else self.amount.answer(parts, where)

    def _makers(self) -> list[SpanMaker | TurnMaker | AmountMaker]:
        return [maker for maker in (self.spans, self.turns, self.amount) if maker is not None]


def _parallel_lists(record: Record, fields: Iterable[str], where: str) -> dict[str, list[Any]]:
    """The lists of one length that fields hold."""
    lists = {field: value_of(record, field, where) for field in fields}
    for field, value in lists.items():
        if not isinstance(value, list):
            raise DataError(
                "not a list",
                where=f"{where}: field {field!r}",
                found=type(value).__name__,
                wanted="a list, one entry a token or turn",
                remedy="fix the row, or the field's name under make in the task file",
            )
    if len({len(value) for value in lists.values()}) != 1:
        sizes = ", ".join(f"{field}: {len(value)}" for field, value in lists.items())
        remedy = "fix the row"
        raise DataError("the lists differ in length", where=where, found=sizes, remedy=remedy)
    return lists


# ---- tags → entities ----------------------------------------------------------------------------

_PREFIX_TAG = re.compile(r"(?P<letter>[BI])-(?P<type>.+)")
_SUFFIX_TAG = re.compile(r"(?P<type>.+)_(?P<letter>[BI])")


@dataclass(frozen=True, slots=True)
class Span:
    """An entity: its type, and the places of its first and last token."""

    type: str
    first: int
    last: int

    @property
    def place(self) -> slice:
        """The entity's tokens."""
        return slice(self.first, self.last + 1)


def read_spans(tags: Sequence[str], where: str) -> list[Span]:
    """The entities of a sentence, in order.

    An entity begins at a B tag, and at an I tag that continues nothing of its type. This reads IOB1
    (B only between neighbours) correctly, and tags an entity that starts with I by mistake as
    seqeval does by default.

    Raises:
        DataError: a tag that is none of "O", "B-TYPE", "I-TYPE", "TYPE_B", "TYPE_I".
    """
    spans: list[Span] = []
    current = ""
    for place, tag in enumerate(tags):
        match = None if tag == "O" else _PREFIX_TAG.fullmatch(tag) or _SUFFIX_TAG.fullmatch(tag)
        if match is None and tag != "O":
            raise DataError(
                "unknown tag",
                where=where,
                found=tag,
                wanted="O, B-TYPE, I-TYPE, TYPE_B or TYPE_I",
                remedy="fix the row, or name numbered tags under make.spans.tag_names",
            )
        kind = match["type"] if match else ""
        if match and match["letter"] == "I" and kind == current:
            spans[-1] = replace(spans[-1], last=place)
        elif match:
            spans.append(Span(kind, place, place))
        current = kind
    return spans


# ---- tokens → text ------------------------------------------------------------------------------

# White space lost in tokenising is guessed, one sentence at a time:
# - closing marks are attached to the word before them, opening ones to the word after, "/" to both;
# - straight quotes open and close in turn; "'" before s, t, re, ve, ll, d, m is attached to both
#   neighbours, "'s" and "n't" to the word before;
# - ".", ":" and a comma before three digits join digits: 6 . 6 → 6.6;
# - hyphens and dashes keep their spaces: "short - term" and "Agreement - Silicium" look alike.
_CLOSING = re.compile(r"[,.;:?!)\]}”’»%…]+[\"”]?")
_OPENING = re.compile(r"[(\[{“‘«$€£¥#@]+[\"“]?")
_ENDINGS = re.compile(r"(?:['’](?:s|t|re|ve|ll|d|m)|n['’]t)", re.IGNORECASE)
_AFTER_APOSTROPHE = {"s", "t", "re", "ve", "ll", "d", "m"}
_MONEY = {"$", "€", "£", "¥", "#"}


def detokenise(tokens: Sequence[str], gaps: Sequence[str] | None = None) -> str:
    """The text of a sentence, or of a part with its gaps; only white space is chosen."""
    return "".join(map(operator.add, _gaps(tokens) if gaps is None else gaps, tokens))


def _gaps(tokens: Sequence[str]) -> list[str]:
    """The white space before each token: "" or one space."""
    gaps: list[str] = []
    attach_next, in_quotes = True, False  # the first token has no space before it
    for before, token, after in zip(["", *tokens], tokens, [*tokens[1:], ""], strict=False):
        if not token:
            gaps.append("")
            continue
        attached = _attached_to_previous(before, token, after) or (token == '"' and in_quotes)
        gaps.append("" if attach_next or attached else " ")
        if token == '"':
            in_quotes = not in_quotes
        attach_next = _attached_to_next(before, token, after) or (token == '"' and in_quotes)
    return gaps


def _attached_to_previous(before: str, token: str, after: str) -> bool:
    if token == "'":
        return bool(before) and (after in _AFTER_APOSTROPHE or before.endswith("s"))
    return token == "/" or bool(_CLOSING.fullmatch(token) or _ENDINGS.fullmatch(token))


def _attached_to_next(before: str, token: str, after: str) -> bool:
    if token == "'":
        return after in _AFTER_APOSTROPHE
    if token in _MONEY:
        return after[:1].isdigit()
    if token in ".:," and before[-1:].isdigit() and after[:1].isdigit():
        return token != "," or (len(after) == 3 and after.isdigit())
    return token == "/" or bool(_OPENING.fullmatch(token))
