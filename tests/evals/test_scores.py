"""Scores against the reference values, against a slow loop in double precision, and by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from evals.query import QueryInputs, select
from evals.scores import (
    Neighbours,
    PoolScores,
    Scorer,
    add_labeled,
    automatic_t,
    distinctive_distance,
    min_max,
    semantic_score,
)
from evals.strategies.ccal import ccal
from utils import InputError


def cosine(u: np.ndarray, v: np.ndarray) -> float:
    return float(np.dot(u, v) / math.sqrt(float(np.dot(u, u)) * float(np.dot(v, v))))


def slow_min_max(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) for value in values]


def slow_scores(pool, labeled, classes, *, num_classes, k, t):
    """METHOD 4, image by image, in double precision; pool and labeled are (semantic (n, D), distinctive (n, K, D))."""
    semantic_pool, distinctive_pool = (part.double().numpy() for part in pool)
    semantic_labeled, distinctive_labeled = (part.double().numpy() for part in labeled)
    similarity, pseudo, distance = [], [], []
    for u in range(len(semantic_pool)):
        cosines = [cosine(semantic_pool[u], other) for other in semantic_labeled]
        nearest = cosines.index(max(cosines))
        similarity.append(cosines[nearest])
        pseudo.append(classes[nearest])
        per_class = []
        for number in range(num_classes):
            terms = []
            for shift in range(distinctive_pool.shape[1]):
                of_class = [
                    (cosine(distinctive_pool[u, shift], distinctive_labeled[row, shift]), row)
                    for row in range(len(classes))
                    if classes[row] == number
                ]
                (to_a, a), (to_b, b) = sorted(of_class, reverse=True)[:2]
                between = cosine(distinctive_labeled[a, shift], distinctive_labeled[b, shift])
                terms.append(to_a - to_b + between + to_a)
            per_class.append(sum(terms) / len(terms))
        distance.append(per_class)
    semantic = [math.tanh(k * (s - t) / 2) for s in slow_min_max(similarity)]
    columns = [slow_min_max([row[number] for row in distance]) for number in range(num_classes)]
    distinctive = [[1 - columns[number][u] for number in range(num_classes)] for u in range(len(pool[0]))]
    return similarity, pseudo, semantic, distance, distinctive


def random_features(seed: int, count: int, *, shifts: int = 3, width: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    length = torch.empty(count, 1).uniform_(0.1, 30, generator=generator)
    semantic = torch.randn(count, width, generator=generator) * length
    return semantic, torch.randn(count, shifts, width, generator=generator) * length[:, None]


def make_scorer(pool, groups, *, num_classes, k=100.0, t=0.9) -> Scorer:
    """A scorer with labeled groups ((semantic, distinctive), classes) added one after the other."""
    scorer = Scorer(pool[0][:, None], pool[1], num_classes=num_classes, k=k, t=t)
    for (semantic, distinctive), classes in groups:
        scorer.add_labeled(semantic[:, None], distinctive, torch.tensor(classes))
    return scorer


def assert_scores(scores: PoolScores, expected, atol: float = 1e-5) -> None:
    similarity, pseudo, semantic, distance, distinctive = expected
    assert scores.pseudo_class.tolist() == pseudo
    torch.testing.assert_close(scores.similarity.double(), torch.tensor(similarity).double(), rtol=0, atol=atol)
    torch.testing.assert_close(scores.semantic.double(), torch.tensor(semantic).double(), rtol=0, atol=50 * atol)
    torch.testing.assert_close(scores.distance.double(), torch.tensor(distance).double(), rtol=0, atol=atol)
    torch.testing.assert_close(scores.distinctive.double(), torch.tensor(distinctive).double(), rtol=0, atol=atol)


CLASSES = [2, 0, 1, 1, 0, 2, 2, 0, 1, 0, 2]  # of eleven labeled images


@pytest.mark.parametrize(("k", "t"), [(100.0, 0.9), (3.0, 0.4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_scores_are_those_of_the_loop(k, t, dtype):
    """Features in half precision are compared in float32."""
    pool, labeled = ([part.to(dtype) for part in random_features(n, n)] for n in (23, len(CLASSES)))
    scores = make_scorer(pool, [(labeled, CLASSES)], num_classes=3, k=k, t=t).scores(torch.arange(23))
    assert_scores(scores, slow_scores(pool, labeled, CLASSES, num_classes=3, k=k, t=t))


@pytest.mark.parametrize("remaining", [[0, 1, 2, 3, 4, 5], [20, 3, 11, 4], [22, 7]], ids=str)
def test_normalisation_runs_over_the_remaining_images_alone(remaining):
    pool, labeled = random_features(3, 23), random_features(4, len(CLASSES))
    scores = make_scorer(pool, [(labeled, CLASSES)], num_classes=3, k=3, t=0.5).scores(torch.tensor(remaining))
    left = (pool[0][remaining], pool[1][remaining])
    assert_scores(scores, slow_scores(left, labeled, CLASSES, num_classes=3, k=3, t=0.5))


@pytest.mark.parametrize("cuts", [[6], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [0, 9, 9]], ids=str)
def test_labeled_images_in_groups_score_as_all_at_once(monkeypatch, cuts):
    monkeypatch.setattr("evals.scores.BLOCK", 5)  # of 23 images
    pool, labeled = random_features(5, 23), random_features(6, len(CLASSES))
    edges = [0, *cuts, len(CLASSES)]
    groups = [
        ((labeled[0][start:stop], labeled[1][start:stop]), CLASSES[start:stop])
        for start, stop in itertools.pairwise(edges)
    ]
    scores = make_scorer(pool, groups, num_classes=3, k=3, t=0.5).scores(torch.arange(23))
    assert_scores(scores, slow_scores(pool, labeled, CLASSES, num_classes=3, k=3, t=0.5))


def test_an_encoder_that_is_not_there_has_no_scores():
    pool, labeled = random_features(11, 5), random_features(12, len(CLASSES))
    everything = torch.arange(5)
    full = make_scorer(pool, [(labeled, CLASSES)], num_classes=3).scores(everything)
    semantic = Scorer(pool[0][:, None], None, num_classes=3, k=100, t=0.9)
    semantic.add_labeled(labeled[0][:, None], None, torch.tensor(CLASSES))
    scores = semantic.scores(everything)
    assert torch.equal(scores.semantic, full.semantic)
    assert torch.equal(scores.pseudo_class, full.pseudo_class)
    assert scores.distance is None
    assert scores.distinctive is None
    nothing = Scorer(None, None, num_classes=3, k=100, t=0.9)
    nothing.add_labeled(None, None, torch.tensor(CLASSES))
    assert nothing.scores(everything) == PoolScores()


def angles(*degrees: float) -> torch.Tensor:
    """Unit vectors in the plane, (n, 1, 2)."""
    radians = torch.tensor(degrees).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)[:, None]


def test_nearest_neighbours_by_hand():
    pool, nearest = angles(0, 31), Neighbours(2, 1, keep=2)
    add_labeled(pool, [nearest], [angles(10, 50, -5)])
    assert len(nearest) == 3
    assert nearest.position[:, 0].tolist() == [[2, 0], [1, 0]]
    add_labeled(pool, [nearest], [angles()])
    add_labeled(pool, [nearest], [angles(29, 1)])
    assert len(nearest) == 5
    assert nearest.position[:, 0].tolist() == [[4, 2], [3, 1]]
    cosines = torch.tensor([[1.0, 5.0], [2.0, 19.0]]).deg2rad().cos()
    torch.testing.assert_close(nearest.similarity[:, 0], cosines, rtol=0, atol=1e-6)
    between = torch.tensor([6.0, 21.0]).deg2rad().cos()
    torch.testing.assert_close(nearest.between(slice(0, 2))[:, 0], between, rtol=0, atol=1e-6)


def test_distance_by_hand():
    """Shift 0: cosines .8 and .6, a . b = .96: .8 - .6 + .96 + .8 = 1.96. Shift 1: 1 - 0 + 0 + 1 = 2. Mean 1.98."""
    pool = torch.tensor([[[2.0, 0.0], [3.0, 0.0]]])
    labeled = torch.tensor([[[0.6, 0.8], [0.0, 9.0]], [[4.0, 3.0], [0.5, 0.0]], [[-1.0, 0.0], [-1.0, 0.0]]])
    nearest = Neighbours(*pool.shape[:2], keep=2)
    add_labeled(pool, [nearest], [labeled])
    torch.testing.assert_close(distinctive_distance(nearest), torch.tensor([1.98]))


def test_on_a_tie_the_image_labeled_earlier_gives_the_pseudo_class():
    pool = (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.ones(2, 1, 2))
    labeled = (torch.tensor([[1.0, 2.0]]), torch.ones(1, 1, 2))
    for first, second in ((0, 1), (1, 0)):
        scorer = Scorer(pool[0][:, None], None, num_classes=2, k=100, t=0.9)
        for number in (first, second):
            scorer.add_labeled(labeled[0][:, None], None, torch.tensor([number]))
        assert scorer.scores(torch.arange(2)).pseudo_class.tolist() == [first, first]


def test_equal_images_score_equal_and_a_zero_feature_stays_finite():
    pool, labeled = random_features(13, 6), random_features(14, len(CLASSES))
    for part in pool:
        part[4] = part[1]
        part[5] = 0
    scores = make_scorer(pool, [(labeled, CLASSES)], num_classes=3, k=3).scores(torch.arange(6))
    for values in (scores.similarity, scores.semantic, scores.distance, scores.distinctive):
        assert values.isfinite().all()
        torch.testing.assert_close(values[4], values[1], rtol=0, atol=1e-6)
    assert scores.similarity[5] == 0


@pytest.mark.parametrize("counts", [(2, 1), (1, 2), (2, 0)])
def test_the_distinctive_score_needs_two_labeled_images_of_each_class(counts):
    pool = random_features(15, 4)
    classes = [0] * counts[0] + [1] * counts[1]
    scorer = make_scorer(pool, [(random_features(16, len(classes)), classes)], num_classes=2)
    with pytest.raises(InputError, match=rf"has {min(counts)} labeled image\(s\) and the distinctive score needs two"):
        scorer.scores(torch.arange(4))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2.0, 4.0, 3.0], [0.0, 1.0, 0.5]),
        ([-1.0, -1.0, -5.0, -2.0], [1.0, 1.0, 0.0, 0.75]),
        ([0.25, 0.25, 0.25], [0.0, 0.0, 0.0]),
        ([7.0], [0.0]),
        ([0.0, 1e30, 5e29], [0.0, 1.0, 0.5]),
        ([1.0, 1.0 + 2**-23], [0.0, 1.0]),
    ],
    ids=str,
)
def test_min_max_by_hand(values, expected):
    torch.testing.assert_close(min_max(torch.tensor(values)), torch.tensor(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("k", "t", "normalised", "expected"),
    [
        (100.0, 0.9, 0.9, 0.0),
        (100.0, 0.9, 1.0, 0.9999092),  # tanh 5
        (100.0, 0.9, 0.88, -0.7615942),  # tanh -1
        (100.0, 0.9, 0.0, -1.0),
        (2.0, 0.5, 0.0, -0.4621172),  # tanh -0.5
        (2.0, 0.5, 0.75, 0.2449187),  # tanh 0.25
        (4.0, 0.0, 1.0, 0.9640276),  # tanh 2
        (4.0, 1.0, 0.5, -0.7615942),
        (0.5, 1.0, 0.0, -0.2449187),
    ],
)
def test_semantic_score_by_hand(k, t, normalised, expected):
    score = semantic_score(torch.tensor([normalised], dtype=torch.float64), k=k, t=t)
    assert score.item() == pytest.approx(expected, abs=1e-7)


@pytest.fixture(scope="module")
def golden(shared) -> dict[str, np.ndarray]:
    with np.load(shared / "golden" / "scores.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def golden_inputs(golden) -> QueryInputs:
    classes = torch.tensor([golden["target_classes"].tolist().index(label) for label in golden["labeled_label"]])
    distinctive = torch.empty(len(classes), *golden["pool_distinctive"].shape[1:])
    for number in range(3):
        distinctive[classes == number] = torch.from_numpy(golden[f"labeled_distinctive_{number}"])
    scorer = Scorer(
        torch.from_numpy(golden["pool_semantic"])[:, None],
        torch.from_numpy(golden["pool_distinctive"]),
        num_classes=3,
        k=float(golden["k"]),
        t=float(golden["t"]),
    )
    scorer.add_labeled(torch.from_numpy(golden["labeled_semantic"])[:, None], distinctive, classes)
    return QueryInputs(
        pool=golden["pool_index"],
        labeled=np.arange(len(classes)),
        labeled_classes=classes.numpy(),
        set_aside=np.empty(0, dtype=np.int64),
        num_classes=3,
        scores=scorer.scores(torch.arange(len(golden["pool_index"]))),
        banks={},
        rng=np.random.default_rng(0),
        budget=1,
    )


def test_golden_semantic_scores(golden, golden_inputs):
    scores = golden_inputs.scores
    np.testing.assert_allclose(scores.similarity, golden["semantic_raw"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(min_max(scores.similarity), golden["semantic_norm"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(golden["target_classes"][scores.pseudo_class], golden["pseudo_label"])
    published = golden["semantic_score_as_published"]
    overflowed = np.isnan(published)
    assert np.flatnonzero(overflowed).tolist() == [golden["semantic_norm"].argmin()]
    np.testing.assert_allclose(scores.semantic[~overflowed], published[~overflowed], rtol=0, atol=1e-4)
    assert scores.semantic[overflowed].tolist() == [-1.0]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_golden_distinctive_scores(golden, golden_inputs, number):
    scores = golden_inputs.scores
    np.testing.assert_allclose(scores.distance[:, number], golden[f"distinctive_raw_{number}"], rtol=0, atol=1e-5)
    normalised = golden[f"distinctive_norm_{number}"]
    np.testing.assert_allclose(1 - scores.distinctive[:, number], normalised, rtol=0, atol=1e-5)


def test_golden_selection(golden, golden_inputs):
    """The original's images in its order, but for the pool's minimum: NaN there, so class 2 takes it first."""
    result = select(ccal(golden_inputs), golden_inputs, queries_per_class=20)
    assert result.shortfall == {}
    chosen = {number: result.indices[result.pseudo_class == number].tolist() for number in range(3)}
    published = {number: golden[f"selected_20_as_published_{number}"].tolist() for number in range(3)}
    assert chosen[0] == published[0]
    assert chosen[1] == published[1]
    overflowed = golden["pool_index"][np.isnan(golden["semantic_score_as_published"])].tolist()
    assert published[2][:1] == overflowed
    assert chosen[2][:19] == published[2][1:]
    assert chosen[2][19] not in published[2]


def test_features_that_lie_elsewhere_come_to_where_the_scores_are():
    """A device that holds no data stands for a GPU."""
    nearest = Neighbours(3, 1, keep=1, device="meta")
    add_labeled(angles(0, 31, 77), [nearest], [angles(10, 50).to("meta")])
    add_labeled(angles(0, 31, 77), [nearest], [angles(20).to("meta")])
    assert (nearest.similarity.device.type, len(nearest)) == ("meta", 3)
    scorer = Scorer(angles(0, 31, 77), None, num_classes=2, k=10.0, t=0.5, device="meta")
    scorer.add_labeled(angles(10, 50), None, torch.tensor([0, 1]))
    scores = scorer.scores(torch.tensor([2, 0]))
    for values in (scores.similarity, scores.semantic, scores.pseudo_class):
        assert (values.device.type, values.shape) == ("meta", (2,))


@pytest.mark.parametrize(("asked", "t"), [(1, 0.75), (3, 0.25), (4, 0.0), (100, 0.0)])
def test_the_automatic_t_is_reached_by_a_quarter_more_images_than_are_asked_for(asked, t):
    """Two images at least for one, four for three, five for four, and never more than there are."""
    assert automatic_t(torch.tensor([0.5, 1.0, 0.25, 0.75, 0.0]), asked) == t
    pool, labeled = random_features(3, 23), random_features(4, len(CLASSES))
    scores = make_scorer(pool, [(labeled, CLASSES)], num_classes=3, k=7, t="auto").scores(torch.arange(23), asked=8)
    normalised = min_max(scores.similarity)
    tenth = sorted(normalised.tolist())[-10]
    torch.testing.assert_close(scores.semantic, semantic_score(normalised, k=7, t=tenth))
