"""The Transformer: Attention Is All You Need (Vaswani et al., 2017, arXiv:1706.03762).

An encoder reads a source, a decoder generates a target, both made only of attention and feed-forward layers: a target
token attends to the whole source and to earlier target tokens.
    x = sqrt(D) embed(token) + position                                                      sections 3.4 and 3.5
    encoder   x = norm(x + Attention(x)),   x = norm(x + FFN(x))                             a layer, section 3.1
    decoder   y = norm(y + Attention(y)),   y = norm(y + Attention(y, x)),   y = norm(y + FFN(y))
    logits = embed^T y                                                                       one table for all three
    L = mean over the target of -sum_k q_k log softmax(logits)_k,   q_k = (1 - e) [k = next token] + e / V
    rate = D^-0.5 min(step^-0.5, step warmup^-1.5)                                           eq. 3
q is label smoothing of Szegedy et al. (2015, arXiv:1512.00567), whom the paper cites: e is spread over all V tokens,
the true one and padding included. Dropout acts as in the paper: on each layer's output before the residual addition,
and on the embedded tokens. Targets are found by beam search; the score of a hypothesis Y of n tokens is log P(Y) / ((5
+ n) / 6)^alpha (Wu et al., 2016, arXiv:1609.08144, eq. 14, without coverage penalty, as in the paper). The defaults are
the paper's base model; positions, the feed-forward layer, norms and their placement can be replaced.
Shapes: B sources, S tokens of a source, T of a target, D width, V vocabulary, h heads, d channels per head, K
hypotheses.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.base.precision import precise
from sensorium.language.prediction import log_prob
from sensorium.method import Method
from sensorium.networks.decoder import Cache, Decoder, Joint, Layer
from sensorium.networks.mixing import CrossAttention, SoftmaxAttention
from sensorium.parts.beam import beam_search
from sensorium.parts.feedforward import FeedForward, Kind
from sensorium.parts.init import init_transformer_
from sensorium.parts.norms import Residual
from sensorium.parts.positions import Positions
from sensorium.parts.positions.absolute import Sinusoidal


class Transformer(Method):
    """Sequence to sequence over one vocabulary of ``vocab`` tokens.

    width: D. depths: layers of encoder and decoder. hidden: channels of the feed-forward layers. smoothing: e.
    padding: the padding token, which is masked, ignored by the loss and never generated. None: there is no padding
    token. positions: used in self-attention, of both stacks; sinusoidal by default. joint: width -> how a layer joins
    the residual stream, or one for the encoder and one for the decoder (as DeepNorm needs); by default with a layer
    norm after it. final_norms: a norm after each stack, absent in the paper, always present in
    ``torch.nn.Transformer``, and needed with pre-norm. attention_bias: biases in attention, absent in the paper. Raises
    ValueError if ``heads`` does not divide the width.
    """

    def __init__(
        self,
        vocab: int,
        width: int = 512,
        depths: tuple[int, int] = (6, 6),
        heads: int = 8,
        *,
        hidden: int = 2048,
        dropout: float = 0.1,
        smoothing: float = 0.1,
        padding: int | None = 0,
        positions: Positions | None = None,
        ffn: Kind = "relu",
        joint: Joint | tuple[Joint, Joint] = partial(Residual, placement="post"),
        final_norms: bool = False,
        attention_bias: bool = False,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads {heads} must divide the width {width}")
        positions = Sinusoidal(width) if positions is None else positions
        self.vocab, self.width, self.heads, self.smoothing, self.padding = vocab, width, heads, smoothing, padding
        self.embed = nn.Embedding(vocab, width)
        joints = joint if isinstance(joint, tuple) else (joint, joint)

        def layer(joint: Joint, causal: bool) -> Layer:
            attention = SoftmaxAttention(width, heads, heads, width // heads, bias=attention_bias)
            cross = CrossAttention(width, heads, bias=attention_bias) if causal else None
            return Layer(
                attention, FeedForward(width, hidden, ffn, bias=True), joint, width, cross=cross, dropout=dropout
            )

        def stack(depth: int, joint: Joint, causal: bool) -> Decoder:
            norm = joint(width).norm if final_norms else nn.Identity()
            layers, how = [layer(joint, causal) for _ in range(depth)], {"positions": positions, "dropout": dropout}
            return Decoder(None, layers, norm, head=None, causal=causal, **how)

        self.encoder, self.decoder = stack(depths[0], joints[0], False), stack(depths[1], joints[1], True)
        init_transformer_(self, "xavier")
        for module in self.modules():  # queries, keys and values are separate matrices
            if isinstance(module, SoftmaxAttention):
                each = list(module.qkv.weight.detach().chunk(3))
            elif isinstance(module, CrossAttention):
                each = [module.q.weight, *module.kv.weight.detach().chunk(2)]
            else:
                continue
            for weight in each:
                nn.init.xavier_uniform_(weight)
        nn.init.normal_(self.embed.weight, std=width**-0.5)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``source`` int64 [B, S] and ``target`` [B, T + 1], from the start token to the end token.

        Logs ``bits_per_token``, without smoothing.
        """
        target = batch["target"]
        logits = self.logits(batch["source"], target[:, :-1])
        loss, nll = smoothed(logits, target[:, 1:], self.smoothing, self.padding)
        return {"loss": loss, "bits_per_token": nll.detach() / torch.log(torch.tensor(2.0))}

    def logits(self, source: Tensor, target: Tensor) -> Tensor:
        """[B, S] and [B, T] -> logits of the next target token at each position, [B, T, V]."""
        memory = {"memory": self.read(source), "memory_mask": self._mask(source)}
        x, _ = self.decoder.encode(self._words(target), mask=self._mask(target), **memory)
        return F.linear(x, self.embed.weight)

    def extend(self, target: Tensor, cache: Cache) -> Tensor:
        """The same for targets [B K, T] that follow the cached ones -> [B K, T, V].

        Raises ValueError if they exceed the cache.
        """
        x, _ = self.decoder.encode(self._words(target), mask=self._mask(target), cache=cache)
        return F.linear(x, self.embed.weight)

    def log_prob(self, source: Tensor, target: Tensor) -> Tensor:
        """Log-probability (natural) of each token of the target [B, T] after the first, given the source [B, S] and
        earlier tokens: [B, T - 1], 0 for padding."""
        found = log_prob(self.logits(source, target[:, :-1]), target[:, 1:])
        return found if self.padding is None else found.masked_fill(target[:, 1:] == self.padding, 0)

    def read(self, source: Tensor) -> Tensor:
        """Sources [B, S] -> encoded [B, S, D]."""
        return self.encoder.encode(self._words(source), mask=self._mask(source))[0]

    def new_cache(self, source: Tensor, length: int, beam: int = 1) -> Cache:
        """A cache for ``beam`` consecutive targets per source [B, S], of at most ``length`` tokens."""
        memory = {"memory": self.read(source), "memory_mask": self._mask(source)}
        return Cache(self.decoder, len(source) * beam, length, **memory)

    @torch.no_grad()
    def search(
        self, source: Tensor, *, begin: int, end: int, beam: int = 4, alpha: float = 0.6, most: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Targets of sources [B, S], the best first: tokens [B, K, n] without ``begin``, scores [B, K]; see
        :func:`beam_search`. At most ``most`` tokens, by default S + 50 (section 6.1); padding follows ``end``.
        Deterministic in evaluation mode."""
        most = source.shape[1] + 50 if most is None else most
        cache = self.new_cache(source, most, beam)

        def step(rows: Tensor | None, tokens: Tensor) -> Tensor:
            if rows is not None:
                cache.reorder(rows)
            found = precise(self.extend(tokens[:, None], cache)[:, -1]).log_softmax(-1)
            if self.padding is not None:
                found[:, self.padding] = -torch.inf
            return found

        first, fill = source.new_full((len(source),), begin), end if self.padding is None else self.padding
        return beam_search(step, first, end=end, beam=beam, alpha=alpha, most=most, fill=fill)

    def _mask(self, tokens: Tensor) -> Tensor | None:
        return None if self.padding is None else tokens != self.padding

    def _words(self, tokens: Tensor) -> Tensor:
        return self.embed(tokens) * self.width**0.5


def smoothed(logits: Tensor, target: Tensor, smoothing: float, ignored: int | None) -> tuple[Tensor, Tensor]:
    """Cross-entropy of logits [..., V] with targets [...], with and without smoothing: two means, without
    ``ignored``."""
    log_p = precise(logits).log_softmax(-1)
    nll, uniform = -log_p.gather(-1, target[..., None]).squeeze(-1), -log_p.mean(-1)
    kept = torch.ones_like(nll) if ignored is None else (target != ignored).to(nll.dtype)
    nll, uniform = ((each * kept).sum() / kept.sum() for each in (nll, uniform))
    return (1 - smoothing) * nll + smoothing * uniform, nll


def learning_rate(step: int, width: int, warmup: int = 4000) -> float:
    """Learning rate for Adam with beta_2 = 0.98 and eps = 1e-9 (section 5.3): eq. 3, linear up to step ``warmup``, then
    1 / sqrt(step). Steps are counted from 1; ValueError below."""
    if step < 1 or warmup < 1:
        raise ValueError(f"steps and warmup are counted from 1, got {step} and {warmup}")
    return width**-0.5 * min(step**-0.5, step * warmup**-1.5)
