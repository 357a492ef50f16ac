"""From a model's output to an answer: strict (the exact form) and lenient (the answer extracted).

No parser knows the task or which answer is right for an example; `labels` lists them by name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Parse = Callable[[str, Sequence[str]], str | None]
Same = Callable[[str, str, Sequence[str]], bool]


@dataclass(frozen=True, slots=True)
class Parser:
    """A named pair of parses and the comparison that goes with them.

    `version` is part of every score's id: raise it whenever an output could be read differently.
    `strict` and `lenient` take the output and the task's labels (of lists: the types allowed) and
    return None for "no answer found". `same` compares a parsed answer with the gold answer; it also
    takes the user's turns, since a question may name the unit. `cut` is the lenient reading of an
    output that was cut off, None where nothing can be read from one. `list_metric` counts the items
    of an answer that has one item a line; "" where the answer is a single thing. `gold` reads a
    gold answer, strictly: the whole text has to be the value, None where it is not. `comma`: the
    same parser where the comma is the decimal sign, None where no answer has decimals.
    """

    name: str
    version: int
    strict: Parse
    lenient: Parse
    same: Same
    cut: Parse | None = None
    list_metric: str = ""
    gold: Parse = field(kw_only=True)
    comma: "Parser | None" = None


def whole_words(text: str) -> str:
    """A text that was cut off without its last word, which may be half a number."""
    return text[: max(text.rfind(" "), text.rfind("\n")) + 1]
