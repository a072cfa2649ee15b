"""The Transformer: Attention Is All You Need (Vaswani et al., 2017, arXiv:1706.03762).

An encoder reads a source, a decoder writes a target, both made of attention and feed-forward layers alone: a target token
sees all of the source and of the target what came before.
    x = sqrt(D) embed(token) + position                                                      sections 3.4 and 3.5
    encoder   x = norm(x + Attention(x)),   x = norm(x + FFN(x))                             a layer, section 3.1
    decoder   y = norm(y + Attention(y)),   y = norm(y + Attention(y, x)),   y = norm(y + FFN(y))
    logits = embed^T y                                                                       one table for all three
    L = mean over the target of -sum_k q_k log softmax(logits)_k,   q_k = (1 - e) [k = next token] + e / V
    rate = D^-0.5 min(step^-0.5, step warmup^-1.5)                                           eq. 3
q is label smoothing as Szegedy et al. (2015, arXiv:1512.00567) have it, whom the paper cites: all V tokens share e, the
true one and padding too. Dropout acts where the paper has it: on what each layer adds, and on the embedded tokens.
Targets are found by beam search; a hypothesis Y of n tokens is as good as log P(Y) / ((5 + n) / 6)^alpha (Wu et al., 2016,
arXiv:1609.08144, eq. 14; their coverage penalty is left out, as it is here in the paper).
The defaults are the paper's base model; positions, the feed-forward layer, norms and where they stand can be others.
Shapes: B sources, S tokens of a source, T of a target, D width, V vocabulary, h heads, d channels a head, K hypotheses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.language.common import Joint, precise
from sensorium.method import Method
from sensorium.parts.attention.exact import fused, visible
from sensorium.parts.feedforward import FeedForward, Kind
from sensorium.parts.init import init_transformer_
from sensorium.parts.norms import Residual
from sensorium.parts.positions import Positions
from sensorium.parts.positions.absolute import Sinusoidal


@dataclass(frozen=True)
class Seen:
    """What the self-attentions of a stack share: positions of the queries ``at`` [T] and of all keys ``every`` [S], which
    keys are no padding, bool [B, 1, 1, S] or None for all, and whether a token sees only what came before."""

    positions: Positions
    at: Tensor
    every: Tensor
    mask: Tensor | None
    causal: bool


@dataclass(frozen=True)
class Memory:
    """A source as the decoder reads it: keys and values [B, h, S, d] of each layer, and which tokens are no padding."""

    layers: list[tuple[Tensor, Tensor]]
    mask: Tensor | None


class Cache:
    """What the decoder keeps while it writes ``length`` tokens at most: of each source what it reads there, made once, and
    of each of the ``beam`` targets of a source, which stand together, the keys and values of the tokens so far."""

    def __init__(self, model: Transformer, source: Tensor, length: int, beam: int = 1) -> None:
        weight, rows = model.embed.weight, len(source) * beam
        self.memory, self.length, self.seen = model.read(source), length, 0
        shape = (len(model.decoder), rows, model.heads, length, model.width // model.heads)
        self.k = torch.empty(shape, device=weight.device, dtype=weight.dtype)
        self.v = torch.empty_like(self.k)
        self.tokens = source.new_empty(rows, length)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep [B K, h, T, d] behind what is there -> all of them."""
        end = self.seen + k.shape[2]
        self.k[layer, :, :, self.seen : end], self.v[layer, :, :, self.seen : end] = k, v
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]

    def reorder(self, rows: Tensor) -> None:
        """Target i goes on from what was target ``rows[i]``, of the same source. [B K]."""
        for kept in (self.k, self.v):
            kept[:, :, :, : self.seen] = kept[:, rows, :, : self.seen]
        self.tokens = self.tokens[rows]


class Attention(nn.Module):
    """Multi-head attention (section 3.2.2) among tokens, or from one text to another. ``qkv`` holds W_q above W_k above
    W_v, as torch's ``in_proj_weight`` does."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width, bias=bias)

    def project(self, x: Tensor, first: int, last: int) -> tuple[Tensor, ...]:
        """[B, T, D] -> those of queries (0), keys (1) and values (2) that are asked for, [B, h, T, d] each."""
        rows = slice(first * x.shape[-1], last * x.shape[-1])
        bias = None if self.qkv.bias is None else self.qkv.bias[rows]
        y = F.linear(x, self.qkv.weight[rows], bias).unflatten(-1, (last - first, self.heads, -1))
        return y.permute(2, 0, 3, 1, 4).unbind(0)

    def among(self, x: Tensor, seen: Seen, cache: Cache | None, layer: int) -> Tensor:
        """Tokens look at each other. [B, T, D] -> [B, T, D]."""
        q, k, v = self.project(x, 0, 3)
        q, k = seen.positions.rotate(q, k, seen.at, seen.at)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        return self.proj(placed(q, k, v, seen).transpose(1, 2).flatten(2))

    def towards(self, y: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """K targets a source, one after another, look at it: y [B K, T, D], k and v [B, h, S, d] -> [B K, T, D]."""
        (q,) = self.project(y, 0, 1)
        each = (len(q) // len(k), q.shape[2])
        q = q.unflatten(0, (len(k), -1)).transpose(1, 2).flatten(2, 3)  # all of them are queries of their source
        read = fused(q, k, v, mask=mask).unflatten(2, each).transpose(1, 2).flatten(0, 1)
        return self.proj(read.transpose(1, 2).flatten(2))


def placed(q: Tensor, k: Tensor, v: Tensor, seen: Seen) -> Tensor:
    """Attention of q [B, h, T, d] to k and v [B, h, S, d] with positions -> [B, h, T, d]; 0 where nothing is seen."""
    positions, scale = seen.positions, seen.positions.scale * q.shape[-1] ** -0.5
    bias = positions.bias(q, k, seen.at, seen.every)
    if type(positions).read is Positions.read:
        return fused(q, k, v, causal=seen.causal, mask=seen.mask, bias=bias, scale=scale)
    scores = precise(q @ k.mT * scale if bias is None else q @ k.mT * scale + bias)
    mask = visible(q.shape[2], k.shape[2], causal=seen.causal, mask=seen.mask, lengths=None, device=q.device)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = (scores.softmax(-1) if mask is None else scores.softmax(-1) * mask).to(v.dtype)
    more = positions.read(weights, seen.at, seen.every)
    return weights @ v if more is None else weights @ v + more


class Layer(nn.Module):
    """Attention among the tokens, in the decoder then ``cross`` to the source, and a feed-forward layer; each joins the
    stream by a ``Residual`` of its own."""

    def __init__(
        self, width: int, heads: int, hidden: int, ffn: Kind, joint: Joint, bias: bool, dropout: float, cross: bool
    ) -> None:
        super().__init__()
        self.norm1, self.attn = joint(width), Attention(width, heads, bias)
        if cross:
            self.norm2, self.cross = joint(width), Attention(width, heads, bias)
        self.norm3, self.ffn = joint(width), FeedForward(width, hidden, ffn, bias=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, seen: Seen, memory: Memory | None, cache: Cache | None, layer: int) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x = self.norm1.after(x, self.dropout(self.attn.among(self.norm1.before(x), seen, cache, layer)))
        if memory is not None:
            y = self.cross.towards(self.norm2.before(x), *memory.layers[layer], memory.mask)
            x = self.norm2.after(x, self.dropout(y))
        return self.norm3.after(x, self.dropout(self.ffn(self.norm3.before(x))))


class Transformer(Method):
    """From texts to texts over ``vocab`` tokens, which both share.

    width: D. depths: layers of encoder and decoder. hidden: channels of the feed-forward layers. smoothing: e.
    padding: the token that fills rows up; it is neither seen nor learnt nor written. None: every token is one like others.
    positions: act in self-attention, of both stacks; sinusoidal if left out. joint: how a layer joins the stream, from the
    width, or one of the encoder and one of the decoder (DeepNorm asks for two); a layer norm after it if left out.
    final_norms: a norm behind each stack, which the paper has not, ``torch.nn.Transformer`` always, and norms before the
    layers ask for. attention_bias: biases in attention, which the paper has not. Raises ValueError where ``heads`` do not
    divide the width.
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
        self.positions = Sinusoidal(width) if positions is None else positions
        self.vocab, self.width, self.heads, self.smoothing, self.padding = vocab, width, heads, smoothing, padding
        self.embed, self.dropout = nn.Embedding(vocab, width), nn.Dropout(dropout)

        joints = joint if isinstance(joint, tuple) else (joint, joint)

        def stack(depth: int, joint: Joint, cross: bool) -> nn.ModuleList:
            numbers = (width, heads, hidden, ffn, joint, attention_bias, dropout, cross)
            return nn.ModuleList(Layer(*numbers) for _ in range(depth))

        self.encoder, self.decoder = stack(depths[0], joints[0], cross=False), stack(depths[1], joints[1], cross=True)
        self.norms = nn.ModuleList(one(width).norm if final_norms else nn.Identity() for one in joints)
        init_transformer_(self, "xavier")
        for module in self.modules():
            if isinstance(module, Attention):  # queries, keys and values are matrices of their own
                for weight in module.qkv.weight.detach().chunk(3):
                    nn.init.xavier_uniform_(weight)
        nn.init.normal_(self.embed.weight, std=width**-0.5)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``source`` int64 [B, S] and ``target`` [B, T + 1], from the token that begins a text to the one that ends it.

        Logs ``bits_per_token``, without smoothing.
        """
        target = batch["target"]
        logits = self.logits(batch["source"], target[:, :-1])
        loss, nll = smoothed(logits, target[:, 1:], self.smoothing, self.padding)
        return {"loss": loss, "bits_per_token": nll.detach() / torch.log(torch.tensor(2.0))}

    def logits(self, source: Tensor, target: Tensor) -> Tensor:
        """[B, S] and [B, T] -> of the token after each of the target, [B, T, V]."""
        return self._decode(target, self.read(source), None)

    def extend(self, target: Tensor, cache: Cache) -> Tensor:
        """The same of targets [B K, T] that follow those that ``cache`` has seen -> [B K, T, V].

        Raises ValueError where they are more than it holds.
        """
        if cache.seen + target.shape[1] > cache.length:
            raise ValueError(f"the cache holds {cache.length} tokens, not {cache.seen + target.shape[1]}")
        return self._decode(target, cache.memory, cache)

    def log_prob(self, source: Tensor, target: Tensor) -> Tensor:
        """Natural logarithm of the probability of each token of the target [B, T] after the first, given the source [B, S]
        and those before: [B, T - 1], 0 for padding."""
        found = precise(self.logits(source, target[:, :-1])).log_softmax(-1)
        found = found.gather(-1, target[:, 1:, None]).squeeze(-1)
        return found if self.padding is None else found.masked_fill(target[:, 1:] == self.padding, 0)

    def read(self, source: Tensor) -> Memory:
        """Sources [B, S], encoded, as each layer of the decoder reads them."""
        at, mask = torch.arange(source.shape[1], device=source.device), self._mask(source)
        x, seen = self._embedded(source, at), Seen(self.positions, at, at, mask, causal=False)
        for i, layer in enumerate(cast("Iterable[Layer]", self.encoder)):
            x = layer(x, seen, None, None, i)
        x = self.norms[0](x)
        layers = [layer.cross.project(x, 1, 3) for layer in cast("Iterable[Layer]", self.decoder)]
        return Memory(cast("list[tuple[Tensor, Tensor]]", layers), mask)

    @torch.no_grad()
    def search(
        self, source: Tensor, *, begin: int, end: int, beam: int = 4, alpha: float = 0.6, most: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Targets of sources [B, S], the best first: tokens [B, K, n] without ``begin``, scores [B, K]; see
        :func:`beam_search`. ``most`` tokens at most, S + 50 if left out (section 6.1); behind ``end`` stands padding.
        The same sources give the same targets in evaluation mode, where no dropout acts."""
        most = source.shape[1] + 50 if most is None else most
        cache = Cache(self, source, most, beam)

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
        return None if self.padding is None else (tokens != self.padding)[:, None, None]

    def _embedded(self, tokens: Tensor, at: Tensor) -> Tensor:
        return self.dropout(self.positions.embed(self.embed(tokens) * self.width**0.5, at))

    def _decode(self, target: Tensor, memory: Memory, cache: Cache | None) -> Tensor:
        start, length = (0 if cache is None else cache.seen), target.shape[1]
        every, seen = torch.arange(start + length, device=target.device), target
        if cache is not None:
            cache.tokens[:, start : start + length] = target
            seen = cache.tokens[:, : start + length]
        y, shared = self._embedded(target, every[start:]), (self.positions, every[start:], every)
        for i, layer in enumerate(cast("Iterable[Layer]", self.decoder)):
            y = layer(y, Seen(*shared, self._mask(seen), causal=True), memory, cache, i)
        if cache is not None:
            cache.seen += length
        return F.linear(self.norms[1](y), self.embed.weight)


def smoothed(logits: Tensor, target: Tensor, smoothing: float, ignored: int | None) -> tuple[Tensor, Tensor]:
    """Cross-entropy of logits [..., V] with targets [...], smoothed and not: two means over targets but the ``ignored``."""
    log_p = precise(logits).log_softmax(-1)
    nll, uniform = -log_p.gather(-1, target[..., None]).squeeze(-1), -log_p.mean(-1)
    kept = torch.ones_like(nll) if ignored is None else (target != ignored).to(nll.dtype)
    nll, uniform = ((each * kept).sum() / kept.sum() for each in (nll, uniform))
    return (1 - smoothing) * nll + smoothing * uniform, nll


def learning_rate(step: int, width: int, warmup: int = 4000) -> float:
    """Of Adam with beta_2 = 0.98 and eps = 1e-9 (section 5.3): eq. 3, a line up to step ``warmup``, then 1 / sqrt(step).
    Steps are counted from 1. Raises ValueError below."""
    if step < 1 or warmup < 1:
        raise ValueError(f"steps and warmup are counted from 1, got {step} and {warmup}")
    return width**-0.5 * min(step**-0.5, step * warmup**-1.5)


def length_penalty(n: Tensor, alpha: float) -> Tensor:
    """((5 + n) / 6)^alpha, by which the log-probability of ``n`` tokens is divided."""
    return ((5 + n) / 6) ** alpha


def beam_search(
    step: Callable[[Tensor | None, Tensor], Tensor],
    first: Tensor,
    *,
    end: int,
    beam: int,
    alpha: float,
    most: int,
    fill: int,
) -> tuple[Tensor, Tensor]:
    """The best texts that a model may write, the best first: tokens int64 [B, K, n] and scores [B, K].

    step: which of the texts [B K] each goes on from (None at first: each from itself) and the last token of each [B K] ->
    log-probabilities of the next, [B K, V]. first: a token [B] that texts begin with; it is no part of them.
    The K = ``beam`` likeliest texts go on (``beam`` 1: greedily). One that reaches ``end`` keeps its place and grows no
    more, so fewer go on (Sutskever et al., 2014, arXiv:1409.3215); when all have ended or ``most`` tokens are written, they
    are ranked by log P / ``length_penalty(n, alpha)``, n counting ``end``; what is cut off is ranked as it stands.
    Behind ``end`` stands ``fill``. Where there are fewer than K texts the others score -inf.
    """
    if beam < 1 or most < 1:
        raise ValueError(f"a search needs a text and a token or more, got beam {beam} and most {most}")
    B, device = len(first), first.device
    rank = torch.arange(beam, device=device).expand(B, -1)
    log_p = torch.where(rank == 0, 0.0, -torch.inf)  # at first all are the same text
    done, length = torch.zeros_like(rank, dtype=torch.bool), torch.zeros_like(rank)
    text, last, rows = first.new_empty(B, beam, 0), first.repeat_interleave(beam), None
    for n in range(1, most + 1):
        grown = log_p[..., None] + step(rows, last).unflatten(0, (B, beam))
        best, which = grown.masked_fill(done[..., None], -torch.inf).flatten(1).topk(beam)
        # what is done stands first; the best of what goes on comes behind it
        behind = (rank - done.sum(1, keepdim=True)).clamp(min=0)
        parent = torch.where(done, rank, which.gather(1, behind) // grown.shape[-1])
        token = torch.where(done, fill, which.gather(1, behind) % grown.shape[-1])
        log_p, length = torch.where(done, log_p, best.gather(1, behind)), torch.where(done, length, n)
        done = done | (token == end) & (log_p > -torch.inf)
        order = done.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
        parent, token, log_p, length, done = (x.gather(1, order) for x in (parent, token, log_p, length, done))
        text = torch.cat([text.gather(1, parent[..., None].expand_as(text)), token[..., None]], dim=2)
        if bool((done | (log_p == -torch.inf)).all()):
            break
        rows, last = (parent + beam * torch.arange(B, device=device)[:, None]).flatten(), token.flatten()
    score, order = (log_p / length_penalty(length.to(log_p), alpha)).sort(dim=1, descending=True, stable=True)
    return text.gather(1, order[..., None].expand_as(text)), score
