"""Text to tokens and back: chat templates, answers with their end of turn, training rows.

Knows: a model folder's own tokenizer.json, chat template and special tokens; how a training row is
put together from the same prompt that evaluation sends. Does not know: weights, tasks, batches.
Light on purpose (`tokenizers` and jinja2): transformers' tokenizer classes load torch.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from mixtune.errors import DataError, ModelError
from mixtune.identity import digest
from mixtune.records import Example, Message
from mixtune.store.files import read_object

TODAY = datetime(2024, 7, 26)  # noqa: DTZ001 - a calendar day, in no time zone
"""The day that templates are told. Fixed: a prompt that changes overnight changes results without
changing their id. (The day is the one that Llama 3's template falls back to.)"""

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
_IRRELEVANT = ("version", "truncation", "padding")
_SAVE_FAST = (
    "save the tokenizer in its fast form: AutoTokenizer.from_pretrained(folder)"
    ".save_pretrained(folder)"
)
_AT_ONCE = 1000
"""Texts that are encoded at once."""
_ASKED = "mixtune-question"
_ANSWERED = "mixtune-answer"


@dataclass(frozen=True, slots=True)
class Row:
    """One training row in token ids; `answer` (with its end of turn) is what is supervised."""

    ingredient: str
    example_id: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of prompt and answer together."""
        return len(self.prompt) + len(self.answer)

    @property
    def supervised(self) -> int:
        """Tokens of the answer."""
        return len(self.answer)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Rows kept, in the order given, and how many were dropped of each ingredient (0 included)."""

    rows: list[Row]
    dropped: dict[str, int]


class Tokens:
    """The tokenizer and chat template of one model folder."""

    def __init__(
        self,
        tokenizer: str,
        template: str,
        special: Mapping[str, str],
        eos: frozenset[int] = frozenset(),
        pad: int | None = None,
    ) -> None:
        """Take the parts as `load` reads them; derive what surrounds an answer.

        Args:
            tokenizer: text of tokenizer.json; padding and truncation in it are left out.
            template: jinja2 source of the chat template.
            special: `bos_token`, `eos_token`, … to their text.
            eos: ids that end a generation according to the model's configuration.
            pad: id to pad with; the end of turn's last id when not given.

        Raises:
            ModelError: a part cannot be read, or no end of turn can be found.
        """
        self._tokenizer = _parse_tokenizer(tokenizer)
        self._parts = (tokenizer, template)
        self._special = dict(special)
        self._template = _compile(template)
        self._special_ids = _special_ids(self._tokenizer, special.values())
        self._lead, tail = self._around_answer()
        self.end_of_turn: tuple[int, ...] = self._first_end(tail)
        self.eos_ids: set[int] = {self.end_of_turn[-1], *eos}
        self.pad_id: int = self.end_of_turn[-1] if pad is None else pad
        self._anchor = self.render([Message("user", _ASKED)])
        self._anchor_ids = self._encode(self._anchor)

    @classmethod
    def load(cls, folder: Path) -> "Tokens":
        """Read the tokenizer files of a model folder.

        Raises:
            ModelError: a file is missing or broken, there is no chat template, or no end of turn.
        """
        text = _read_text(folder / "tokenizer.json", _SAVE_FAST)
        tokenizer = _parse_tokenizer(text)
        config = read_object(folder / "tokenizer_config.json", ModelError)
        _check_added(tokenizer, config, folder)
        special = _special_texts(
            read_object(folder / "special_tokens_map.json", ModelError), config
        )
        model = read_object(folder / "config.json", ModelError)
        generation = read_object(folder / "generation_config.json", ModelError)
        eos = _ids(model.get("eos_token_id")) | _ids(generation.get("eos_token_id"))
        eos |= _ids(tokenizer.token_to_id(special.get("eos_token", "")))
        pad = _ids(tokenizer.token_to_id(special.get("pad_token", "")))
        pad = pad or _ids(model.get("pad_token_id"))
        template = _read_template(folder, config)
        return cls(text, template, special, frozenset(eos), next(iter(pad), None))

    def render(self, messages: Sequence[Message], generation_prompt: bool = True) -> str:
        """The text of a conversation in the model's own form.

        Raises:
            ModelError: the template refuses the conversation (a role it does not know, say).
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._template.render(
                messages=turns,
                tools=None,
                documents=None,
                add_generation_prompt=generation_prompt,
                **self._special,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise ModelError(
                f"the model's chat template refuses a conversation: {error}",
                found=[message.role for message in messages],
                remedy="use a task prompt with other roles, or mend chat_template.jinja",
            ) from error

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation with the generation prompt added, as evaluation sends it."""
        return self._encode(self.render(messages))

    def prompts_ids(self, asked: Iterable[Sequence[Message]]) -> Iterator[list[int]]:
        """`prompt_ids` of many conversations, in their order, with the tokenizer's own threads."""
        return self._encode_all(map(self.render, asked))

    def answer_ids(self, text: str) -> list[int]:
        """Token ids of an answer as it follows the prompt, with its end of turn.

        The answer is encoded behind a fixed prompt, so that tokenizers which mark the start of a
        text (SentencePiece) do not mark it here. Where answer and prompt would share a token (an
        answer that starts with a line break), the answer is encoded by itself: the prompt of a
        training row stays the one that evaluation sends.
        """
        return self._answer(self._lead + text, self._encode(self._anchor + self._lead + text))

    def answers_ids(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """`answer_ids` of many answers, in their order."""
        led = [self._lead + text for text in texts]
        wholes = self._encode_all(self._anchor + text for text in led)
        return map(self._answer, led, wholes)

    def _answer(self, text: str, whole: list[int]) -> list[int]:
        """An answer's ids from those of the fixed prompt with it."""
        start = len(self._anchor_ids)
        joined = whole[:start] == self._anchor_ids
        return [*(whole[start:] if joined else self._encode(text)), *self.end_of_turn]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def prompt_hash(self, messages: Sequence[Message]) -> str:
        """16 hex digits that name the prompt's token ids."""
        return digest(self.prompt_ids(messages))

    def has_control_token(self, text: str) -> bool:
        """Whether a text holds a special token, such as an end of turn, spelled out."""
        return not self._special_ids.isdisjoint(self._encode(text))

    def with_control_token(self, texts: Sequence[str]) -> list[str]:
        """Those of many texts that hold one, in their order."""
        pairs = zip(texts, self._encode_all(texts), strict=True)
        return [text for text, ids in pairs if not self._special_ids.isdisjoint(ids)]

    @cached_property
    def digest(self) -> str:
        """16 hex digits over the tokenizer, the template and everything else that shapes ids."""
        tokenizer, template = self._parts
        parts = {k: v for k, v in json.loads(tokenizer).items() if k not in _IRRELEVANT}
        named = {"special": self._special, "eos": sorted(self.eos_ids), "pad": self.pad_id}
        return digest(
            {"tokenizer": parts, "template": template, **named, "today": TODAY.isoformat()}
        )

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _encode_all(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """The ids of each text; some at a time, so that what is not needed yet takes no memory."""
        left = iter(texts)
        while some := list(islice(left, _AT_ONCE)):
            for found in self._tokenizer.encode_batch_fast(some, add_special_tokens=False):
                yield found.ids

    def _around_answer(self) -> tuple[str, str]:
        """What the template writes between prompt and answer, and what it writes behind it."""
        user, answer = Message("user", _ASKED), Message("assistant", _ANSWERED)
        prompt = self.render([user])
        full = self.render([user, answer], generation_prompt=False)
        before, found, tail = full.rpartition(_ANSWERED)
        if not found:
            raise ModelError("the chat template leaves out the assistant's answer", found=full)
        # A generation prompt may hold what past turns do not (an opened <think>): the answer then
        # follows the generation prompt directly, as it does when the model is asked.
        return (before[len(prompt) :] if before.startswith(prompt) else ""), tail

    def _first_end(self, tail: str) -> tuple[int, ...]:
        """Ids from the end of the answer up to and including the first special token."""
        ids = self._encode(tail)
        for position, token in enumerate(ids):
            if token in self._special_ids:
                return tuple(ids[: position + 1])
        raise ModelError(
            "the chat template ends the assistant's turn with no special token",
            found=tail,
            wanted="a special token of tokenizer.json behind the answer, such as <|im_end|>",
            remedy="use an instruction-tuned model, or give the folder a chat_template.jinja",
        )


def encode_rows(
    examples: Sequence[tuple[str, Example]],
    tokens: Tokens,
    max_length: int,
    over_long: Literal["error", "drop"],
) -> Encoded:
    """Training rows of (ingredient, example) pairs, in their order; kept + dropped = given.

    `max_length` is in tokens, prompt and answer together. An example that comes again is encoded
    once.

    Raises:
        DataError: an empty answer, an answer that holds a control token, or a row longer than
            `max_length` under the policy "error".
    """
    seen: dict[Example, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    answers: dict[str, tuple[int, ...]] = {}  # labels come again and again
    rows: list[Row] = []
    dropped = {ingredient: 0 for ingredient, _ in examples}
    for ingredient, example in examples:
        if example not in seen:
            seen[example] = _encode_example(ingredient, example, tokens, answers)
        row = Row(ingredient, example.id, *seen[example])
        if row.length <= max_length:
            rows.append(row)
        elif over_long == "drop":
            dropped[ingredient] += 1
        else:
            refuse_long(ingredient, example.id, (len(row.prompt), len(row.answer)), max_length)
    return Encoded(rows, dropped)


def _encode_example(
    ingredient: str, example: Example, tokens: Tokens, answers: dict[str, tuple[int, ...]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Prompt and answer in ids; `answers` holds those of texts that were there before."""
    if example.target not in answers:
        where = _where(ingredient, example.id)
        answers[example.target] = _encode_answer(example, tokens, where)
    return tuple(tokens.prompt_ids(example.messages)), answers[example.target]


def _encode_answer(example: Example, tokens: Tokens, where: str) -> tuple[int, ...]:
    _refuse_answer(example, where, tokens.has_control_token(example.target))
    return tuple(tokens.answer_ids(example.target))


def refuse_answers(named: Sequence[tuple[str, Example]], tokens: Tokens) -> None:
    """Check the answers of (ingredient, example) pairs.

    Raises:
        DataError: an empty answer, or one that holds a control token.
    """
    holding = set(tokens.with_control_token([example.target for _, example in named]))
    for ingredient, example in named:
        where = _where(ingredient, example.id)
        _refuse_answer(example, where, example.target in holding)


def _refuse_answer(example: Example, where: str, control: bool) -> None:
    if not example.target.strip():
        raise DataError(
            "the answer is empty: there is nothing to learn from it",
            where=where,
            found=example.target,
            remedy="mend the row or leave it out of the dataset",
        )
    if control:
        raise DataError(
            "the answer holds a control token of the model spelled out",
            where=where,
            found=example.target,
            wanted="text only: the end of turn is added here",
            remedy="remove the token from the row",
        )


def refuse_long(ingredient: str, example: str, tokens: tuple[int, int], most: int) -> None:
    """Check the length of a row, given as tokens of its prompt and of its answer.

    Raises:
        DataError: it is longer than `most`.
    """
    if (length := sum(tokens)) > most:
        raise DataError(
            "a training row is too long",
            where=_where(ingredient, example),
            found=f"{length} tokens ({tokens[0]} prompt, {tokens[1]} answer)",
            wanted=f"at most {most} tokens",
            remedy=f"set train.max_length={length} or more, or train.over_long=drop to leave such "
            "rows out and count them",
        )


def _where(ingredient: str, example: str) -> str:
    return f"ingredient {ingredient}, example {example}"


class _GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}`, which marks what the assistant says: kept as is."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own interface

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(source: str) -> jinja2.Template:
    """A chat template in the environment that such templates are written for (transformers')."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = TODAY.strftime
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise ModelError(f"the chat template does not compile: {error}", found=source) from error


def _tojson(
    value: Any,  # noqa: ANN401 - any JSON value
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without jinja2's HTML escaping, which prompts must not have."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _read_text(path: Path, remedy: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"the model folder has no readable {path.name}: {error}",
            where=str(path.parent),
            remedy=remedy,
        ) from error


def _parse_tokenizer(text: str) -> Tokenizer:
    """A tokenizer that neither pads nor cuts, whatever its file says."""
    try:
        tokenizer = Tokenizer.from_str(text)
    # `tokenizers` raises a bare Exception for a file that it cannot parse.
    except Exception as error:
        raise ModelError(f"tokenizer.json cannot be used: {error}", found=text) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _read_template(folder: Path, config: Mapping[str, Any]) -> str:
    """The chat template: its own file, or the (default) one inside tokenizer_config.json."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return _read_text(path, "mend or remove the file")
    held = config.get("chat_template")
    if isinstance(held, list):
        named = [entry for entry in held if isinstance(entry, dict)]
        held = next((e.get("template") for e in named if e.get("name") == "default"), None)
    if isinstance(held, str) and held:
        return held
    raise ModelError(
        "the model has no chat template: it is not known how a question is put to it",
        where=str(folder),
        wanted='chat_template.jinja, or "chat_template" in tokenizer_config.json',
        remedy="use the instruction-tuned version of the model, or copy the folder and add a "
        "chat_template.jinja with the form it shall be trained in",
    )


def _special_texts(mapped: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    """Named special tokens; tokenizer_config.json wins over special_tokens_map.json."""
    found: dict[str, str] = {}
    for source in (mapped, config):
        for name in _SPECIAL_NAMES:
            value = source.get(name)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                found[name] = text
    return found


def _special_ids(tokenizer: Tokenizer, texts: Any) -> frozenset[int]:  # noqa: ANN401 - strings
    """Ids of the added tokens that are special, and of the named ones."""
    added = tokenizer.get_added_tokens_decoder()
    named = {tokenizer.token_to_id(text) for text in texts}
    return frozenset(
        {i for i, token in added.items() if token.special} | {i for i in named if i is not None}
    )


def _check_added(tokenizer: Tokenizer, config: Mapping[str, Any], folder: Path) -> None:
    """Refuse a configuration whose added tokens tokenizer.json would split into plain text."""
    added = config.get("added_tokens_decoder") or {}
    if not isinstance(added, dict):
        raise ModelError(
            "added_tokens_decoder in tokenizer_config.json is not an object",
            where=str(folder),
            found=added,
            remedy="save the tokenizer again with transformers' save_pretrained",
        )
    for key, entry in added.items():
        text = entry.get("content") if isinstance(entry, dict) else None
        if isinstance(text, str) and str(tokenizer.token_to_id(text)) != key:
            raise ModelError(
                "tokenizer_config.json names a token that tokenizer.json has otherwise",
                where=str(folder),
                found=f"{text} = {key}, in tokenizer.json {tokenizer.token_to_id(text)}",
                remedy="save the tokenizer again with transformers' save_pretrained",
            )


def _ids(value: object) -> set[int]:
    """Token ids of a configuration entry: none, one or a list."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(item) is int for item in values):
        raise ModelError(
            "a token id in config.json or generation_config.json is not a whole number",
            found=value,
            remedy="fetch or save the model again",
        )
    return set(values)
