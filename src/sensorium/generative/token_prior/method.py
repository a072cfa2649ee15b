"""The prior of VQGAN's second stage: taming transformers for high-resolution image synthesis (Esser, Rombach & Ommer, 2020,
arXiv:2012.09841, section 3.2).

The codes s of an image form a sequence, row by row from the top left, which a causal Transformer models:
    p(s) = prod_i p(s_i | s_<i, c),        L = -mean_i log p(s_i | s_<i, c)                              (eq. 8 - 10)
The class c is the token before the first; one more token means "no class". Codes are sampled one after another; a
tokenizer, such as VQGAN, decodes them to an image. Of an image that is partly known the codes of the known places are given, the others
sampled (section 3.2, "image completion"). Larger images are sampled in a sliding window of the training's size (``generative/codes.py``).
Shapes: B images, h x w grid of codes, T = h w, K codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import AnySize, ClassConditional, Completer
from sensorium.base.precision import precise
from sensorium.errors import SensoriumError
from sensorium.generative.codes import Grid, draw_codes
from sensorium.method import Method
from sensorium.networks.decoder import Decoder


class TokenPrior(Method, ClassConditional, Completer, AnySize):
    """A distribution over grids of codes, which a tokenizer decodes to images.

    decoder: a causal Transformer over ``vocab`` tokens (:func:`~sensorium.generative.token_prior.decoder.token_decoder`):
    the codes 0 .. K - 1, one token per class, one for no class. tokenizer: frozen. shape: of an image, 3, H, W.
    classes: 0 for none. top_k, temperature: of :meth:`sample`.
    """

    guided = False

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Any,
        shape: tuple[int, int, int],
        classes: int = 0,
        *,
        top_k: int | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        wanted, vocab = vocab_of(tokenizer.codes, classes), cast(nn.Embedding, decoder.embed).num_embeddings
        if vocab != wanted:
            raise ValueError(f"{tokenizer.codes} codes and {classes} classes need a decoder of {wanted}, not {vocab}")
        self.decoder, self.tokenizer = decoder, tokenizer.requires_grad_(False).eval()
        self.codes, self.grid, self.classes = tokenizer.codes, tokenizer.grid, classes
        self.shape, self.top_k, self.temperature = shape, top_k, temperature
        self.patch = shape[1] // self.grid[0], shape[2] // self.grid[1]

    def train(self, mode: bool = True) -> TokenPrior:
        super().train(mode)
        self.tokenizer.eval()
        return self

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``codes`` int64 [B, h, w] and, with classes, ``label`` int64 [B] (-1: unknown) -> the loss, nats per code.

        Logs ``bits_per_code``; log2 K for a uniform distribution.
        """
        codes = batch["codes"]
        logits = self.logits(codes, batch["label"] if self.classes else None)
        loss = F.cross_entropy(logits.flatten(0, 1), codes.flatten())
        return {"loss": loss, "bits_per_code": loss.detach() / math.log(2)}

    def logits(self, codes: Tensor, classes: Tensor | None = None) -> Tensor:
        """int64 [B, h, w], classes [B] -> logits of each code given the class and earlier codes [B, T, K], float32 or
        better."""
        flat = codes.flatten(1)
        tokens = torch.cat([self._start(len(codes), classes).to(flat.device), flat[:, :-1]], dim=1)
        return precise(self.decoder(tokens)[..., : self.codes])

    def log_prob(self, codes: Tensor, classes: Tensor | None = None) -> Tensor:
        """int64 [B, h, w] -> log-probability (natural) of each image's codes [B]."""
        each = self.logits(codes, classes).log_softmax(-1)
        return each.gather(-1, codes.flatten(1)[..., None]).squeeze(-1).sum(1)

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        condition: Tensor | int | None = None,
        guidance: float = 1.0,
        size: Grid | None = None,
    ) -> Tensor:
        """``n`` images [n, 3, H, W] in -1..1, each of the class ``condition``; by default all classes in turn. size: H, W.

        Raises ValueError for a ``guidance`` other than 1, which is not supported.
        """
        if guidance != 1:
            raise ValueError("a prior over codes does not support guidance: leave it at 1")
        grid = None if size is None else self.grid_of(size)
        how = {"temperature": self.temperature, "top_k": self.top_k, "seed": seed}
        return self._decoded(self.sample_codes(n, condition, grid=grid, **how))

    @torch.no_grad()
    def complete(self, given: Tensor, known: Tensor, *, seed: int = 0) -> Tensor:
        """Codes are known where all their pixels are; a code depends on those before it alone, which are above it and to its left. Images
        may be larger than those of training."""
        given, known = torch.where(known, given, 0), known.to(given.device)
        grid = self.grid_of((given.shape[2], given.shape[3]))
        whole = F.max_pool2d((~known).any(1, keepdim=True).float(), self.patch)[:, 0] == 0
        where = next(self.decoder.parameters())
        codes = torch.where(whole.to(where.device), self.tokenizer.encode(given.to(where)), -1)
        drawn = self.sample_codes(
            len(given), -1 if self.classes else None, grid=grid, temperature=self.temperature, top_k=self.top_k, seed=seed,
            forced=codes,
        )  # fmt: skip
        pictures = self._decoded(drawn)
        return torch.where(known.to(pictures.device), given.to(pictures), pictures)

    def sample_codes(
        self,
        n: int,
        classes: Tensor | int | None = None,
        *,
        grid: Grid | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
        forced: Tensor | None = None,
    ) -> Tensor:
        """``n`` grids of codes int64 [n, h, w], by default of training, larger ones in windows (``generative/codes.py``).

        classes: one for all, or [n], -1 for none; by default all in turn. temperature: 0 is greedy. top_k: sample from
        the k most likely codes. forced: codes int64 [n, h, w] that are given, -1 where they are not. Raises ValueError for an unknown class.
        """
        if classes is None and self.classes:
            classes = torch.arange(n) % self.classes
        where = next(self.decoder.parameters()).device
        before = self._start(n, None if classes is None else torch.as_tensor(classes).expand(n)).to(where)
        return draw_codes(
            self.decoder, before, self.codes, self.grid, grid or self.grid, temperature=temperature, top_k=top_k,
            generator=torch.Generator(where).manual_seed(seed), forced=forced,
        )  # fmt: skip

    def grid_of(self, size: Grid) -> Grid:
        """Grid (rows, columns) of images of H, W pixels. Raises SensoriumError if they have none, or are smaller than those of training."""
        wrong = [
            side % step or side < least for side, step, least in zip(size, self.patch, self.shape[1:], strict=True)
        ]
        if any(wrong):
            (height, width), (step, _), (_, high, wide) = size, self.patch, self.shape
            raise SensoriumError(
                f"pictures of {width}x{height} pixels: width and height must be multiples of {step}, and at least the "
                f"{wide}x{high} of training."
            )
        return size[0] // self.patch[0], size[1] // self.patch[1]

    def _decoded(self, codes: Tensor) -> Tensor:
        """[n, H, W] -> images, so many at a time that larger ones take as much memory."""
        at_once = max(1, 64 * math.prod(self.grid) // codes[0].numel())
        return torch.cat([self.tokenizer.decode(part) for part in codes.split(at_once)])

    def _start(self, n: int, classes: Tensor | None) -> Tensor:
        """The token before the first code: [n, 1]."""
        if classes is None:
            return torch.full((n, 1), self.codes + self.classes)
        if bool((classes >= self.classes).any()):
            raise ValueError(f"class {int(classes.max())} must be less than {self.classes}")
        return (self.codes + torch.where(classes < 0, self.classes, classes))[:, None]


def vocab_of(codes: int, classes: int = 0) -> int:
    """Vocabulary size of a decoder for these numbers of codes and classes."""
    return codes + classes + 1
