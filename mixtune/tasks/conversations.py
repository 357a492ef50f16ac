"""Rows that are conversations: prompt-completion, alpaca, sharegpt, messages → turns.

Knows: the four forms, the names of their fields and roles. Does not know: task files, examples,
where a row is stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from mixtune.errors import DataError, did_you_mean, shorten
from mixtune.records import Message

Format = Literal["fields", "prompt-completion", "alpaca", "sharegpt", "messages"]
Role = Literal["system", "user", "assistant"]
Record = Mapping[str, Any]

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
"""What each form reads, and the names that its fields have by default; system, history and input
need not be there."""

ROLES: dict[str, Role] = {
    "system": "system", "user": "user", "human": "user", "assistant": "assistant",
    "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
}  # fmt: skip
"""Who speaks, by the names in use."""

_OPTIONAL = ("system", "history", "input")
_MORE_THAN_TEXT = ("tool_calls", "function_call", "tools", "images", "videos", "audios")
_TOOLS = {"tool", "function", "observation", "function_call", "tool_calls", "tool_call"}


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Turns in their order; those of the assistant from `first` on are to be learnt.

    `about`: the text that an instruction is about, where the row has one apart.
    """

    turns: tuple[Message, ...]
    first: int = 0
    about: str = ""

    def answers(self) -> list[int]:
        """Places of the assistant's turns that are to be learnt."""
        spoken = range(self.first, len(self.turns))
        return [i for i in spoken if self.turns[i].role == "assistant"]

    def own_text(self) -> str:
        """What rows are compared by: the text an instruction is about, else all the user says."""
        return self.about or "\n".join(t.content for t in self.turns if t.role == "user")


def read_dialogue(
    record: Record,
    where: str,
    kind: Format,
    columns: Mapping[str, str | None] | None = None,
    roles: Mapping[str, Role] | None = None,
) -> Dialogue:
    """The turns of a row, whose fields (None: there is no such field) and roles may be named.

    Raises:
        DataError: a field that is missing, empty or no text, an unknown role, a wrong order.
    """
    names = {**COLUMNS[kind], **(columns or {})}
    reading = _Reading(record, where, names, {**ROLES, **(roles or {})})
    if kind == "alpaca":
        return reading.checked(reading.alpaca())
    if kind == "prompt-completion":
        return reading.checked(reading.completion())
    return reading.checked(reading.messages())


@dataclass(frozen=True, slots=True)
class _Reading:
    """One row being read."""

    record: Record
    where: str
    names: Mapping[str, str | None]
    roles: Mapping[str, Role]

    def alpaca(self) -> Dialogue:
        about = self._optional("input")
        instruction = self._value("instruction")
        asked = [] if about and blank(instruction) else [self._text("instruction")]
        turns = [Message("user", "\n".join([*asked, about] if about else asked))]
        turns.append(Message("assistant", self._text("output")))
        return Dialogue((*self._system(), *self._history(), *turns), about=about)

    def completion(self) -> Dialogue:
        prompt, completion = self._value("prompt"), self._value("completion")
        if isinstance(prompt, list) != isinstance(completion, list):
            self._fault("completion is of another kind", "prompt", prompt, "texts or lists")
        if not isinstance(prompt, list):
            texts = Message("user", self._text("prompt")), self._text("completion")
            return Dialogue((texts[0], Message("assistant", texts[1])), 1)
        named = {"role": "role", "content": "content"}
        asked = self._turns(prompt, str(self.names["prompt"]), named)
        told = self._turns(completion, str(self.names["completion"]), named)
        return Dialogue((*asked, *told), len(asked))

    def messages(self) -> Dialogue:
        field = str(self.names["messages"])
        self._plain(self.record, "")
        turns = self._turns(self._value("messages"), field, self.names)
        own = turns and turns[0].role == "system"
        return Dialogue(tuple(turns) if own else (*self._system(), *turns))

    def checked(self, dialogue: Dialogue) -> Dialogue:
        """The dialogue, whose roles come in the order that chat templates take."""
        roles = [turn.role for turn in dialogue.turns]
        spoken = roles[1:] if roles[:1] == ["system"] else roles
        wanted = ["user", "assistant"] * ((len(spoken) + 1) // 2)
        if not spoken or len(spoken) % 2 or spoken != wanted:
            raise DataError(
                "the turns are in a wrong order",
                where=self.where,
                found=", ".join(roles) or "no turns",
                wanted="a system turn or none, then user, assistant, user, assistant …",
                remedy="mend the row: it ends with the assistant, and nobody speaks twice in a row",
            )
        if not dialogue.answers():
            raise DataError("no turn of the assistant to learn", where=self.where, found=roles)
        return dialogue

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
                self._fault("not a pair of texts", str(field), pair, "[question, answer]")
            for role, text in zip(("user", "assistant"), pair, strict=True):
                turns.append(self._turn(role, text, str(field)))
        return turns

    def _turns(self, value: object, field: str, names: Mapping[str, str | None]) -> list[Message]:
        if not isinstance(value, list):
            self._fault("not a list of turns", field, value, "a list of objects")
        role, content = str(names["role"]), str(names["content"])
        turns = []
        for i, turn in enumerate(value):
            place = f"{field}[{i}]"
            if not isinstance(turn, Mapping):
                self._fault("not a turn", place, turn, f"an object with {role} and {content}")
            self._plain(turn, place)
            for key in (role, content):
                if key not in turn:
                    self._fault(f"the turn has no {key!r}", place, ", ".join(map(str, turn)), key)
            speaker = self._role(turn[role], f"{place}.{role}")
            turns.append(self._turn(speaker, turn[content], f"{place}.{content}"))
        return turns

    def _plain(self, turn: Record, place: str) -> None:
        """Calls of tools and pictures would be lost without a word."""
        for key in _MORE_THAN_TEXT:
            if turn.get(key):
                field = f"{place}.{key}" if place else key
                self._fault(f"{key} is not supported", field, turn[key], "text only")

    def _role(self, value: object, field: str) -> Role:
        known = self.roles.get(value) if isinstance(value, str) else None
        if known is None:
            tool = isinstance(value, str) and value in _TOOLS
            remedy = "leave such rows out" if tool else did_you_mean(str(value), self.roles)
            what = "calls of tools are not supported" if tool else "unknown role"
            self._fault(what, field, value, ", ".join(sorted(self.roles)), remedy)
        return known

    def _turn(self, role: Any, value: object, field: str) -> Message:  # noqa: ANN401 - a Role
        return Message(role, self._said(value, field, "the turn is empty"))

    def _value(self, name: str) -> Any:  # noqa: ANN401 - any field
        field = str(self.names[name])
        if field not in self.record:
            there = sorted(map(str, self.record))
            raise DataError(
                f"the record has no field {field!r}",
                where=self.where,
                found=", ".join(there) or "an empty record",
                wanted=field,
                remedy=f"name it under columns: {{{name}: …}}; {did_you_mean(field, there)}",
            )
        return self.record[field]

    def _text(self, name: str) -> str:
        return self._said(self._value(name), str(self.names[name]), "the field is empty")

    def _said(self, value: object, field: str, empty: str) -> str:
        if not isinstance(value, str) or not value.strip():
            what = empty if blank(value) else "not a text"
            self._fault(what, field, value, "text that is not blank")
        return value.strip()

    def _optional(self, name: str) -> str:
        field = self.names.get(name)
        value = self.record.get(field) if field else None
        return "" if blank(value) else self._text(name)

    def _fault(
        self,
        what: str,
        field: str,
        found: object,
        wanted: str,
        remedy: str = "mend the row or leave it out",
    ) -> NoReturn:
        where = f"{self.where}: field {shorten(field)!r}"
        shown = found if isinstance(found, str) and found.strip() else repr(found)
        raise DataError(what, where=where, found=shown, wanted=wanted, remedy=remedy)


def check_columns(kind: Format, columns: Mapping[str, str | None]) -> None:
    """Refuse a name that the form has no field for; rows of fields may have any.

    Raises:
        ValueError: with a did-you-mean.
    """
    for name, field in columns.items():
        if kind != "fields" and name not in COLUMNS[kind]:
            known = did_you_mean(name, COLUMNS[kind])
            raise ValueError(f"columns: rows of the form {kind} have no {name!r}; {known}")
        if field is None and (kind == "fields" or name not in _OPTIONAL):
            raise ValueError(f"columns.{name}: has to be there")


def blank(value: object) -> bool:
    """Nothing to read: null, white space, an empty list or mapping."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value == [] or value == {}
