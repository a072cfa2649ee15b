"""Retrieval between images and texts by the cosine of their embeddings: recall at k, both ways.

    R@k = fraction of queries with at least one right answer among the k most similar candidates
The rank of a query's best right answer is the number of wrong candidates at least as similar, so ties count as wrong,
and collapsed embeddings score 0. Right answers have the query's group: an image may have several captions and a caption
several images. Rows are compared in chunks, so memory does not grow with images times texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sensorium.abilities import Encoder, ImageText
from sensorium.data.images.cache import Pixels
from sensorium.errors import SensoriumError
from sensorium.judge.encode import Precision, autocast, encode, judged

Groups = Tensor | np.ndarray | Sequence[int]


def retrieval(
    images: Tensor,
    texts: Tensor,
    image_groups: Groups | None = None,
    text_groups: Groups | None = None,
    *,
    ks: Sequence[int] = (1, 5, 10),
    chunk: int = 1024,
    device: torch.device | str = "cpu",
) -> dict[str, float | int]:
    """``{"image_to_text_r1", ..., "text_to_image_r1", ..., "images", "texts"}``: recall in 0..1, queries counted.

    images: unit vectors [N, E]; texts: [M, E]. An image and a text of one group (int [N], int [M]) belong together;
    without groups row i belongs to row i. Queries without any right answer are not counted. At most ``chunk`` x N or
    ``chunk`` x M similarities are in memory at a time. Raises SensoriumError if nothing can be scored.
    """
    found: dict[str, float | int] = {}
    ranks = retrieval_ranks(images, texts, image_groups, text_groups, chunk=chunk, device=device)
    for name, rank in ranks.items():
        found |= {f"{name}_r{k}": float((rank < k).double().mean()) for k in ks}
    return found | {"images": len(ranks["image_to_text"]), "texts": len(ranks["text_to_image"])}


def retrieval_ranks(
    images: Tensor,
    texts: Tensor,
    image_groups: Groups | None = None,
    text_groups: Groups | None = None,
    *,
    chunk: int = 1024,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """``{"image_to_text": int64 [N], "text_to_image": int64 [M]}``: for each query that has a right answer, the number
    of wrong ones at least as similar as the best right one. Arguments and errors are those of :func:`retrieval`."""
    if (image_groups is None) != (text_groups is None):
        raise ValueError("give the groups of both images and texts, or of neither")
    for name, x in (("images", images), ("texts", texts)):
        if not torch.isfinite(x).all():
            raise SensoriumError(f"The embeddings of the {name} are not finite: the weights have diverged.")
    if image_groups is None and len(images) != len(texts):
        raise ValueError(f"{len(images)} images and {len(texts)} texts are not pairs: give their groups")
    of_images, of_texts = (
        torch.arange(len(x)) if groups is None else torch.as_tensor(groups, dtype=torch.int64)
        for x, groups in ((images, image_groups), (texts, text_groups))
    )
    sides = (images.to(device).float(), of_images.to(device)), (texts.to(device).float(), of_texts.to(device))
    for name, (x, groups) in zip(("images", "texts"), sides, strict=True):
        if len(x) != len(groups):
            raise ValueError(f"{len(x)} {name} but {len(groups)} groups of them")
    found: dict[str, Tensor] = {}
    for name, query, (queries, own), (keys, theirs) in (
        ("image_to_text", "images", *sides),
        ("text_to_image", "texts", *reversed(sides)),
    ):
        found[name] = torch.cat(
            [_ranks(q, o, keys, theirs) for q, o in zip(queries.split(chunk), own.split(chunk), strict=True)]
        )
        if not len(found[name]):
            raise SensoriumError(f"No {query[:-1]} has a right answer, so retrieval cannot be scored.")
    return found


def _ranks(queries: Tensor, own: Tensor, keys: Tensor, theirs: Tensor) -> Tensor:
    """Number of wrong keys at least as similar as the best right one, for each query that has one."""
    right = own[:, None] == theirs[None]
    similarity = queries @ keys.T
    best = similarity.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
    return ((similarity >= best) & ~right).sum(1)[right.any(1)]


class _Images(nn.Module, Encoder):
    """The image encoder of a model as an Encoder."""

    def __init__(self, model: ImageText) -> None:
        super().__init__()
        self.model = model
        self.dim = 0  # unknown before the first batch

    def features(self, images: Tensor) -> Tensor:
        return self.model.embed_image(images)


def embed_images(
    model: ImageText,
    pixels: Pixels,
    *,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    precision: Precision = "float32",
    size: int | None = None,
) -> Tensor:
    """Embeddings [N, E] of all ``pixels``, float32, on the CPU; the arguments are those of ``encode``."""
    return encode(_Images(model), pixels, device=device, batch_size=batch_size, precision=precision, size=size)


def embed_texts(
    model: ImageText,
    tokens: Tensor,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    precision: Precision = "float32",
) -> Tensor:
    """int64 [M, T] -> embeddings [M, E], float32, on the CPU."""
    with judged(model, device), autocast(device, precision):
        parts = [model.embed_text(part.to(device)).float().cpu() for part in tokens.split(batch_size)]
    return torch.cat(parts)
