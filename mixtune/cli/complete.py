"""Shell completion of study files, tasks and models; imports as little as possible.

Knows: names of files. Does not know: what is in them; reading it would make the shell wait.
"""

from importlib import resources
from pathlib import Path
from typing import get_args

from mixtune.models.catalog import catalogue
from mixtune.study.spec import DesignName

YAML = (".yaml", ".yml")


def files(incomplete: str) -> list[str]:
    """YAML files and folders in the folder that is being typed."""
    typed = incomplete[: incomplete.rfind("/") + 1]
    folder = Path(typed or ".")
    if not folder.is_dir():
        return []
    paths = sorted(path for path in folder.iterdir() if path.suffix in YAML or path.is_dir())
    return [f"{typed}{path.name}{'/' if path.is_dir() else ''}" for path in paths]


def tasks() -> list[str]:
    """Tasks that ship with the package: each has a file of its own name."""
    folder = resources.files("mixtune.tasks") / "builtin"
    return sorted(Path(file.name).stem for file in folder.iterdir() if file.name.endswith(YAML))


def models(incomplete: str) -> list[str]:
    """Names of the catalogue, then files and folders."""
    return [*catalogue(), *files(incomplete)]


def designs() -> list[str]:
    """Families of cocktails."""
    return list(get_args(DesignName))
