"""Text to tokens and back: chat templates, answers with their end of turn, training rows.

A training row has the same prompt that evaluation sends. Built on `tokenizers` and jinja2 alone:
transformers' tokenizer classes load torch.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
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
from mixtune.records import Example, Message, TrainExample
from mixtune.store.files import read_object

TODAY = datetime(2024, 7, 26)  # noqa: DTZ001 - a calendar day, in no time zone
"""The date that templates are given. Fixed: a prompt that changes overnight changes results without
changing their id. (It is the date that Llama 3's template falls back to.)"""

_SPECIAL_TOKEN_NAMES = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
)  # fmt: skip
_SAVE_FAST = (
    "save the tokenizer in its fast form: AutoTokenizer.from_pretrained(folder)"
    ".save_pretrained(folder)"
)
_BATCH = 1000
"""Texts that are encoded at once."""

# Stand-ins for a question and an answer: the template's text around them is all that matters.
_QUESTION, _ANSWER = "mixtune-question", "mixtune-answer"


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
    """Training rows in order, and how many were dropped of each ingredient (0 included)."""

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
        """Take the parts as `load` reads them; derive the end of turn from the template.

        `tokenizer`: text of tokenizer.json. `template`: jinja2 source of the chat template.
        `special`: `bos_token`, … to their text. `eos`: further ids that end a generation. `pad`: id
        to pad with, by default the last of the end of turn.

        Raises:
            ModelError: a part cannot be read, or no end of turn can be found.
        """
        self._tokenizer = _parse_tokenizer(tokenizer)
        self._parts = (tokenizer, template)
        self._special = dict(special)
        self._template = _compile(template)
        self._special_ids = _special_ids(self._tokenizer, special.values())
        self._lead, tail = self._text_around_answer()
        self.end_of_turn: tuple[int, ...] = self._first_end(tail)
        self.eos_ids: set[int] = {self.end_of_turn[-1], *eos}
        self.pad_id: int = self.end_of_turn[-1] if pad is None else pad
        self._anchor = self.render([Message("user", _QUESTION)])
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
        mapped, model, generation = (
            read_object(folder / name, ModelError)
            for name in ("special_tokens_map.json", "config.json", "generation_config.json")
        )
        special = _special_texts(mapped, config)
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
        options = {"tools": None, "documents": None, "add_generation_prompt": generation_prompt}
        try:
            return self._template.render(messages=turns, **options, **self._special)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise ModelError(
                f"the model's chat template refuses a conversation: {error}",
                found=[message.role for message in messages],
                remedy="use a task prompt with other roles, or fix chat_template.jinja",
            ) from error

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation with the generation prompt added, as evaluation sends it."""
        return self._encode(self.render(messages))

    def batch_prompt_ids(self, conversations: Iterable[Sequence[Message]]) -> Iterator[list[int]]:
        """`prompt_ids` of many conversations, in their order, with the tokenizer's own threads."""
        return self._encode_all(map(self.render, conversations))

    def answer_ids(self, text: str) -> list[int]:
        """Token ids of an answer as it follows the prompt, with its end of turn.

        The answer is encoded behind a fixed prompt, so that tokenizers which mark the start of a
        text (SentencePiece) do not mark it here. Where answer and prompt would share a token (an
        answer that starts with a line break), the answer is encoded by itself: the prompt of a
        training row stays the one that evaluation sends.
        """
        return self._answer(self._lead + text, self._encode(self._anchor + self._lead + text))

    def batch_answer_ids(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """`answer_ids` of many answers, in their order."""
        answers = [self._lead + text for text in texts]
        return map(self._answer, answers, self._encode_all(self._anchor + text for text in answers))

    def _answer(self, text: str, anchored_ids: list[int]) -> list[int]:
        start = len(self._anchor_ids)
        # Where a token spans prompt and answer, the ids do not begin with the prompt's.
        separable = anchored_ids[:start] == self._anchor_ids
        return [*(anchored_ids[start:] if separable else self._encode(text)), *self.end_of_turn]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def prompt_hash(self, messages: Sequence[Message]) -> str:
        """16 hex digits that name the prompt's token ids."""
        return digest(self.prompt_ids(messages))

    def with_control_token(self, texts: Sequence[str]) -> list[str]:
        """The texts that contain a special token, such as an end of turn, spelled out."""
        pairs = zip(texts, self._encode_all(texts), strict=True)
        return [text for text, ids in pairs if not self._special_ids.isdisjoint(ids)]

    @cached_property
    def digest(self) -> str:
        """16 hex digits over the tokenizer, the template and all else that token ids depend on."""
        tokenizer, template = self._parts
        parts = json.loads(tokenizer)
        parts = {k: v for k, v in parts.items() if k not in ("version", "truncation", "padding")}
        texts = {"tokenizer": parts, "template": template, "today": TODAY.isoformat()}
        named = {"special": self._special, "eos": sorted(self.eos_ids), "pad": self.pad_id}
        return digest({**texts, **named})

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _encode_all(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """The ids of each text, encoded in batches, so that later ones take no memory yet."""
        texts = iter(texts)
        while batch := list(islice(texts, _BATCH)):
            for encoding in self._tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                yield encoding.ids

    def _text_around_answer(self) -> tuple[str, str]:
        """The template's text between prompt and answer, and behind the answer."""
        user, answer = Message("user", _QUESTION), Message("assistant", _ANSWER)
        prompt = self.render([user])
        full = self.render([user, answer], generation_prompt=False)
        before, separator, tail = full.rpartition(_ANSWER)
        if not separator:
            raise ModelError("the chat template leaves out the assistant's answer", found=full)
        # A generation prompt may contain text that past turns do not (an opened <think>): then the
        # answer follows the generation prompt directly, as it does when the model is asked.
        return before.removeprefix(prompt) if before.startswith(prompt) else "", tail

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
    examples: Sequence[TrainExample],
    tokens: Tokens,
    max_length: int,
    over_long: Literal["error", "drop"],
) -> Encoded:
    """Training rows of examples, in their order; each is a row, or dropped and counted.

    `max_length` is in tokens, prompt and answer together.

    Raises:
        DataError: an empty answer, an answer that contains a control token, or a row longer than
            `max_length` under the policy "error".
    """
    refuse_answers(examples, tokens)
    # Examples come again in later epochs, and labels in many examples: each is encoded once.
    prompts: dict[Example, tuple[int, ...]] = {}
    answers: dict[str, tuple[int, ...]] = {}
    rows: list[Row] = []
    dropped = {ingredient: 0 for ingredient, _ in examples}
    for ingredient, example in examples:
        if example.target not in answers:
            answers[example.target] = tuple(tokens.answer_ids(example.target))
        if example not in prompts:
            prompts[example] = tuple(tokens.prompt_ids(example.messages))
        row = Row(ingredient, example.id, prompts[example], answers[example.target])
        if row.length <= max_length:
            rows.append(row)
        elif over_long == "drop":
            dropped[ingredient] += 1
        else:
            raise too_long(ingredient, example.id, row.length, row.supervised, max_length)
    return Encoded(rows, dropped)


def refuse_answers(examples: Sequence[TrainExample], tokens: Tokens) -> None:
    """Check the answers of training examples.

    Raises:
        DataError: an empty answer, or one that contains a control token.
    """
    texts = list(dict.fromkeys(example.target for _, example in examples))
    controls = set(tokens.with_control_token(texts))
    for ingredient, example in examples:
        if not example.target.strip():
            raise DataError(
                "the answer is empty: there is nothing to learn from it",
                where=_where(ingredient, example.id),
                found=example.target,
                remedy="fix the row or leave it out of the dataset",
            )
        if example.target in controls:
            raise DataError(
                "the answer contains a control token of the model, spelled out",
                where=_where(ingredient, example.id),
                found=example.target,
                wanted="text only: the end of turn is added here",
                remedy="remove the token from the row",
            )


def too_long(
    ingredient: str, example: str, length: int, supervised: int, max_length: int
) -> DataError:
    """The error for a row of `length` tokens, of which `supervised` are the answer's."""
    return DataError(
        "a training row is too long",
        where=_where(ingredient, example),
        found=f"{length} tokens ({length - supervised} prompt, {supervised} answer)",
        wanted=f"at most {max_length} tokens",
        remedy=f"set train.max_length={length} or more, or train.over_long=drop to leave such "
        "rows out and count them",
    )


def _where(ingredient: str, example: str) -> str:
    return f"ingredient {ingredient}, example {example}"


class _GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}`, which marks an assistant's text: left as it is."""

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
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = TODAY.strftime
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise ModelError(f"the chat template does not compile: {error}", found=source) from error


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:  # noqa: ANN401 - JSON
    """JSON without jinja2's HTML escaping, which prompts must not have."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> NoReturn:
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


@lru_cache(maxsize=1)  # large ones take a second, and `load` and then `__init__` want it
def _parse_tokenizer(text: str) -> Tokenizer:
    """A tokenizer that neither pads nor truncates, whatever its file says."""
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
        return _read_text(path, "fix or remove the file")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict)]
        template = next((e.get("template") for e in named if e.get("name") == "default"), None)
    if isinstance(template, str) and template:
        return template
    raise ModelError(
        "the model has no chat template, which says how a question is put to it",
        where=str(folder),
        wanted='chat_template.jinja, or "chat_template" in tokenizer_config.json',
        remedy="use the instruction-tuned version of the model, or copy the folder and add a "
        "chat_template.jinja in the format that it is to be trained in",
    )


def _special_texts(*sources: Mapping[str, Any]) -> dict[str, str]:
    """Named special tokens: texts, or objects with one; of several files the last one wins."""
    values = ((name, source.get(name)) for source in sources for name in _SPECIAL_TOKEN_NAMES)
    texts = ((name, v.get("content") if isinstance(v, dict) else v) for name, v in values)
    return {name: text for name, text in texts if isinstance(text, str)}


def _special_ids(tokenizer: Tokenizer, texts: Any) -> frozenset[int]:  # noqa: ANN401 - strings
    """Ids of the added tokens that are special, and of the named ones."""
    added = tokenizer.get_added_tokens_decoder()
    special = {i for i, token in added.items() if token.special}
    named = {i for text in texts if (i := tokenizer.token_to_id(text)) is not None}
    return frozenset(special | named)


def _check_added(tokenizer: Tokenizer, config: Mapping[str, Any], folder: Path) -> None:
    """Refuse a configuration whose added tokens tokenizer.json would split into plain text."""
    added = config.get("added_tokens_decoder") or {}
    remedy = "save the tokenizer again with transformers' save_pretrained"
    if not isinstance(added, dict):
        problem = "added_tokens_decoder in tokenizer_config.json is not an object"
        raise ModelError(problem, where=str(folder), found=added, remedy=remedy)
    for key, entry in added.items():
        text = entry.get("content") if isinstance(entry, dict) else None
        if isinstance(text, str) and str(tokenizer.token_to_id(text)) != key:
            raise ModelError(
                "tokenizer_config.json and tokenizer.json give a token different ids",
                where=str(folder),
                found=f"{text} = {key}, in tokenizer.json {tokenizer.token_to_id(text)}",
                remedy=remedy,
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
