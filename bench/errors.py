"""What can go wrong in a benchmark, in words that say what to do.

Knows: two kinds of faults. Does not know: where they arise.
"""


class BenchError(Exception):
    """A case cannot be measured: a worker died, two sides disagree, a result is missing."""


class NotThere(BenchError):
    """A case needs something of the engine that this version of it does not have."""
