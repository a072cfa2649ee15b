"""Sensorium: which method learns best from my images?

import sensorium as s
run = s.train("mae", data="photos/", budget="10m")
run.features(images)
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sensorium.data.images.open import open_data as open_data
    from sensorium.errors import SensoriumError as SensoriumError
    from sensorium.runs.compare import compare as compare
    from sensorium.runs.run import Run as Run
    from sensorium.runs.train import train as train
    from sensorium.use import export as export
    from sensorium.use import load as load
    from sensorium.use.predict import predict as predict

__version__ = "0.1.0"
__path__ = extend_path(__path__, __name__)  # a system may be installed from elsewhere, into a family's folder

# Imported on first use, so that `import sensorium` and `sensorium --help` import neither torch nor Lightning Fabric.
_LAZY = {
    "SensoriumError": "errors",
    "Run": "runs.run",
    "compare": "runs.compare",
    "export": "use",
    "load": "use",
    "open_data": "data.images.open",
    "predict": "use.predict",
    "train": "runs.train",
}
__all__ = ["Run", "SensoriumError", "compare", "export", "load", "open_data", "predict", "train"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from sensorium.base import threads

        threads.before_torch()
        return getattr(import_module(f"sensorium.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'sensorium' has no attribute '{name}'")
