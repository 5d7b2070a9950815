"""Small drawings as inline SVG: lines with intervals, and bars that stand in a table.

Their colours are the page's, so that they turn with light and dark. Equal input gives equal text.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from zero_shot.report_page import COLOURS

# The drawing and its margins, in its own units.
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 360, 290, 60, 40, 12, 12
_DASHES: Final = ("", "7 3", "2 3", "9 3 2 3")
_BAR, _BAR_HEIGHT = 90, 14

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points joined in order; `style` chooses colour and dashes (None: faint and thin).

    `ends` are intervals of y, `dots` marks the points.
    """

    xs: Sequence[float]
    ys: Sequence[float]
    style: int | None = 0
    ends: Sequence[Range] = ()
    dots: bool = False


def plot(
    lines: Sequence[Line],
    *,
    described: str,
    x_label: str,
    y_label: str,
    x_range: Range | None = None,
    y_range: Range | None = None,
    diagonal: bool = False,
    counts: Sequence[tuple[Range, int]] = (),
) -> str:
    """Lines over one pair of axes.

    Args:
        described: what the drawing shows, for those who do not see it.
        x_range, y_range: None: of the points. Points that are not finite are left out.
        diagonal: draws y = x.
        counts: grey bars from the bottom over ranges of x, the highest a quarter of the height.
    """
    xs = [x for line in lines for x in line.xs if math.isfinite(x)]
    ys = [y for line in lines for y in line.ys if math.isfinite(y)]
    (x0, x1), (y0, y1) = x_range or _around(xs), y_range or _around(ys)

    def place(x: float, y: float) -> tuple[float, float]:
        right = _LEFT + (x - x0) / (x1 - x0) * (_WIDTH - _LEFT - _RIGHT)
        return round(right, 1), round(_HEIGHT - _BOTTOM - (y - y0) / (y1 - y0) * (_HEIGHT - _BOTTOM - _TOP), 1)

    parts = _axes((x0, x1), (y0, y1), x_label, y_label)
    most = max((n for _, n in counts), default=0)
    for (low, high), n in counts:
        if n:
            (left, top), (right, bottom) = place(low, y0 + (y1 - y0) * n / most / 4), place(high, y0)
            size = f'width="{right - left - 1:.1f}" height="{bottom - top:.1f}"'
            parts.append(f'<rect class="count" x="{left}" y="{top}" {size}><title>{n:,}</title></rect>')
    if diagonal:
        (left, bottom), (right, top) = place(x0, y0), place(x1, y1)
        parts.append(f'<line class="even" x1="{left}" y1="{bottom}" x2="{right}" y2="{top}"/>')
    for line in lines:
        ends = line.ends or [(math.nan, math.nan)] * len(line.xs)
        finite = [(x, y, e) for x, y, e in zip(line.xs, line.ys, ends, strict=True) if math.isfinite(x + y)]
        points = _corners([place(x, y) for x, y, _ in finite])
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        parts.append(f'<polyline class="curve {_stroke(line.style)} points="{path}"/>')
        for x, y, (low, high) in finite:
            if math.isfinite(low + high):
                (left, bottom), (_, top) = place(x, low), place(x, high)
                parts.append(f'<line class="{_stroke(line.style)} x1="{left}" x2="{left}" y1="{bottom}" y2="{top}"/>')
            if line.dots:
                left, top = place(x, y)
                parts.append(f'<circle class="f{(line.style or 0) % COLOURS}" cx="{left}" cy="{top}" r="3.2"/>')
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(described)}">'
        f"{''.join(parts)}</svg>"
    )


def swatch(style: int | None) -> str:
    """A short line in the colour and dashes of a style, for a legend."""
    return (
        f'<svg width="34" height="10" aria-hidden="true"><line class="curve {_stroke(style)} '
        'x1="1" y1="5" x2="33" y2="5"/></svg>'
    )


def bar(value: float, low: float, high: float, style: int) -> str:
    """A bar of 0 to 1 with its interval, beside the number that it shows; nothing if undefined."""
    if not math.isfinite(value):
        return ""
    middle = _BAR_HEIGHT / 2
    drawn = (
        f'<rect class="track" width="{_BAR}" height="{_BAR_HEIGHT}"/>'
        f'<rect class="f{style}" width="{_BAR * value:.1f}" height="{_BAR_HEIGHT}" fill-opacity=".7"/>'
    )
    if math.isfinite(low + high):
        a, b = _BAR * low, _BAR * high
        drawn += f'<path class="whisker" d="M{a:.1f} {middle}H{b:.1f}M{a:.1f} 4v6M{b:.1f} 4v6"/>'
    return f'<svg class="bar" width="{_BAR}" height="{_BAR_HEIGHT}" aria-hidden="true">{drawn}</svg>'


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers in low .. high.

    Example:
        >>> ticks(0.0, 1.0)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _axes(xs: Range, ys: Range, x_label: str, y_label: str) -> list[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts: list[str] = []
    for value in ticks(*ys):
        y = bottom - (value - ys[0]) / (ys[1] - ys[0]) * (bottom - _TOP)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="faint" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    for value in ticks(*xs):
        x = _LEFT + (value - xs[0]) / (xs[1] - xs[0]) * (right - _LEFT)
        parts.append(f'<text class="faint" x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{_short(value)}</text>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{html.escape(x_label)}</text>')
    turned = f'transform="rotate(-90 11 {(_TOP + bottom) / 2})"'
    parts.append(f'<text x="11" y="{(_TOP + bottom) / 2}" text-anchor="middle" {turned}>{html.escape(y_label)}</text>')
    return parts


def _corners(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points without those between two of the same x or the same y, which a line passes through anyway."""
    kept: list[tuple[float, float]] = []
    for point in points:
        if len(kept) > 1 and any(kept[-2][axis] == kept[-1][axis] == point[axis] for axis in (0, 1)):
            kept.pop()
        kept.append(point)
    return kept


def _around(values: Sequence[float]) -> Range:
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return low - room, high + room


def _stroke(style: int | None) -> str:
    """The end of a class attribute, and dashes: each colour is used four times, in other dashes."""
    if style is None:
        return 'thin"'
    pattern = _DASHES[style // COLOURS % len(_DASHES)]
    return f's{style % COLOURS}"' + (f' stroke-dasharray="{pattern}"' if pattern else "")


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


__all__ = ["Line", "bar", "plot", "swatch", "ticks"]
