"""Sensorium: which method learns best from my images?

import sensorium as s
run = s.train("mae", data="photos/", budget="10m")
run.features(["a.jpg", "b.jpg"])
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sensorium.data.images.open import open_data as open_data
    from sensorium.errors import SensoriumError as SensoriumError
    from sensorium.runs.ablate import ablate as ablate
    from sensorium.runs.compare import compare as compare
    from sensorium.runs.run import Run as Run
    from sensorium.runs.train import train as train
    from sensorium.use import export as export
    from sensorium.use import load as load
    from sensorium.use.api import embed as embed
    from sensorium.use.api import evaluate as evaluate
    from sensorium.use.api import generate as generate
    from sensorium.use.api import neighbors as neighbors
    from sensorium.use.api import sample as sample
    from sensorium.use.api import search as search
    from sensorium.use.api import zeroshot as zeroshot
    from sensorium.use.detect import detect as detect
    from sensorium.use.predict import predict as predict

__version__ = "0.1.0"
__path__ = extend_path(__path__, __name__)  # a system may be installed from elsewhere, into a family's folder

# Imported on first use, so that `import sensorium` and `sensorium --help` import neither torch nor Lightning Fabric.
_LAZY = {
    "SensoriumError": "errors",
    "Run": "runs.run",
    "ablate": "runs.ablate",
    "compare": "runs.compare",
    "detect": "use.detect",
    "embed": "use.api",
    "evaluate": "use.api",
    "export": "use",
    "generate": "use.api",
    "load": "use",
    "neighbors": "use.api",
    "open_data": "data.images.open",
    "predict": "use.predict",
    "sample": "use.api",
    "search": "use.api",
    "train": "runs.train",
    "zeroshot": "use.api",
}
__all__ = [
    "Run", "SensoriumError", "ablate", "compare", "detect", "embed", "evaluate", "export", "generate", "load",
    "neighbors", "open_data", "predict", "sample", "search", "train", "zeroshot",
]  # fmt: skip


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from sensorium.base import threads

        threads.before_torch()
        return getattr(import_module(f"sensorium.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'sensorium' has no attribute '{name}'")
