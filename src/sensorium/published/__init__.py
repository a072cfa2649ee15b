"""Published checkpoints: reading (:func:`load`) and writing (:func:`export`)."""

from sensorium.published.export import export, exportable
from sensorium.published.load import load, load_backbone

__all__ = ["export", "exportable", "load", "load_backbone"]
