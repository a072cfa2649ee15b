"""Lightning's names that this package uses, without what it loads beside them.

Lightning asks torchmetrics for two classes, to see whether what is logged is a metric of theirs. That imports all of
torchmetrics, and where they are installed transformers, SciPy's signal processing and torchvision: nine seconds of
fourteen at the start of each process. No metric of theirs is logged here, so two empty classes stand in while Lightning
is loaded. Whoever imports torchmetrics before or after gets the real one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from types import ModuleType


@contextmanager
def _without_torchmetrics() -> Iterator[None]:
    if "torchmetrics" in sys.modules:
        yield
        return
    stand_in = ModuleType("torchmetrics")
    for name in ("Metric", "MetricCollection"):
        setattr(stand_in, name, type(name, (), {}))
    stand_in.__dict__["__version__"] = version("torchmetrics")
    sys.modules["torchmetrics"] = stand_in
    try:
        yield
    finally:
        del sys.modules["torchmetrics"]


with _without_torchmetrics():
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.loggers import TensorBoardLogger

__all__ = [
    "LightningEnvironment",
    "LightningModule",
    "MisconfigurationException",
    "TensorBoardLogger",
    "TorchCheckpointIO",
    "Trainer",
]
