"""Long contexts: what a task file says of the page its questions are about, and how it is cut.

Knows: words, lines, sentences, four policies. Does not know: tokens of a model, templates, tasks.

A policy acts on a page of more than `words` words (parted by white space) and leaves shorter ones
as they are:

- `error`: refused. `drop`: the record is left out and counted.
- `evidence-first`: sentences and table rows are put in the order of what they share with the
  question, the rarer the word or number on the page the more it weighs, and then cut. A table's
  first row comes with the first row that is taken of it.
- `truncate-middle`: the first and the last half of the words stay, with "…" between.
"""

import math
import re
from collections import Counter
from typing import Annotated, Literal

from pydantic import Field, model_validator

from mixtune.errors import DataError
from mixtune.study.fields import Frozen
from mixtune.tasks.source_spec import Text

Policy = Literal["error", "drop", "evidence-first", "truncate-middle"]

COLUMN = " | "
"""What parts the cells of a table row."""

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_TERM = re.compile(r"\d[\d.,]*|[^\W\d_]+")


class Context(Frozen):
    """The page, as a template; the prompt shows it as `{{ context }}`.

    `question`: a template of what evidence is looked for. `words`: how many a page may have (null:
    any number).
    """

    text: Text
    question: Text | None = None
    policy: Policy = "error"
    words: Annotated[int, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _agrees(self) -> "Context":
        if self.policy != "error" and self.words is None:
            raise ValueError(f"policy: {self.policy} needs words, the most that a page may have")
        if self.policy == "evidence-first" and self.question is None:
            raise ValueError("question: evidence-first looks for what the page shares with it")
        return self

    def too_long(self, page: str) -> bool:
        """Whether the policy acts on a page."""
        return self.words is not None and len(page.split()) > self.words

    def fit(self, page: str, question: str, where: str) -> str:
        """The page as the prompt shows it.

        Raises:
            DataError: it is too long, and nothing may be cut.
        """
        if self.words is None or not self.too_long(page):
            return page
        if self.policy == "evidence-first":
            return _evidence_first(page, question, self.words)
        if self.policy == "truncate-middle":
            return _without_middle(page, self.words)
        raise DataError(
            "the context is too long",
            where=where,
            found=f"{len(page.split()):,} words",
            wanted=f"at most {self.words:,} (context.words)",
            remedy="say context.policy: drop, evidence-first or truncate-middle, or more words",
        )


def _without_middle(page: str, words: int) -> str:
    spots = list(re.finditer(r"\S+", page))
    head, tail = (words + 1) // 2, words // 2
    end = page[spots[-tail].start() :] if tail else ""
    return f"{page[: spots[head - 1].end()]}\n…\n{end}".strip()


def _evidence_first(page: str, question: str, words: int) -> str:
    """Whole pieces, best first, until one does not fit; a first piece that is too long is cut."""
    pieces = _pieces(page)
    terms = [_terms(text) for text, _ in pieces]
    shared = Counter(term for found in terms for term in found)
    asked = _terms(question)
    weights = [
        sum(math.log((1 + len(pieces)) / shared[term]) for term in sorted(found & asked))
        for found in terms
    ]
    taken: dict[int, str] = {}
    left = words
    for place in sorted(range(len(pieces)), key=lambda place: (-weights[place], place)):
        text, head = pieces[place]
        fresh = [p for p in dict.fromkeys((head, place)) if p not in taken]
        size = sum(len(pieces[p][0].split()) for p in fresh)
        if size > left:
            break
        left -= size
        taken |= {p: pieces[p][0] for p in fresh}
    return "\n".join(taken.values()) or " ".join(text.split()[:words])


def _pieces(page: str) -> list[tuple[str, int]]:
    """Sentences and table rows; each with the place of its table's first row, or its own."""
    pieces: list[tuple[str, int]] = []
    head: int | None = None
    for line in page.splitlines():
        if COLUMN in line:
            head = len(pieces) if head is None else head
            pieces.append((line.strip(), head))
            continue
        head = None
        for sentence in filter(None, map(str.strip, _SENTENCE_END.split(line))):
            pieces.append((sentence, len(pieces)))
    return pieces


def _terms(text: str) -> set[str]:
    """Words and numbers, in one spelling."""
    return {term.rstrip(".,") for term in _TERM.findall(text.casefold())}
