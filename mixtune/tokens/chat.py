"""Text to tokens and back: chat templates, answers with their end of turn, training rows.

A training row has exactly the tokens that the model's own template renders for the conversation, up
to the end of the assistant's turn. Its prompt is all that the template puts before the answer, an
empty reasoning block for example, and evaluation sends the same prompt. Built on `tokenizers` and
jinja2 alone: transformers' tokenizer classes load torch.
"""

import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import chain, groupby, islice, zip_longest
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mixtune.errors import DataError, ModelError
from mixtune.identity import digest
from mixtune.records import REASONING_BLOCKS, REASONING_KEYS, Message, ReasonedText
from mixtune.store.files import read_object
from mixtune.tokens.templates import FAILURES, TODAY, ChatTemplate

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
_QUESTION, _ANSWER, _REASONING = "mixtune-question", "mixtune-answer", "mixtune-reasoning"
_USER, _PLACEHOLDER = Message("user", _QUESTION), Message("assistant", _ANSWER)
_REASONED = Message("assistant", _ANSWER, _REASONING)


class Tokens:
    """The tokenizer and chat template of one model folder."""

    def __init__(
        self,
        tokenizer: str,
        template: str,
        special: Mapping[str, str],
        eos: frozenset[int] = frozenset(),
        pad: int | None = None,
        reasoning: bool = False,
    ) -> None:
        """Take the parts as `load` reads them; derive the end of turn from the template.

        `tokenizer`: text of tokenizer.json. `template`: jinja2 source of the chat template.
        `special`: `bos_token`, … to their text. `eos`: further ids that end a generation. `pad`: id
        to pad with, by default the last of the end of turn. `reasoning`: answers hold the reasoning
        that leads to them, and a prompt is the template's generation prompt.

        Raises:
            ModelError: a part cannot be read, no end of turn can be found, or the template does not
                write reasoning behind its generation prompt.
        """
        self._tokenizer = _parse_tokenizer(tokenizer)
        self._parts = (tokenizer, template)
        self._special = dict(special)
        self._template = ChatTemplate(template)
        self._special_ids = _special_ids(self._tokenizer, special.values())
        marks = "\n".join(mark for b in REASONING_BLOCKS for mark in (b.opening, b.closing))
        texts = {i: str(self._tokenizer.id_to_token(i)) for i in self._special_ids}
        self._reasoning_ids = {i for i, text in texts.items() if text in marks}
        longest_first = sorted(texts.values(), key=len, reverse=True)
        self._control_text = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._reasoning_key = ""
        before, self._tail = self._text_around_answer()
        # A space that the generation prompt lacks is part of the answer's first token.
        generation = self.render([_USER], generation_prompt=True)
        self._lead = "" if before == generation else before[len(before.rstrip(" ")) :]
        self._anchor = before.removesuffix(self._lead)
        self._asks_by_generation_prompt = self._anchor == generation
        self.reasoning = reasoning
        if reasoning:
            self._reasoning_key = self._find_reasoning_key(generation)
            self._anchor = generation
        self._anchor_ids = self._encode(self._anchor)
        self._end_text = self._first_end(eos)
        self.end_of_turn: tuple[int, ...] = tuple(self._encode(self._end_text))
        self.eos_ids: set[int] = {self.end_of_turn[-1], *eos}
        self.pad_id: int = self.end_of_turn[-1] if pad is None else pad

    @classmethod
    def load(cls, folder: Path, reasoning: bool = False) -> "Tokens":
        """Read the tokenizer files of a model folder; `reasoning` as for `Tokens`.

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
        special = special_texts(mapped, config)
        eos = _ids(model.get("eos_token_id")) | _ids(generation.get("eos_token_id"))
        eos |= _ids(tokenizer.token_to_id(special.get("eos_token", "")))
        pad = _ids(tokenizer.token_to_id(special.get("pad_token", "")))
        pad = pad or _ids(model.get("pad_token_id"))
        template = _read_template(folder, config)
        return cls(text, template, special, frozenset(eos), next(iter(pad), None), reasoning)

    def render(self, messages: Sequence[Message], generation_prompt: bool = False) -> str:
        """The text of a conversation in the model's own form.

        Raises:
            ModelError: the template refuses the conversation (a role it does not know, say).
        """
        turns = [self._turn(message) for message in messages]
        options = {"tools": None, "documents": None, "add_generation_prompt": generation_prompt}
        try:
            return self._template.render(messages=turns, **options, **self._special)
        except FAILURES as error:
            raise ModelError(
                f"the model's chat template refuses a conversation: {error}",
                found=[message.role for message in messages],
                remedy="use a task prompt with other roles, or fix chat_template.jinja",
            ) from error

    def _turn(self, message: Message) -> dict[str, str]:
        turn = {"role": message.role, "content": message.content}
        if not (self._reasoning_key and message.reasoning):
            return turn
        if self._reasoning_key == "content":
            block = f"<think>\n{message.reasoning}\n</think>\n\n"
            return turn | {"content": block + message.content}
        return turn | {self._reasoning_key: message.reasoning}

    def prompt(self, messages: Sequence[Message]) -> str:
        """All that the template puts before the answer to a conversation.

        It is not the generation prompt alone: the templates of reasoning models put more before an
        answer without reasoning (Qwen3 an empty block), or less (DeepSeek-R1 opens no block). Where
        answers hold reasoning, it is the generation prompt.

        Raises:
            ModelError: the template refuses the conversation, or writes its turns otherwise once an
                answer with reasoning follows them.
        """
        if self.reasoning:
            generation = self.render(messages, generation_prompt=True)
            if not self.render([*messages, _REASONED]).startswith(generation):
                raise ModelError(
                    "the chat template writes a conversation otherwise once it is answered",
                    found=[message.role for message in messages],
                    remedy="set train.reasoning: drop",
                )
            return generation
        before = self.render([*messages, _PLACEHOLDER]).rpartition(_ANSWER)[0]
        return before.removesuffix(self._lead)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of all that stands before the answer, as evaluation sends it.

        A control token that is spelled out in the messages is encoded as text, so that no data can
        end a turn or begin one.
        """
        if not self.has_control_text(messages):
            return self._encode(self.prompt(messages))
        spelled: list[str] = []

        def hidden(match: re.Match[str]) -> str:
            spelled.append(match.group())
            return f"{mark}{len(spelled) - 1}{mark}"

        contents = "".join(message.content for message in messages)
        mark = next(c for c in map(chr, range(0xE000, 0xF8FF)) if c not in contents)
        turns = [replace(m, content=self._control_text.sub(hidden, m.content)) for m in messages]
        parts = self.prompt(turns).split(mark)  # text, number, text, number, …, text
        ids = [self._encode_as_text(spelled[int(part)]) for part in parts[1::2]]
        around = [self._encode(part) for part in parts[::2]]
        return list(chain.from_iterable(chain(*zip_longest(around, ids, fillvalue=[]))))

    def has_control_text(self, messages: Sequence[Message]) -> bool:
        """True where a message contains a control token, such as <|im_end|>, spelled out."""
        return any(self._control_text.search(message.content) for message in messages)

    def batch_prompt_ids(self, conversations: Iterable[Sequence[Message]]) -> Iterator[list[int]]:
        """`prompt_ids` of many conversations, in their order, with the tokenizer's own threads."""
        listed = list(conversations)
        for messages, ids in zip(listed, self._encode_all(map(self.prompt, listed)), strict=True):
            yield self.prompt_ids(messages) if self.has_control_text(messages) else ids

    def answer_ids(self, text: str, reasoning: str = "") -> list[int]:
        """Token ids of an answer as the template writes it, with its end of turn.

        `reasoning` is written where `Tokens` were made for it, and else left out.

        The answer is encoded behind a fixed prompt, so that tokenizers which mark the start of a
        text (SentencePiece) do not mark it here. Where answer and prompt would share a token (an
        answer that starts with a line break), the answer is encoded by itself: the prompt of a
        training row stays the one that evaluation sends.

        Raises:
            DataError: the template rewrites the answer: it takes reasoning out of it, for example.
        """
        rendered = self._rendered_answer(ReasonedText(reasoning, text))
        return self._answer(rendered, self._encode(self._anchor + rendered))

    def batch_answer_ids(self, answers: Sequence[ReasonedText]) -> Iterator[list[int]]:
        """`answer_ids` of many answers, in their order."""
        texts = [self._rendered_answer(answer) for answer in answers]
        return map(self._answer, texts, self._encode_all(self._anchor + text for text in texts))

    def plain_length(self, text: str) -> int:
        """Tokens of an answer and its end of turn, whatever the template writes before it."""
        return len(self._encode(text)) + len(self.end_of_turn)

    def _rendered_answer(self, answer: ReasonedText) -> str:
        """An answer as the template writes it (trimmed, say), with the end of the turn."""
        full = self.render([_USER, Message("assistant", answer.answer, answer.reasoning)])
        written = full[len(self._anchor) : len(full) - len(self._tail)]
        # Trimming is fine; a template that cuts more would drop training data in silence.
        stripped = ReasonedText(answer.reasoning.strip(), answer.answer.strip())
        expected = {self._expected(form).strip() for form in (answer, stripped)}
        if full != self._anchor + written + self._tail or written.strip() not in expected:
            raise DataError(
                "the model's chat template does not write this answer as it is",
                found=answer.answer,
                wanted=f"text that follows {self._anchor[-40:]!r} unchanged",
                remedy="leave rows without reasoning out, or set train.reasoning: drop"
                if self.reasoning and not answer.reasoning
                else "remove reasoning (<think>…</think>) and control tokens from the answer",
            )
        return written + self._end_text

    def _expected(self, answer: ReasonedText) -> str:
        """The text that the template should write for an answer."""
        if not self.reasoning:
            return answer.answer
        shown = _REASONED if answer.reasoning else _PLACEHOLDER
        frame: str = self.render([_USER, shown]).removeprefix(self._anchor).removesuffix(self._tail)
        return frame.replace(_REASONING, answer.reasoning, 1).replace(_ANSWER, answer.answer)

    def _answer(self, rendered: str, anchored_ids: list[int]) -> list[int]:
        start = len(self._anchor_ids)
        # Where a token spans prompt and answer, the ids do not begin with the prompt's.
        separable = anchored_ids[:start] == self._anchor_ids
        return anchored_ids[start:] if separable else self._encode(rendered)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids without special tokens, but for those around reasoning."""
        pieces: list[str] = []
        for marks, run in groupby(ids, self._reasoning_ids.__contains__):
            text = self._tokenizer.decode(list(run), skip_special_tokens=not marks)
            pieces.append(str(text))
        return "".join(pieces)

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
        if self.reasoning:
            named["prompt"] = "generation prompt"
        elif not self._asks_by_generation_prompt:
            named["prompt"] = "all that the template puts before an answer"
        return digest({**texts, **named})

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _encode_as_text(self, text: str) -> list[int]:
        """Ids of a control token's text that are not the control token's."""
        self._tokenizer.encode_special_tokens = True
        try:
            return self._encode(text)
        finally:
            self._tokenizer.encode_special_tokens = False

    def _encode_all(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """The ids of each text, encoded in batches, so that later ones take no memory yet."""
        texts = iter(texts)
        while batch := list(islice(texts, _BATCH)):
            for encoding in self._tokenizer.encode_batch_fast(batch, add_special_tokens=False):
                yield encoding.ids

    def _text_around_answer(self) -> tuple[str, str]:
        """The template's text before the answer to a fixed question, and behind the answer."""
        full = self.render([_USER, _PLACEHOLDER])
        before, separator, tail = full.rpartition(_ANSWER)
        if not separator or _QUESTION not in before:
            raise ModelError(
                f"the chat template leaves out the {'user' if separator else 'assistant'}'s text",
                found=full,
                remedy="use a model for text; templates of vision models take lists of parts",
            )
        return before, tail

    def _find_reasoning_key(self, generation: str) -> str:
        """The key of a turn that reasoning is written from, behind the generation prompt.

        "content" where the template knows no reasoning: it is then part of the text, as <think>.
        """
        source = self._parts[1]
        own = any(b.opening in source or b.closing in source for b in REASONING_BLOCKS)
        for key in REASONING_KEYS if own else (*REASONING_KEYS, "content"):
            self._reasoning_key = key
            full = self.render([_USER, _REASONED])
            if full.startswith(generation) and _REASONING in full.rpartition(_ANSWER)[0]:
                return key
        raise ModelError(
            "the model's chat template does not write reasoning behind its generation prompt",
            found=full.removeprefix(generation),
            wanted="the reasoning, and then the answer",
            remedy="set train.reasoning: drop, or use another base model",
        )

    def _first_end(self, eos: Container[int]) -> str:
        """The text from the end of the answer up to and including the first special token.

        A template may write nothing behind an answer (GLM-4.5): then the token that begins the next
        turn ends this one, if the model's configuration says so.
        """
        if end := self._up_to_special(self._tail, self._special_ids):
            return end
        next_turn = self.render([_USER, _PLACEHOLDER, _USER]).partition(_ANSWER)[2]
        if end := self._up_to_special(next_turn, eos):
            return end
        raise ModelError(
            "the chat template ends the assistant's turn with no special token",
            found=self._tail,
            wanted="a special token of tokenizer.json behind the answer, such as <|im_end|>",
            remedy="use an instruction-tuned model, or give the folder a chat_template.jinja",
        )

    def _up_to_special(self, text: str, allowed: Container[int]) -> str | None:
        """A text up to and including its first special token; None if that is not allowed."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        for token, (_, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token in self._special_ids:
                return text[:end] if token in allowed else None
        return None


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


def stored_template(folder: Path, config: Mapping[str, Any]) -> str:
    """The chat template: its own file, or the (default) one inside tokenizer_config.json; or ""."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return _read_text(path, "fix or remove the file")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict)]
        template = next((e.get("template") for e in named if e.get("name") == "default"), None)
    return template if isinstance(template, str) else ""


def _read_template(folder: Path, config: Mapping[str, Any]) -> str:
    if template := stored_template(folder, config):
        return template
    raise ModelError(
        "the model has no chat template, which says how a question is put to it",
        where=str(folder),
        wanted='chat_template.jinja, or "chat_template" in tokenizer_config.json',
        remedy="use the instruction-tuned version of the model, or copy the folder and add a "
        "chat_template.jinja in the format that it is to be trained in",
    )


def special_texts(*sources: Mapping[str, Any]) -> dict[str, str]:
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
