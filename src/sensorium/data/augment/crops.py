"""Random crops of a picture, as methods that learn without labels see them: SimCLR's, BYOL's, and several at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sensorium.base.draw import Draw, Views
from sensorium.data.augment.views import View
from sensorium.data.rows import reads

SMALL = 64  # pixels up to which blur would remove too much detail


def drawn(field: str, every: Sequence[View], mean: Sequence[float], std: Sequence[float]) -> Views:
    """``{field: [x_1, x_2, ...]}``: one of each of the views ``every`` of every picture, in order."""

    @reads("image")
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        return {field: [view(fields["image"], draw, mean, std) for view in every]}

    return views


def simclr_view(
    size: int, scale: tuple[float, float] = (0.08, 1.0), *, strength: float | None = None, blur: float | None = None
) -> View:
    """SimCLR's (Chen et al., 2020, arXiv:2002.05709, appendix A): crop, flip, jitter, gray, blur.

    Up to 64 pixels, ``strength`` of the jitter is 0.5 and there is no ``blur`` (its probability), as in the paper's
    CIFAR-10 runs; above, 1.0 and 0.5.
    """
    small = size <= SMALL
    s = (0.5 if small else 1.0) if strength is None else strength
    p = (0.0 if small else 0.5) if blur is None else blur
    return View(size, scale, jitter=(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s), jitter_p=0.8, grey_p=0.2, blur_p=p)


def byol_view(
    size: int, scale: tuple[float, float], blur_p: float, solarize_p: float = 0.0, *, blur: bool | None = None
) -> View:
    """BYOL's (Grill et al., 2020, arXiv:2006.07733, appendix B, table 6): a weaker jitter than SimCLR's, and one of two
    views blurred always and the other seldom, but solarized. ``blur`` is off by default up to 64 pixels."""
    p = blur_p if (size > SMALL if blur is None else blur) else 0.0
    return View(size, scale, jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, grey_p=0.2, blur_p=p, solarize_p=solarize_p)


def simclr_views(
    mean: Sequence[float],
    std: Sequence[float],
    size: int,
    *,
    strength: float | None = None,
    blur: float | None = None,
    scale: tuple[float, float] = (0.08, 1.0),
) -> Views:
    """``{"views": [x1, x2]}``, both :func:`simclr_view`."""
    return drawn("views", [simclr_view(size, scale, strength=strength, blur=blur)] * 2, mean, std)


def byol_views(
    mean: Sequence[float],
    std: Sequence[float],
    size: int,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    blur: bool | None = None,
) -> Views:
    """``{"views": [x1, x2]}`` of BYOL's two distributions, :func:`byol_view`."""
    first, second = byol_view(size, scale, 1.0, blur=blur), byol_view(size, scale, 0.1, 0.2, blur=blur)
    return drawn("views", [first, second], mean, std)
