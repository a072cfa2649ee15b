"""The source of a run's data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Source:
    """The source of the data, and the options for preparing them. ``cache``: the folder of cached data beside the runs.

    ``settings`` are the recipe's, some of which affect the data; ``run``: the folder of the run of these data, None
    before there is one.
    """

    path: str
    test: str | None
    cache: Path
    image_size: int | None = None
    limit: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    run: Path | None = None
