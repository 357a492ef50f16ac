"""`context:` of a task file: the long page that questions are about, and how it is cut.

A policy acts on a page of more than `words` words (separated by white space):

- `error`: refused. `drop`: the record is left out and counted.
- `evidence-first`: sentences and table rows are sorted by the words and numbers that they share
  with the question, weighted by inverse document frequency, and then cut. A table's first row is
  included with the first of its rows.
- `truncate-middle`: the first and the last half of the words stay, with "…" between.
"""

import math
import re
from collections import Counter
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from mixtune.errors import DataError
from mixtune.study.fields import Frozen
from mixtune.tasks.templates import Template

Policy = Literal["error", "drop", "evidence-first", "truncate-middle"]

COLUMN = " | "
"""Separator of the cells of a table row."""

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_TERM = re.compile(r"\d[\d.,]*|[^\W\d_]+")


class Context(Frozen):
    """The page, as a template; the prompt shows it as `{{ context }}`.

    `question`: a template of the text whose evidence is looked for. `words`: the most that a page
    may have (null: any number).
    """

    text: Template
    question: Template | None = None
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
        """True if the policy acts on a page."""
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
    terms = [_terms(piece.text) for piece in pieces]
    frequency = Counter(term for piece_terms in terms for term in piece_terms)
    asked_terms = _terms(question)

    def weight(place: int) -> float:
        shared = sorted(terms[place] & asked_terms)  # sorted: one order of the float sum
        return sum(math.log((1 + len(pieces)) / frequency[term]) for term in shared)

    chosen: dict[int, str] = {}
    budget = words
    order = sorted(range(len(pieces)), key=weight, reverse=True)  # stable: ties stay in place
    for place in order:
        # dict.fromkeys: a first row is its own header, and is used once.
        new = [p for p in dict.fromkeys((pieces[place].header, place)) if p not in chosen]
        size = sum(len(pieces[p].text.split()) for p in new)
        if size > budget:
            break
        budget -= size
        chosen |= {p: pieces[p].text for p in new}
    return "\n".join(chosen.values()) or " ".join(pieces[order[0]].text.split()[:words])


class _Piece(NamedTuple):
    """A sentence or table row; `header` is the place of its table's first row, or its own."""

    text: str
    header: int


def _pieces(page: str) -> list[_Piece]:
    pieces: list[_Piece] = []
    header: int | None = None
    for line in page.splitlines():
        if COLUMN in line:
            header = len(pieces) if header is None else header
            pieces.append(_Piece(line.strip(), header))
            continue
        header = None
        for sentence in filter(None, map(str.strip, _SENTENCE_END.split(line))):
            pieces.append(_Piece(sentence, len(pieces)))
    return pieces


def _terms(text: str) -> set[str]:
    """Words and numbers, in one spelling."""
    return {term.rstrip(".,") for term in _TERM.findall(text.casefold())}
