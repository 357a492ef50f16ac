"""Examples as a model may see them, and the digest of a list of them."""

import hashlib
from collections.abc import Iterable

from mixtune.identity import canonical
from mixtune.records import Example, Query


def query_of(example: Example) -> Query:
    """The part of an example that a model may see."""
    return Query(example.id, example.stratum, example.messages, example.choices, example.cue)


def fingerprint(examples: Iterable[Example]) -> str:
    """Digest over id, messages, target, choices, group, stratum and cue of examples, in order."""
    state = hashlib.sha256()
    for e in examples:
        # Included only where set: examples without reasoning or a cue keep their digest.
        turns = [[m.role, m.content, *filter(None, [m.reasoning])] for m in e.messages]
        cue = [e.cue] if e.cue else []
        answer = [e.target, e.reasoning] if e.reasoning else e.target
        row = [e.id, turns, answer, list(e.choices), e.group, e.stratum, *cue]
        state.update(canonical(row).encode("utf-8", "surrogatepass") + b"\n")
    return state.hexdigest()[:16]
