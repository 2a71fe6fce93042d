"""The report's section on the feature spaces: t-SNE (van der Maaten and Hinton, 2008) of a sample of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F

from evals.features import FeatureBank
from evals.report.figures import class_points, fate_points, scatter_panel
from evals.report.page import Figure, Section, Table
from evals.report.scores import OTHER, TARGET, UNKNOWN
from evals.report.view import Pool, pool_heading

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


def map_section(pools: Sequence[Pool]) -> Section:
    """t-SNE of both feature spaces."""
    section = Section("Maps of the feature spaces")
    section.say(
        "t-SNE of a random sample of the pool and the initial images, by the angles between features. Near is alike to "
        "the encoder; distances between far groups mean little. Semantic features should part classes; distinctive "
        "ones tell single images apart."
    )
    for pool in pools:
        pool_heading(section, pool, pools)
        maps = {name: feature_map(bank) for name, bank in pool.material.banks.items()}
        figures = [figure for name, found in maps.items() if found for figure in map_figures(pool, name, found)]
        if figures:
            section.figures(figures)
        else:
            section.miss(f"No features: {pool.material.why.get('features', 'the sample is too small')}.")
    return section


def map_figures(pool: Pool, encoder: str, found: FeatureMap) -> list[Figure]:
    """One map twice: by class, and by what became of the images."""
    data = pool.material.data
    labels, fates = data.train_labels[found.indices], fates_of(pool, found.indices)
    kinds = {
        "class": (class_points(found.positions, labels, data.class_names, pool.targets), labels),
        "query": (fate_points(found.positions, fates), pool.truth(found.indices)),
    }
    figures = []
    for kind, (groups, numbers) in kinds.items():
        share = neighbour_share(found.positions, numbers)
        what = "of the same class" if kind == "class" else "of the same kind (target or other)"
        near = "" if share is None else f": {share:.0f} % of nearest neighbours on the map are {what}"
        caption = f"{encoder.capitalize()} features by {'class' if kind == 'class' else 'fate in the query'}{near}"
        panel = scatter_panel(f"map_{pool.key}_{encoder}_{kind}", groups, xlabel="", ylabel="", bare=True, height=4.2)
        rows = [[group.name, len(group.x)] for group in groups if len(group.x)]
        alt = f"t-SNE map of {len(found.indices)} images. {caption}"
        figures.append(Figure(panel, caption, alt, Table(["group", "images shown"], rows)))
    return figures


def fates_of(pool: Pool, images: np.ndarray) -> dict[str, np.ndarray]:
    """What became of each image in all cycles, as masks by name, (n,)."""
    truth, files = pool.truth(images), pool.query.files
    start = np.isin(images, files[0].labeled)
    queried = np.isin(images, [image for content in files for image in content.queried])
    fates = {"not queried": ~start & ~queried}
    for name, value in (("other", OTHER), ("target", TARGET), ("not annotated", UNKNOWN)):
        fates[f"queried, {name}"] = queried & (truth == value)
    return fates | {"labeled at the start": start}
