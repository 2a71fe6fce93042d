"""Maps of a feature space: t-SNE (van der Maaten and Hinton, 2008) of a sample of the images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F

from evals.features import FeatureBank

SAMPLE = 1000  # images, at most
NEIGHBOURS = 5


@dataclass(frozen=True)
class FeatureMap:
    """A sample of images in two dimensions.

    Attributes:
        indices: Data set indices, ascending, (n,).
        positions: float32 (n, 2).
    """

    indices: np.ndarray
    positions: np.ndarray


def feature_map(bank: FeatureBank, *, seed: int = 0) -> FeatureMap | None:
    """Maps a seeded sample of a bank's images by the angles that the scores rest on; None for less than four images.

    Features are scaled to norm 1 by shift, so that the distance of two images falls as their mean cosine rises.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    rng = np.random.default_rng(seed)
    indices = np.sort(rng.permutation(bank.indices)[:SAMPLE])
    if len(indices) < 4:
        return None
    values = F.normalize(bank.of(indices), dim=2).flatten(1).cpu().numpy()
    if values.shape[1] > 50:
        values = PCA(min(50, len(values)), random_state=seed, svd_solver="full").fit_transform(values)
    perplexity = min(30, (len(indices) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed, max_iter=500)
    return FeatureMap(indices, tsne.fit_transform(values))


def neighbour_share(positions: np.ndarray, groups: np.ndarray) -> float | None:
    """How many of each image's nearest neighbours on a map are of its own group, in percent on average.

    Args:
        positions: (n, 2).
        groups: (n,); those below 0 are of no group and left out.
    """
    from sklearn.neighbors import NearestNeighbors

    known = groups >= 0
    count = int(known.sum())
    if count <= NEIGHBOURS:
        return None
    positions, groups = positions[known], groups[known]
    nearest = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(positions).kneighbors(return_distance=False)  # not itself
    return float(100 * (groups[nearest] == groups[:, None]).mean())
