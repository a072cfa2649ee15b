"""Views that grow while a network is trained: small ones cost less, and the last are as large as those without it.

Progressive resizing (Howard, 2018; Tan and Le, 2021, arXiv:2104.00298, section 4, without its growing regularization). Of the
sides s_1 < ... < s_n, the last of them the full one, the views of a step at the fraction f of the budget have

    s_i,   i = 1 + floor(2 f (n - 1))        f < 1/2: each smaller side for an equal part of the first half
    s_n                                      f >= 1/2

A network that learns at one size is worse at others (FixRes: Touvron et al., 2019, arXiv:1906.06423), so the second half has
the full side. The side follows from the progress of the step, as the learning rate does: a resumed run has those of an
uninterrupted one. Views of a side are those of a run that has it from beginning to end, of the same random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

from sensorium.base.draw import Draw, Views

GROWING = 0.5  # fraction of the budget in which views are smaller


def side_at(fraction: float, sides: Sequence[int]) -> int:
    """Of ``sides`` that follow each other, the one at a ``fraction`` of the budget."""
    last = len(sides) - 1
    return sides[min(last, int(fraction / GROWING * last))]


def growing(make: Callable[[int], Views], sides: Sequence[int]) -> Views:
    """The views that ``make`` makes for a side in pixels, of the ``sides`` one after the other; of a single one they are
    those of ``make`` themselves."""
    made = {side: make(side) for side in sides}
    full = made[sides[-1]]
    if len(made) == 1:
        return full

    @wraps(full)  # the fields that it reads, too
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        return made[side_at(draw.fraction, sides)](fields, draw)

    return views
