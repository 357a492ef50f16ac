"""Rows → figures as SVG text: pure functions, every text on them escaped.

Knows: where things stand on a figure. Does not know: colours (figure.css has them by class), HTML,
how a number was computed. A unit is a pixel at native size; most figures fit a narrow screen.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mixtune.records import LengthRow, RunRow
from mixtune.report.figures import Cell
from mixtune.report.plots import LEVELS, Chart, Forest, Heat, Portion, rounded_up
from mixtune.report.wording import (
    cell_sentence,
    ends,
    fit,
    number,
    plain,
    seconds,
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
        """Where a number stands, to a tenth of a unit."""
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
    return head.format(w, h, plain(name)) + Markup("").join(parts) + Markup("</svg>")


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


def _title(content: str) -> Markup:
    return Markup("<title>{}</title>").format(plain(content))


def _label(name: str, middle: float, room: float, at_most: int = 2) -> Markup:
    """A row's name in one to three lines, right-aligned to `room`, around a height."""
    shown = wrap(name, room, SMALL, at_most)
    top = middle - (len(shown) - 1) * 6.5 + 3.7
    found = [_text(room, top + 13 * i, line, "l end") for i, line in enumerate(shown)]
    whole = plain(name, 300)
    if "".join(shown) != whole:
        found = [Markup("<g>"), _title(whole), *found, Markup("</g>")]
    return Markup("").join(found)


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
    left = _room(heat.cocktails, 90, 190) + 10
    heads = [wrap(titles[task], (COLUMN - 8) / BOLD, SMALL, 3) for task in heat.tasks]
    top = 22.0 + 12 * max(map(len, heads))
    across, down = left + COLUMN * len(heat.tasks), top + ROW * len(heat.cocktails)
    parts = [Markup("<defs>") + HATCH.format(key) + Markup("</defs>")]
    for c, task in enumerate(heat.tasks):
        middle = left + COLUMN * (c + 0.5) - GAP / 2
        first = top - 10 - 12 * len(heads[c])
        found = [_text(middle, first + 12 * i, line, "h mid") for i, line in enumerate(heads[c])]
        named = fit(heat.metric or metrics[task], COLUMN, SMALL)
        metric = _text(middle, top - 8, named, "l mid")
        whole = _title(plain(titles[task], 300))
        parts.append(Markup('<g data-c="{}">').format(c) + whole + Markup("").join(found) + metric)
        parts.append(Markup("</g>"))
    for r, cocktail in enumerate(heat.cocktails):
        middle = top + ROW * r + (ROW - GAP) / 2
        label = _label(cocktail, middle, left - 8, 3)
        parts.append(Markup('<g data-r="{}">{}</g>').format(r, label))
        for c, task in enumerate(heat.tasks):
            x, y = left + COLUMN * c, top + ROW * r
            cell = heat.at.get((cocktail, task))
            parts.append(_heat_cell(cell, heat, (x, y), (r, c), (titles[task], key)))
    legend, height = _heat_legend(heat, down + 14, key)
    name = f"heat map, {heat.form} answers, {heat.metric or 'main metrics'}"
    return _svg((max(across, 336.0), height), name, [*parts, *legend])


def _heat_cell(
    cell: Cell | None,
    heat: Heat,
    corner: tuple[float, float],
    at: tuple[int, int],
    said: tuple[str, str],
) -> Markup:
    x, y = corner
    w, h = COLUMN - GAP, ROW - GAP
    if cell is None:
        return _rect(x, y, w, h, "none") + _text(x + w / 2, y + h / 2 + 4, "–", "l mid")
    title, key = said
    group = Markup('<g class="c {}" data-r="{}" data-c="{}" transform="translate({:g} {:g})">')
    parts = [group.format(shade(cell, heat.step), *at, x, y), _title(cell_sentence(cell, title))]
    parts.append(Markup('<rect width="{:g}" height="{:g}" rx="3"/>').format(w, h))
    if cell.floored:
        path = '<path d="M0 {:g}h{:g}v5h-{:g}z" style="fill:url(#{})"/>'
        parts.append(Markup(path).format(h - 5, w, w, key))
    below = "no single" if cell.difference is None else signed(cell.difference)
    parts.append(_text(w / 2, 14, number(cell.value), "v mid"))
    parts.append(_text(w / 2, 27, "single" if cell.is_single else below, "g mid"))
    return Markup("").join(parts) + Markup("</g>")


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
    said = ("pale: the interval includes 0", "the single itself")
    for i, words in enumerate((*said, "not above the floor (chance or majority class)")):
        parts.append(_text(46, y + 9.5 + 18 * i, words, "l"))
    return parts, y + 54


def _swatch(shade_of: str, x: float, y: float, wide: float) -> Markup:
    return Markup('<g class="c {}">{}</g>').format(shade_of, _rect(x, y, wide, 12, ""))


# ---- forest plot --------------------------------------------------------------------------------

PLOT, LABELS, VALUES = 340.0, 132.0, 44.0
STEP = 27.0


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
    parts += _axis_below(scale, (top, bottom), 4)
    for name, value in forest.references.items():
        parts.append(_line(scale(value), top, scale(value), bottom, f"ref {name.split()[-1]}"))
    for i, cell in enumerate(forest.cells):
        parts.append(_forest_row(cell, scale, top + STEP * (i + 0.5), forest.title))
    legend, height = _references(forest.references, bottom + 32)
    return _svg(
        (PLOT, height), f"{forest.title}: {forest.metric} with intervals", [*parts, *legend]
    )


def _axis_below(scale: Scale, span: tuple[float, float], about: int) -> list[Markup]:
    top, bottom = span
    found = []
    for value in scale.ticks(about):
        found.append(_line(scale(value), top, scale(value), bottom, "grid"))
        found.append(_text(scale(value), bottom + 13, tick(value), "l mid"))
    return [*found, _line(scale.start, bottom, scale.end, bottom, "axis")]


def _forest_row(cell: Cell, scale: Scale, y: float, title: str) -> Markup:
    kind = "single" if cell.is_single else {"above": "up", "below": "down"}.get(cell.shown, "open")
    parts = [_title(cell_sentence(cell, title)), _label(cell.cocktail, y, LABELS)]
    if cell.value_low is not None and cell.value_high is not None:
        parts.append(_line(scale(cell.value_low), y, scale(cell.value_high), y, "bar"))
    x = scale(cell.value)
    if cell.seeds and not cell.is_single:
        parts.append(Markup('<circle class="dot" cx="{:g}" cy="{:g}" r="4"/>').format(x, y))
    else:
        corner, rest = ((0, -5), "l5 5l-5 5l-5 -5z") if cell.is_single else ((-4, -4), "h8v8h-8z")
        mark = Markup('<path class="dot" d="M{:g} {:g}{}"/>')
        parts.append(mark.format(x + corner[0], y + corner[1], rest))
    parts.append(_text(PLOT, y + 4, number(cell.value), "v end"))
    return Markup('<g class="row {}">').format(kind) + Markup("").join(parts) + Markup("</g>")


def _references(references: Mapping[str, float], y: float) -> tuple[list[Markup], float]:
    """What the lines behind are, two in a row."""
    found = []
    for i, (name, value) in enumerate(references.items()):
        x, at = (0.0, PLOT / 2)[i % 2], y + 16 * (i // 2)
        found.append(_line(x, at - 4, x + 24, at - 4, f"ref {name.split()[-1]}"))
        found.append(_text(x + 30, at, f"{name} {number(value)}", "l"))
    return found, y + 16 * max(0, (len(references) - 1) // 2) + 8


def gap_bar(cell: Cell) -> Markup:
    """The difference to the single as a dot with its interval around 0, 220 units wide."""
    values = [abs(v) for v in (cell.difference, cell.low, cell.high) if v is not None]
    reach = max([0.02, *values]) * 1.05
    scale = Scale(-reach, reach, 6, 214)
    kind = {"above": "up", "below": "down"}.get(cell.shown, "open")
    parts = [_line(scale(0), 2, scale(0), 20, "axis"), _line(6, 11, 214, 11, "grid")]
    parts.append(Markup('<g class="row {}">').format(kind))
    if cell.low is not None and cell.high is not None:
        parts.append(_line(scale(cell.low), 11, scale(cell.high), 11, "bar"))
    dot = Markup('<circle class="dot" cx="{:g}" cy="11" r="4.5"/></g>')
    parts.append(dot.format(scale(cell.difference or 0.0)))
    parts += [_text(scale(0), 31, "0", "l mid"), _text(6, 31, signed(-reach), "l")]
    parts.append(_text(214, 31, signed(reach), "l end"))
    said = f"difference {signed(cell.difference)} {ends(cell.low, cell.high, True)}"
    return _svg((220, 34), said, parts)


# ---- training curves ----------------------------------------------------------------------------

CURVE = (250.0, 168.0)


def curve_chart(chart: Chart) -> Markup:
    """Loss over steps of one cocktail, a line per seed; axes as in every other chart."""
    w, h = CURVE
    x, y = Scale(0, max(1, chart.steps), 34, w - 14), Scale(0, chart.top * 1.04, h - 20, 34)
    shown = wrap(chart.cocktail, w / BOLD, SMALL, 2)
    parts = [_title(plain(chart.cocktail, 300))]
    parts += [_text(0, 11 + 12.5 * i, line, "h") for i, line in enumerate(shown)]
    for value in y.ticks(4):
        parts.append(_line(x.start, y(value), x.end, y(value), "grid"))
        parts.append(_text(x.start - 5, y(value) + 3.5, tick(value), "l end"))
    whole = [v for v in x.ticks(4) if v == int(v)]
    parts += [_text(x(v), h - 6, tick(v), "l mid") for v in whole]
    for i, (seed, points) in enumerate(chart.runs):
        path = " ".join(f"{x(step):g},{y(loss):g}" for step, loss in points)
        line = Markup('<polyline class="k{}" points="{}"><title>seed {}</title></polyline>')
        parts.append(line.format(i % 5, path, "–" if seed is None else seed))
    return _svg(CURVE, f"training loss of {chart.cocktail}", parts)


# ---- data ---------------------------------------------------------------------------------------

WIDE = 400.0


def length_plot(rows: Sequence[LengthRow]) -> Markup:
    """Tokens per row: the whole span thin, p5 to p95 thick, the median marked; supervised below."""
    left = _room((row.ingredient for row in rows), 60, 130)
    right = WIDE - 88
    scale = Scale(0, max(1, *(row.tokens_max for row in rows)), left + 10, right)
    top, step = 18.0, 34.0
    bottom = top + step * len(rows)
    parts = _axis_below(scale, (top, bottom), 4)
    parts += [_text(WIDE, 10, "supervised", "l end"), _text(WIDE - 62, 10, "median", "l end")]
    for i, row in enumerate(rows):
        y = top + step * i + step / 2
        parts.append(_label(row.ingredient, y, left))
        parts.append(_box(scale, y - 4, _lengths(row, "tokens"), "all"))
        parts.append(_box(scale, y + 7, _lengths(row, "supervised"), "sup"))
        parts.append(_text(WIDE - 62, y + 4, str(row.tokens_median), "v end"))
        share = row.supervised / max(1, row.tokens)
        parts.append(_text(WIDE, y + 4, f"{100 * share:.1f} %", "v end"))
    y = bottom + 32
    parts += [_rect(left + 10, y - 8, 18, 7, "box all"), _text(left + 34, y, "all tokens", "l")]
    parts += [_rect(left + 110, y - 7, 18, 5, "box sup"), _text(left + 134, y, "supervised", "l")]
    return _svg((WIDE, y + 8), "tokens per row of each ingredient", parts)


def _lengths(row: LengthRow, kind: str) -> list[int]:
    return [getattr(row, f"{kind}_{end}") for end in ("min", "p5", "median", "p95", "max")]


def _box(scale: Scale, y: float, at: Sequence[int], kind: str) -> Markup:
    least, p5, median, p95, most = (scale(v) for v in at)
    half = 5.0 if kind == "all" else 2.5
    said = _title("{}: {}, p5 {}, median {}, p95 {}, {}".format(kind, *at))
    parts = [_line(least, y, most, y, "whisker")]
    parts.append(_rect(p5, y - half, max(1.5, p95 - p5), 2 * half, f"box {kind}"))
    parts.append(_line(median, y - half, median, y + half, "median"))
    return Markup("<g>") + said + Markup("").join(parts) + Markup("</g>")


def share_bars(rows: Sequence[Portion]) -> Markup:
    """Per cocktail three bars: rows asked, rows got, supervised tokens; a part per ingredient."""
    names = list(dict.fromkeys(row.ingredient for row in rows))
    kinds = {name: f"i{i % 9}" for i, name in enumerate(names)}
    left = _room((row.cocktail for row in rows), 60, 140)
    legend, top = _keys(kinds)
    parts = list(legend)
    cocktails = list(dict.fromkeys(row.cocktail for row in rows))
    for i, cocktail in enumerate(cocktails):
        y = top + 54 * i
        own = [row for row in rows if row.cocktail == cocktail]
        parts.append(_label(cocktail, y + 22, left, 3))
        for j, field in enumerate(("asked", "got", "supervised")):
            at = (left + 66, y + 15 * j)
            parts.append(_text(left + 60, at[1] + 10, field, "l end"))
            shares = [(kinds[row.ingredient], row.ingredient, getattr(row, field)) for row in own]
            parts += _stack(shares, at, WIDE - left - 66)
    return _svg((WIDE, top + 54 * len(cocktails)), "shares of each cocktail's ingredients", parts)


def _keys(kinds: Mapping[str, str]) -> tuple[list[Markup], float]:
    x, y = 0.0, 2.0
    found = []
    for name, kind in kinds.items():
        shown = fit(name, 180, SMALL)
        if x and x + 26 + width(shown, SMALL) > WIDE:
            x, y = 0.0, y + 18
        found += [_rect(x, y, 14, 11, kind), _text(x + 19, y + 9.5, shown, "l")]
        x += 36 + width(shown, SMALL)
    return found, y + 24


def _stack(
    shares: Sequence[tuple[str, str, float]], at: tuple[float, float], whole: float
) -> list[Markup]:
    x, y = at
    found = []
    for kind, name, share in shares:
        found.append(Markup("<g>") + _title(f"{plain(name, 80)}: {100 * share:.1f} %"))
        found.append(_rect(x, y, share * whole - 1, 12, kind))
        if share * whole > 28:
            found.append(_text(x + share * whole / 2, y + 9.5, f"{100 * share:.0f} %", "in mid"))
        found.append(Markup("</g>"))
        x = round(x + share * whole, 1)
    return found


def time_bars(runs: Sequence[RunRow]) -> Markup:
    """Seconds spent on each cocktail, a part per run; failed runs stand out."""
    by_cocktail: dict[str, list[RunRow]] = {}
    for run in runs:
        by_cocktail.setdefault(run.cocktail, []).append(run)
    totals = {name: sum(r.seconds or 0.0 for r in own) for name, own in by_cocktail.items()}
    left = _room(by_cocktail, 60, 140)
    scale = Scale(0, max([1.0, *totals.values()]), left + 8, WIDE - 72)
    parts = []
    for i, (name, own) in enumerate(by_cocktail.items()):
        y = 4 + 28.0 * i
        parts.append(_label(name, y + 9, left))
        spent = 0.0
        for run in own:
            x, spent = scale(spent), spent + (run.seconds or 0.0)
            said = (
                f"seed {'–' if run.seed is None else run.seed}: {run.state}, {seconds(run.seconds)}"
            )
            kind = run.state if run.state in ("done", "failed", "running") else "other"
            bar = _rect(x, y, max(1.0, scale(spent) - x - 1), 18, f"run {kind}")
            parts.append(Markup("<g>") + _title(said) + bar + Markup("</g>"))
        parts.append(_text(WIDE, y + 13, seconds(totals[name]), "v end"))
    return _svg((WIDE, 4 + 28.0 * len(by_cocktail)), "time spent on each cocktail", parts)
