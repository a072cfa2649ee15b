"""The source of a run's data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sensorium.data.images.values import Scale


@dataclass(frozen=True)
class Source:
    """The source of the data, and the options for preparing them. ``cache``: the folder of cached data beside the runs.

    ``settings`` are the recipe's, some of which affect the data; ``run``: the folder of the run of these data, None
    before there is one; ``scale``: of 16-bit and float images, that of the run, None before there is one.
    """

    path: str
    test: str | None
    cache: Path
    image_size: int | None = None
    limit: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    run: Path | None = None
    scale: Scale | None = None
