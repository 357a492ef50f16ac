"""What a run asked of each ingredient, against what it got.

Knows: counts of a mixture, lengths of its rows. Does not know: how rows are mixed, ids.
"""

from collections.abc import Mapping, Sequence

from mixtune.mixing import Mixture
from mixtune.planning.sizes import RowSize
from mixtune.records import MixRow
from mixtune.spec import UnitName


def mix_rows(
    mixture: Mixture,
    rows: Sequence[RowSize],
    unit: UnitName,
    dropped: tuple[Mapping[str, int], Mapping[str, int]],
) -> tuple[MixRow, ...]:
    """One row for each ingredient of a run, in the order of their names.

    Args:
        mixture: examples, counted.
        rows: the same with their tokens; none where there is no tokenizer.
        unit: what shares are measured in.
        dropped: ingredient → rows that were too long, and rows that leak.
    """
    counts, (too_long, leaked) = mixture.counts, dropped
    own = {name: [row for row in rows if row.ingredient == name] for name in counts}
    got = {
        name: one.got if unit == "rows" else sum(size_of(row, unit) for row in own[name])
        for name, one in counts.items()
    }
    return tuple(
        MixRow(
            ingredient=name,
            rows_asked=one.asked,
            rows_available=one.available,
            rows_got=one.got,
            rows_distinct=one.distinct,
            repeats=one.got / one.distinct,
            supervised_tokens=sum(row.supervised for row in own[name]),
            tokens=sum(row.length for row in own[name]),
            dropped_overlong=too_long.get(name, 0),
            dropped_leaked=leaked.get(name, 0),
            unit=unit,
            share_asked=float(one.share),
            share_got=got[name] / sum(got.values()),
            exhausted=one.exhausted,
        )
        for name, one in counts.items()
    )


def size_of(row: RowSize, unit: UnitName) -> int:
    """What a row counts for where shares are of tokens."""
    return row.length if unit == "tokens" else row.supervised
