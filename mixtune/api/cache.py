"""Completions on disk, keyed by request: a request that was paid for is not paid for again.

All studies of a user share the cache, and one process at a time sends requests to a model. An entry
is written atomically with a digest of its content; a damaged entry is a cache miss. It holds the
completion, no prompt and no key. Judges' answers are cached in the same way (evaluation/judge.py).

Knows: files named by the digest of a request. Does not know: HTTP, money.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from mixtune.api.entries import ApiSystem
from mixtune.errors import ModelError
from mixtune.identity import canonical, digest
from mixtune.models.files import CACHE, cache_dir
from mixtune.store.files import in_turn, write_text

FOLDER = "api"
_ENTRY = "said"
"""Key of the completion in an entry; entries of earlier versions are paid for, so it stays."""


@dataclass(frozen=True, slots=True)
class Completion:
    """Text, finish reason, tokens as the endpoint counted them, latency in seconds.

    `served`: the model that the endpoint reports. Tokens are None where it reports no usage.
    """

    text: str
    finish: Literal["stop", "length", "refused"]
    tokens_in: int | None
    tokens_out: int | None
    served: str
    latency: float


_COMPLETION = TypeAdapter(Completion)


def request_key(base_url: str, body: Mapping[str, Any]) -> str:
    """SHA-256 of endpoint and body: model, messages, parameters, schema."""
    return hashlib.sha256(
        canonical({"endpoint": base_url, "body": dict(body)}).encode()
    ).hexdigest()


class Cache:
    """Completions in a folder, by default one in the user's cache; one file per request."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_dir() / FOLDER

    def get(self, key: str) -> Completion | None:
        """The cached completion; None on a miss, or where the entry is damaged.

        Raises:
            ModelError: the entry exists and cannot be read.
        """
        try:
            entry = json.loads(self._path(key).read_text(encoding="utf-8"))
            completion = _COMPLETION.validate_python(entry[_ENTRY])
            intact = entry["digest"] == digest(asdict(completion))
        except FileNotFoundError:
            return None
        except OSError as error:
            # Not a miss: sending the request again would pay for it a second time.
            raise ModelError(
                f"a cached answer cannot be read: {error.strerror}",
                where=str(self._path(key)),
                remedy=CACHE.remedy,
            ) from error
        except (ValueError, KeyError, TypeError, ValidationError):
            return None
        return completion if intact else None

    def put(self, key: str, completion: Completion) -> None:
        """Write an entry.

        Raises:
            ModelError: the cache cannot be written.
        """
        entry = {_ENTRY: asdict(completion), "digest": digest(asdict(completion))}
        text = json.dumps(entry, indent=1)
        write_text(self._path(key), text, CACHE)

    def lock(self, system: ApiSystem) -> AbstractContextManager[None]:
        """Lock a model of an endpoint for a batch of requests; other processes wait."""
        return in_turn(self.folder / digest([system.base_url, system.model]), CACHE)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
