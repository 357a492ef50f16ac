"""Requests to an OpenAI-compatible endpoint: one attempt, and whether another may succeed.

Retries are explicit and the client's own are off: exponential backoff with full jitter, or the
server's `Retry-After`. A refusal and a truncated text are completions. A broken connection, a
timeout, a body that ends early or is no completion are retried; permanent failures raise at once.
A redirect is not followed: it would send prompts, and perhaps the key, to another host.
"""

import asyncio
import importlib
import os
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from mixtune.api.entries import ApiSystem
from mixtune.api.ledger import Completion
from mixtune.api.redaction import Redaction
from mixtune.api.response import (
    BodyTooLargeError,
    NoCompletionError,
    bound_body,
    parse_completion,
    retry_after,
    server_words,
)
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
_ONE_REQUEST = (400, 413, 422)
"""Statuses by which an endpoint may refuse the text of one request."""
_TOO_LONG = "set a smaller max_new_tokens or fewer shots for this model under api_models"
_NOT_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")
"""Errors of the HTTP library before a request has left this machine."""
_KEY_REMEDY = "check the key and its permissions"
_REMEDIES = {
    401: _KEY_REMEDY,
    403: _KEY_REMEDY,
    404: "check base_url and model",
    **dict.fromkeys((301, 302, 303, 307, 308), "set base_url to the address that answers itself"),
    429: "the account has no quota left; all answers so far are cached, the same command resumes",
}


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

    def __init__(
        self,
        message: str,
        maybe_charged: bool,
        retry_after: float | None = None,
        one_request: bool = False,
    ) -> None:
        """`maybe_charged`: the endpoint may have charged for the attempt.

        `one_request`: the failure may be that of this request alone.
        """
        super().__init__(message)
        self.maybe_charged = maybe_charged
        self.retry_after = retry_after
        self.one_request = one_request


class RequestFailed(RunFailed):
    """One request failed for good; others may succeed."""

    def __init__(self, message: str, maybe_charged: bool, attempts: int = 1) -> None:
        super().__init__(message)
        self.maybe_charged = maybe_charged
        self.attempts = attempts


def _api_key(system: ApiSystem) -> str | None:
    """The key from the environment, None where none is needed; no error holds it."""
    if system.key_env is None:
        return None
    key = os.environ.get(system.key_env, "").strip()
    if not key or not all("!" <= c <= "~" for c in key):
        # A name in small letters may be a key that was put in the place of its variable.
        variable = system.key_env if system.key_env.isupper() else "that key_env names"
        raise ModelError(
            "its key is not set" if not key else "its key holds spaces or signs that no key has",
            where=f"API model {system.name}",
            wanted=f"the key for {system.host} in the variable {variable}",
            remedy=f"export {variable}=…, or name another variable with key_env",
        )
    return key


class Endpoint:
    """An endpoint and its key, which no message and no representation shows."""

    def __init__(self, system: ApiSystem, patience: Patience) -> None:
        """Read the key and load the client, or raise ModelError; no request is sent."""
        self.system = system
        self.patience = patience
        self._key = _api_key(system)
        self._redaction = Redaction(self._key)
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
            default_headers={"Accept-Encoding": "identity"},
            http_client=self._openai.DefaultAsyncHttpxClient(
                follow_redirects=False, event_hooks={"response": [bound_body]}
            ),
        )

    async def send(self, client: Any, body: Mapping[str, Any]) -> Completion:  # noqa: ANN401
        """One attempt.

        Raises:
            RetryableError: it failed, and another attempt may succeed.
            RequestFailed: it failed for good, perhaps as the only request.
            RunFailed: it failed for good, as every other request would.
        """
        openai, started = self._openai, time.monotonic()
        try:
            # The client's timeout is per read; this one bounds the whole attempt.
            async with asyncio.timeout(self.patience.timeout):
                raw = await client.chat.completions.with_raw_response.create(**body)
            content = raw.http_response.content
        except openai.APIStatusError as error:
            return self._failed_status(error, body, time.monotonic() - started)
        except BodyTooLargeError as error:
            text = f"{self.system.host}: {self._redacted(str(error))}"
            raise RequestFailed(text, maybe_charged=True) from None
        except (openai.APIError, OSError) as error:
            cause = error.__cause__ or error
            message = self._redacted(f"{type(cause).__name__}: {cause}")
            if isinstance(error, (TimeoutError, openai.APITimeoutError)):
                message = f"no answer within {self.patience.timeout:g} s"
            was_sent = type(error.__cause__).__name__ not in _NOT_SENT
            raise RetryableError(message, maybe_charged=was_sent) from None
        return self._parsed(content, body, time.monotonic() - started)

    def _parsed(self, content: bytes, body: Mapping[str, Any], latency: float) -> Completion:
        limit = body.get("max_tokens") or body.get("max_completion_tokens")
        try:
            reply = parse_completion(content, latency, limit)
        except NoCompletionError as error:
            if error.status is not None and _is_permanent(error.status):
                message = f"error {error.status}{self._quoted(error.status, error.words)}"
                raise self._rejected(error.status, message, error.words, body, True) from None
            message = self._redacted(str(error))
            raise RetryableError(message, maybe_charged=True, one_request=True) from None
        text, reasoning = map(self._redaction.answer, (reply.text, reply.reasoning))
        served = self._redaction.message(reply.served)
        return replace(reply, text=text, reasoning=reasoning, served=served)

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
        words = server_words(error.body)
        message = f"HTTP {status}{self._quoted(status, words)}"
        if 300 <= status < 400:
            host = urlsplit(error.response.headers.get("location", "")).netloc or "another path"
            message += f", a redirect to {self._redacted(host)}, which is not followed"
        if _is_permanent(status) or code in _NO_QUOTA:
            raise self._rejected(status, message, words, body, False)
        # Endpoints charge for completions only, so an error status costs nothing.
        seconds = retry_after(error.response.headers)
        raise RetryableError(message, False, seconds, one_request=status == 500)

    def _rejected(
        self, status: int, message: str, words: str, body: Mapping[str, Any], maybe_charged: bool
    ) -> RunFailed:
        """The error for a request that is refused for good, alone or as all others would be."""
        remedy = _REMEDIES.get(status) or _parameter_remedy(words, body)
        text = f"{self.system.host} rejects the request: {message}; {remedy or _no_remedy(body)}"
        if status in _ONE_REQUEST and (not remedy or remedy == _TOO_LONG):
            return RequestFailed(text, maybe_charged)
        return RunFailed(text)

    def _quoted(self, status: int, words: str) -> str:
        # Bodies of 401 and 403 are not quoted: servers repeat parts of the key in them.
        if status in (401, 403) or 300 <= status < 400:
            return ""
        return f": {self._redacted(words or 'no message')}"

    def _redacted(self, text: str) -> str:
        """A server's text, shortened and without the key."""
        # A text is cut first so that a long one costs little, with room for a key at the cut.
        return shorten(self._redaction.message(text[: 100 * MAX_MESSAGE]), MAX_MESSAGE)


def _is_permanent(status: int) -> bool:
    return 300 <= status < 500 and status not in _RETRYABLE


def _no_remedy(body: Mapping[str, Any]) -> str:
    sent = ", ".join(name for name in body if name in OMITTABLE)
    return f"if the endpoint does not accept a parameter ({sent}), omit leaves it out"


def _parameter_remedy(words: str, body: Mapping[str, Any]) -> str:
    """The key of the study that concerns the parameter which an error names; "" for none."""
    if re.search("context (length|window)|too long", words):
        return _TOO_LONG
    names = [name for name in body if re.search(rf"\b{name}\b", words)]
    if "response_format" in names or re.search("json_schema|guided_json", words):
        return "set structured: false for this model under api_models"
    if refused := [name for name in names if name in OMITTABLE]:
        smaller = " or a smaller max_new_tokens" if refused[0].startswith("max_") else ""
        return f"set omit: [{', '.join(refused)}]{smaller} for this model under api_models"
    if "reasoning_effort" in names:
        return "remove reasoning_effort from this model under api_models"
    return ""
