"""MAE of text: masked language modeling (BERT: Devlin et al., 2018, arXiv:1810.04805) by a masked autoencoder (He et al., 2022,
arXiv:2111.06377).

Some of a row's tokens are removed; the encoder gets the rest, and a small decoder predicts which tokens the removed ones are.
Masking and decoder are in :mod:`sensorium.selfsup.masked`; here is what is a text's:
    patch      one token, a byte by default, with a learned embedding
    positions  rotary, of encoder and decoder (RoPE: Su et al., 2021, arXiv:2104.09864, section 4.2, where a masked language
               model learns faster by them): what is between two neighbors is found by distances, which a table of sinusoids
               has to be learned to tell
    L = mean over removed tokens of -log softmax(y)[token]
Unlike BERT the encoder never sees a mask token, and is as much faster as there are fewer tokens.
Shapes: B rows of T tokens out of V, M of them masked, D width.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import MaskedLanguageModel, TextEncoder
from sensorium.base.precision import precise
from sensorium.networks.sequence_vit import SequenceViT
from sensorium.selfsup.masked import MaskedSequence

Positions = Literal["rotary", "sinusoids"]


class TextMAE(MaskedSequence, TextEncoder, MaskedLanguageModel):
    """A masked autoencoder of rows of ``context`` tokens from a vocabulary of ``vocab``.

    width, depth, heads: of the encoder. ``numbers``: the decoder's and the mask's, as of :class:`MaskedSequence`.
    """

    field = "tokens"

    def __init__(
        self,
        vocab: int,
        context: int,
        width: int,
        depth: int,
        heads: int,
        *,
        positions: Positions = "rotary",
        **numbers: Any,
    ) -> None:
        if positions not in get_args(Positions):
            raise ValueError(f"positions must be one of {', '.join(get_args(Positions))}, got {positions!r}")
        backbone = SequenceViT(Token(vocab, width), 1, width, depth, heads, rotary=positions == "rotary")
        super().__init__(backbone, vocab, **numbers)
        self.vocab, self.context = vocab, context

    def losses(self, predicted: Tensor, values: Tensor) -> dict[str, Tensor]:
        """Logits [B, M, V] and tokens [B, M, 1] -> the loss, in nats per token. Logs ``right``, the fraction of the tokens
        that are the likeliest."""
        logits, tokens = precise(predicted).flatten(0, 1), values.flatten()
        right = (logits.detach().argmax(1) == tokens).to(logits.dtype).mean()
        return {"loss": F.cross_entropy(logits, tokens), "right": right}

    def masked_log_prob(self, tokens: Tensor, masked: Tensor) -> Tensor:
        """int64 [B, T], bool [B, T] with M True in every row -> [B, M]. Raises ValueError if rows have different numbers
        of masked tokens, or none is left."""
        count = int(masked[0].sum())
        if (masked.sum(1) != count).any() or not 0 < count < masked.shape[1]:
            raise ValueError(f"every row must have as many masked tokens, and one that is not; the first has {count}")
        order = masked.to(torch.uint8).argsort(dim=1, stable=True)
        keep, removed = order[:, :-count], order[:, -count:]
        log_p = precise(self.predict(tokens, keep, removed)).log_softmax(-1)
        return log_p.gather(-1, tokens.gather(1, removed).unsqueeze(-1)).squeeze(-1)

    def features(self, tokens: Tensor) -> Tensor:
        """int64 [B, T] -> [B, dim]: the mean of the encoded tokens."""
        return self.backbone.features(tokens)


class Token(nn.Embedding):
    """The embedding of patches of one token: int64 [..., 1] -> [..., D]."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input[..., 0])
