"""The tokens of a tokenizer with their ids, to tell whether two tokenizers agree."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from mixtune.errors import ModelError

_PROBES = (
    "The cat sat on the mat. It's 3.14159, 1,000 or 2026-12-01!",
    " two  spaces\n\nand lines\t tabs",
    "Straße, naïve, 東京, 🙂, ﬁ",
    "def f(x): return x**2  # CamelCase snake_case",
)
"""Texts by which rules that split or rewrite a text show."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Token → id, and the ids of fixed texts."""

    ids: Mapping[str, int]
    probes: tuple[tuple[int, ...], ...]

    def differences(self, other: "Vocabulary") -> list[str]:
        """Tokens that the other lacks or numbers otherwise, or texts with other tokens."""
        tokens = sorted(k for k, number in self.ids.items() if other.ids.get(k) != number)
        pairs = zip(_PROBES, self.probes, other.probes, strict=True)
        return tokens or [text for text, mine, theirs in pairs if mine != theirs]


def vocabulary(path: Path) -> Vocabulary | None:
    """The vocabulary of a tokenizer.json; None where there is no such file.

    Raises:
        ModelError: the file cannot be read.
    """
    if not path.is_file():
        return None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no narrower class
        raise ModelError(
            f"the tokenizer cannot be read: {error}",
            where=str(path),
            remedy="save it again with save_pretrained, or remove it if it is the base's own",
        ) from error
    tokenizer.no_truncation()
    probes = tuple(tuple(tokenizer.encode(text).ids) for text in _PROBES)
    return Vocabulary(tokenizer.get_vocab(with_added_tokens=True), probes)
