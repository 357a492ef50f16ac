"""Characters of labels: their normal form, invisible ones, scripts that write no spaces.

Does not know: tasks, parsers.
"""

import re
import unicodedata

_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Tibetan, Burmese, Khmer
    "\u2e80-\u2fdf\u3005-\u3007\u3041-\u312f\u31a0-\u31ff"  # kana, bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"  # Chinese
)
_KOREAN = re.compile("[\u1100-\u11ff\uac00-\ud7af]")
_KOREAN_ENDING = re.compile(
    r"(?:입니다|이다|이에요|예요|이며|이고|으로|임|적|은|는|이|가|을|를|로|다)(?:입니다|이다)?(?!\w)"
)
"""Particles that follow a Korean word without a space."""

_SPACES = "\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_INVISIBLE = re.compile(
    f"[{_SPACES}\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e01ef"
    "\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
# Persian and the scripts of India join or part letters by them, emoji are joined and coloured.
_JOINING = re.compile(
    "(?<=[\u0600-\u0dff\u1780-\u17ff\u1800-\u18af])[\u200c\u200d\u180b-\u180e]"
    "|[\u200d\ufe0e\ufe0f](?=[\u200d\u2640\u2642\u2600-\u27bf\u20e3\U0001f000-\U0001faff])"
    "|(?<=[\u00a9\u00ae\u2000-\u3300\U0001f000-\U0001faff])[\ufe0e\ufe0f]"
    "|(?<=[0-9#*])\ufe0f(?=\u20e3)"
)


def normal_form(text: str) -> str:
    """The form in which labels are compared letter for letter: composed (NFC)."""
    return unicodedata.normalize("NFC", text)


def visible(text: str) -> str:
    """A text without invisible characters, with plain and single spaces and none at its ends."""
    text = re.sub(f"[{_SPACES}]", " ", text)
    joined = {match.start() for match in _JOINING.finditer(text)}
    characters = (c for i, c in enumerate(text) if i in joined or not _INVISIBLE.fullmatch(c))
    return " ".join(normal_form("".join(characters)).split())


def invisible(text: str) -> str:
    """The invisible characters of a text with their names, such as "U+00AD SOFT HYPHEN"."""
    joined = {match.start() for match in _JOINING.finditer(text)}
    marks = [m[0] for m in _INVISIBLE.finditer(text) if m.start() not in joined]
    named = (f"U+{ord(mark):04X} {unicodedata.name(mark, 'control')}" for mark in marks)
    return ", ".join(dict.fromkeys(named))


# ---- words ---------------------------------------------------------------------------------------


def whole_word(text: str, start: int, end: int) -> bool:
    """True if a part of a text does not begin or end inside a word.

    Where letters of a script without spaces meet any others, a word can begin or end.
    """
    if start and _joined(text[start], text[start - 1]):
        return False
    following = text[end : end + 1]
    if not following:
        return True
    if _KOREAN.match(text[end - 1]) and _KOREAN_ENDING.match(text, end):
        return True
    return unicodedata.category(following)[0] != "M" and not _joined(text[end - 1], following)


def _joined(inner: str, outer: str) -> bool:
    """True if a letter or digit belongs to the word of the one next to it."""
    if unspaced(inner) or unspaced(outer):
        return False
    return unicodedata.category(outer)[0] in "LNM"


def unspaced(text: str) -> bool:
    """True if a text has letters of a script that writes no spaces between words."""
    return _UNSPACED.search(text) is not None


def names(text: str, word: str) -> bool:
    """True if a text has a word or phrase, letter for letter in the normal form, as a whole."""
    text, word = normal_form(text), normal_form(word)
    places = (match.start() for match in re.finditer(f"(?={re.escape(word)})", text))
    return any(whole_word(text, place, place + len(word)) for place in places)
