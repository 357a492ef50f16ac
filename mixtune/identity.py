"""Ids and seeds by hashing content, and the versions that a study ran with.

Knows: canonical JSON, hashing, named seeds, package versions. Does not know: whose id or seed it
is; host names, users and paths (a study's folder is made to be shared).
"""

import atexit
import gc
import hashlib
import json
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np

SCHEME = 1
"""Version of the id scheme: part of every id and seed, so changing it changes all of them."""


def canonical(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """JSON with sorted keys and no spaces; floats in their shortest exact form."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any, length: int = 16) -> str:  # noqa: ANN401 - any JSON value
    """First `length` hex digits of SHA-256 over the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:length]


def digest_of_arrays(arrays: Mapping[str, np.ndarray], text: str = "") -> str:
    """SHA-256, as hex digits, over a text and named arrays with their shapes and types."""
    sha = hashlib.sha256(text.encode())
    for name, values in sorted(arrays.items()):
        sha.update(f"{name} {values.shape} {values.dtype}".encode())
        sha.update(np.ascontiguousarray(values).data.cast("B") if values.size else b"")
    return sha.hexdigest()


def make_id(kind: str, parts: dict[str, Any]) -> str:
    """16 hex digits over a kind, its parts and the scheme's version."""
    return digest({"scheme": SCHEME, "kind": kind, **parts})


def seed(run_seed: int, purpose: str, name: str = "") -> int:
    """A 63-bit seed that depends on names only, never on position or on other ingredients."""
    text = f"mixtune-seed/{SCHEME}/{run_seed}/{purpose}/{name}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(run_seed: int, purpose: str, name: str = "") -> np.random.Generator:
    """A numpy generator from a named seed."""
    return np.random.default_rng(seed(run_seed, purpose, name))


def unit_interval(*names: str) -> float:
    """A number in [0, 1) that follows from names, the same on every machine."""
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
    """Versions by name, of the interpreter and of the packages that are installed."""
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def collect_rarely() -> None:
    """Run the garbage collector a hundred times less often than Python does by default.

    A study's examples are hundreds of thousands of small objects that never become garbage. The
    collector took a third of the time to load them, and most of a second at exit.
    """
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
