"""What a difference says in words, as compare and analyze print it."""

import pytest

from mixtune.cli.tables import reading
from mixtune.records import Estimate
from mixtune.report.wording import p_value


def row(low, high, tied=None, margin=None, reference="b"):
    names = ("difference", "a", reference, "fpb", "test", "strict", "accuracy")
    numbers = (0.0, low, high, 9, 9, 3, "t", 0)
    return Estimate(*names, *numbers, tied=tied, margin=margin)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (row(0.01, 0.02), "better"),
        (row(-0.02, -0.01), "worse"),
        (row(-0.02, 0.01), "not significantly different"),
        (row(None, None), "too few"),
        (row(None, None, None, 0.01), "too few"),
        (row(0.5, 0.6, reference=""), ""),
        (row(-0.004, 0.006, True, 0.01), "tie within ±0.01"),
        (row(0.001, 0.006, True, 0.01), "better, tie within ±0.01"),
        (row(0.001, 0.09, False, 0.01), "better"),
    ],
)
def test_words(found, said):
    assert reading(found) == said


def test_small_p_values_are_not_nothing():
    assert [p_value(p) for p in (0.0, 0.0004, 0.001, 0.05, 1.0, None)] == [
        "<0.001",
        "<0.001",
        "0.001",
        "0.050",
        "1.000",
        "–",
    ]
