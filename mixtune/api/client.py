"""Requests to an OpenAI-compatible endpoint: one attempt, and whether another may succeed.

Retries are explicit and the client's own are off: exponential backoff with full jitter, or the
server's `Retry-After`. A refusal and a truncated text are completions. A broken connection, a
timeout, a body that ends early or is no completion are retried; permanent failures raise at once.

Knows: the official client, its errors, the JSON of a completion. Does not know: tasks, labels, the
cache, cost.
"""

import asyncio
import importlib
import json
import math
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from mixtune.api.cache import Completion
from mixtune.api.entries import ApiSystem
from mixtune.errors import ModelError, RunFailed, shorten

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


def api_key(system: ApiSystem) -> str | None:
    """The key from the environment; None where the endpoint needs none.

    Raises:
        ModelError: it is not set, or is malformed. The message never holds it.
    """
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
        """Read the key and load the client; no request is sent.

        Raises:
            ModelError: no key, or the official client is not installed.
        """
        self.system = system
        self.patience = patience
        self._key = api_key(system)
        self._openai = _openai()

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
            return self._failed_status(error, time.monotonic() - started)
        except (TimeoutError, openai.APITimeoutError) as error:
            message = f"no answer within {self.patience.timeout:g} s"
            raise RetryableError(message, maybe_charged=not _not_sent(error)) from None
        except (openai.APIError, OSError) as error:
            cause = error.__cause__ or error
            message = self._redacted(f"{type(cause).__name__}: {cause}")
            raise RetryableError(message, maybe_charged=not _not_sent(error)) from None
        return parse_completion(content, time.monotonic() - started)

    def _failed_status(self, error: Any, latency: float) -> Completion:  # noqa: ANN401
        """Raises for an HTTP error status, except a content filter's, which is a refusal."""
        code = _error_code(error.body)
        if error.status_code == 400 and code == "content_filter":
            return Completion("", "refused", 0, 0, "", latency)
        # Bodies of 401 and 403 are not quoted: servers repeat parts of the key in them.
        private = error.status_code in (401, 403)
        quoted = "" if private else f": {self._redacted(_error_message(error.body))}"
        message = f"HTTP {error.status_code}{quoted}"
        retryable = error.status_code in _RETRYABLE or error.status_code >= 500
        if not retryable or code in _NO_QUOTA:
            raise RunFailed(
                f"{self.system.host} rejects the request: {message}; {_remedy(error.status_code)}"
            )
        # Endpoints charge for completions only, so an error status costs nothing.
        raise RetryableError(message, False, retry_after(error.response.headers))

    def _redacted(self, text: str) -> str:
        """A server's text, shortened and without the key."""
        text = text.replace(self._key, "[key]") if self._key else text
        return shorten(text, MAX_MESSAGE)


def parse_completion(content: bytes, latency: float) -> Completion:
    """A completion from a response body.

    Raises:
        RetryableError: the body is incomplete or no completion; it may have been charged.
    """
    try:
        body = json.loads(content)
        (choice,) = body["choices"]
        message = choice["message"]
        text, refusal = message.get("content"), message.get("refusal")
        finish = _finish(choice["finish_reason"], bool(refusal))
        if refusal or (finish == "refused" and text is None):
            text = refusal or ""
        # A reasoning model that hits the limit while it reasons returns no content at all.
        if finish == "length" and text is None:
            text = ""
        if not isinstance(text, str):
            raise TypeError(f"content is {type(text).__name__}")
        usage = body.get("usage") or {}
        counts = [_token_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
        served = str(body.get("model") or "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"the answer is no completion: {type(error).__name__}: {shorten(str(error))}"
        raise RetryableError(reason, maybe_charged=True) from None
    return Completion(_encodable(text), finish, counts[0], counts[1], _encodable(served), latency)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a `Retry-After` header, a number or an HTTP date; None without a valid one."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            until = parsedate_to_datetime(value)
        except ValueError:
            return None
        until = until if until.tzinfo else until.replace(tzinfo=UTC)
        seconds = (until - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _openai() -> Any:  # noqa: ANN401 - untyped where it is not installed
    try:
        return importlib.import_module("openai")
    except ModuleNotFoundError as error:
        raise ModelError(
            f"models behind APIs need a package that is not installed: {error.name}",
            remedy="pip install 'mixtune[api]'",
        ) from error


def _finish(reason: object, refused: bool) -> Literal["stop", "length", "refused"]:
    if refused or reason == "content_filter":
        return "refused"
    if reason == "length":
        return "length"
    if reason != "stop":
        raise ValueError(f"finish_reason {reason!r}")
    return "stop"


def _token_count(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _encodable(text: str) -> str:
    """The text with lone surrogates replaced: JSON can escape them, UTF-8 cannot encode them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _not_sent(error: BaseException) -> bool:
    return type(error.__cause__).__name__ in _NOT_SENT


def _error_object(body: object) -> object:
    """The error in a response body, with or without the "error" wrapper that some servers add."""
    return body.get("error", body) if isinstance(body, dict) else body


def _error_code(body: object) -> str:
    error = _error_object(body)
    return str(error.get("code") or error.get("type") or "") if isinstance(error, dict) else ""


def _error_message(body: object) -> str:
    error = _error_object(body)
    message = error.get("message") if isinstance(error, dict) else error
    return str(message) if message else "no message"


def _remedy(status: int) -> str:
    if status in (401, 403):
        return "check the key and its permissions"
    if status == 404:
        return "check base_url and model"
    if status == 429:
        return (
            "the account has no quota left; all answers so far are cached, the same command resumes"
        )
    return "check that the endpoint accepts these parameters (structured, reasoning_effort)"
