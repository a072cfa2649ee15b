"""Published checkpoints: reading (:func:`load`) and writing (:func:`export`)."""

from sensorium.published.export import export
from sensorium.published.load import load, load_backbone

__all__ = ["export", "load", "load_backbone"]
