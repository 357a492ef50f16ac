"""Every error that mixtune raises on purpose, as one tree.

    MixtuneError
    ├── UserError            the user can fix it: printed without a traceback, exit code 2
    │   ├── SpecError        the study file or an override
    │   ├── DataError        a dataset, a task file, a row
    │   ├── ModelError       base weights, tokenizer, adapter
    │   └── StoreError       the study's folder: locked, foreign, unreadable
    └── RunFailed            one run failed; kept with the run, exit code 1

Knows: how a message is put together. Does not know: terminals, exit handling (cli/).
"""

from collections.abc import Iterable
from difflib import get_close_matches


class MixtuneError(Exception):
    """Root of the tree."""


class UserError(MixtuneError):
    """An error that the user can fix: the problem, the value found, what was wanted, the remedy."""

    def __init__(
        self,
        problem: str,
        *,
        found: object = None,
        wanted: str | None = None,
        remedy: str | None = None,
        where: str | None = None,
    ) -> None:
        self.problem = problem
        lines = [f"{where}: {problem}" if where else problem]
        if found is not None:
            lines.append(f"  found:  {shorten(found)}")
        if wanted is not None:
            lines.append(f"  wanted: {wanted}")
        if remedy is not None:
            lines.append(f"  remedy: {remedy}")
        # Names and values of files and data stand in any of the parts.
        escaped = (c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in "\n".join(lines))
        super().__init__("".join(escaped))


class SpecError(UserError):
    """A study file, preset or override that cannot be used."""


class DataError(UserError):
    """A dataset, task file or row that cannot be used."""


class ModelError(UserError):
    """Base weights, a tokenizer or an adapter that cannot be used."""


class StoreError(UserError):
    """A study folder that cannot be read or written as asked."""


class RunFailed(MixtuneError):
    """A single run failed; the message is kept with the run."""


def shorten(value: object, limit: int = 120) -> str:
    """Printable form of a value for a message: escaped, at most `limit` characters."""
    text = value if isinstance(value, str) else repr(value)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= limit else f"{text[: limit - 1]}… ({len(text)} characters)"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """One sentence that names the closest known names, or all of them when none is close."""
    known = sorted(set(known))
    close = get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    return f"known: {', '.join(known)}"
