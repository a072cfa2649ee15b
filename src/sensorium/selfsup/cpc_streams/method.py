"""CPC of streams: representation learning with contrastive predictive coding (van den Oord, Li & Vinyals, 2018,
arXiv:1807.03748, section 3.1), of signals and of features in time.

The paper's system for speech, of frames instead of samples: convolutions encode a window, a GRU sums up what has been, and
the next moments are told from all others. Equations and loss are in :mod:`sensorium.selfsup.predictive`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from sensorium.abilities import StreamEncoder
from sensorium.selfsup.predictive import PredictiveCoding


class StreamCPC(PredictiveCoding, StreamEncoder):
    """Contrastive prediction of the next moments of windows of ``features`` values per frame; ``numbers``: those of
    :class:`PredictiveCoding`."""

    field = "frames"

    def __init__(self, features: int, **numbers: Any) -> None:
        super().__init__(nn.Identity(), features, **numbers)
