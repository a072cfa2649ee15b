"""Schedules: values as functions of the fraction of the budget spent.

They depend on the fraction in [0, 1], never on steps or epochs, so that a budget in minutes, steps or images gives the
same curve. Fractions are clamped.
"""

from __future__ import annotations

import math


def cosine(start: float, end: float, fraction: float) -> float:
    """From ``start`` at 0 to ``end`` at 1 along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * _clamped(fraction))) / 2


def linear(start: float, end: float, fraction: float) -> float:
    """Linear from ``start`` at 0 to ``end`` at 1."""
    return start + (end - start) * _clamped(fraction)


def warmup_cosine(fraction: float, warmup: float = 0.05, floor: float = 0.0, start: float = 0.01) -> float:
    """Learning-rate factor: linear from ``start`` to 1 during the first ``warmup`` of the budget, then a cosine to
    ``floor``.

    It starts above 0, so that the first step has an effect.
    """
    fraction = _clamped(fraction)
    if fraction < warmup:
        return linear(start, 1.0, fraction / warmup)
    return cosine(1.0, floor, (fraction - warmup) / (1 - warmup)) if warmup < 1 else 1.0


def warmup_linear(fraction: float, warmup: float = 0.1, start: float = 0.01) -> float:
    """Learning-rate factor: linear from ``start`` to 1 during the first ``warmup`` of the budget, then linear to 0, which
    is better than a cosine where there is time for few steps (Defazio et al., 2023, arXiv:2310.07831)."""
    fraction = _clamped(fraction)
    if fraction < warmup:
        return linear(start, 1.0, fraction / warmup)
    return linear(1.0, 0.0, (fraction - warmup) / (1 - warmup)) if warmup < 1 else 1.0


def _clamped(fraction: float) -> float:
    return min(max(fraction, 0.0), 1.0)
