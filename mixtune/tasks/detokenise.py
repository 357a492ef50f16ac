"""Tokens of a corpus back to text as people write it.

Knows: English punctuation, one sentence at a time. Does not know: tags, tasks, tokenizers of
models. What was lost in tokenising is guessed by these rules:

- closing marks (`, . ; : ? ! ) ] } ” %`) stand at the word before them, opening ones (`( [ { “ $`)
  at the word after them; `/` at both;
- straight quotes open and close in turn; `'` before `s t re ve ll d m` belongs to both its
  neighbours, as do "'s" and "n't" to the word before;
- between digits, `.`, `:` and a comma before three digits part no words: 6 . 6 → 6.6;
- hyphens and dashes keep their spaces: "short - term" and "Agreement - Silicium" look alike.
"""

import re
from collections.abc import Sequence

_CLOSING = re.compile(r"[,.;:?!)\]}”’»%…]+[\"”]?")
_OPENING = re.compile(r"[(\[{“‘«$€£¥#@]+[\"“]?")
_ENDINGS = re.compile(r"(?:['’](?:s|t|re|ve|ll|d|m)|n['’]t)", re.IGNORECASE)
_AFTER_APOSTROPHE = {"s", "t", "re", "ve", "ll", "d", "m"}
_MONEY = {"$", "€", "£", "¥", "#"}


def detokenise(tokens: Sequence[str]) -> str:
    """The text of a sentence; tokens are taken as they are, only white space is chosen."""
    return "".join(gap + token for gap, token in zip(gaps(tokens), tokens, strict=True))


def gaps(tokens: Sequence[str]) -> list[str]:
    """The white space before each token: "" or one space."""
    found: list[str] = []
    glued, quoted = True, False  # glued: at the start, and after an opening mark
    for place, token in enumerate(tokens):
        after = tokens[place + 1] if place + 1 < len(tokens) else ""
        before = tokens[place - 1] if place else ""
        if not token:
            found.append("")
            continue
        closes = _stands_close(before, token, after) or (token == '"' and quoted)
        found.append("" if glued or closes else " ")
        if token == '"':
            quoted = not quoted
        glued = _holds_next(before, token, after) or (token == '"' and quoted)
    return found


def _stands_close(before: str, token: str, after: str) -> bool:
    """Whether a token stands at the one before it."""
    if token == "'":
        return bool(before) and (after in _AFTER_APOSTROPHE or before.endswith("s"))
    return token == "/" or bool(_CLOSING.fullmatch(token) or _ENDINGS.fullmatch(token))


def _holds_next(before: str, token: str, after: str) -> bool:
    """Whether the next token stands at this one."""
    if token == "'":
        return after in _AFTER_APOSTROPHE
    if token in _MONEY:
        return after[:1].isdigit()
    if token in ".:," and before[-1:].isdigit() and after[:1].isdigit():
        return token != "," or (len(after) == 3 and after.isdigit())
    return token == "/" or bool(_OPENING.fullmatch(token))
