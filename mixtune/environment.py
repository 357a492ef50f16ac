"""What a study ran with: versions, for the record; none of it is part of an id.

Knows: package versions and the interpreter. Does not know: host names, users, paths (a study's
folder is made to be shared).
"""

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
