"""The table of ratios and their targets, written into a page between two markers.

Knows: Markdown, latest.json. Does not know: how anything was measured.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.results import FEWEST, TARGETS, Target

BEGIN = "<!-- bench: begin, written by `python -m bench --table` -->"
END = "<!-- bench: end -->"

VERDICTS = {"aim": "target met", "at least": "minimum met", "short": "**below minimum**"}

_NEW = f"""# Performance

What is measured and how: [bench/METHOD.md](../bench/METHOD.md).

{BEGIN}
{END}
"""


def write_table(
    latest: dict[str, Any], page: Path, others: Mapping[str, dict[str, Any]] | None = None
) -> None:
    """Put the tables between the page's markers; a page that is not there is made.

    `others`: results of other machines, by the heading of each table.

    Raises:
        BenchError: the page has no markers.
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else _NEW
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BenchError(f"{page.name} has no place for the table; add\n{BEGIN}\n{END}")
    tables = [table(latest)]
    tables += [f"\n### {name}\n\n{table(other)}" for name, other in (others or {}).items()]
    page.write_text(f"{before}{BEGIN}\n{''.join(tables)}{END}{after}", encoding="utf-8")


def table(latest: dict[str, Any]) -> str:
    """The measured ratios with their targets; those below the minimum are listed."""
    found = latest["ratios"]
    lines = ["| | median | range | minimum | target | |", "|---|---|---|---|---|---|"]
    lines += [_line(key, target, latest) for key, target in TARGETS.items()]
    short = [k for k, target in TARGETS.items() if k in found and _short(target, found[k])]
    missing = [key for key in TARGETS if key not in found]
    lines += ["", f"Below the minimum: {_names(short)}."]
    lines += [f"Not measured: {_names(missing)}."] if missing else []
    return "\n".join([*lines, "", *_made(latest["made"])]) + "\n"


def _line(key: str, target: Target, latest: dict[str, Any]) -> str:
    bounds = [f"{'≤ ' if target.lower else ''}{bound:g}" for bound in (target.least, target.aim)]
    if key not in latest["ratios"]:
        return f"| {target.what} | – | – | {bounds[0]} | {bounds[1]} | not measured |"
    value, values = latest["ratios"][key], latest["values"][key]
    verdict = VERDICTS[target.reached(value)]
    few = "" if len(values) >= FEWEST else f" ({len(values)} of {FEWEST} repeats)"
    span = f"{min(values):.3g} – {max(values):.3g}"
    return f"| {target.what} | {value:.3g}{few} | {span} | {bounds[0]} | {bounds[1]} | {verdict} |"


def _short(target: Target, value: float) -> bool:
    return target.reached(value) == "short"


def _names(keys: list[str]) -> str:
    return ", ".join(f"`{key}`" for key in keys) or "none"


def _made(made: dict[str, Any]) -> list[str]:
    """Where and when: the machine of the cases, their dates and commits."""
    cases = list(made["cases"].values())
    if not cases:
        return []
    last = max(cases, key=lambda case: str(case["date"]))
    machine = last["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    days = sorted({str(case["date"])[:10] for case in cases})
    commits = sorted({case["commit"] for case in cases})
    commands = sorted({f"`{case['command']}`" for case in cases})
    return [
        f"Measured {' to '.join(sorted({days[0], days[-1]}))} at {', '.join(commits)} on "
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, device "
        f"{machine['device']}; {made['model']}, data: {made['data']}; ours in "
        f"{last.get('compute') or 'float32'}. {versions}.",
        "",
        f"Made by {', '.join(commands)}. Ratios are medians over repeats, one ratio per pair.",
    ]
