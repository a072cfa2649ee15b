"""Next-token prediction: the loss and log-probabilities of every language model.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100


def precise(x: Tensor) -> Tensor:
    """In float32 or better, for softmax statistics."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def next_tokens(tokens: Tensor, documents: Tensor | None) -> Tensor:
    """[B, T + 1] -> the target after each of the first T tokens, [B, T]; ``IGNORED`` where another document begins."""
    target = tokens[:, 1:]
    return target if documents is None else target.masked_fill(documents[:, 1:] != documents[:, :-1], IGNORED)


def before_last(documents: Tensor | None) -> Tensor | None:
    """[B, T + 1] -> the documents of the input tokens, [B, T]."""
    return None if documents is None else documents[:, :-1]


def nll(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Mean of -log softmax(logits [B, T, V])[target [B, T]] over targets other than ``IGNORED`` as ``loss``, and in
    bits."""
    loss = F.cross_entropy(precise(logits).flatten(0, 1), target.flatten(), ignore_index=IGNORED)
    return {"loss": loss, "bits_per_token": loss.detach() / torch.log(torch.tensor(2.0))}


def log_prob(logits: Tensor, target: Tensor) -> Tensor:
    """Natural logarithm of the probability of each target: [B, T, V] and [B, T] -> [B, T]."""
    return precise(logits).log_softmax(-1).gather(-1, target[..., None]).squeeze(-1)
