"""Other people's checkpoints: in (:func:`load`) and out (:func:`export`)."""

from sensorium.published.export import export
from sensorium.published.load import load, load_backbone

__all__ = ["export", "load", "load_backbone"]
