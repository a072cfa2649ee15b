"""Charts as inline SVG, drawn here: lines with error bars, and bars.

Each chart is written twice, wide and narrow, and the style sheet shows the one that fits, so that text keeps its size
on a phone and the chart needs no script. Hover texts are ``<title>`` elements; the page's script turns them into
tooltips and reads values of long curves from the axes in the ``svg``'s ``data-x`` and ``data-y``. Colors are the style
sheet's ``--s0``... (Okabe and Ito's palette); every line also has a marker shape or dash.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sensorium.report.html import Html, el, join, percent, text

Format = Callable[[float], str]
MARKERS = ("circle", "square", "triangle", "diamond", "cross")
LETTER = 7.3  # width of a letter of the labels
DASHES = ("7 4", "2 3", "9 3 2 3", "4 2", "12 4", "1 4")


@dataclass(frozen=True)
class Line:
    """One line: points (x, y), half-lengths of error bars, one text per point; ``dash`` 0 is a method, 1.. a
    baseline."""

    name: str
    points: Sequence[tuple[float, float]]
    color: str
    errors: Sequence[float | None] = ()
    tips: Sequence[str] = ()
    dash: int = 0
    marker: int | None = None
    faint: bool = False
    labelled: bool = True


@dataclass(frozen=True)
class Axis:
    """One axis: its range, number format, whether it is logarithmic, and the ticks if given."""

    low: float
    high: float
    show: Format
    log: bool = False
    title: str = ""
    ticks: Sequence[float] = ()
    kind: str = ""

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high end."""
        low, high, value = (
            (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return (value - low) / (high - low) if high > low else 0.5


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers inside a range: steps of 1, 2, 2.5 or 5 times a power of ten."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10, 20) if s * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def time_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Ticks for seconds: whole seconds, minutes, hours."""
    steps = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400)
    step = next((s for s in steps if (high - low) / s <= most), None)
    if step is None or high - low < 2:
        return nice_ticks(low, high, most)
    return [float(t) for t in range(math.ceil(low / step) * step, int(high) + 1, step)]


def spread_labels(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions at least ``gap`` apart, in the same order, close to the given ones and inside the range if they fit."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed: list[float] = []
    for i in order:
        placed.append(max(wanted[i], placed[-1] + gap if placed else low))
    over = high
    for j in range(len(placed) - 1, -1, -1):
        placed[j] = min(placed[j], over)
        over = placed[j] - gap
    result = [0.0] * len(wanted)
    for j, i in enumerate(order):
        result[i] = placed[j]
    return result


@dataclass(frozen=True)
class Frame:
    """The plot area inside the SVG, in SVG units."""

    width: int
    height: int
    left: int = 48
    right: int = 16
    top: int = 14
    bottom: int = 44

    def at(self, x: Axis, y: Axis, point: tuple[float, float]) -> tuple[float, float]:
        across = self.left + x.place(point[0]) * (self.width - self.left - self.right)
        return across, self.height - self.bottom - y.place(point[1]) * (self.height - self.top - self.bottom)


def _marker(shape: int, x: float, y: float, inside: Html) -> Html:
    kind = MARKERS[shape % len(MARKERS)]
    if kind == "circle":
        return el("circle", inside, cx=f"{x:.1f}", cy=f"{y:.1f}", r=4.2, cls="mark")
    r = 4.6
    paths = {
        "square": f"M{x - 4:.1f} {y - 4:.1f}h8v8h-8z",
        "triangle": f"M{x:.1f} {y - r - 0.6:.1f}l{r + 0.6:.1f} {2 * r:.1f}h{-2 * r - 1.2:.1f}z",
        "diamond": f"M{x:.1f} {y - r - 1:.1f}l{r + 1:.1f} {r + 1:.1f}l{-r - 1:.1f} {r + 1:.1f}l{-r - 1:.1f} {-r - 1:.1f}z",
        "cross": f"M{x - r:.1f} {y - 1.5:.1f}h3v-3h3v3h3v3h-3v3h-3v-3h-3z",
    }
    return el("path", inside, d=paths[kind], cls="mark")


def written_ticks(axis: Axis, most: int) -> list[tuple[float, str]]:
    """An axis's ticks with their labels, all different; none where there would be just one, which gives no scale."""
    ticks = [tick for tick in axis.ticks if axis.low <= tick <= axis.high * (1 + 1e-9)]
    if len(ticks) < 2:
        ticks = nice_ticks(axis.low, axis.high, most)
    ticks = [tick for tick in ticks if tick > 0] if axis.log else ticks
    labels = [axis.show(tick) for tick in ticks]
    digits, scale, unit = 2, 100 if axis.kind == "percent" else 1, " %" if axis.kind == "percent" else ""
    if all(label.endswith((" MB", " GB")) for label in labels):
        unit = labels[0][-3:]
        scale = 1 if unit == " MB" else 1e-3
    while len(set(labels)) < len(labels) and digits < 15:
        digits += 1
        labels = [f"{scale * tick:.{digits}g}{unit}" for tick in ticks]
    return list(zip(ticks, labels, strict=True)) if len(ticks) > 1 else []


def _axes(frame: Frame, x: Axis, y: Axis, narrow: bool) -> Html:
    parts = []
    right, floor = frame.width - frame.right, frame.height - frame.bottom
    for tick, label in written_ticks(y, 5):
        at = frame.at(x, y, (x.low, tick))[1]
        parts.append(el("line", x1=frame.left, x2=right, y1=f"{at:.1f}", y2=f"{at:.1f}", cls="grid"))
        parts.append(el("text", label, x=frame.left - 8, y=f"{at + 4:.1f}", cls="end"))
    free = -math.inf  # where the last label ends
    for tick, label in written_ticks(x, 4 if narrow else 8):
        across, half = frame.at(x, y, (tick, y.low))[0], LETTER * len(label) / 2
        parts.append(el("line", x1=f"{across:.1f}", x2=f"{across:.1f}", y1=floor, y2=floor + 4, cls="tick"))
        if across - half >= free:
            parts.append(el("text", label, x=f"{across:.1f}", y=floor + 18, cls="mid"))
            free = across + half + LETTER
    parts.append(el("line", x1=frame.left, x2=right, y1=floor, y2=floor, cls="axis"))
    if x.title:
        parts.append(el("text", x.title, x=f"{(frame.left + right) / 2:.0f}", y=frame.height - 6, cls="mid name"))
    return join(parts)


def _line(line: Line, frame: Frame, x: Axis, y: Axis) -> Html:
    spots = [frame.at(x, y, point) for point in line.points]
    parts = []
    for spot, point, error in zip(spots, line.points, line.errors, strict=False):
        if error:
            low, high = (frame.at(x, y, (point[0], min(max(point[1] + e, y.low), y.high)))[1] for e in (-error, error))
            across = spot[0]
            bar = f"M{across - 4:.1f} {low:.1f}h8M{across - 4:.1f} {high:.1f}h8M{across:.1f} {low:.1f}V{high:.1f}"
            parts.append(el("path", d=bar, cls="bar"))
    d = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in spots)
    parts.append(
        el("path", d=d, cls="line", stroke_dasharray=DASHES[(line.dash - 1) % len(DASHES)] if line.dash else None)
    )
    if line.marker is not None:
        tips = [*line.tips, *[""] * (len(spots) - len(line.tips))]
        parts += [
            _marker(line.marker, a, b, el("title", tip) if tip else Html(""))
            for (a, b), tip in zip(spots, tips, strict=True)
        ]
    kind = "series" + (" base" if line.dash else "") + (" faint" if line.faint else "")
    return el("g", join(parts), cls=kind, style=f"--c:{line.color}", data_name=line.name)


def _end_labels(lines: Sequence[Line], frame: Frame, x: Axis, y: Axis) -> Html:
    ends = [frame.at(x, y, line.points[-1]) for line in lines]
    placed = spread_labels([end[1] for end in ends], 15, frame.top + 4, frame.height - frame.bottom - 2)
    parts = []
    for line, end, at in zip(lines, ends, placed, strict=True):
        start = frame.width - frame.right + 8
        lead = f"M{end[0] + 5:.1f} {end[1]:.1f}L{start - 2} {at:.1f}"
        if abs(at - end[1]) > 3 or start - end[0] > 14:
            parts.append(el("path", d=lead, cls="lead"))
        name = shortened(line.name, int((frame.right - 26) / LETTER))
        label = el("text", name, x=start + 2, y=f"{at + 4:.1f}", cls="label" + (" dim" if line.dash else ""))
        parts.append(el("g", label, style=f"--c:{line.color}", data_name=line.name))
    return join(parts)


def shortened(name: str, most: int) -> str:
    """A name of at most ``most`` characters: its middle goes."""
    return name if len(name) <= most else f"{name[: (most - 1) // 2]}…{name[-(most // 2) :]}"


def _scale(axis: Axis, low: float, high: float) -> str:
    return f"{'log' if axis.log else 'lin'} {axis.low:.8g} {axis.high:.8g} {low} {high} {axis.kind}".strip()


def _area(points: Sequence[tuple[float, float, float]], frame: Frame, x: Axis, y: Axis, color: str) -> Html:
    """A shaded area between two heights, (x, low, high) at each point, as far as the axis goes."""
    upper = [(across, min(max(high, y.low), y.high)) for across, _, high in points]
    lower = [(across, min(max(low, y.low), y.high)) for across, low, _ in points]
    spots = [frame.at(x, y, point) for point in [*upper, *lower[::-1]]]
    return el("path", d="M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in spots) + "z", cls="area", style=f"--c:{color}")


def line_chart(
    lines: Iterable[Line],
    x: Axis,
    y: Axis,
    *,
    alt: str,
    height: int = 380,
    small: bool = False,
    area: Sequence[tuple[float, float, float]] = (),
) -> Html:
    """A line chart, wide and narrow; ``small`` writes only the narrow one (one of several side by side). ``area``: (x, low,
    high) of what is shaded behind the first line, in its color."""
    lines = [line for line in lines if line.points]
    drawn = []
    for narrow in (True,) if small else (False, True):
        named = [] if narrow else [line for line in lines if line.labelled]
        room = 26 + max((math.ceil(LETTER * len(line.name)) for line in named), default=-10)
        beside = max((math.ceil(LETTER * len(label)) for _, label in written_ticks(y, 5)), default=0)
        frame = Frame(
            (430 if small else 360) if narrow else 1000, height if small or not narrow else 300,
            left=max(48, beside + 14), right=min(room, 260),
        )  # fmt: skip
        inner = [el("title", alt), _axes(frame, x, y, narrow)]
        inner += [_area(area, frame, x, y, lines[0].color)] if area and lines else []
        inner += [_line(line, frame, x, y) for line in sorted(lines, key=lambda line: not line.dash)]
        inner.append(_end_labels(named, frame, x, y))
        drawn.append(
            el(
                "svg",
                join(inner),
                viewBox=f"0 0 {frame.width} {frame.height}",
                cls="chart " + ("small" if small else "narrow" if narrow else "wide"),
                role="img",
                aria_label=alt,
                data_x=_scale(x, frame.left, frame.width - frame.right),
                data_y=_scale(y, frame.height - frame.bottom, frame.top),
            )
        )
    return join(drawn) if small else join([*drawn, legend(lines)])


def legend(lines: Sequence[Line]) -> Html:
    """A legend for the narrow form, which has no room for names beside its lines."""
    items = []
    for line in sorted(lines, key=lambda line: bool(line.dash)):
        dash = DASHES[(line.dash - 1) % len(DASHES)] if line.dash else None
        swatch = [el("path", d="M1 7H27", cls="line", stroke_dasharray=dash)]
        if line.marker is not None:
            swatch.append(_marker(line.marker, 14, 7, Html("")))
        picture = el("svg", join(swatch), viewBox="0 0 28 14", cls="swatch series", aria_hidden="true")
        items.append(el("li", picture, text(line.name), style=f"--c:{line.color}", data_name=line.name))
    return el("ul", join(items), cls="legend phone")


def bars(rows: Sequence[tuple[str, float, str, str]], *, high: float | None = None) -> Html:
    """Horizontal bars: (name, length, label, color), scaled to ``high``."""
    top = high or max((row[1] for row in rows), default=1.0) or 1.0
    items = []
    for name, value, written, color in rows:
        share = percent(min(max(value / top, 0.0), 1.0), 2).replace(" ", "")
        bar = el("span", el("b", style=f"width:{share};--c:{color}"), cls="track")
        items.append(el("li", el("span", name, cls="who", title=name), bar, el("span", written, cls="much")))
    return el("ul", join(items), cls="bars")
