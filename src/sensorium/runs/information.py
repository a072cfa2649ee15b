"""At which bound of mutual information a contrastive run sits: the bound that its loss is, and how near it is to its
ceiling.

A loss l that finds the own one among K candidates bounds the information of both by log K - l, at most log K
(:mod:`sensorium.parts.learning.information`). Which K is known to the method alone, so it logs both
(:class:`sensorium.abilities.BoundsInformation`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sensorium.abilities import BoundsInformation
from sensorium.method import Method
from sensorium.report.charts import Axis, Line, line_chart, nice_ticks
from sensorium.report.html import Html, count, number

NEAR = 0.9  # of the ceiling: what the loss can still tell apart there is little


def bound_of(method: Method, taken: Sequence[Mapping[str, float]]) -> dict[str, Any] | None:
    """``bound`` and ``ceiling`` by step in nats, and a sentence, ``said``, from the scalars of each step; None for a
    method whose loss is no such bound."""
    if not isinstance(method, BoundsInformation) or not taken:
        return None
    prefix = f"{method.phases[0]}/" if len(method.phases) > 1 else ""
    bound, ceiling = ([number(row[prefix + name]) for row in taken] for name in ("information", "ceiling"))
    return {"bound": bound, "ceiling": ceiling, "said": said(bound, ceiling)}


def said(bound: Sequence[float | None], ceiling: Sequence[float | None]) -> str:
    """The bound at the last step, its ceiling and its share of it."""
    steps, last, most = len(bound), bound[-1], ceiling[-1]
    when = f"at step {count(steps)}" + f" ({bound[0]:.2f} at the first)" * (steps > 1 and bound[0] is not None)
    if last is None or not most:
        return f"The bound of mutual information isn't a finite number {when}."
    told = f"The loss bounds the mutual information by {last:.2f} nats {when}, {last / most:.0%} of its ceiling, {most:.2f}."
    near = (
        " The ceiling limits it: more candidates (a larger batch or queue) would raise it."
        if last > NEAR * most
        else ""
    )
    return told + near


def bound_chart(found: Mapping[str, Any]) -> Html | None:
    """The bound and its ceiling by step; None with fewer than two finite values."""
    lines = []
    for i, (name, key) in enumerate((("bound", "bound"), ("ceiling", "ceiling"))):
        points = [(float(k), v) for k, v in enumerate(found[key], 1) if v is not None]
        lines.append(Line(name, points, f"var(--s{i})", dash=i, tips=[f"step {k:g}: {v:.4g}" for k, v in points]))
    values = [v for line in lines for _, v in line.points]
    if len(lines[0].points) < 2:
        return None
    low, high = min(0.0, *values), max(values)
    steps = len(found["bound"])
    x = Axis(1, steps, lambda v: f"{v:g}", title="step", ticks=[t for t in nice_ticks(1, steps, 8) if t == int(t)])
    y = Axis(low, high + 0.06 * (high - low), lambda v: f"{v:.3g}")
    return line_chart(lines, x, y, alt="Bound of mutual information and its ceiling by step", height=300)
