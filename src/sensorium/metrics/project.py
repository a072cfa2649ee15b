"""A two-dimensional map of the features that preserves neighborhoods (t-SNE).

Unit-length features, their first 50 principal components, then t-SNE (van der Maaten and Hinton, 2008) initialized with
the first two. Clusters are meaningful; distances between them are not.
"""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor

POINTS = 2_000
COMPONENTS = 50
ITERATIONS = 500  # the KL divergence is within a few percent of that at 1,000 iterations, in half the time


def project(features: Tensor, seed: int = 0) -> np.ndarray:
    """Features [N, D] -> positions float32 [N, 2], the same for the same seed. At most 2,000 points: subsample
    first."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    n = len(features)
    if n > POINTS:
        raise ValueError(f"{n} points are too many for a map; sample {POINTS} of them")
    unit = F.normalize(features.double(), dim=1).numpy()
    if n < 2 or np.ptp(unit, axis=0).max() < 1e-9:  # collapsed features have a single position
        return np.zeros((n, 2), dtype=np.float32)
    with threadpool_limits(1):  # several threads would sum in a different order each time
        flat = PCA(min(COMPONENTS, *unit.shape), svd_solver="full").fit_transform(unit)
        if n < 5:
            return np.pad(flat, ((0, 0), (0, 1)))[:, :2].astype(np.float32)
        start = np.pad(flat, ((0, 0), (0, 1)))[:, :2] / max(flat[:, 0].std(), 1e-12) * 1e-4
        tsne = TSNE(init=start, perplexity=min(30.0, (n - 1) / 3), max_iter=ITERATIONS, random_state=seed, n_jobs=1)  # type: ignore[arg-type]
        return tsne.fit_transform(flat).astype(np.float32)
