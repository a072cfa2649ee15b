"""Where data come from and how they are wanted."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Source:
    """Where data come from and how they are wanted. ``cache``: the folder of what is kept of them beside the runs.

    ``settings`` are the recipe's, some of which shape the data; ``run`` is the folder of the run whose data these are,
    None before there is one.
    """

    path: str
    test: str | None
    cache: Path
    image_size: int | None = None
    limit: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    run: Path | None = None
