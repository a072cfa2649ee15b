"""Recurrent language models: the plain network (Elman, 1990, "Finding structure in time"; as a language model Mikolov et al.,
2010), LSTM (Hochreiter & Schmidhuber, 1997, with the forget gate of Gers et al., 2000) and GRU (Cho et al., 2014,
arXiv:1406.1078).

Each token updates a state of constant size, from which the next is predicted: time is linear in T, and generation needs
constant memory. With x the input of a layer, h (and c) its state after the previous token:
    rnn     h' = tanh(W x + b + U h + b')
    lstm    i, f, o = sigmoid(...),  g = tanh(...),     c' = f c + i g,     h' = o tanh(c')
    gru     r, z = sigmoid(...),     n = tanh(W x + b + r (U h + b')),      h' = (1 - z) n + z h
    logits = embed^T P h' of the last layer,            L = mean of -log softmax(logits)[next token]
... are W x + b + U h + b' with separate weights. The cells are torch's; its GRU applies r after U, while the paper has
U (r h). P is a projection, present only if H and D differ. Dropout acts on inputs and outputs of each layer, never on
its recurrent state (Zaremba et al., 2014, arXiv:1409.2329); the head shares the embedding's weights (Press & Wolf,
2017, arXiv:1608.05859). A row may hold several documents: with ``documents`` rows are split where a document begins,
and each piece is a sequence of its own, from a zero state: they do not interact, and shorter pieces take fewer steps.
Shapes: B batch, T tokens, D width, H channels of a state, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from sensorium.language.prediction import NextTokenModel, before_last, next_tokens, nll
from sensorium.method import Method, Progress

Cell = Literal["rnn", "lstm", "gru"]


class Cache:
    """The state [depth, B, H] after the ``seen`` tokens, of an LSTM h and c."""

    def __init__(self) -> None:
        self.state: Tensor | tuple[Tensor, Tensor] | None = None
        self.seen = 0


class RecurrentLM(Method, NextTokenModel):
    """A language model over ``vocab`` tokens.

    width: D. depth: layers. cell: their kind. hidden: H (``width``). dropout: dropout rate. tied: the head shares the
    embedding's weights; otherwise it has its own, of H channels. clip: maximum norm of the gradients, 0 for none.
    Raises ValueError for an unknown cell.
    """

    def __init__(
        self,
        vocab: int,
        width: int,
        depth: int,
        *,
        cell: Cell = "lstm",
        hidden: int | None = None,
        dropout: float = 0.0,
        tied: bool = True,
        clip: float = 1.0,
    ) -> None:
        super().__init__()
        if cell not in get_args(Cell):
            raise ValueError(f"cell must be one of {', '.join(get_args(Cell))}, got {cell!r}")
        hidden = hidden or width
        self.vocab, self.width, self.hidden, self.cell, self.tied = vocab, width, hidden, cell, tied
        self.clip = clip
        self.embed, self.dropout = nn.Embedding(vocab, width), nn.Dropout(dropout)
        made = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[cell]
        self.layers = made(width, hidden, depth, batch_first=True, dropout=dropout if depth > 1 else 0.0)
        self.proj = nn.Linear(hidden, width, bias=False) if tied and hidden != width else nn.Identity()
        self.head = None if tied else nn.Linear(hidden, vocab, bias=False)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``tokens`` int64 [B, T + 1] and, optional, ``documents`` [B, T + 1], the document of each token, contiguous.

        Logs ``bits_per_token``.
        """
        tokens, documents = batch["tokens"], batch.get("documents")
        return nll(self.logits(tokens[:, :-1], before_last(documents)), next_tokens(tokens, documents))

    def before_update(self, at: Progress) -> None:
        """Clip gradients to a norm of ``clip``: over many tokens they may explode (Pascanu et al., 2013,
        arXiv:1211.5063)."""
        if self.clip:
            nn.utils.clip_grad_norm_(self.parameters(), self.clip)

    def logits(self, tokens: Tensor, documents: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """[B, T] -> logits of the next token at each position [B, T, V]. With a ``cache`` the tokens follow the cached
        ones.

        Raises ValueError if both ``documents`` and a ``cache`` are given.
        """
        if documents is not None and cache is not None:
            raise ValueError("documents and a cache can't be combined")
        x = self.dropout(self.embed(tokens))
        if documents is not None:
            y = self._apart(x, documents)
        elif cache is not None:
            y, cache.state = self.layers(x, cache.state)
            cache.seen += tokens.shape[1]
        else:
            y = self.layers(x)[0]
        y = self.dropout(y)
        return F.linear(self.proj(y), self.embed.weight) if self.head is None else self.head(y)

    def new_cache(self, batch: int, length: int) -> Cache:
        return Cache()

    def _apart(self, x: Tensor, documents: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, H], each document as if it stood alone. Synchronizes with the device to read the
        lengths."""
        first = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True).flatten()
        begins = first.nonzero().squeeze(1)
        lengths = begins.diff(append=begins.new_tensor([len(first)]))
        packed = pack_sequence(list(x.flatten(0, 1).split(lengths.tolist())), enforce_sorted=False)
        return torch.cat(unpack_sequence(self.layers(packed)[0])).unflatten(0, documents.shape)
