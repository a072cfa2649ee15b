"""Published checkpoints: reading (:func:`load`) and writing (:func:`export`)."""

from sensorium.published.export import Written, export, exportable, preferred
from sensorium.published.load import load, load_backbone

__all__ = ["Written", "export", "exportable", "load", "load_backbone", "preferred"]
