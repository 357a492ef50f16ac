"""Which settings of a peer are tried, and which of them is its best.

Knows: grids, rates, when a setting is too slow to go on with. Does not know: how a setting is
started.

A grid is a list of {"setting", "rate", …} in the order of trying. A setting is given up ("stopped",
its rate is that of its beginning) where it is far slower than the same batch in another number
format, and larger batches of that format are then left out ("skipped"): on a CPU without bf16
instructions, bf16 would take most of the benchmark's time to lose. The bf16 setting that is
documented most is measured all the same.
"""

from typing import Any

NEAR = 0.5
"""A number format whose best setting is slower than this part of the best is not tried again."""

FAR = 1 / 3
"""A setting slower than this part of the same batch in another format is given up."""

DOCUMENTED = {"dtype": "bfloat16", "batch": 8, "packing": False}
SKIPPED = "a smaller batch of this number format was given up"

Setting = dict[str, Any]
Grid = list[dict[str, Any]]


def settings_of(dtypes: tuple[str, ...], batches: tuple[int, ...]) -> list[Setting]:
    """Number formats × packing × batch sizes, without checkpointing."""
    return [
        {"dtype": dtype, "batch": batch, "packing": packing}
        for dtype in dtypes
        for packing in (False, True)
        for batch in batches
    ]


def score_settings(dtypes: tuple[str, ...], batches: tuple[int | str, ...]) -> list[Setting]:
    """Number formats × batch sizes."""
    return [{"dtype": dtype, "batch": batch} for dtype in dtypes for batch in batches]


def give_up_below(grid: Grid, setting: Setting) -> float:
    """The rate below which a setting is not worth going on with; 0 where nothing compares."""
    if setting == DOCUMENTED:
        return 0.0
    others = [entry for entry in grid if _but_format(entry["setting"]) == _but_format(setting)]
    return FAR * max((entry["rate"] for entry in others), default=0.0)


def hopeless(grid: Grid, setting: Setting) -> bool:
    """Whether a smaller batch of the same format and packing was given up."""
    same = {"dtype": setting["dtype"], "packing": setting["packing"]}
    smaller = [
        entry
        for entry in grid
        if same.items() <= entry["setting"].items() and entry["setting"]["batch"] < setting["batch"]
    ]
    return setting != DOCUMENTED and any(entry.get("stopped") for entry in smaller)


def best_of(grid: Grid) -> dict[str, Any]:
    """The grid with its best entry, its best without packing, and its best in bf16 alone."""
    padded = [entry for entry in grid if not entry["setting"].get("packing")]
    half = [entry for entry in grid if entry["setting"]["dtype"] == "bfloat16"]
    return {
        "best": _fastest(grid),
        "best_padded": _fastest(padded),
        "best_bfloat16": _fastest(half) if half else None,
        "grid": grid,
    }


def worth(tuned: dict[str, Any], dtypes: tuple[str, ...]) -> tuple[str, ...]:
    """Number formats that came near the best in an earlier grid, or were not in it."""
    grid, top = tuned["extras"]["grid"], tuned["extras"]["best"]["rate"]
    found = []
    for dtype in dtypes:
        rates = [entry["rate"] for entry in grid if entry["setting"]["dtype"] == dtype]
        if not rates or max(rates) >= NEAR * top:
            found.append(dtype)
    return tuple(found)


def _but_format(setting: Setting) -> Setting:
    return {key: value for key, value in setting.items() if key != "dtype"}


def _fastest(grid: Grid) -> dict[str, Any]:
    """The fastest entry; one that was given up or skipped only where all were."""
    return max(grid, key=lambda entry: (not _partial(entry), entry["rate"]))


def _partial(entry: dict[str, Any]) -> bool:
    return bool(entry.get("stopped") or entry.get("skipped"))
