"""CPC of text: representation learning with contrastive predictive coding (van den Oord, Li & Vinyals, 2018, arXiv:1807.03748,
section 3.3).

Tokens are embedded, convolutions encode a few of them at a time, a GRU sums up what has been read, and what comes next is told
from all other places. The paper encodes whole sentences of words; here a moment is of some bytes, as in its system for speech.
Equations and loss are in :mod:`sensorium.selfsup.predictive`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from sensorium.abilities import TextEncoder
from sensorium.selfsup.predictive import PredictiveCoding


class TextCPC(PredictiveCoding, TextEncoder):
    """Contrastive prediction of what comes next in rows of ``context`` tokens from a vocabulary of ``vocab``;
    ``numbers``: those of :class:`PredictiveCoding`."""

    field = "tokens"

    def __init__(self, vocab: int, context: int, *, width: int, **numbers: Any) -> None:
        super().__init__(nn.Embedding(vocab, width), width, width=width, **numbers)
        self.vocab, self.context = vocab, context
