"""OadTR: online action detection with transformers (Wang et al., 2021, arXiv:2106.11149).

The action of the current frame is predicted from the frames so far. An encoder summarizes the last T frames in a task
token, a decoder anticipates the next L frames, and both together classify the current one:
    X = [W f_1 + b; ...; W f_T + b; token] + E_pos                                                 (encoder)
    X = X + MSA(LN(X)),  X = X + MLP(LN(X))    ``depth`` times,   M = LN(X)
    Q = LN(Q + MSA(Q)),  Q = LN(Q + attention(Q, M)),  Q = LN(Q + MLP(Q))    ``decoder_depth`` times, Q = LN(Q)
    p_0 = softmax(W_0 [M_token; mean_l Q_l] + b_0),   p_l = softmax(W_1 Q_l + b_1)                 (classifiers)
    L = CE(p_0, y_0) + future_weight * mean over l of CE(p_l, y_l)                                (training)
As in the authors' code the token comes last and self-attention of the queries is causal. Theirs initializes tokens and
queries to zero (here: small) and applies dropout twice after the encoder's attention (here: once).

On a stream the window moves by one frame per step. With ``attention="full"``, the paper's, the position of a frame
changes at each step, so only results before the first softmax can be cached: W f + b, and the first layer's product
with W_qkv, because LN is linear except for its scale: qkv = (W_qkv g (x - mean x) + W_qkv g (e - mean e)) / sigma(x +
e) + W_qkv beta for a frame x with position embedding e. Everything after it depends on the current position of every
frame and is recomputed, as is the task token's output. With ``attention="causal"`` a frame attends to itself and the T
- 1 frames before it, and a learned bias for its age replaces E_pos; the token comes after the newest frame, and no
frame attends to it. Then keys and values of a frame stay valid while it is in the window, and a step computes two rows
per layer (frame, token) and the decoder's L queries.
Shapes: B streams, T length, F features, D width, K classes, L future frames, h heads, d = D / h, M = T + 1 rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import OnlineDetector
from sensorium.base.precision import precise
from sensorium.method import Method
from sensorium.parts.gather import sum_over_processes, world_size
from sensorium.parts.init import init_transformer_
from sensorium.streaming.oadtr.layers import DecoderLayer, EncoderLayer, by_head

UNKNOWN = -1


@dataclass
class _Past:
    """The state of a stream: ``rows``, each [B, n, .] of its last n <= T frames, and constants (``fixed``)."""

    rows: list[Tensor] = field(default_factory=list)
    fixed: list[Tensor] = field(default_factory=list)


@dataclass
class _Ring:
    """The state of a causal stream: keys and values, in a ring buffer. The first slot is the token's, the T others
    are those of the last frames; ``came`` counts the frames."""

    encoder: Tensor  # [layers, 2, B, h, 1 + T, d]
    decoder: Tensor  # the same of its layers and heads
    asked: Tensor  # queries of the first decoder layer
    itself: Tensor  # the token's bias for itself, and the mask of a frame for the token [layers, 1, h, 2, 1]
    ages: Tensor  # biases of token and frame by age, twice from the oldest to the newest [layers, 1, h, 2, 2 T]
    weight: Tensor  # of the keys and values of all decoder layers together [2 D layers, D]
    bias: Tensor
    came: int = 0


class OadTR(Method, OnlineDetector):
    """An online action detector of ``classes`` (K) from frames of ``features`` (F) values.

    length: T, frames of the window. future: L, frames anticipated. hidden, decoder_hidden: channels of the MLPs.
    attention: "full" (the paper's) or "causal" (cheap steps, see above; a prediction then depends on ``reach`` frames).
    Defaults are the authors' for THUMOS14.
    """

    undecayed = ("token", "positions", "queries")

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        width: int = 1024,
        length: int = 64,
        depth: int = 3,
        heads: int = 8,
        hidden: int = 1024,
        future: int = 8,
        decoder_depth: int = 5,
        decoder_heads: int = 4,
        decoder_hidden: int = 1024,
        dropout: float = 0.1,
        attention: Literal["full", "causal"] = "full",
        future_weight: float = 0.5,
    ) -> None:
        super().__init__()
        if attention not in ("full", "causal"):
            raise ValueError(f"attention must be full or causal, got {attention!r}")
        if width % heads or width % decoder_heads:
            raise ValueError(f"heads {heads} and decoder_heads {decoder_heads} must divide the width {width}")
        if min(length, depth, future, decoder_depth) < 1:
            raise ValueError("length, depth, future and decoder_depth must be at least 1")
        self.features, self.classes, self.width, self.length, self.future = features, classes, width, length, future
        self.attention, self.dropout, self.future_weight = attention, dropout, future_weight
        self.project = nn.Linear(features, width)
        self.token = nn.Parameter(torch.empty(1, 1, width))
        shape = (length + 1, width) if attention == "full" else (depth, heads, length + 1)
        self.positions = nn.Parameter(torch.empty(shape))  # [place, channel], or [layer, head, age]
        self.encoder = nn.ModuleList(EncoderLayer(width, heads, hidden, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.empty(1, future, width))
        self.decoder = nn.ModuleList(
            DecoderLayer(width, decoder_heads, decoder_hidden, dropout) for _ in range(decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.head = nn.Linear(2 * width, classes)
        self.future_head = nn.Linear(width, classes)
        init_transformer_(self, "xavier")
        for table in (self.token, self.positions, self.queries):
            nn.init.trunc_normal_(table, std=0.02)
        self._past: _Past | _Ring | None = None

    @property
    def reach(self) -> int:
        """How many frames, the current one included, a prediction of a stream depends on."""
        return self.length if self.attention == "full" else (len(self.encoder) + 1) * (self.length - 1) + 1

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``frames`` [B, T, F], ``actions`` int64 [B] of the last frame, ``future`` int64 [B, L] of those after it (-1:
        past the end or unknown, no loss) and, optional, ``missing`` int64 [B] (see ``logits``).

        Logs both parts of the loss and ``top1``, the accuracy on known ``actions``.
        """
        current, future = self.logits(batch["frames"], batch.get("missing"))
        now, right = _loss(current, batch["actions"])
        later, _ = _loss(future.flatten(0, 1), batch["future"].flatten())
        loss = now + self.future_weight * later
        return {"loss": loss, "current": now.detach(), "future": later.detach(), "top1": right}

    def logits(self, frames: Tensor, missing: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits of the last of frames [B, n, F] and of those after it: [B, K], [B, L, K].

        n is at most T (with causal attention any number; at least ``reach`` for the same result as a stream). Fewer
        than T are a stream's beginning. missing: int64 [B], number of padding frames at the start of each row, which
        are masked.
        """
        x = self.project(frames)
        if self.attention == "causal":
            last = torch.tensor([x.shape[1] - 1], device=x.device)
            x, token, _ = self._encode_causal(x, self._biases(0, x.shape[1], last, missing))
            memory = torch.cat([x[:, -self.length :], token], dim=1)
            missing = None if missing is None else missing - max(0, x.shape[1] - self.length)
        else:
            memory = self._encode_full(x, missing)
        return self._answer(memory[:, -1], [memory], _present(missing, memory))

    def reset(self) -> None:
        """Reset the state, before another stream or after a change of the weights."""
        self._past = None

    def step(self, frame: Tensor) -> Tensor:
        """The next frame of a stream, or of B streams at once, [F] or [B, F] -> probabilities [K] or [B, K].

        Equal to ``logits`` of the last ``reach`` frames. The state has constant size: T rows of 4 D channels with full
        attention, of 2 D per layer of encoder and decoder with causal.
        """
        _require_evaluation(self)
        with torch.inference_mode():
            probabilities = self._step(frame)
        return probabilities.clone()  # outside inference mode, usable with gradients

    def _step(self, frame: Tensor) -> Tensor:
        x = self.project(frame.to(self.token)).view(-1, 1, self.width)
        if self._past is None:
            self._past = self._begin() if self.attention == "full" else self._ring(len(x))
        past = self._past
        going = len(x)
        if isinstance(past, _Ring):
            going = past.decoder.shape[2]
        elif past.rows:
            going = len(past.rows[0])
        if going != len(x):
            raise ValueError(f"{len(x)} streams, but the state holds {going}: call reset() first")
        logits = self._turn(x, past) if isinstance(past, _Ring) else self._advance_full(x, past)
        probabilities = precise(logits).softmax(dim=-1)
        return probabilities[0] if frame.ndim == 1 else probabilities

    @torch.no_grad()
    def predict(self, frames: Tensor | Iterable[Tensor], *, chunk: int = 64) -> Tensor:
        """The result of ``step`` at each frame of a whole stream: probabilities [N, K], computed ``chunk`` frames at a
        time.

        frames: [N, F], or consecutive pieces of it. The state of ``step`` is not changed.
        """
        _require_evaluation(self)
        past, found = self._begin(), [self.token.new_empty(0, self.classes)]
        pieces = [frames] if isinstance(frames, Tensor) else frames
        for part in (part for piece in pieces for part in piece.split(chunk) if len(part)):
            x = self.project(part.to(self.token))[None]
            if self.attention == "causal":
                logits = self._advance_causal(x, past)
            else:
                rows = torch.cat([*past.rows[:1], x], dim=1)
                past.rows = [rows[:, max(0, rows.shape[1] - self.length + 1) :]]
                windows, missing = _windows(rows, x.shape[1], self.length)
                memory = self._encode_full(windows, missing)
                logits = self._answer(memory[:, -1], [memory], _present(missing, memory))[0]
            found.append(precise(logits).softmax(dim=-1))
        return torch.cat(found)

    def _encode_full(self, x: Tensor, missing: Tensor | None = None) -> Tensor:
        """Projected frames [B, n, D] at the last n positions -> the memory [B, n + 1, D], the task token's row last."""
        n = x.shape[1]
        if n > self.length:
            raise ValueError(f"{n} frames, but the window has {self.length}")
        x = torch.cat([x, self.token.expand(len(x), -1, -1)], dim=1) + self.positions[self.length - n :]
        x = F.dropout(x, self.dropout, self.training)
        present = _present(missing, x)
        for layer in self.encoder:
            x = layer(x, None if present is None else present[:, None, None])
        return self.norm(x)

    def _encode_causal(
        self, x: Tensor, biases: list[Tensor], past: list[Tensor] | tuple[()] = ()
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Encode projected frames [B, n, D] after those whose keys and values are ``past`` (per layer [2, B, h, p, d]).

        Returns the encoded frames [B, n, D], the task tokens [B, m, D] given by ``biases`` (per layer
        [., h, n + m, p + n + m]), and the keys and values of the last T - 1 frames.
        """
        n, columns = x.shape[1], biases[0].shape[-1]
        x = torch.cat([x, self.token.expand(len(x), biases[0].shape[-2] - n, -1)], dim=1)
        rows = F.dropout(x, self.dropout, self.training)
        frames = columns - rows.shape[1] + n
        kept = []
        for i, layer in enumerate(cast("Iterable[EncoderLayer]", self.encoder)):
            qkv = by_head(layer.project(rows), 3, layer.heads)
            kv = torch.cat([past[i], qkv[1:]], dim=-2) if past else qkv[1:]
            kept.append(kv[..., max(0, frames - self.length + 1) : frames, :])
            rows = layer.attend(rows, qkv[0], kv[0], kv[1], biases[i].to(qkv.dtype))
        rows = self.norm(rows)
        return rows[:, :n], rows[:, n:], kept

    def _biases(self, seen: int, n: int, asked: Tensor, missing: Tensor | None = None) -> list[Tensor]:
        """Biases of each layer's scores [B or 1, h, n + m, seen + n + m], from n frames and a token after each of the
        ``asked`` ones (int64 [m]) to ``seen`` earlier frames and to themselves. A token is one position after its
        frame."""
        m, device = len(asked), asked.device
        when = torch.cat([torch.arange(n, device=device), asked + 1])
        is_token = (torch.arange(n + m, device=device) >= n).long()[:, None]
        age = when[:, None] - torch.arange(-seen, n, device=device)
        itself = torch.eye(n + m, dtype=torch.bool, device=device)
        visible = torch.cat([(age >= is_token) & (age < self.length + is_token), itself[:, n:]], dim=1)[None]
        if missing is not None:  # at the start of a stream: as many columns as rows
            present = torch.arange(n, device=device) >= missing[:, None]
            visible = (visible & F.pad(present, (0, m), value=True)[:, None] | itself)[:, None]
        by_age = self.positions[:, None, :, F.pad(age, (0, m)).clamp(0, self.length)]
        return list(torch.where(visible, by_age, -torch.inf))

    def _answer(
        self, token: Tensor, memory: list[Tensor], present: Tensor | None = None, asked: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The token's row [B, D] and the memory of the decoder's layers -> logits [B, K], [B, L, K].

        asked: the result of the first layer's ``ask``, if cached.
        """
        layers = cast("list[DecoderLayer]", list(self.decoder))
        if asked is None:
            asked = layers[0].ask(self.queries.expand(len(token) if self.training else 1, -1, -1))
        x = layers[0].read(asked, memory[0], present)
        for layer, rows in zip(layers[1:], memory[1:] or memory * len(layers[1:]), strict=True):
            x = layer.read(layer.ask(x), rows, present)
        x = F.dropout(self.decoder_norm(x), self.dropout, self.training)
        return self.head(torch.cat([token, x.mean(dim=1)], dim=-1)), self.future_head(x)

    def _begin(self) -> _Past:
        """An empty state, with a stream's constants: the first layer's queries; with full attention also the positions'
        part of the first layer's qkv [T, 3 D], its shift [3 D] and the token's qkv [1, 1, 3 D]."""
        asked = cast(DecoderLayer, self.decoder[0]).ask(self.queries)
        if self.attention == "causal":
            return _Past(fixed=[asked])
        layer = cast(EncoderLayer, self.encoder[0])
        shift, own = F.linear(layer.norm1.bias, layer.qkv.weight), layer.project(self.token + self.positions[-1])
        return _Past(fixed=[asked, _unscaled(layer, self.positions[:-1]), shift, own])

    def _advance_full(self, x: Tensor, past: _Past) -> Tensor:
        """Add one projected frame [B, 1, D] -> logits [B, K]."""
        first = cast(EncoderLayer, self.encoder[0])
        new = [x, _unscaled(first, x)]
        if past.rows:
            new = [torch.cat(pair, dim=1)[:, -self.length :] for pair in zip(past.rows, new, strict=True)]
        past.rows = new
        (x, product), (asked, by_place, shift, token_qkv) = new, past.fixed
        n = x.shape[1]
        x = x + self.positions[self.length - n : -1]
        scale = torch.rsqrt(x.var(dim=-1, correction=0, keepdim=True) + first.norm1.eps)
        qkv = (product + by_place[self.length - n :]) * scale + shift
        qkv = torch.cat([qkv, token_qkv.expand(len(x), -1, -1)], dim=1)
        x = torch.cat([x, (self.token + self.positions[-1]).expand(len(x), -1, -1)], dim=1)
        q, k, v = by_head(qkv, 3, first.heads)
        x = first.attend(x, q, k, v)
        for layer in self.encoder[1:]:
            x = layer(x)
        x = self.norm(x)
        return self._answer(x[:, -1], [x], asked=asked)[0]

    def _advance_causal(self, x: Tensor, past: _Past) -> Tensor:
        """Add projected frames [B, n, D] -> logits [B n, K]."""
        n, depth, seen = x.shape[1], len(self.encoder), past.rows[0].shape[-2] if past.rows else 0
        biases = self._biases(seen, n, torch.arange(n, device=x.device))
        x, tokens, kept = self._encode_causal(x, biases, past.rows[:depth])
        memory, missing = [], None
        for i, layer in enumerate(cast("Iterable[DecoderLayer]", self.decoder)):
            rows, own = layer.key_value(torch.cat([x, tokens], dim=1)).chunk(2, dim=1)
            rows = torch.cat([*past.rows[depth + i : depth + i + 1], rows], dim=1)
            kept.append(rows[:, max(0, seen + n - self.length + 1) :])
            windows, missing = _windows(rows, n, self.length)
            memory.append(by_head(torch.cat([windows, own.flatten(0, 1).unsqueeze(1)], dim=1), 2, layer.heads))
        past.rows = kept
        return self._answer(tokens.flatten(0, 1), memory, _present(missing, memory[0][0, :, 0]), past.fixed[0])[0]

    def _ring(self, streams: int) -> _Ring:
        """Empty slots for B ``streams``, and the constants."""
        encoder = cast("list[EncoderLayer]", list(self.encoder))
        decoder = cast("list[DecoderLayer]", list(self.decoder))

        def slots(layers: int, heads: int) -> Tensor:
            return self.token.new_empty(layers, 2, streams, heads, 1 + self.length, self.width // heads)

        # a token is one position later
        token, frame = self.positions.unsqueeze(1)[..., 1:], self.positions.unsqueeze(1)[..., :-1]
        newest = self.positions.unsqueeze(1)[..., :1]
        return _Ring(
            slots(len(encoder), encoder[0].heads),
            slots(len(decoder), decoder[0].heads),
            decoder[0].ask(self.queries),
            torch.stack([newest, torch.full_like(newest, -torch.inf)], dim=3),
            torch.stack([token, frame], dim=3).flip(-1).repeat(1, 1, 1, 1, 2),
            torch.cat([layer.key_value.weight for layer in decoder]),
            torch.cat([layer.key_value.bias for layer in decoder]),
        )

    def _turn(self, x: Tensor, ring: _Ring) -> Tensor:
        """``_advance_causal`` by one frame [B, 1, D], which overwrites the oldest one's slots -> logits [B, K]."""
        slot, filled = 1 + ring.came % self.length, 1 + min(ring.came + 1, self.length)
        into = torch.tensor([0, slot], device=x.device)
        oldest = self.length - slot  # slots after the newest hold the oldest frames, then come those up to it
        biases = torch.cat([ring.itself, ring.ages[..., oldest : oldest + filled - 1]], dim=-1)
        rows = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        layers = cast("Iterable[EncoderLayer]", self.encoder)
        for layer, kept, bias in zip(layers, ring.encoder, biases, strict=True):
            qkv = by_head(layer.project(rows), 3, layer.heads)
            kept.index_copy_(-2, into, qkv[1:])
            rows = layer.attend(rows, qkv[0], kept[0, ..., :filled, :], kept[1, ..., :filled, :], bias)
        rows = self.norm(rows)
        new = F.linear(rows, ring.weight, ring.bias).unflatten(-1, (len(ring.decoder), 2, ring.decoder.shape[3], -1))
        ring.decoder.index_copy_(-2, into, new.permute(2, 3, 0, 4, 1, 5))
        ring.came += 1
        return self._answer(rows[:, 0], list(ring.decoder[..., :filled, :]), asked=ring.asked)[0]


def _require_evaluation(model: nn.Module) -> None:
    if model.training:
        raise ValueError("a stream needs evaluation mode: call eval() first")


def _unscaled(layer: EncoderLayer, x: Tensor) -> Tensor:
    """W_qkv g (x - mean x): the layer's qkv before LayerNorm's scale and shift, linear in x. [..., D] -> [..., 3 D]."""
    return F.linear((x - x.mean(dim=-1, keepdim=True)) * layer.norm1.weight, layer.qkv.weight)


def _loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and accuracy on the known labels [N], over all processes: each divides by the mean number of
    labels per process. 0 if no label is known."""
    known = labels != UNKNOWN
    count = (sum_over_processes(known.sum().to(torch.float32)) / world_size()).clamp(min=1 / world_size())
    loss = F.cross_entropy(precise(logits), labels, ignore_index=UNKNOWN, reduction="sum")
    return loss / count, ((logits.detach().argmax(-1) == labels) & known).sum() / count


def _present(missing: Tensor | None, rows: Tensor) -> Tensor | None:
    """Mask of rows [B, n, D] without the first ``missing`` ones of each: bool [B, n]."""
    return None if missing is None else torch.arange(rows.shape[1], device=rows.device) >= missing[:, None]


def _windows(rows: Tensor, new: int, length: int) -> tuple[Tensor, Tensor | None]:
    """For each of the last ``new`` of rows [B, n, D] the window of at most ``length`` rows up to it: [B new, w, D] (the
    windows of a stream are consecutive), and how many of its first rows are missing [B new] (None: in no window)."""
    if new == 1:
        return rows[:, -length:], None
    w = min(length, rows.shape[1])
    lack = max(0, w - 1 - (rows.shape[1] - new))
    windows = F.pad(rows, (0, 0, lack, 0))[:, -(new + w - 1) :].unfold(1, w, 1).transpose(2, 3).flatten(0, 1)
    missing = (lack - torch.arange(new, device=rows.device)).clamp_min(0).repeat(len(rows))
    return windows, missing if lack else None
