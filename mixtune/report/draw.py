"""Rows → figures as SVG text: pure functions, every text on them escaped.

A unit is a pixel at native size; most figures fit a narrow screen. figure.css has the colours.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mixtune.records import Claim, Estimate
from mixtune.report.figures import Cell
from mixtune.report.gather import LengthRow
from mixtune.report.plots import LEVELS, Chart, Forest, Heat, rounded_up
from mixtune.report.wording import (
    cell_sentence,
    ends,
    fit,
    number,
    plain,
    signed,
    tick,
    width,
    wrap,
)

SMALL = 10.5
"""Font size of labels, in units; figure.css has the same."""
HATCH = Markup(
    '<pattern id="{}" width="5" height="5" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><path class="under" d="M0 0H5V5H0z"/>'
    '<path class="hatch" d="M0 0V5"/></pattern>'
)


@dataclass(frozen=True, slots=True)
class Scale:
    """A line from numbers to units: `low` stands at `start`, `high` at `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Position of a number, to a tenth of a unit."""
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, about: int) -> list[float]:
        """Round numbers within the ends, about so many."""
        step = rounded_up(max((self.high - self.low) / about, 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(i * step, 10) for i in range(first, last + 1)]


def _svg(size: tuple[float, float], name: str, parts: Iterable[Markup]) -> Markup:
    w, h = (math.ceil(side) for side in size)
    head = Markup(
        '<svg class="fig" viewBox="0 0 {0} {1}" width="{0}" '
        'height="{1}" style="--w:{0}px" role="img" aria-label="{2}">'
    )
    return head.format(w, h, plain(name)) + _joined(parts) + Markup("</svg>")


def _joined(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)


def _row(kind: str, parts: Iterable[Markup]) -> Markup:
    return Markup('<g class="row {}">{}</g>').format(kind, _joined(parts))


def _text(x: float, y: float, content: str, kind: str) -> Markup:
    text = '<text x="{:g}" y="{:g}" class="{}">{}</text>'
    return Markup(text).format(x, y, kind, plain(content))


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    path = f"M{x1:g} {y1:g}" + (f"H{x2:g}" if y1 == y2 else f"V{y2:g}" if x1 == x2 else "")
    return Markup('<path class="{}" d="{}"/>').format(kind, path)


def _rect(x: float, y: float, w: float, h: float, kind: str) -> Markup:
    return Markup('<rect x="{:g}" y="{:g}" width="{:g}" height="{:g}" class="{}"/>').format(
        x, y, max(0.0, round(w, 1)), h, kind
    )


def _dot(x: float, y: float, radius: float = 4, kind: str = "dot") -> Markup:
    circle = '<circle class="{}" cx="{:g}" cy="{:g}" r="{:g}"/>'
    return Markup(circle).format(kind, x, y, radius)


def _curve(number_of: int, points: str, title: str) -> Markup:
    line = Markup('<polyline class="k{}" points="{}"><title>{}</title></polyline>')
    return line.format(number_of, points, title)


def _interval(scale: Scale, low: float | None, high: float | None, y: float) -> list[Markup]:
    """The bar of an interval; nothing without one."""
    if low is None or high is None:
        return []
    return [_line(scale(low), y, scale(high), y, "bar")]


def _axis_below(scale: Scale, top: float, bottom: float, about: int) -> list[Markup]:
    parts = []
    for value in scale.ticks(about):
        parts.append(_line(scale(value), top, scale(value), bottom, "grid"))
        parts.append(_text(scale(value), bottom + 13, tick(value), "l mid"))
    return [*parts, _line(scale.start, bottom, scale.end, bottom, "axis")]


def _axes_of_curves(
    x: Scale, y: Scale, below: float, write: Callable[[float], str]
) -> list[Markup]:
    """Grid lines with their numbers left of them, whole numbers at the height `below`."""
    parts = []
    for value in y.ticks(4):
        parts.append(_line(x.start, y(value), x.end, y(value), "grid"))
        parts.append(_text(x.start - 5, y(value) + 3.5, write(value), "l end"))
    whole = [value for value in x.ticks(4) if value == int(value)]
    return parts + [_text(x(value), below, tick(value), "l mid") for value in whole]


def _title(content: str) -> Markup:
    return Markup("<title>{}</title>").format(plain(content))


def _label(name: str, middle: float, room: float, at_most: int = 2) -> Markup:
    """A row's name in one to three lines, right-aligned to `room`, around a height."""
    shown = wrap(name, room, SMALL, at_most)
    top = middle - (len(shown) - 1) * 6.5 + 3.7
    lines = [_text(room, top + 13 * i, line, "l end") for i, line in enumerate(shown)]
    whole = plain(name, 300)
    if "".join(shown) != whole:
        lines = [Markup("<g>"), _title(whole), *lines, Markup("</g>")]
    return _joined(lines)


def _room(names: Iterable[str], least: float, most: float) -> float:
    """Width that the longest line of some names needs, within bounds."""
    widest = max((width(line, SMALL) for n in names for line in wrap(n, most, SMALL, 3)), default=0)
    return round(min(most, max(least, widest + 2)))


# ---- heat map -----------------------------------------------------------------------------------

COLUMN, ROW, GAP = 88.0, 41.0, 2.0
BOLD = 1.14
"""How much wider bold letters are."""


def heat_map(heat: Heat, titles: Mapping[str, str], metrics: Mapping[str, str], key: str) -> Markup:
    """Cocktails × tasks: value and difference in each cell, a legend below.

    `key` names this figure within its page. Rows and columns carry their number as `data-r` and
    `data-c`.
    """
    margin = _room(heat.cocktails, 90, 190) + 10
    heads = [wrap(titles[task], (COLUMN - 8) / BOLD, SMALL, 3) for task in heat.tasks]
    top = 22.0 + 12 * max(map(len, heads))
    across, down = margin + COLUMN * len(heat.tasks), top + ROW * len(heat.cocktails)
    parts = [Markup("<defs>{}</defs>").format(HATCH.format(key))]
    for c, task in enumerate(heat.tasks):
        middle = margin + COLUMN * (c + 0.5) - GAP / 2
        first = top - 10 - 12 * len(heads[c])
        lines = [_text(middle, first + 12 * i, line, "h mid") for i, line in enumerate(heads[c])]
        metric = _text(middle, top - 8, fit(metrics[task], COLUMN, SMALL), "l mid")
        head = _joined([_title(plain(titles[task], 300)), *lines, metric])
        parts.append(Markup('<g data-c="{}">{}</g>').format(c, head))
    for r, cocktail in enumerate(heat.cocktails):
        y = top + ROW * r
        label = _label(cocktail, y + (ROW - GAP) / 2, margin - 8, 3)
        parts.append(Markup('<g data-r="{}">{}</g>').format(r, label))
        for c, task in enumerate(heat.tasks):
            x = margin + COLUMN * c
            w, h = COLUMN - GAP, ROW - GAP
            if cell := heat.at.get((cocktail, task)):
                group = Markup(
                    '<g class="c {}" data-r="{}" data-c="{}" '
                    'transform="translate({:g} {:g})">{}</g>'
                )
                inner = _heat_cell(cell, titles[task], key)
                parts.append(group.format(shade(cell, heat.step), r, c, x, y, inner))
            else:
                parts.append(_rect(x, y, w, h, "none"))
                parts.append(_text(x + w / 2, y + h / 2 + 4, "–", "l mid"))
    legend, height = _heat_legend(heat, down + 14, key)
    name = f"heat map, {heat.form} answers, main metrics"
    return _svg((max(across, 336.0), height), name, [*parts, *legend])


def _heat_cell(cell: Cell, title: str, key: str) -> Markup:
    w, h = COLUMN - GAP, ROW - GAP
    parts = [_title(cell_sentence(cell, title))]
    parts.append(Markup('<rect width="{:g}" height="{:g}" rx="3"/>').format(w, h))
    if cell.floored:
        path = '<path d="M0 {:g}h{:g}v5h-{:g}z" style="fill:url(#{})"/>'
        parts.append(Markup(path).format(h - 5, w, w, key))
    below = "no single" if cell.difference is None else signed(cell.difference)
    parts.append(_text(w / 2, 14, number(cell.value), "v mid"))
    parts.append(_text(w / 2, 27, "single" if cell.is_single else below, "g mid"))
    return _joined(parts)


def shade(cell: Cell, step: float) -> str:
    """Class of a cell's colour: u1 to u4, d1 to d4; u0, d0 where 0 is not excluded; s; n."""
    if cell.difference is None:
        return "s" if cell.is_single else "n"
    side = "u" if cell.difference > 0 else "d"
    if cell.shown not in ("above", "below"):
        return f"{side}0"
    return f"{side}{min(LEVELS, max(1, math.ceil(abs(cell.difference) / step - 1e-9)))}"


def _heat_legend(heat: Heat, y: float, key: str) -> tuple[list[Markup], float]:
    """Shades with their bounds, and what outline, paleness and hatching mean; in 336 units."""
    side = 30.0
    names = [*(f"d{i}" for i in range(LEVELS, 0, -1)), *(f"u{i}" for i in range(1, LEVELS + 1))]
    parts = [_text(0, y + 8, "Difference to the single, 95 % interval excludes 0:", "l")]
    for i, name in enumerate(names):
        parts.append(_swatch(name, side * i + (20 if i >= LEVELS else 16), y + 15, side))
    for bound in range(-LEVELS, LEVELS + 1, LEVELS // 2):
        side_of_0 = (bound > 0) - (bound < 0)
        shown = "+" * (bound > 0) + tick(bound * heat.step)
        parts.append(_text(side * (bound + LEVELS) + 18 + 2 * side_of_0, y + 39, shown, "l mid"))
    y += 50
    parts += [_swatch("d0", 16, y, 12), _swatch("u0", 28, y, 12), _swatch("s", 16, y + 18, 24)]
    hatched = Markup('<path d="M16 {:g}h24v5h-24z" style="fill:url(#{})"/>')
    parts.append(hatched.format(y + 39, key))
    meanings = ("pale: the interval includes 0", "the single itself")
    for i, words in enumerate((*meanings, "not above the floor (chance or majority class)")):
        parts.append(_text(46, y + 9.5 + 18 * i, words, "l"))
    return parts, y + 54


def _swatch(shade_of: str, x: float, y: float, wide: float) -> Markup:
    return Markup('<g class="c {}">{}</g>').format(shade_of, _rect(x, y, wide, 12, ""))


# ---- forest plot --------------------------------------------------------------------------------

PLOT, LABELS, VALUES = 340.0, 132.0, 44.0
STEP = 27.0
SIDES = {"above": "up", "below": "down"}
"""Class of a row whose difference excludes 0."""


def forest_plot(forest: Forest) -> Markup:
    """One task: a dot and an interval per cocktail, the best on top; reference lines behind."""
    spread = [v for c in forest.cells for v in (c.value, c.value_low, c.value_high)]
    known = [v for v in [*spread, *forest.references.values()] if v is not None]
    pad = 0.03 * ((max(known) - min(known)) or 1.0)
    scale = Scale(min(known) - pad, max(known) + pad, LABELS + 8, PLOT - VALUES)
    top = 56.0
    bottom = top + STEP * len(forest.cells)
    head = wrap(forest.title, PLOT / BOLD, 13, 2)
    parts = [_text(0, 45 - 16 * (len(head) - i) - 3, line, "t") for i, line in enumerate(head)]
    parts.append(_text(0, 44, forest.metric, "l"))
    parts += _axis_below(scale, top, bottom, 4)
    for name, value in forest.references.items():
        parts.append(_line(scale(value), top, scale(value), bottom, f"ref {name.split()[-1]}"))
    for i, cell in enumerate(forest.cells):
        parts.append(_forest_row(cell, scale, top + STEP * (i + 0.5), forest.title))
    legend, height = _references(forest.references, bottom + 32)
    return _svg(
        (PLOT, height), f"{forest.title}: {forest.metric} with intervals", [*parts, *legend]
    )


def _forest_row(cell: Cell, scale: Scale, y: float, title: str) -> Markup:
    x = scale(cell.value)
    if cell.seeds and not cell.is_single:
        dot = _dot(x, y)
    else:
        corner, rest = ((0, -5), "l5 5l-5 5l-5 -5z") if cell.is_single else ((-4, -4), "h8v8h-8z")
        mark = Markup('<path class="dot" d="M{:g} {:g}{}"/>')
        dot = mark.format(x + corner[0], y + corner[1], rest)
    parts = [_title(cell_sentence(cell, title)), _label(cell.cocktail, y, LABELS)]
    parts += [*_interval(scale, cell.value_low, cell.value_high, y), dot]
    parts.append(_text(PLOT, y + 4, number(cell.value), "v end"))
    return _row("single" if cell.is_single else SIDES.get(cell.shown, "open"), parts)


def _references(references: Mapping[str, float], y: float) -> tuple[list[Markup], float]:
    """Legend of the reference lines, two per row."""
    parts = []
    for i, (name, value) in enumerate(references.items()):
        x, at = (0.0, PLOT / 2)[i % 2], y + 16 * (i // 2)
        parts.append(_line(x, at - 4, x + 24, at - 4, f"ref {name.split()[-1]}"))
        parts.append(_text(x + 30, at, f"{name} {number(value)}", "l"))
    return parts, y + 16 * max(0, (len(references) - 1) // 2) + 8


def gap_bar(cell: Cell) -> Markup:
    """The difference to the single as a dot with its interval around 0, 220 units wide."""
    values = [abs(v) for v in (cell.difference, cell.low, cell.high) if v is not None]
    reach = max([0.02, *values]) * 1.05
    scale = Scale(-reach, reach, 6, 214)
    dot = _dot(scale(cell.difference or 0.0), 11, 4.5)
    parts = [
        _line(scale(0), 2, scale(0), 20, "axis"),
        _line(6, 11, 214, 11, "grid"),
        _row(SIDES.get(cell.shown, "open"), [*_interval(scale, cell.low, cell.high, 11), dot]),
        _text(scale(0), 31, "0", "l mid"),
        _text(6, 31, signed(-reach), "l"),
        _text(214, 31, signed(reach), "l end"),
    ]
    description = f"difference {signed(cell.difference)} {ends(cell.low, cell.high, True)}"
    return _svg((220, 34), description, parts)


# ---- training curves ----------------------------------------------------------------------------

CURVE = (250.0, 168.0)


def curve_chart(chart: Chart) -> Markup:
    """Loss over steps of one cocktail, a line per seed; axes as in every other chart."""
    w, h = CURVE
    x, y = Scale(0, max(1, chart.steps), 34, w - 14), Scale(0, chart.top * 1.04, h - 20, 34)
    shown = wrap(chart.cocktail, w / BOLD, SMALL, 2)
    parts = [_title(plain(chart.cocktail, 300))]
    parts += [_text(0, 11 + 12.5 * i, line, "h") for i, line in enumerate(shown)]
    parts += _axes_of_curves(x, y, h - 6, tick)
    for i, (seed, points) in enumerate(chart.runs):
        path = " ".join(f"{x(step):g},{y(loss):g}" for step, loss in points)
        parts.append(_curve(i % 5, path, f"seed {'–' if seed is None else seed}"))
    return _svg(CURVE, f"training loss of {chart.cocktail}", parts)


# ---- data ---------------------------------------------------------------------------------------

WIDE = 400.0


def length_plot(rows: Sequence[LengthRow]) -> Markup:
    """Tokens per row: the whole span thin, p5 to p95 thick, the median marked; supervised below."""
    margin = _room((row.ingredient for row in rows), 60, 130)
    scale = Scale(0, max(1, *(row.tokens_max for row in rows)), margin + 10, WIDE - 88)
    top, step = 18.0, 34.0
    bottom = top + step * len(rows)
    parts = _axis_below(scale, top, bottom, 4)
    parts += [_text(WIDE, 10, "supervised", "l end"), _text(WIDE - 62, 10, "median", "l end")]
    for i, row in enumerate(rows):
        y = top + step * i + step / 2
        share = row.supervised / max(1, row.tokens)
        parts += [
            _label(row.ingredient, y, margin),
            _box(scale, y - 4, row, "tokens"),
            _box(scale, y + 7, row, "supervised"),
            _text(WIDE - 62, y + 4, str(row.tokens_median), "v end"),
            _text(WIDE, y + 4, f"{100 * share:.1f} %", "v end"),
        ]
    y = bottom + 32
    parts += [
        _rect(margin + 10, y - 8, 18, 7, "box all"),
        _text(margin + 34, y, "all tokens", "l"),
        _rect(margin + 110, y - 7, 18, 5, "box sup"),
        _text(margin + 134, y, "supervised", "l"),
    ]
    return _svg((WIDE, y + 8), "tokens per row of each ingredient", parts)


def _box(scale: Scale, y: float, row: LengthRow, counted: str) -> Markup:
    kind, half = ("all", 5.0) if counted == "tokens" else ("sup", 2.5)
    at = [getattr(row, f"{counted}_{end}") for end in ("min", "p5", "median", "p95", "max")]
    least, p5, median, p95, most = map(scale, at)
    parts = [
        _title("{}: {}, p5 {}, median {}, p95 {}, {}".format(kind, *at)),
        _line(least, y, most, y, "whisker"),
        _rect(p5, y - half, max(1.5, p95 - p5), 2 * half, f"box {kind}"),
        _line(median, y - half, median, y + half, "median"),
    ]
    return Markup("<g>{}</g>").format(_joined(parts))


# ---- claims and tuning curves -------------------------------------------------------------------

VERDICTS = {"confirmed": "up", "tie": "single", "not worse": "single"}
"""Class of a claim's row; any other is open."""


def claims_plot(claims: Sequence[Claim], titles: Mapping[str, str]) -> Markup:
    """A dot and an interval per target around 0, the margin shaded."""
    margin = max(claim.margin for claim in claims)
    spread = [v for c in claims for v in (c.value, c.low, c.high) if v is not None]
    reach = 1.05 * max([2 * margin, *map(abs, spread)])
    wide = PLOT + 60
    scale = Scale(-reach, reach, LABELS + 8, wide - 92)
    top, bottom = 8.0, 8.0 + STEP * len(claims)
    band = _rect(scale(-margin), top, scale(margin) - scale(-margin), bottom - top, "band")
    parts = [band, *_axis_below(scale, top, bottom, 5)]
    parts.append(_line(scale(0), top, scale(0), bottom, "axis"))
    for i, claim in enumerate(claims):
        y = top + STEP * (i + 0.5)
        row = [_title(claim.sentence), _label(titles.get(claim.target, claim.target), y, LABELS)]
        row += _interval(scale, claim.low, claim.high, y)
        row += [_dot(scale(claim.value), y)] if claim.seeds else []
        row.append(_text(wide, y + 4, claim.verdict, "v end"))
        parts.append(_row(VERDICTS.get(claim.verdict, "open"), row))
    return _svg((wide, bottom + 22), "claims: differences to the single task with intervals", parts)


def tuning_chart(title: str, arms: Mapping[str, Sequence[Estimate]]) -> Markup:
    """Expected best score over the runs spent, a line per arm."""
    w, h = 340.0, 190.0
    values = [row.value for rows in arms.values() for row in rows]
    low, high = min(values), max(values)
    pad = 0.05 * ((high - low) or 0.01)
    most = max(len(rows) for rows in arms.values())
    x, y = Scale(1, max(2, most), 44, w - 12), Scale(low - pad, high + pad, h - 34, 30)
    parts = [_title(title), _text(0, 13, fit(title, w / BOLD, SMALL), "h")]
    parts += _axes_of_curves(x, y, h - 20, lambda value: f"{value:.3f}".rstrip("0"))
    for place, (name, rows) in enumerate(arms.items()):
        points = " ".join(f"{x(k)},{y(row.value)}" for k, row in enumerate(rows, 1))
        parts.append(_curve(place, points, name))
        if len(rows) == 1:
            parts.append(_dot(x(1), y(rows[0].value), 3, f"k{place}"))
    parts.append(_text((x.start + x.end) / 2, h - 5, "runs", "l mid"))
    description = "; ".join(
        f"{name}: {signed(rows[-1].value)} with {len(rows)} runs {ends(None, None)}".strip()
        for name, rows in arms.items()
    )
    return _svg((w, h), f"tuning curves, {title}: {description}", parts)
