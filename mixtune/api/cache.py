"""Answers of APIs on this machine's disk, by request: what was paid for once is not paid for again.

Studies share it, and ask one model in turn. An entry is written whole or not at all, carries its
own digest, and counts as absent when the two do not agree. It holds the answer and what it took, no
question and no key.

Knows: files by the digest of a request. Does not know: HTTP, money.
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
from mixtune.store.files import in_turn, write_whole

FOLDER = "api"


@dataclass(frozen=True, slots=True)
class Said:
    """What came back: text, how it ended, tokens as the endpoint counted them, seconds it took.

    `served`: the model that the endpoint says has answered. Tokens are None where the endpoint
    does not count.
    """

    text: str
    finish: Literal["stop", "length", "refused"]
    tokens_in: int | None
    tokens_out: int | None
    served: str
    latency: float


_SAID = TypeAdapter(Said)


def request_key(base_url: str, body: Mapping[str, Any]) -> str:
    """SHA-256 of endpoint and body: model, messages, parameters, schema."""
    return hashlib.sha256(
        canonical({"endpoint": base_url, "body": dict(body)}).encode()
    ).hexdigest()


class Cache:
    """The answers kept below the user's cache folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_dir() / FOLDER

    def get(self, key: str) -> Said | None:
        """A kept answer; None where there is none, or none that is whole."""
        try:
            kept = json.loads(self._path(key).read_text(encoding="utf-8"))
            said = _SAID.validate_python(kept["said"])
            whole = kept["digest"] == digest(asdict(said))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ModelError(
                f"a kept answer cannot be read: {error.strerror}",
                where=str(self._path(key)),
                remedy=CACHE.remedy,
            ) from error
        except (ValueError, KeyError, TypeError, ValidationError):
            return None
        return said if whole else None

    def put(self, key: str, said: Said) -> None:
        """Keep an answer.

        Raises:
            ModelError: the cache cannot be written.
        """
        text = json.dumps({"said": asdict(said), "digest": digest(asdict(said))}, indent=1)
        write_whole(self._path(key), lambda path: path.write_text(text, encoding="utf-8"), CACHE)

    def in_turn(self, system: ApiSystem) -> AbstractContextManager[None]:
        """Hold a model of an endpoint for a round of requests; other processes wait."""
        return in_turn(self.folder / digest([system.base_url, system.model]), CACHE)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
