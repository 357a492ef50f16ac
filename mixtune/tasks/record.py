"""One row of a dataset: its fields, the text that groups are compared by, its turns.

Rows that are conversations come in four formats: prompt-completion, alpaca, sharegpt, messages.
"""

import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from numbers import Number
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

from pydantic import BeforeValidator

from mixtune.errors import DataError, did_you_mean, shorten
from mixtune.identity import digest
from mixtune.records import REASONING_KEYS, Message
from mixtune.tasks.reasoning import stored_reasoning

Record = Mapping[str, Any]


def blank(value: object) -> bool:
    """True for null, NaN, white space, an empty list and an empty mapping."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or _not_a_number(value) or value == [] or value == {}


def _not_a_number(value: object) -> bool:
    """True for NaN of any type, and for the empty cells of pandas."""
    # NaN alone differs from itself.
    nan = isinstance(value, Number) and value != value
    return nan or type(value).__name__ in ("NAType", "NaTType")


def plain_value(value: Any) -> Any:  # noqa: ANN401 - any field
    """A value as JSON would hold it: NaN is null, bytes are decoded, also in lists and mappings.

    Bytes that are not UTF-8 stay, and are refused where they are used.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bytes | bytearray):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    if isinstance(value, Mapping):
        return {name: plain_value(item) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(plain_value, value))
    return None if _not_a_number(value) else value


Scalar = str | bool | int | float | None


def _single(value: Any) -> Any:  # noqa: ANN401 - raw YAML
    if not isinstance(value, Scalar):
        raise ValueError("should be a text, a number, true or false")
    return value


FieldValues = dict[str, tuple[Annotated[Scalar, BeforeValidator(_single)], ...]]


def equal_values(scalar: Scalar, value: object) -> bool:
    """True if a value of a task file names a stored one.

    Numbers are compared as numbers, true and false without regard to case, texts without the white
    space around them, and everything empty is equal.
    """
    if blank(scalar) or blank(value):
        return blank(scalar) and blank(value)
    if isinstance(value, ClassName):
        return any(equal_values(scalar, spelling) for spelling in spellings(value))
    texts = [unicodedata.normalize("NFC", str(side).strip()) for side in (scalar, value)]
    if texts[0] == texts[1]:
        return True
    if texts[0].lower() in ("true", "false"):
        return texts[0].lower() == texts[1].lower()
    if all(isinstance(side, str | bool) for side in (scalar, value)):
        return False
    try:
        return Decimal(texts[0]) == Decimal(texts[1])
    except InvalidOperation:
        return False


def value_of(record: Record, field: str, where: str, hint: str = "") -> Any:  # noqa: ANN401 - any field
    """The value of a field; `hint` comes before the closest names in the remedy.

    Raises:
        DataError: the record has no such field.
    """
    if field in record:
        return record[field]
    remedy = did_you_mean(field, map(str, record)) if record or hint else "fix the row"
    raise DataError(
        f"the record has no field {field!r}",
        where=where,
        found=", ".join(sorted(map(str, record))) or "an empty record",
        wanted=field,
        remedy=f"{hint}{remedy}",
    )


class ClassName(str):
    """The name of a label that is stored as a number; the number names it as well."""

    __slots__ = ("number",)

    number: int

    def __new__(cls, name: str, number: int) -> "ClassName":
        """A name that also has a number."""
        text = super().__new__(cls, name)
        text.number = number
        return text


def spellings(raw: object) -> tuple[str, ...]:
    """Spellings of a stored label in a task file; the last one is used where nothing maps it.

    CSV keeps text only, and other programs write whole numbers as 1.0 in columns with empty cells.
    """
    if isinstance(raw, ClassName):
        return (str(raw.number), raw.strip())
    if isinstance(raw, bool):
        return (str(raw).lower(), str(raw))
    if isinstance(raw, float) and raw.is_integer():
        return (str(raw), str(int(raw)))
    text = raw.strip() if isinstance(raw, str) else str(raw)
    return (text.lower(), text) if text.lower() in ("true", "false") else (text,)


def plain_text(value: object) -> str:
    """The words of a field; those of a list or mapping one after another, without brackets."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return " ".join(filter(None, map(plain_text, value)))
    return "" if value is None else str(value)


def loose_text(text: str) -> str:
    """Lower case, without links, letters and digits only: the form that groups are compared in.

    A text without letters and digits keeps its own characters, so that two of them are in one
    group only when they are equal.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()  # full-width letters, ß → ss
    words = re.findall(r"[^\W_]+", re.sub(r"(?:https?://|www\.)\S+", " ", folded))
    return " ".join(words) or " ".join(folded.split())


def text_group(text: str) -> str:
    """The group of a text: its loose form; long ones are cut and end in a digest of the whole.

    It is stored with every score, so it has to be short.
    """
    loose = loose_text(text)
    return loose if len(loose) <= 200 else f"{loose[:160]} #{digest(loose)}"


# ---- rows that are conversations -----------------------------------------------------------------

Format = Literal["fields", "prompt-completion", "alpaca", "sharegpt", "messages"]
Role = Literal["system", "user", "assistant"]

COLUMNS: dict[str, dict[str, str | None]] = {
    "fields": {},
    "prompt-completion": {"prompt": "prompt", "completion": "completion"},
    "alpaca": {
        "instruction": "instruction", "input": "input", "output": "output", "system": "system",
        "history": "history",
    },
    "sharegpt": {
        "messages": "conversations", "role": "from", "content": "value", "system": "system",
    },
    "messages": {"messages": "messages", "role": "role", "content": "content", "system": "system"},
}  # fmt: skip
"""The fields of each format and their default names; system, history and input are optional."""

ROLES: dict[str, Role] = {
    "system": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
}  # fmt: skip
"""Roles by the names in use."""

_FIX = "fix the row or leave it out"
_OPTIONAL = ("system", "history", "input")
_PREFERENCES = (
    "chosen", "rejected", "chosen_response", "rejected_response", "preferred_output",
    "non_preferred_output", "kto_tag",
)  # fmt: skip
_UNSUPPORTED = {
    **dict.fromkeys(_PREFERENCES, "preferences are not trained on"),
    **dict.fromkeys(
        ("image", "images", "video", "videos", "audio", "audios"), "rows are text only"
    ),
    **dict.fromkeys(
        ("tools", "functions", "tool_calls", "function_call"), "calls of tools are not trained on"
    ),
    **dict.fromkeys(REASONING_KEYS, "only an answer's own turn has reasoning"),
    **dict.fromkeys(("train_detail", "training_detail"), "turns are learnt whole"),
    "sample_weight": "rows have no weights",
}  # fmt: skip
"""Keys that carry meaning, in lower case, and the reason why they are refused."""
WEIGHTS = ("weight", "train", "training", "loss")
"""Keys of a turn, or of a row, that say if it is learnt."""
_CHOSEN_ONLY = "to train on the chosen answers alone, set columns: {completion: chosen}"
_AS_ALPACA = "set format: alpaca and columns: {instruction: prompt, output: completion}"
_TOOLS = {"tool", "function", "observation", "function_call", "tool_calls", "tool_call"}


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Turns in order; the assistant's from `first` on, but for `unlearnt`, are to be learnt.

    `about`: the text that an instruction is about, where the row stores it separately.
    """

    turns: tuple[Message, ...]
    first: int = 0
    about: str = ""
    unlearnt: frozenset[int] = frozenset()

    def answers(self) -> list[int]:
        """Places of the assistant's turns that are to be learnt."""
        places = [i for i in range(self.first, len(self.turns)) if i not in self.unlearnt]
        return [i for i in places if self.turns[i].role == "assistant"]


class _Turn(NamedTuple):
    message: Message
    learnt: bool


def read_dialogue(
    record: Record,
    where: str,
    kind: Format,
    columns: Mapping[str, str | None] = {},
    roles: Mapping[str, Role] = {},
    ignored: Collection[str] = (),
) -> Dialogue:
    """The turns of a row; `columns` and `roles` replace the format's names (None: no such field).

    `ignored`: keys of the row and of its turns that are not looked at.

    Raises:
        DataError: a field that is missing, empty or no text, an unknown role, a wrong order.
    """
    names = {**COLUMNS[kind], **columns}
    reader = _Reader(record, where, names, {**ROLES, **roles}, frozenset(ignored))
    answered = kind == "alpaca" or isinstance(record.get(str(names.get("completion"))), str)
    reader.refuse_unsupported(record, "", REASONING_KEYS if answered else ())
    readers = {"alpaca": reader.alpaca, "prompt-completion": reader.completion}
    dialogue = readers.get(kind, reader.messages)()
    order = [turn.role for turn in dialogue.turns]
    turns = order[1:] if order[:1] == ["system"] else order
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        raise DataError(
            "the turns are in a wrong order",
            where=where,
            found=", ".join(order) or "no turns",
            wanted="a system turn or none, then user, assistant, user, assistant …",
            remedy="fix the row: the assistant comes last, and roles take turns",
        )
    if not dialogue.answers():
        raise DataError("no turn of the assistant to learn", where=where, found=order)
    return dialogue


def stored_names(record: Record, turns: str | None) -> Iterator[str]:
    """Names of the fields that are not blank; keys of the turns in a field as turns[].key."""
    yield from (name for name, value in record.items() if not blank(value))
    items = record.get(turns) if turns is not None else None
    for turn in items if isinstance(items, list) else ():
        if isinstance(turn, Mapping):
            yield from (f"{turns}[].{key}" for key, value in turn.items() if not blank(value))


def preferences(record: Record) -> list[str]:
    """Fields of a record that compare two answers."""
    return [name for name in record if name.lower() in _PREFERENCES]


def _is_empty(value: object) -> bool:
    """True for what is blank, also where it is written as JSON in a text."""
    text = value.replace(" ", "") if isinstance(value, str) else ""
    return blank(value) or text in ("[]", "{}", "null")


def check_columns(kind: Format, columns: Mapping[str, str | None]) -> None:
    """Refuse a name that the format has no field for; rows of fields may have any.

    Raises:
        ValueError: with a did-you-mean.
    """
    for name, field in columns.items():
        if kind != "fields" and name not in COLUMNS[kind]:
            known = did_you_mean(name, COLUMNS[kind])
            raise ValueError(f"columns: rows of the format {kind} have no {name!r}; {known}")
        if field is None and (kind == "fields" or name not in _OPTIONAL):
            raise ValueError(f"columns.{name}: is required")


@dataclass(frozen=True, slots=True)
class _Reader:
    """One row; `names` are those of its fields, `roles` those of its speakers."""

    record: Record
    where: str
    names: Mapping[str, str | None]
    roles: Mapping[str, Role]
    ignored: frozenset[str]

    def alpaca(self) -> Dialogue:
        about = self._optional("input")
        instruction = self._value("instruction")
        user = [] if about and blank(instruction) else [self._text("instruction")]
        turns = [Message("user", "\n".join([*user, about] if about else user))]
        turns.append(self._answer(self._text("output"), str(self.names["output"]), self.record))
        return Dialogue((*self._system(), *self._history(), *turns), about=about)

    def completion(self) -> Dialogue:
        prompt, completion = self._value("prompt"), self._value("completion")
        if isinstance(prompt, list) != isinstance(completion, list):
            self._fail("completion is of another kind", "prompt", prompt, "texts or lists")
        if not isinstance(prompt, list):
            for name in ("system", "history", "input"):
                unread = name not in self.names.values() and name not in self.ignored
                if unread and not blank(self.record.get(name)):
                    problem, value = f"{name} is not read in this format", self.record[name]
                    self._fail(problem, name, value, "prompt and completion", _AS_ALPACA)
            field = str(self.names["completion"])
            answer = self._answer(self._text("completion"), field, self.record)
            return Dialogue((Message("user", self._text("prompt")), answer), 1)
        names = {"role": "role", "content": "content"}
        turns = self._turns(prompt, str(self.names["prompt"]), names)
        learnt = self._turns(completion, str(self.names["completion"]), names)
        return self._dialogue([*turns, *learnt], len(turns))

    def messages(self) -> Dialogue:
        field = str(self.names["messages"])
        turns = self._turns(self._value("messages"), field, self.names)
        system = [_Turn(message, False) for message in self._system()]
        if turns and turns[0].message.role == "system":
            if system and system[0].message != turns[0].message:
                problem, value = "two system turns", system[0].message.content
                self._fail(problem, str(self.names["system"]), value, "one of the two")
            system = []
        return self._dialogue([*system, *turns], 0)

    def _dialogue(self, turns: Sequence[_Turn], first: int) -> Dialogue:
        unlearnt = frozenset(i for i, turn in enumerate(turns) if not turn.learnt)
        return Dialogue(tuple(turn.message for turn in turns), first, unlearnt=unlearnt)

    def _system(self) -> list[Message]:
        text = self._optional("system")
        return [Message("system", text)] if text else []

    def _history(self) -> list[Message]:
        field = self.names.get("history")
        pairs = self.record.get(field) if field else None
        if pairs is None or pairs == "":
            return []
        turns: list[Message] = []
        for pair in pairs if isinstance(pairs, list) else [pairs]:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                self._fail("not a pair of texts", str(field), pair, "[question, answer]")
            question, answer = pair
            turns.append(Message("user", self._stripped(question, str(field))))
            turns.append(self._answer(self._stripped(answer, str(field)), str(field), {}))
        return turns

    def _turns(self, value: object, field: str, names: Mapping[str, str | None]) -> list[_Turn]:
        if not isinstance(value, list):
            self._fail("not a list of turns", field, value, "a list of objects")
        role, content = str(names["role"]), str(names["content"])
        turns = []
        for i, turn in enumerate(value):
            place = f"{field}[{i}]"
            if not isinstance(turn, Mapping):
                self._fail("not a turn", place, turn, f"an object with {role} and {content}")
            speaker_name = turn.get(role)
            reasoned = isinstance(speaker_name, str) and self.roles.get(speaker_name) == "assistant"
            self.refuse_unsupported(turn, place, REASONING_KEYS if reasoned else ())
            for key in (role, content):
                if key not in turn:
                    self._fail(f"the turn has no {key!r}", place, ", ".join(map(str, turn)), key)
            speaker = self._role(turn[role], f"{place}.{role}")
            text = self._stripped(turn[content], f"{place}.{content}")
            message = Message(speaker, text)
            if speaker == "assistant":
                message = self._answer(text, f"{place}.{content}", turn)
            turns.append(_Turn(message, self._learnt(turn, speaker, place)))
        return turns

    def _learnt(self, turn: Record, speaker: Role, place: str) -> bool:
        """False for a turn of weight 0; the others of the assistant are learnt."""
        flags = {key: turn[key] for key in WEIGHTS if not blank(turn.get(key))}
        for key, value in flags.items():
            field = f"{place}.{key}"
            if not isinstance(value, bool | int | float) or value not in (0, 1):
                self._fail("weights are 0 or 1", field, value, "0, 1, true or false")
            if value and speaker != "assistant":
                problem = f"turns of the {speaker} are not learnt"
                self._fail(problem, field, value, "0, false, or no such key")
        if len({bool(value) for value in flags.values()}) > 1:
            self._fail("keys that contradict each other", place, flags, "one of them")
        return all(flags.values())

    def _answer(self, text: str, field: str, fields: Record) -> Message:
        """A turn of the assistant: its reasoning is in its text, or in a key of `fields`."""
        parts = stored_reasoning(text, f"{self.where}: field {shorten(field)!r}")
        keys = [key for key in REASONING_KEYS if key not in self.ignored]
        apart = {key: fields[key] for key in keys if not blank(fields.get(key))}
        if len(apart) + bool(parts.reasoning) > 1:
            self._fail("reasoning in two places", field, ", ".join(apart), "one of them")
        for key, value in apart.items():
            parts = parts._replace(reasoning=self._stripped(value, key))
        return Message("assistant", parts.answer, parts.reasoning)

    def refuse_unsupported(
        self, fields: Record, place: str, supported: Collection[str] = ()
    ) -> None:
        """Refuse keys of a row or turn that carry meaning and would be lost silently."""
        names = set(self.names.values())
        chosen = any(name.lower() in _PREFERENCES for name in names if name)
        for key, value in fields.items():
            reason = _UNSUPPORTED.get(key.lower())
            if not place and key.lower() in ("weight", "train") and value not in (1, True):
                reason = "weights of rows are not supported"
            if not place and key == "label" and isinstance(value, bool):
                reason = _UNSUPPORTED["kto_tag"]
            unread = key in supported or key in self.ignored
            if reason is None or key in names or unread or _is_empty(value):
                continue
            field = f"{place}.{key}" if place else key
            remedy = (
                f"remove {key!r} from the rows, or set ignore_columns: [{key}] in the task file"
            )
            if reason == _UNSUPPORTED["chosen"]:
                if chosen:  # The task file names one of the two answers: the other is not read.
                    continue
                remedy = _CHOSEN_ONLY
            self._fail(f"{key} is not supported: {reason}", field, value, "text only", remedy)

    def _role(self, value: object, field: str) -> Role:
        role = self.roles.get(value) if isinstance(value, str) else None
        if role is None:
            tool = isinstance(value, str) and value in _TOOLS
            remedy = "leave such rows out" if tool else did_you_mean(str(value), self.roles)
            message = "calls of tools are not supported" if tool else "unknown role"
            self._fail(message, field, value, ", ".join(sorted(self.roles)), remedy)
        return role

    def _value(self, name: str) -> Any:  # noqa: ANN401 - any field
        hint = f"name it under columns: {{{name}: …}}; "
        return value_of(self.record, str(self.names[name]), self.where, hint)

    def _text(self, name: str) -> str:
        return self._stripped(self._value(name), str(self.names[name]), "the field is empty")

    def _stripped(self, value: object, field: str, if_blank: str = "the turn is empty") -> str:
        if not isinstance(value, str) or not value.strip():
            message = if_blank if blank(value) else "not a text"
            self._fail(message, field, value, "text that is not blank")
        return value.strip()

    def _optional(self, name: str) -> str:
        field = self.names.get(name)
        value = self.record.get(field) if field else None
        return "" if blank(value) else self._text(name)

    def _fail(
        self, message: str, field: str, value: object, expected: str, remedy: str = _FIX
    ) -> NoReturn:
        where = f"{self.where}: field {shorten(field)!r}"
        shown = value if isinstance(value, str) and value.strip() else repr(value)
        raise DataError(message, where=where, found=shown, wanted=expected, remedy=remedy)
