"""Shared by recipes that predict the next moments of a sequence."""

from __future__ import annotations

from sensorium.recipe.recipe import Settings

FEWEST = 16  # moments of a sequence that halving their number leaves
FARTHEST = 12  # steps ahead of the paper (van den Oord et al., 2018, section 3.1)


def pick_steps(given: int | None, count: int, s: Settings) -> int:
    """How many of ``count`` moments ahead is predicted, at most. Raises ValueError if that leaves nothing to predict."""
    if count < 2:
        raise ValueError(f"{count} moments are too few to predict one: give fewer --halvings or a larger --length")
    usual = max(1, min(FARTHEST, count // 4))
    steps: int = s.pick("steps", given, usual, f"a quarter of {count} moments; the paper's is {FARTHEST}")
    if not 1 <= steps < count:
        raise ValueError(f"--steps {steps} must be at least 1 and below {count}, the number of moments")
    return steps
