"""Ids and seeds: what a thing is called, by what it is made of.

Knows: canonical JSON, hashing, named seeds. Does not know: what is being named.

The interpreter: what a study ran with, for the record, and how it keeps house.

None of it is part of an id.

Knows: package versions and the interpreter. Does not know: host names, users, paths (a study's
folder is made to be shared).
"""

import atexit
import gc
import hashlib
import json
import platform
from importlib import metadata
from typing import Any

import numpy as np

SCHEME = 1
"""Version of the id scheme; part of every id, so that a change of scheme changes every id."""


def canonical(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """JSON with sorted keys and no spaces; floats in their shortest exact form."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any, length: int = 16) -> str:  # noqa: ANN401 - any JSON value
    """First `length` hex digits of SHA-256 over the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


def make_id(kind: str, parts: dict[str, Any]) -> str:
    """Id of a thing of some kind: a digest of its parts and the scheme's version."""
    return digest({"scheme": SCHEME, "kind": kind, **parts})


def seed(run_seed: int, purpose: str, name: str = "") -> int:
    """A 63-bit seed that depends on names only, never on position or on what else is there."""
    text = f"mixtune-seed/{SCHEME}/{run_seed}/{purpose}/{name}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(run_seed: int, purpose: str, name: str = "") -> np.random.Generator:
    """A numpy generator from a named seed."""
    return np.random.default_rng(seed(run_seed, purpose, name))


def unit_interval(*names: str) -> float:
    """A number in [0, 1) from names: the same for the same names, on every machine."""
    raw = hashlib.sha256("\x1f".join(names).encode()).digest()[:8]
    return int.from_bytes(raw, "big") / 2**64


PACKAGES = (
    "mixtune",
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "pyarrow",
    "openai",
)


def environment() -> dict[str, str]:
    """Versions by name; packages that are not installed are left out."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def collect_rarely() -> None:
    """Let this process look for garbage a hundred times less often than Python does by itself.

    A study's examples are hundreds of thousands of small objects, none of which is ever garbage:
    a third of the time that it takes to load them went into looking through them again and again,
    and most of a second into a last look at all that was imported before the process ends.
    """
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
