"""Multi-head latent attention (DeepSeek-V2: DeepSeek-AI, 2024, arXiv:2405.04434, section 2.1; also V3, Kimi and
Moonlight).

Keys and values of all heads are projected from one short vector per token, the latent, so that only it must be cached.
RoPE can't be applied to projections of a latent in absorbed form, so a few separate channels carry it, in a key shared
by all heads:
    c_s = RMSNorm(W_dkv x_s),   k^R_s = RoPE(W_kr x_s)                    cached: c + r values per token    (eq. 9, 15)
    [k^C_s ; v_s] = W_ukv c_s,  k_s = [k^C_s ; k^R_s]                     each head                         (eq. 10, 11)
    [q^C_t ; q^R_t] = W_q x_t  or  W_uq RMSNorm(W_dq x_t),                q_t = [q^C_t ; RoPE(q^R_t)]       (eq. 12 - 14)
    y = W_o softmax(q k^T / sqrt(n + r)) v                                                                  (eq. 16 - 19)
For a few new tokens it is cheaper to project the queries to the latents than the latents to the heads. As q^C . (W_uk
c) = (W_uk^T q^C) . c, this absorbed form is grouped-query attention with one head of keys [c ; k^R] and values c.
Shapes: B batch, T tokens, S tokens including earlier ones, D width, h heads, c channels of the latent, r of the rotary
part, n of the rest of a key, e of a value.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from sensorium.parts.attention.exact import Attend, fused
from sensorium.parts.positions.rotary import rotate


class LatentCache:
    """Latents and rotary keys of the tokens so far, [B, ``length``, c + r], of one layer; preallocated."""

    def __init__(
        self,
        batch: int,
        length: int,
        channels: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.kept = torch.empty(batch, length, channels, device=device, dtype=dtype)
        self.seen = 0

    def extend(self, new: Tensor) -> Tensor:
        """Append [B, T, c + r] -> all of it. Raises ValueError if the cache is full."""
        end = self.seen + new.shape[1]
        if end > self.kept.shape[1]:
            raise ValueError(f"the cache holds {self.kept.shape[1]} tokens, not {end}")
        self.kept[:, self.seen : end] = new
        self.seen = end
        return self.kept[:, :end]

    def reorder(self, rows: Tensor) -> None:
        """Row i continues from row ``rows[i]``. int64 [B]."""
        self.kept[:, : self.seen] = self.kept[rows, : self.seen]


class LatentAttention(nn.Module):
    """Attention over latents, by default causal; no biases.

    latent: c. rotary: r. plain: n. value: e. query_latent: channels of the queries' own latent (None: W_q at once). scale:
    of the scores (1 / sqrt(n + r)). ``kv_up`` holds W_uk above W_uv of each head; a query's plain channels come first.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        latent: int,
        rotary: int,
        plain: int,
        value: int,
        query_latent: int | None = None,
        scale: float | None = None,
        eps: float = 1e-6,
        attend: Attend = fused,
    ) -> None:
        super().__init__()
        self.heads, self.latent, self.rotary, self.plain, self.value = heads, latent, rotary, plain, value
        self.scale, self.attend = (plain + rotary) ** -0.5 if scale is None else scale, attend
        out = heads * (plain + rotary)
        if query_latent is None:
            self.q = nn.Linear(width, out, bias=False)
        else:
            down, norm = nn.Linear(width, query_latent, bias=False), nn.RMSNorm(query_latent, eps=eps)
            self.q = nn.Sequential(down, norm, nn.Linear(query_latent, out, bias=False))
        self.kv_down = nn.Linear(width, latent + rotary, bias=False)
        self.kv_norm = nn.RMSNorm(latent, eps=eps)
        self.kv_up = nn.Linear(latent, heads * (plain + value), bias=False)
        self.proj = nn.Linear(heads * value, width, bias=False)

    def forward(
        self,
        x: Tensor,
        table: tuple[Tensor, Tensor],
        cache: LatentCache | None = None,
        *,
        mask: Tensor | None = None,
        causal: bool = True,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D], with the ``rotary_table`` of these tokens' positions, of r channels.

        With a ``cache`` the tokens follow the cached ones. mask, causal: as in
        :class:`~sensorium.parts.attention.exact.Attend`.
        """
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        q_plain, q_turned = q.split([self.plain, self.rotary], dim=-1)
        q_turned = rotate(q_turned, table)
        c, k_turned = self.kv_down(x).split([self.latent, self.rotary], dim=-1)
        kept = torch.cat([self.kv_norm(c), rotate(k_turned, table)], dim=-1)
        if cache is not None:
            kept = cache.extend(kept)
        absorbed = cache is not None and self._absorbing_is_cheaper(x.shape[1], kept.shape[1])
        attend = partial(self.attend, causal=causal, mask=mask, scale=self.scale)
        y = (self._absorbed if absorbed else self._plain)(q_plain, q_turned, kept, attend)
        return self.proj(y.transpose(1, 2).flatten(2))

    def _plain(self, q_plain: Tensor, q_turned: Tensor, kept: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        """Keys and values of every head from the latents: [B, h, T, e]."""
        c, k_turned = kept.split([self.latent, self.rotary], dim=-1)
        k_plain, v = (
            self.kv_up(c).unflatten(-1, (self.heads, -1)).transpose(1, 2).split([self.plain, self.value], dim=-1)
        )
        k = torch.cat([k_plain, k_turned[:, None].expand(-1, self.heads, -1, -1)], dim=-1)
        return attend(torch.cat([q_plain, q_turned], dim=-1), k, v)

    def _absorbed(self, q_plain: Tensor, q_turned: Tensor, kept: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        """Queries of every head projected to the latents, and the results projected back: [B, h, T, e]."""
        w_uk, w_uv = self.kv_up.weight.unflatten(0, (self.heads, -1)).split([self.plain, self.value], dim=1)
        q, k = torch.cat([q_plain @ w_uk, q_turned], dim=-1), kept[:, None]
        return attend(q, k, k[..., : self.latent]) @ w_uv.mT

    def _absorbing_is_cheaper(self, T: int, S: int) -> bool:
        """Compares the multiplications per head: projections and products with keys and values."""
        up = self.latent * (self.plain + self.value)
        absorbed = T * up + T * S * (2 * self.latent + self.rotary)
        return absorbed < S * up + T * S * (self.plain + self.rotary + self.value)
