"""The interpreter: what a study ran with, for the record, and how it keeps house.

None of it is part of an id.

Knows: package versions and the interpreter. Does not know: host names, users, paths (a study's
folder is made to be shared).
"""

import atexit
import gc
import platform
from importlib import metadata

PACKAGES = (
    "mixtune",
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "pyarrow",
    "scikit-learn",
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
