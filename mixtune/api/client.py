"""One request to an OpenAI-compatible endpoint, tried until it is answered or hopeless.

Retries are explicit, the client's own are off: exponential back-off with full jitter, or what
`Retry-After` says. A refusal and a cut-off are answers; a broken connection, a time-out, a body
that ends early or is no completion are tried again; what will not pass by itself is an error.

Knows: the official client, what its errors mean, the shape of a completion. Does not know: tasks,
labels, where answers are kept, what they cost.
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

from mixtune.api.cache import Said
from mixtune.api.entries import ApiSystem
from mixtune.errors import ModelError, RunFailed, shorten

LONGEST_PAUSE = 600.0
"""Seconds that a server may ask to wait; for more than that the run is given up for now."""
MOST_OF_MESSAGE = 200
"""Characters of a server's own words in an error."""

_PASSES = (408, 409, 425, 429)
"""Statuses below 500 that pass by themselves."""
_HOPELESS = ("insufficient_quota", "billing_hard_limit_reached")
"""Codes of a 429 that waiting does not mend."""
_UNSENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")
"""What the HTTP library raises before a request has left this machine."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long and how often: seconds for one try, further tries, first and longest pause."""

    timeout: float = 120.0
    retries: int = 6
    first: float = 1.0
    longest: float = 60.0

    def pause(self, tried: int) -> float:
        """Seconds before the next try: anything up to an exponentially growing most."""
        return random.uniform(0, min(self.longest, self.first * 2.0 ** min(tried, 60)))


class Passing(Exception):
    """A try failed and the next may not; `after`: seconds that the server asks to wait."""

    def __init__(self, why: str, paid: bool, after: float | None = None) -> None:
        """`paid`: whether the endpoint may have charged for it."""
        super().__init__(why)
        self.paid = paid
        self.after = after


def key_of(system: ApiSystem) -> str | None:
    """The key from the environment; None where none is sent.

    Raises:
        ModelError: it is not set, or cannot be a key. The message never holds it.
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
    """An endpoint and the key for it, which no message and no representation shows."""

    def __init__(self, system: ApiSystem, patience: Patience) -> None:
        """Nothing is sent yet.

        Raises:
            ModelError: no key, or the official client is not installed.
        """
        self.system = system
        self.patience = patience
        self._key = key_of(system)
        self._openai = _official()

    def __repr__(self) -> str:
        return f"Endpoint({self.system.host})"

    def client(self) -> Any:  # noqa: ANN401 - untyped where it is not installed
        """A client for one event loop; to be closed."""
        return self._openai.AsyncOpenAI(
            # It insists on a key, and would otherwise take the one for OpenAI to any endpoint.
            api_key=self._key or "none",
            base_url=self.system.base_url,
            max_retries=0,
            timeout=self.patience.timeout,
        )

    async def once(self, client: Any, body: Mapping[str, Any]) -> Said:  # noqa: ANN401
        """One try.

        Raises:
            Passing: it failed for a reason that may pass.
            RunFailed: it failed and will again.
        """
        openai, begun = self._openai, time.monotonic()
        try:
            # The client's own limit is for each read; this one is for all of it.
            async with asyncio.timeout(self.patience.timeout):
                raw = await client.chat.completions.with_raw_response.create(**body)
            content = raw.http_response.content
        except openai.APIStatusError as error:
            return self._status(error, time.monotonic() - begun)
        except (TimeoutError, openai.APITimeoutError) as error:
            why = f"no answer within {self.patience.timeout:g} s"
            raise Passing(why, paid=not _unsent(error)) from None
        except (openai.APIError, OSError) as error:
            cause = error.__cause__ or error
            why = self._clean(f"{type(cause).__name__}: {cause}")
            raise Passing(why, paid=not _unsent(error)) from None
        return read(content, time.monotonic() - begun)

    def _status(self, error: Any, latency: float) -> Said:  # noqa: ANN401
        """What an HTTP status other than success means."""
        code = _code(error.body)
        if error.status_code == 400 and code == "content_filter":
            return Said("", "refused", 0, 0, "", latency)
        # Of 401 and 403 nothing is quoted: servers repeat the key they were given.
        quoted = "" if error.status_code in (401, 403) else f": {self._clean(_words(error.body))}"
        why = f"HTTP {error.status_code}{quoted}"
        passes = error.status_code in _PASSES or error.status_code >= 500
        if not passes or code in _HOPELESS:
            raise RunFailed(f"{self.system.host} declines: {why}; {_remedy(error.status_code)}")
        raise Passing(why, paid=False, after=retry_after(error.response.headers))

    def _clean(self, text: str) -> str:
        """A text from outside, short and without the key."""
        text = text.replace(self._key, "[key]") if self._key else text
        return shorten(text, MOST_OF_MESSAGE)


def read(content: bytes, latency: float) -> Said:
    """A completion's body.

    Raises:
        Passing: it is no completion, whole or in part.
    """
    try:
        body = json.loads(content)
        (choice,) = body["choices"]
        message = choice["message"]
        text, refusal = message.get("content"), message.get("refusal")
        finish = _finish(choice["finish_reason"], bool(refusal))
        if refusal or (finish == "refused" and text is None):
            text = refusal or ""
        if finish == "length" and text is None:
            text = ""
        if not isinstance(text, str):
            raise TypeError(f"content is {type(text).__name__}")
        usage = body.get("usage") or {}
        counts = [_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
        served = str(body.get("model") or "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = f"the answer is no completion: {type(error).__name__}: {shorten(str(error))}"
        raise Passing(why, paid=True) from None
    return Said(_whole(text), finish, counts[0], counts[1], _whole(served), latency)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: a number, or an HTTP date; None where it says nothing."""
    said = headers.get("retry-after")
    if said is None:
        return None
    try:
        seconds = float(said)
    except ValueError:
        try:
            until = parsedate_to_datetime(said)
        except ValueError:
            return None
        until = until if until.tzinfo else until.replace(tzinfo=UTC)
        seconds = (until - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _official() -> Any:  # noqa: ANN401 - untyped where it is not installed
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


def _count(value: object) -> int | None:
    """A number of tokens; None for anything else."""
    return value if type(value) is int and value >= 0 else None


def _whole(text: str) -> str:
    """The text without halves of characters, which JSON can name and no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _unsent(error: BaseException) -> bool:
    return type(error.__cause__).__name__ in _UNSENT


def _error_of(body: object) -> object:
    """The error in a body, with the wrapping that some servers put around it or without."""
    return body.get("error", body) if isinstance(body, dict) else body


def _code(body: object) -> str:
    error = _error_of(body)
    return str(error.get("code") or error.get("type") or "") if isinstance(error, dict) else ""


def _words(body: object) -> str:
    error = _error_of(body)
    said = error.get("message") if isinstance(error, dict) else error
    return str(said) if said else "no message"


def _remedy(status: int) -> str:
    if status in (401, 403):
        return "check the key and what it may use"
    if status == 404:
        return "check base_url and model"
    if status == 429:
        return "the account has no quota left; what is answered is kept, the same command goes on"
    return "check whether the endpoint takes these parameters (structured, reasoning_effort)"
