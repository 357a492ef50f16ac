"""Studies that ship with the package, by name: files like any other, to run or to start from.

Knows: their names and paths. Does not know: their contents.
"""

from importlib import resources
from pathlib import Path

_FOLDER = Path(str(resources.files("mixtune.study.presets")))


def names() -> list[str]:
    """Names of all presets, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def preset(name: str) -> Path | None:
    """The study file of a preset; None if there is none of that name."""
    return _FOLDER / f"{name}.yaml" if name in names() else None
