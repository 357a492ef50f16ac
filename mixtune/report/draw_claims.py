"""Claims and tuning curves → figures as SVG text, as draw.py makes the others.

Knows: where things stand on these figures. Does not know: colours, HTML, how a number was computed.
"""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from mixtune.records import Claim, Estimate
from mixtune.report.draw import (
    BOLD,
    LABELS,
    PLOT,
    SMALL,
    STEP,
    Scale,
    _axis_below,
    _label,
    _line,
    _rect,
    _svg,
    _text,
    _title,
)
from mixtune.report.wording import ends, fit, signed

KINDS = {"confirmed": "up", "tie": "single"}


def claims_plot(claims: Sequence[Claim], titles: Mapping[str, str]) -> Markup:
    """A dot and an interval per target around 0, the margin shaded."""
    margin = max(claim.margin for claim in claims)
    spread = [v for c in claims for v in (c.value, c.low, c.high) if v is not None]
    reach = 1.05 * max([2 * margin, *map(abs, spread)])
    wide = PLOT + 60
    scale = Scale(-reach, reach, LABELS + 8, wide - 92)
    top, bottom = 8.0, 8.0 + STEP * len(claims)
    shade = _rect(scale(-margin), top, scale(margin) - scale(-margin), bottom - top, "band")
    parts = [shade, *_axis_below(scale, (top, bottom), 5)]
    parts.append(_line(scale(0), top, scale(0), bottom, "axis"))
    for i, claim in enumerate(claims):
        parts.append(_row(claim, scale, (top + STEP * (i + 0.5), wide), titles))
    return _svg((wide, bottom + 22), "claims: differences to the single task with intervals", parts)


def _row(claim: Claim, scale: Scale, at: tuple[float, float], titles: Mapping[str, str]) -> Markup:
    y, wide = at
    parts = [_title(claim.sentence), _label(titles.get(claim.target, claim.target), y, LABELS)]
    if claim.low is not None and claim.high is not None:
        parts.append(_line(scale(claim.low), y, scale(claim.high), y, "bar"))
    if claim.seeds:
        dot = Markup('<circle class="dot" cx="{:g}" cy="{:g}" r="4"/>')
        parts.append(dot.format(scale(claim.value), y))
    parts.append(_text(wide, y + 4, claim.verdict, "v end"))
    group = Markup('<g class="row {}">').format(KINDS.get(claim.verdict, "open"))
    return group + Markup("").join(parts) + Markup("</g>")


def tuning_chart(title: str, arms: Mapping[str, Sequence[Estimate]]) -> Markup:
    """Expected best score over the runs spent, a line per arm."""
    w, h = 340.0, 190.0
    values = [row.value for rows in arms.values() for row in rows]
    low, high = min(values), max(values)
    pad = 0.05 * ((high - low) or 0.01)
    most = max(len(rows) for rows in arms.values())
    x, y = Scale(1, max(2, most), 44, w - 12), Scale(low - pad, high + pad, h - 34, 30)
    parts = [_title(title), _text(0, 13, fit(title, w / BOLD, SMALL), "h")]
    for value in y.ticks(4):
        parts.append(_line(x.start, y(value), x.end, y(value), "grid"))
        parts.append(_text(x.start - 5, y(value) + 3.5, f"{value:.3f}".rstrip("0"), "l end"))
    for value in x.ticks(4):
        if value == int(value):
            parts.append(_text(x(value), h - 20, f"{value:g}", "l mid"))
    for place, (name, rows) in enumerate(arms.items()):
        points = " ".join(f"{x(k)},{y(row.value)}" for k, row in enumerate(rows, 1))
        line = Markup('<polyline class="k{}" points="{}"><title>{}</title></polyline>')
        parts.append(line.format(place, points, name))
        if len(rows) == 1:
            dot = Markup('<circle class="k{}" cx="{:g}" cy="{:g}" r="3"/>')
            parts.append(dot.format(place, x(1), y(rows[0].value)))
    parts.append(_text((x.start + x.end) / 2, h - 5, "runs", "l mid"))
    said = "; ".join(
        f"{name}: {signed(rows[-1].value)} with {len(rows)} runs {ends(None, None)}".strip()
        for name, rows in arms.items()
    )
    return _svg((w, h), f"tuning curves, {title}: {said}", parts)
