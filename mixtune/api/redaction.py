"""A key taken out of texts that come from a server: whole, cut, split, or in another encoding."""

import base64
import re
from urllib.parse import quote

MASK = "[key]"
SHORTEST_PIECE = 6
"""Letters and digits of a key in a row that are masked in a server's message."""
SHORTEST_PIECE_IN_ANSWER = 12
"""The same in a model's answer, whose words are not to be masked by chance."""

_JOINTS = re.compile(r"[\W_]+")


class Redaction:
    """Masks one key; without a key it changes nothing."""

    def __init__(self, key: str | None) -> None:
        self._key = key or ""
        # A short key, such as EMPTY, is a word that may stand in any text: only its exact form.
        secret = len(self._key) >= SHORTEST_PIECE_IN_ANSWER
        self._forms = [_letters(form) for form in _encodings(self._key)] if secret else []

    def message(self, text: str) -> str:
        """A server's message without any piece of the key."""
        return self._masked(text, SHORTEST_PIECE)

    def answer(self, text: str) -> str:
        """A model's answer without the key; keys too short to be secrets are words and stay."""
        if len(self._key) < SHORTEST_PIECE_IN_ANSWER:
            return text
        return self._masked(text, SHORTEST_PIECE_IN_ANSWER)

    def _masked(self, text: str, piece: int) -> str:
        if not self._key or not text:
            return text
        places = [place for place, sign in enumerate(text) if sign.isalnum()]
        letters = "".join(text[place].lower()[:1] for place in places)
        hidden = sorted(self._spans(letters, piece))
        parts, end = [], 0
        for first, last in hidden:
            if (start := places[first]) >= end:
                parts += [text[end:start], MASK]
            end = max(end, places[last] + 1)
        masked = "".join([*parts, text[end:]])
        return masked.replace(self._key, MASK)

    def _spans(self, letters: str, piece: int) -> set[tuple[int, int]]:
        """First and last letter of each piece of the key, in any of its forms."""
        spans = set()
        for form in self._forms:
            size = min(piece, len(form))
            pieces = {form[i : i + size] for i in range(len(form) - size + 1)}
            for start in range(len(letters) - size + 1):
                if letters[start : start + size] in pieces:
                    spans.add((start, start + size - 1))
        return spans


def _letters(text: str) -> str:
    return _JOINTS.sub("", text).lower()


def _encodings(key: str) -> list[str]:
    """The key as it is, reversed, in hexadecimal, percent signs, and base64 at each alignment."""
    if not key:
        return []
    raw = key.encode()
    shifted = [base64.b64encode(b"\0" * shift + raw).decode() for shift in range(3)]
    # The first and last characters of base64 also depend on what stands around the key.
    inner = [text[2 * (shift > 0) + shift : -4] for shift, text in enumerate(shifted)]
    safe = [text.translate(str.maketrans("+/", "-_")) for text in inner]
    encoded = [key, key[::-1], raw.hex(), quote(key, safe=""), *inner, *safe]
    return list(dict.fromkeys(text for text in encoded if _letters(text)))
