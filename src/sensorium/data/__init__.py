"""What comes in: images in any layout, cached as pixels, diagnosed, augmented.

Names are imported when first used, so that looking at the package costs nothing. The functions ``cache`` and
``diagnose`` are imported from the modules of those names.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_WHERE = {
    "open_data": "open",
    "Opened": "fields",
    "ImageSet": "fields",
    "Skipped": "fields",
    "BadImage": "decode",
    "Pixels": "cache",
    "natural_size": "cache",
    "Findings": "diagnose",
}
__all__ = ["BadImage", "Findings", "ImageSet", "Opened", "Pixels", "Skipped", "natural_size", "open_data"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
