"""Requests to an OpenAI-compatible endpoint: one attempt, and whether another may succeed.

Retries are explicit and the client's own are off: exponential backoff with full jitter, or the
server's `Retry-After`. A refusal and a truncated text are completions. A broken connection, a
timeout, a body that ends early or is no completion are retried; permanent failures raise at once.
"""

import asyncio
import importlib
import json
import math
import os
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from mixtune.api.entries import ApiSystem
from mixtune.api.ledger import Completion
from mixtune.errors import ModelError, RunFailed, shorten
from mixtune.study.api_spec import OMITTABLE

MAX_RETRY_AFTER = 600.0
"""Seconds of `Retry-After` that are waited for; beyond that the run fails and can be resumed."""
MAX_MESSAGE = 200
"""Characters of a server's message quoted in an error."""

_RETRYABLE = (408, 409, 425, 429)
"""Retryable statuses below 500."""
_NO_QUOTA = ("insufficient_quota", "billing_hard_limit_reached")
"""Codes of a 429 that waiting does not resolve."""
_NOT_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")
"""Errors of the HTTP library before a request has left this machine."""
_KEY_REMEDY = "check the key and its permissions"
_REMEDIES = {
    401: _KEY_REMEDY,
    403: _KEY_REMEDY,
    404: "check base_url and model",
    429: "the account has no quota left; all answers so far are cached, the same command resumes",
}
_FINISH: dict[str, Literal["stop", "length", "refused"]] = {
    **dict.fromkeys(("length", "max_tokens", "max_length", "model_length"), "length"),
    # An answer that broke off is incomplete, like one that was cut off.
    **dict.fromkeys(("abort", "aborted", "cancelled", "error"), "length"),
    **dict.fromkeys(("content_filter", "safety", "refusal"), "refused"),
}
"""The server's finish reason in small letters → ours; every other reason is "stop"."""
_TEXT_PARTS = ("text", "output_text", None)
_THOUGHT_PARTS = ("thinking", "reasoning")
"""Types of the parts of a listed content."""
_WORDS = ("message", "msg", "detail", "error", "errors", "title", "reason", "description")
"""Keys under which servers put the text of an error, in the order in which they are tried."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Retry policy: seconds per attempt, number of retries, first and longest backoff (s)."""

    timeout: float = 120.0
    retries: int = 6
    first: float = 1.0
    longest: float = 60.0

    def backoff(self, attempt: int) -> float:
        """Seconds before the next attempt: uniform below a bound that doubles each time."""
        # The exponent is capped because a float overflows at 2**1024.
        return random.uniform(0, min(self.longest, self.first * 2.0 ** min(attempt, 60)))


class RetryableError(Exception):
    """An attempt failed and another may succeed; `retry_after`: seconds the server asks for."""

    def __init__(self, message: str, maybe_charged: bool, retry_after: float | None = None) -> None:
        """`maybe_charged`: the endpoint may have charged for the attempt."""
        super().__init__(message)
        self.maybe_charged = maybe_charged
        self.retry_after = retry_after


def _api_key(system: ApiSystem) -> str | None:
    """The key from the environment, None where none is needed; no error holds it."""
    if system.key_env is None:
        return None
    key = os.environ.get(system.key_env, "").strip()
    if not key or not all("!" <= c <= "~" for c in key):
        raise ModelError(
            "its key is not set" if not key else "its key holds spaces or signs that no key has",
            where=f"API model {system.name}",
            wanted=f"the key for {system.host} in the variable {system.key_env}",
            remedy=f"export {system.key_env}=…, or name another variable with key_env",
        )
    return key


class Endpoint:
    """An endpoint and its key, which no message and no representation shows."""

    def __init__(self, system: ApiSystem, patience: Patience) -> None:
        """Read the key and load the client, or raise ModelError; no request is sent."""
        self.system = system
        self.patience = patience
        self._key = _api_key(system)
        try:
            self._openai: Any = importlib.import_module("openai")
        except ModuleNotFoundError as error:
            raise ModelError(
                f"models behind APIs need a package that is not installed: {error.name}",
                remedy="pip install 'mixtune[api]'",
            ) from error

    def __repr__(self) -> str:
        return f"Endpoint({self.system.host})"

    def client(self) -> Any:  # noqa: ANN401 - untyped where it is not installed
        """A client for one event loop; the caller closes it."""
        return self._openai.AsyncOpenAI(
            # Without an explicit key the client would send OPENAI_API_KEY to any endpoint.
            api_key=self._key or "none",
            base_url=self.system.base_url,
            max_retries=0,
            timeout=self.patience.timeout,
        )

    async def send(self, client: Any, body: Mapping[str, Any]) -> Completion:  # noqa: ANN401
        """One attempt.

        Raises:
            RetryableError: it failed, and another attempt may succeed.
            RunFailed: it failed for good.
        """
        openai, started = self._openai, time.monotonic()
        try:
            # The client's timeout is per read; this one bounds the whole attempt.
            async with asyncio.timeout(self.patience.timeout):
                raw = await client.chat.completions.with_raw_response.create(**body)
            content = raw.http_response.content
        except openai.APIStatusError as error:
            return self._failed_status(error, body, time.monotonic() - started)
        except (openai.APIError, OSError) as error:
            cause = error.__cause__ or error
            message = self._redacted(f"{type(cause).__name__}: {cause}")
            if isinstance(error, (TimeoutError, openai.APITimeoutError)):
                message = f"no answer within {self.patience.timeout:g} s"
            was_sent = type(error.__cause__).__name__ not in _NOT_SENT
            raise RetryableError(message, maybe_charged=was_sent) from None
        try:
            return parse_completion(content, time.monotonic() - started)
        except RetryableError as error:
            raise RetryableError(self._redacted(str(error)), error.maybe_charged) from None

    def _failed_status(
        self,
        error: Any,  # noqa: ANN401
        body: Mapping[str, Any],
        latency: float,
    ) -> Completion:
        """Raises for an HTTP error status, except a content filter's, which is a refusal."""
        status, code = error.status_code, error.code or error.type
        if status == 400 and code == "content_filter":
            return Completion("", "refused", 0, 0, "", latency)
        message, words = f"HTTP {status}", server_words(error.body)
        # Bodies of 401 and 403 are not quoted: servers repeat parts of the key in them.
        if status not in (401, 403):
            message += f": {self._redacted(words or 'no message')}"
        if (status < 500 and status not in _RETRYABLE) or code in _NO_QUOTA:
            remedy = _REMEDIES.get(status) or _parameter_remedy(words, body)
            raise RunFailed(f"{self.system.host} rejects the request: {message}; {remedy}")
        # Endpoints charge for completions only, so an error status costs nothing.
        raise RetryableError(message, False, retry_after(error.response.headers))

    def _redacted(self, text: str) -> str:
        """A server's text, shortened and without the key."""
        text = text.replace(self._key, "[key]") if self._key else text
        return shorten(text, MAX_MESSAGE)


def server_words(value: Any, depth: int = 9) -> str:  # noqa: ANN401 - parsed JSON of any shape
    """The text of an error body, "" without one: a text, lists and objects down to a depth."""
    if isinstance(value, list) and depth:
        return "; ".join(filter(None, (server_words(item, depth - 1) for item in value)))
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


def _parameter_remedy(words: str, body: Mapping[str, Any]) -> str:
    """The key of the study that concerns the parameter which an error names."""
    if re.search("context (length|window)|too long", words):
        return "set a smaller max_new_tokens or fewer shots for this model under api_models"
    names = [name for name in body if re.search(rf"\b{name}\b", words)]
    if "response_format" in names or re.search("json_schema|guided_json", words):
        return "set structured: false for this model under api_models"
    if refused := [name for name in names if name in OMITTABLE]:
        smaller = " or a smaller max_new_tokens" if refused[0].startswith("max_") else ""
        return f"set omit: [{', '.join(refused)}]{smaller} for this model under api_models"
    if "reasoning_effort" in names:
        return "remove reasoning_effort from this model under api_models"
    sent = ", ".join(name for name in body if name in OMITTABLE)
    return f"if the endpoint does not accept a parameter ({sent}), omit leaves it out"


def parse_completion(raw: bytes, latency: float) -> Completion:
    """A completion from a response body; one without text has an empty text.

    Raises:
        RetryableError: the body is incomplete or no completion; it may have been charged.
    """
    try:
        body = json.loads(raw)
        choice = body["choices"][0]
        reason = choice.get("finish_reason")
        message = choice["message"] if isinstance(choice["message"], dict) else {}
        refusal, content = message.get("refusal"), message.get("content")
        text = _text(refusal or content)
        fields = message.get("reasoning_content") or message.get("reasoning")
        reasoning = _text(fields) or _text(content, _THOUGHT_PARTS)
        usage = body.get("usage")
        served = str(body.get("model") or "")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        problem = f"the answer is no completion: {type(error).__name__}: {shorten(str(error))}"
        words = _words_of(raw)
        problem += f"; the server sent: {words}" if words else ""
        raise RetryableError(problem, maybe_charged=True) from None
    counts = usage if isinstance(usage, dict) else {}
    tokens_in, tokens_out = (_count(counts.get(f"{n}_tokens")) for n in ("prompt", "completion"))
    finish = "refused" if refusal else _FINISH.get(str(reason).lower(), "stop")
    # JSON can escape lone surrogates, which UTF-8 cannot encode: they become "?".
    text, served, reasoning = (
        part.encode("utf-8", "replace").decode() for part in (text, served, reasoning)
    )
    return Completion(text, finish, tokens_in, tokens_out, served, latency, reasoning)


def _text(content: Any, kinds: tuple[str | None, ...] = _TEXT_PARTS) -> str:  # noqa: ANN401
    """Content as text: null is empty, parts of these types are joined."""
    if isinstance(content, str):
        return content if kinds == _TEXT_PARTS else ""
    parts = (
        [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    )
    texts = [
        part.get("text") or part.get("thinking") for part in parts if part.get("type") in kinds
    ]
    return "".join(text if isinstance(text, str) else _text(text) for text in texts)


def _count(value: Any) -> int | None:  # noqa: ANN401 - parsed JSON of any shape
    return value if type(value) is int and value >= 0 else None


def _words_of(content: bytes) -> str:
    text = content.decode("utf-8", "replace")
    try:
        return server_words(json.loads(text))
    except (ValueError, RecursionError):
        return text.strip()


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
