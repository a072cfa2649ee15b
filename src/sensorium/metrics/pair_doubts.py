"""Which pairs of a picture and a caption don't belong together, by a model that embeds both in one space.

A similarity alone says little: some pictures and some captions are near to everything. With s_ij the similarity of picture i and caption
j, a pair stands among the other pairs of its picture and of its caption by

    z = 1/2 ( (s_ii - mean_j s_ij) / std_j s_ij + (s_ii - mean_j s_ji) / std_j s_ji )

over the j of other groups, so that another caption of the picture is no rival. A pair is an outlier by

    o = (z - median z) / (1.4826 median |z - median z|)

over all pairs, which wrong ones among them hardly change; the most doubtful is the lowest. ``better`` is the share of the other captions that are nearer to the picture.

Shapes: P pictures, M captions, N pairs, E dimensions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

RIVALS = 2000  # others that a pair is compared with, drawn at random
NORMAL = 1.4826  # of the median absolute deviation: the standard deviation of a normal distribution
_TINY = 1e-9


class Standing(NamedTuple):
    """Of N pairs: the similarity, z, o and the share of other captions that fit better, each float64 [N]."""

    similarity: np.ndarray
    z: np.ndarray
    outlier: np.ndarray
    better: np.ndarray


class Side(NamedTuple):
    """Unit vectors [P, E] of the pictures, or of the captions, their groups [P], and which of them each pair has [N]."""

    vectors: Tensor
    groups: np.ndarray
    of: np.ndarray


def standing(pictures: Side, captions: Side, *, chunk: int = 512) -> Standing:
    """How each pair stands among others. Pictures and captions of one group belong together."""
    own = (pictures.vectors[pictures.of] * captions.vectors[captions.of]).sum(1).double().numpy()
    by_picture, better = _among(pictures, captions, own, chunk)
    by_caption, _ = _among(captions, pictures, own, chunk)
    z = (by_picture + by_caption) / 2
    return Standing(own, z, robust(z), better)


def robust(values: np.ndarray) -> np.ndarray:
    """(values - median) / (1.4826 median |values - median|), 0 where all are equal."""
    apart = values - np.median(values)
    return apart / max(NORMAL * float(np.median(np.abs(apart))), _TINY)


def nearest(pictures: Side, captions: Side, which: np.ndarray) -> np.ndarray:
    """The caption of another group that is nearest to the picture of each of the pairs ``which`` [n]: int64 [n]."""
    mine = pictures.of[which]
    similarity = (pictures.vectors[mine] @ captions.vectors.T).numpy()
    other = pictures.groups[mine][:, None] != captions.groups
    return np.where(other, similarity, -np.inf).argmax(axis=1)


def _among(queries: Side, keys: Side, own: np.ndarray, chunk: int) -> tuple[np.ndarray, np.ndarray]:
    """z of each pair among its query's similarities with keys of other groups, and the share of these that are
    larger: [N], [N]."""
    rivals = np.sort(np.random.default_rng(0).permutation(len(keys.vectors))[:RIVALS])
    vectors, groups = keys.vectors[torch.from_numpy(rivals)], keys.groups[rivals]
    z, larger = np.zeros(len(own)), np.zeros(len(own))
    for start in range(0, len(own), chunk):
        mine = queries.of[start : start + chunk]
        scores = (queries.vectors[torch.from_numpy(mine)] @ vectors.T).double().numpy()
        scores = np.where(queries.groups[mine][:, None] != groups, scores, np.nan)
        known = np.isfinite(scores).any(axis=1)
        rows, value = scores[known], own[start : start + chunk][known][:, None]
        spread = np.maximum(np.nanstd(rows, axis=1, keepdims=True), _TINY)
        at = np.arange(start, start + len(mine))[known]
        z[at] = ((value - np.nanmean(rows, axis=1, keepdims=True)) / spread)[:, 0]
        larger[at] = (rows > value).sum(axis=1) / np.isfinite(rows).sum(axis=1)
    return z, larger
