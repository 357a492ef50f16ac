"""A server's response → a completion, or the server's own words.

All that was paid for is kept: a refusal, a truncated text, an answer without text, one that was
streamed although nobody asked for a stream.
"""

import importlib
import json
import math
import zlib
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from mixtune.api.ledger import Completion
from mixtune.errors import shorten

MAX_BODY = 16 * 2**20
"""Bytes of a response, unpacked; the longest answer has 100,000 tokens."""

Finish = Literal["stop", "length", "refused"]

_FINISH: dict[str, Finish] = {
    **dict.fromkeys(("length", "max_tokens", "max_length", "model_length"), "length"),
    **dict.fromkeys(("max_output_tokens", "max_new_tokens", "token_limit"), "length"),
    # An answer that broke off is incomplete, like one that was cut off.
    **dict.fromkeys(("abort", "aborted", "cancelled", "error", "incomplete"), "length"),
    **dict.fromkeys(("content_filter", "safety", "refusal"), "refused"),
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "stop_sequence"), "stop"),
    **dict.fromkeys(("tool_calls", "tool_use", "function_call", "stop_token"), "stop"),
}
"""The server's finish reason in small letters → ours. Any other, and none, is "length" for an
answer that used all of its tokens, else "stop"."""
_TEXT_PARTS = ("text", "output_text", None)
_THOUGHT_PARTS = ("thinking", "reasoning")
"""Types of the parts of a listed content."""
_WORDS = ("message", "msg", "detail", "error", "errors", "title", "reason", "description")
"""Keys under which servers put the text of an error, in the order in which they are tried."""
_STREAMED = ("content", "reasoning_content", "reasoning", "refusal")
"""Fields of a message that a stream sends in pieces."""


class NoCompletionError(Exception):
    """A success whose body is no completion. `status`: the HTTP status that its error names."""

    def __init__(self, problem: str, words: str, status: int | None) -> None:
        super().__init__(problem + (f"; the server sent: {words}" if words else ""))
        self.words = words
        self.status = status


class BodyTooLargeError(Exception):
    """A response that is longer than `MAX_BODY`, or packed so that its length cannot be seen."""


async def bound_body(response: Any) -> None:  # noqa: ANN401 - of the client's HTTP library
    """Limit the size of a response before it is read; a hook of the HTTP library."""
    encoding = response.headers.pop("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "", "gzip", "x-gzip", "deflate"):
        raise BodyTooLargeError(f"the answer is packed as {shorten(encoding)}, which is not asked")
    unpack = None if encoding in ("identity", "") else zlib.decompressobj(zlib.MAX_WBITS | 32)
    stream, library = response.stream, type(response).__module__.partition(".")[0]

    async def pieces() -> AsyncIterator[bytes]:
        size = 0
        async for packed in stream:
            piece = unpack.decompress(packed, MAX_BODY + 1) if unpack else packed
            size += len(piece)
            if size > MAX_BODY:
                raise BodyTooLargeError(f"the answer has more than {MAX_BODY >> 20} MiB")
            yield piece

    class Bounded(importlib.import_module(library).AsyncByteStream):  # type: ignore[misc]
        def __aiter__(self) -> AsyncIterator[bytes]:
            return pieces()

        async def aclose(self) -> None:
            await stream.aclose()

    response.stream = Bounded()


def parse_completion(raw: bytes, latency: float, limit: int | None = None) -> Completion:
    """A completion from a response body; one without text has an empty text.

    `limit`: the tokens that the request allows.

    Raises:
        NoCompletionError: the body is incomplete or no completion; it may have been charged.
    """
    try:
        body = _streamed(raw) or json.loads(raw)
        choice = body["choices"][0]
        message = _message(choice)
        reason = str(choice.get("finish_reason") or "").lower()
        refusal, content = message.get("refusal"), message.get("content")
        text = _text(refusal or content) or _calls(message)
        fields = message.get("reasoning_content") or message.get("reasoning")
        reasoning = _text(fields) or _text(content, _THOUGHT_PARTS)
        usage = body.get("usage")
        served = str(body.get("model") or "")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        problem = f"the answer is no completion: {type(error).__name__}: {shorten(str(error))}"
        raise NoCompletionError(problem, words_of(raw), _error_status(raw)) from None
    counts = usage if isinstance(usage, dict) else {}
    tokens_in, tokens_out = (_count(counts.get(f"{n}_tokens")) for n in ("prompt", "completion"))
    at_limit = limit is not None and tokens_out is not None and tokens_out >= limit
    finish = _FINISH.get(reason, "length" if at_limit else "stop")
    # JSON can escape lone surrogates, which UTF-8 cannot encode: they become "?".
    text, served, reasoning = (
        part.encode("utf-8", "replace").decode() for part in (text, served, reasoning)
    )
    finish = "refused" if refusal else finish
    return Completion(text, finish, tokens_in, tokens_out, served, latency, reasoning)


def _message(choice: Mapping[str, Any]) -> dict[str, Any]:
    """The message of a choice; a bare text, of older servers, is its content."""
    value = next((choice[key] for key in ("message", "delta", "text") if key in choice), None)
    if "message" not in choice and not value:
        raise KeyError("message")
    return value if isinstance(value, dict) else {"content": value}


def _calls(message: Mapping[str, Any]) -> str:
    """Calls of tools that a model made instead of an answer, as JSON."""
    calls = message.get("tool_calls") or message.get("function_call")
    return json.dumps(calls, ensure_ascii=False) if calls else ""


def _streamed(raw: bytes) -> dict[str, Any] | None:
    """The body that server-sent events add up to; None for any other body."""
    if not raw.lstrip().startswith((b"data:", b"event:", b"id:", b":")):
        return None
    lines = [line[5:].strip() for line in raw.splitlines() if line.startswith(b"data:")]
    events = [json.loads(line) for line in lines if line != b"[DONE]"]
    chosen = [choice for event in events for choice in event["choices"][:1]]
    messages = [
        choice.get("delta") or choice.get("message") or {}
        for choice in chosen
        if choice.keys() & {"delta", "message"}
    ]
    if not messages:
        raise LookupError("a stream without an answer")
    joined: dict[str, Any] = {
        key: "".join(_text(message.get(key)) for message in messages) for key in _STREAMED
    }
    joined["tool_calls"] = [call for m in messages for call in m.get("tool_calls") or []]
    reasons = [choice["finish_reason"] for choice in chosen if choice.get("finish_reason")]
    # Without a reason and a last event the stream broke off.
    last = reasons[-1] if reasons else None if b"[DONE]" in lines else "incomplete"
    usages = [event["usage"] for event in events if event.get("usage")]
    return {
        "choices": [{"message": joined, "finish_reason": last}],
        "usage": usages[-1] if usages else None,
        "model": events[0].get("model"),
    }


def _text(content: Any, kinds: tuple[str | None, ...] = _TEXT_PARTS) -> str:  # noqa: ANN401
    """Content as text: null is empty, parts of these types are joined."""
    if isinstance(content, str):
        return content if kinds == _TEXT_PARTS else ""
    if not isinstance(content, list):
        return ""
    if kinds == _TEXT_PARTS and content and all(isinstance(part, str) for part in content):
        return "".join(content)
    parts = [part for part in content if isinstance(part, dict) and part.get("type") in kinds]
    texts = [part.get("text") or part.get("thinking") for part in parts]
    return "".join(text if isinstance(text, str) else _text(text) for text in texts)


def _count(value: Any) -> int | None:  # noqa: ANN401 - parsed JSON of any shape
    return value if type(value) is int and value >= 0 else None


# ---- errors -------------------------------------------------------------------------------------


def server_words(value: Any, depth: int = 9) -> str:  # noqa: ANN401 - parsed JSON of any shape
    """The text of an error body, "" without one: a text, lists and objects down to a depth."""
    if isinstance(value, list) and depth:
        return "; ".join(filter(None, (server_words(item, depth - 1) for item in value[:20])))
    if not isinstance(value, dict) or not depth:
        return "" if value is None else str(value).strip()
    words = (server_words(value.get(key), depth - 1) for key in _WORDS)
    text = next(filter(None, words), "")
    # FastAPI puts the field in `loc`, OpenAI in `param`.
    place = value.get("loc") or value.get("param")
    field = ".".join(map(str, place)) if isinstance(place, list) else str(place or "")
    if not text:
        return json.dumps(value, ensure_ascii=False) if value else ""
    return f"{field}: {text}" if field and field not in text else text


def words_of(content: bytes) -> str:
    """The server's words in a body of any kind."""
    text = content.decode("utf-8", "replace")
    try:
        return server_words(json.loads(text))
    except (ValueError, RecursionError):
        return text.strip()


def _error_status(raw: bytes) -> int | None:
    """The HTTP status that the error in a body names, None without one."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    error = body.get("error") if isinstance(body, dict) else None
    holders = [part for part in (error, body) if isinstance(part, dict)]
    codes = [str(part.get(key)) for part in holders for key in ("code", "status")]
    return next((int(code) for code in codes if code.isascii() and code.isdigit()), None)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a `Retry-After` header, a number or an HTTP date; None without a valid one."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            until = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None
