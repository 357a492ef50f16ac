"""`make:` of a task file: fields computed from a record's own, and the parts it is split into.

Three makers, all declared in YAML:

- `spans`: tagged tokens → `text` and `spans`; or one part per entity, with `text` (the entity in
  double brackets), `sentence`, `entity` and `type`;
- `turns`: parallel lists → one part per turn of a dialogue;
- `amount`: an executed result and its annotation → `amount` (amount_text.py).

Knows: IOB tags, English punctuation, the fields a maker reads and writes. Does not know: prompts,
examples, files.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from mixtune.errors import DataError
from mixtune.study.fields import Frozen
from mixtune.tasks.amount_text import write_amount
from mixtune.tasks.record import Record, blank, missing_field
from mixtune.tasks.source_spec import Text
from mixtune.tasks.templates import Template

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """The material of one example: the end of its id ("": the record's own) and computed fields."""

    key: str
    fields: Values


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
        tokens, tags = (_list_field(record, field, where) for field in (self.tokens, self.tags))
        if len(tokens) != len(tags):
            raise DataError(
                "tokens and tags differ in number",
                where=f"{where}: field {self.tags!r}",
                found=f"{len(tokens)} tokens, {len(tags)} tags",
                remedy="fix the row",
            )
        spans = read_spans([self._tag(tag, where) for tag in tags], where)
        unused = [span.type for span in spans if span.type not in self.types]
        notes = tuple(f"entity of type {kind} left out" for kind in unused)
        # Numbered among all entities, so that an id does not depend on `types`.
        numbered = [(n, span) for n, span in enumerate(spans, start=1) if span.type in self.types]
        text = _SpacedTokens(list(map(str, tokens)))
        if self.each == "sentence":
            listed = [{"type": self.types[s.type], "text": text.of(s)} for _, s in numbered]
            return Parts((Part("", {"text": text.sentence(), "spans": listed}),), notes)
        if not numbered:
            only = ", ".join(sorted(set(unused)))
            return Parts(dropped=f"no entity but of type {only}" if only else "no entity")
        return Parts(tuple(Part(str(n), self._entity(text, span)) for n, span in numbered), notes)

    def _entity(self, text: "_SpacedTokens", span: "Span") -> Values:
        return {
            "text": text.sentence(marked=span),
            "sentence": text.sentence(),
            "entity": text.of(span),
            "type": self.types[span.type],
        }

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
        lists = {name: _list_field(record, field, where) for name, field in self.fields.items()}
        sizes = {self.fields[name]: len(values) for name, values in lists.items()}
        if len(set(sizes.values())) != 1:
            raise DataError(
                "the lists of a dialogue differ in length",
                where=where,
                found=", ".join(f"{field}: {size}" for field, size in sizes.items()),
                remedy="fix the row",
            )
        rows = zip(*lists.values(), strict=True)
        parts = tuple(
            Part(str(turn), {**dict(zip(lists, row, strict=True)), "turn": turn})
            for turn, row in enumerate(rows, start=1)
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

    def amount(self, fields: Values, where: str) -> str | None:
        """The text of the answer; None where there is none.

        Raises:
            DataError: a field that is missing.
        """
        annotation, question = (
            None if name is None else _field(fields, name, where)
            for name in (self.annotation, self.question)
        )
        value = None if self.without_result(fields, where) else fields[self.value]
        return write_amount(value, annotation, "" if question is None else str(question))

    def without_result(self, fields: Values, where: str) -> bool:
        """True where the result is blank, so that only the annotation tells the answer."""
        return blank(_field(fields, self.value, where))


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

    @property
    def follow_up(self) -> str | None:
        """The template of later turns; None where the parts of a record are no dialogue."""
        return None if self.turns is None else self.turns.follow_up

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
        fields |= {self.spans.tags} if self.spans else set()
        sources = (self.amount.value, self.amount.annotation) if self.amount else ()
        return fields | {field for field in sources if field is not None}

    def parts(self, record: Record, where: str) -> Parts:
        """The parts of a record, with every computed field.

        Raises:
            DataError: a field that is missing or of another form than the maker reads.
        """
        if self.spans is not None:
            return self.spans.parts(record, where)
        parts = Parts((Part("", {}),)) if self.turns is None else self.turns.parts(record, where)
        return parts if self.amount is None else _with_amounts(self.amount, parts, record, where)

    def _makers(self) -> Iterator[SpanMaker | TurnMaker | AmountMaker]:
        for maker in (self.spans, self.turns, self.amount):
            if maker is not None:
                yield maker


def _with_amounts(maker: AmountMaker, parts: Parts, record: Record, where: str) -> Parts:
    """The parts with their answers; a dialogue ends before the first turn without one."""
    answered: list[Part] = []
    notes = list(parts.notes)
    for part in parts.parts:
        fields = {**record, **part.fields}
        amount = maker.amount(fields, where)
        if amount is None:
            break
        answered.append(replace(part, fields={**part.fields, "amount": amount}))
        if maker.without_result(fields, where):
            notes.append(f"{maker.value} is empty, so {maker.annotation} is the truth")
    if not answered:
        return Parts(dropped=parts.dropped or "no answer")
    lost = len(parts.parts) - len(answered)
    notes += ["turn without an answer, or after one"] * lost
    return Parts(tuple(answered), tuple(notes))


def _list_field(record: Record, field: str, where: str) -> list[Any]:
    value = _field(record, field, where)
    if not isinstance(value, list):
        raise DataError(
            "not a list",
            where=f"{where}: field {field!r}",
            found=type(value).__name__,
            wanted="a list, one entry a token or turn",
            remedy="fix the row, or the field's name under make in the task file",
        )
    return value


def _field(record: Record, field: str, where: str) -> Any:  # noqa: ANN401 - any field
    if field not in record:
        missing_field(field, record, where)
    return record[field]


# ---- tags → entities ----------------------------------------------------------------------------

_PREFIX_TAG = re.compile(r"(?P<letter>[BI])-(?P<type>.+)")
_SUFFIX_TAG = re.compile(r"(?P<type>.+)_(?P<letter>[BI])")


@dataclass(frozen=True, slots=True)
class Span:
    """An entity: its type, and the places of its first and last token."""

    type: str
    first: int
    last: int


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


def detokenise(tokens: Sequence[str]) -> str:
    """The text of a sentence; only white space between the tokens is chosen."""
    return "".join(gap + token for gap, token in zip(_gaps(tokens), tokens, strict=True))


class _SpacedTokens:
    """The tokens of a sentence with the white space before each."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = tokens
        self._gaps = _gaps(tokens)

    def sentence(self, marked: Span | None = None) -> str:
        """The whole sentence, with one entity in double brackets."""
        return self._text(0, len(self._tokens) - 1, marked)

    def of(self, span: Span) -> str:
        """An entity as it is written in the sentence."""
        return self._text(span.first, span.last)

    def _text(self, first: int, last: int, marked: Span | None = None) -> str:
        pieces = []
        for place in range(first, last + 1):
            opening = "[[" if marked and place == marked.first else ""
            closing = "]]" if marked and place == marked.last else ""
            pieces.append(f"{self._gaps[place]}{opening}{self._tokens[place]}{closing}")
        return "".join(pieces).strip()


def _gaps(tokens: Sequence[str]) -> list[str]:
    """The white space before each token: "" or one space."""
    gaps: list[str] = []
    attach_next, in_quotes = True, False  # the first token has no space before it
    for place, token in enumerate(tokens):
        after = tokens[place + 1] if place + 1 < len(tokens) else ""
        before = tokens[place - 1] if place else ""
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
