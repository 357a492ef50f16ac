"""The catalogue: base models with a short name, as catalogue.yaml lists them.

Knows: the file's form; where an installed package's files are, without importing it. Does not
know: the hub, the cache, which of the weights are on this machine.
"""

import importlib.util
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from mixtune.errors import ModelError
from mixtune.fields import Frozen

Text = Annotated[str, Field(min_length=1)]


class Package(Frozen):
    """A PyPI package whose `files` (package/path, joined in order) are a GGUF file."""

    name: Text
    files: Annotated[list[Annotated[str, Field(pattern=r"^\w+/\S+$")]], Field(min_length=1)]
    install: Annotated[str, Field(pattern=r"^pip install ")]
    note: Text
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None

    def found(self) -> list[Path]:
        """The files where they are installed; empty unless all are there. Imports nothing."""
        paths = [_installed(*name.split("/", 1)) for name in self.files]
        return [path for path in paths if path] if all(paths) else []


class Entry(Frozen):
    """A base model: its hub id, number of parameters, licence, and a package that ships it.

    `template`: the turn form for weights that come without a chat template.
    """

    hub: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    parameters: Annotated[int, Field(gt=0)]
    licence: Text
    gated: bool = False
    note: str = ""
    package: Package | None = None
    template: str | None = None


@cache
def catalogue() -> dict[str, Entry]:
    """Every entry by its name, in the file's order.

    Raises:
        ModelError: the file that ships with the package was changed and is wrong.
    """
    text = (resources.files("mixtune.models") / "catalogue.yaml").read_text(encoding="utf-8")
    return parse_catalogue(text)


def parse_catalogue(text: str) -> dict[str, Entry]:
    """Entries from YAML.

    Raises:
        ModelError: not YAML, or an entry that is not in the form of `Entry`.
    """
    names = Annotated[str, Field(pattern=r"^[a-z0-9]+([.-][a-z0-9]+)*$")]
    try:
        return TypeAdapter(dict[names, Entry]).validate_python(yaml.safe_load(text))
    except (yaml.YAMLError, ValidationError) as error:
        raise ModelError(
            f"the catalogue of base models cannot be used: {error}",
            where="mixtune/models/catalogue.yaml",
            remedy="install mixtune again",
        ) from error


def _installed(package: str, rest: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    found = [Path(folder) / rest for folder in folders or ()]
    return next((path for path in found if path.is_file()), None)
