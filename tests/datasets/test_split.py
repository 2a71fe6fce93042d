"""datasets/split.py: the protocol index for index, annotation, and what is refused."""

import dataclasses
import hashlib
import math
import random
import re
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.paper import PROTOCOLS
from common.provenance import int64_digest
from datasets.base import UNKNOWN
from datasets.split import given_split, make_split
from utils import InputError

# METHOD.md, section 1: initial, unlabeled and contrast at mismatch 0.8.
DIGESTS = {
    "cifar10": (
        "d896584df08687d3f52bf1d00df50edcc243d1b6d632595e53676353d998f4dc",
        "c72db81b66e5096a68242250af5b8ffd89b44cf9813e8a854781d7598fde191d",
        "0b1b2fb79e1f6012ef307d188fb0fc8ca0f4e801546c6e77665dbd1a9858b7b6",
    ),
    "cifar100": (
        "1a0ff293d4a2c65a10aa1df1e02277ef902ba33ec1b8c3e219cc0122e9724ba0",
        "ebcc23337522b28d86f874a223d5a64009456ae40ccf36a7f5f540e21b6ecfd0",
        "92c372247ce528fdc1130c1ac3552493701cdd2206dd61c27b2413ce90998d5f",
    ),
}


def synthetic_labels(n_images, n_classes, seed):
    return np.random.default_rng(seed).integers(0, n_classes, n_images)


def literal_protocol(labels, targets, *, mismatch, budget):
    """METHOD.md, section 1, word for word, on the global generator; returns initial, unlabeled and contrast."""
    target_indices = [index for index in range(len(labels)) if labels[index] in targets]
    random.seed(0)
    initial = random.sample(target_indices, budget)
    rest = [index for index in range(len(labels)) if index not in initial]
    rest_targets = [index for index in rest if labels[index] in targets]
    rest_others = [index for index in rest if labels[index] not in targets]
    n_others = math.ceil((mismatch * len(rest_targets)) / (1 - mismatch))
    random.seed(0)
    unlabeled = rest_targets + random.sample(rest_others, n_others)
    contrast = unlabeled + initial
    random.seed(0)
    random.shuffle(contrast)
    return initial, unlabeled, contrast


# The protocol


@pytest.mark.parametrize("name", DIGESTS)
def test_the_published_split(shared, name):
    labels = np.load(shared / "data" / f"labels_{name}_train.npy")
    protocol = PROTOCOLS[name]
    test_labels = np.arange(1000) % (labels.max() + 1)
    split = make_split(
        labels,
        test_labels,
        target_classes=protocol.target_classes,
        mismatch=0.8,
        initial_budget=protocol.initial_budget,
    )
    assert (len(split.labeled), len(split.unlabeled), len(split.contrast())) == (800, 46001, 46801)
    got = tuple(int64_digest(indices) for indices in (split.labeled, split.unlabeled, split.contrast()))
    assert got == DIGESTS[name]
    assert split.test.tolist() == [i for i in range(1000) if test_labels[i] in protocol.target_classes]
    if name == "cifar10":
        assert split.labeled[:5].tolist() == [31604, 34618, 3414, 21283, 41948]
        assert split.labeled[-2:].tolist() == [31970, 35195]


@pytest.mark.parametrize("mismatch", [0.0, 0.2, 0.35, 0.6, 0.7])
@pytest.mark.parametrize("targets", [(0, 1), (3,), (4, 2, 0)])
def test_against_the_literal_protocol(mismatch, targets):
    labels = synthetic_labels(600, 10, seed=len(targets))
    split = make_split(labels, labels, target_classes=targets, mismatch=mismatch, initial_budget=25)
    initial, unlabeled, contrast = literal_protocol(labels.tolist(), targets, mismatch=mismatch, budget=25)
    assert split.labeled.tolist() == initial
    assert split.unlabeled.tolist() == unlabeled
    assert split.contrast().tolist() == contrast
    assert split.set_aside.tolist() == []
    assert {array.dtype for array in (split.labeled, split.unlabeled, split.set_aside, split.test)} == {np.dtype("i8")}


@pytest.mark.parametrize(("mismatch", "n_others"), [(0, 0), (0.2, 2300), (0.4, 6134), (0.6, 13800), (0.8, 36801)])
def test_number_of_others_in_cifars_pool(mismatch, n_others):
    labels = np.arange(50_000) % 10
    split = make_split(labels, labels, target_classes=(0, 1), mismatch=mismatch, initial_budget=800)
    assert np.sum(labels[split.unlabeled] < 2) == 9200
    assert np.sum(labels[split.unlabeled] >= 2) == n_others
    assert len(split.contrast()) == 10_000 + n_others


def test_the_split_neither_reads_nor_moves_the_global_generators():
    labels = synthetic_labels(300, 5, seed=0)
    random.seed(11)
    np.random.seed(11)
    before = random.getstate(), np.random.get_state()[1].tolist()
    first = make_split(labels, labels, target_classes=(0, 1), mismatch=0.5, initial_budget=20)
    first.contrast()
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    random.seed(12)
    second = make_split(labels, labels, target_classes=(0, 1), mismatch=0.5, initial_budget=20)
    assert second.labeled.tolist() == first.labeled.tolist()
    assert second.unlabeled.tolist() == first.unlabeled.tolist()
    assert second.digest == first.digest


def test_another_seed_is_another_split():
    labels = synthetic_labels(300, 5, seed=0)
    zero, one = (
        make_split(labels, labels, target_classes=(0, 1), mismatch=0.5, initial_budget=20, seed=seed) for seed in (0, 1)
    )
    expected = random.Random(1).sample(np.flatnonzero(labels < 2).tolist(), 20)
    assert one.labeled.tolist() == expected != zero.labeled.tolist()
    assert one.seed == 1
    assert one.digest != zero.digest


def test_the_order_of_the_classes_changes_the_digest_alone():
    labels = synthetic_labels(300, 5, seed=0)
    one = make_split(labels, labels, target_classes=(0, 3), mismatch=0.5, initial_budget=20)
    other = make_split(labels, labels, target_classes=[3, 0], mismatch=0.5, initial_budget=20)
    assert one.labeled.tolist() == other.labeled.tolist()
    assert one.unlabeled.tolist() == other.unlabeled.tolist()
    assert one.digest != other.digest
    assert other.target_classes == (3, 0)


@st.composite
def problems(draw):
    """Labels, targets, a budget and a mismatch, such that a split exists."""
    n_classes = draw(st.integers(2, 5))
    n_targets = draw(st.integers(1, n_classes - 1))
    labels = draw(st.lists(st.integers(0, n_classes - 1), min_size=20, max_size=120))
    targets = draw(st.permutations(range(n_classes)))[:n_targets]
    labels += targets * 2 + [label for label in range(n_classes) if label not in targets]
    n_target_images = sum(label in targets for label in labels)
    budget = draw(st.integers(n_targets, n_target_images - 1))
    n_pool_targets = n_target_images - budget
    n_others = len(labels) - n_target_images
    # One image below the limit, so that rounding cannot push the number asked for past what exists.
    mismatch = draw(st.floats(0, (n_others - 1) / (n_others - 1 + n_pool_targets)))
    return np.asarray(labels), targets, budget, mismatch, draw(st.integers(0, 2**32))


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(problems())
def test_properties_of_any_split(problem):
    labels, targets, budget, mismatch, seed = problem
    try:
        split = make_split(labels, labels, target_classes=targets, mismatch=mismatch, initial_budget=budget, seed=seed)
    except InputError as error:
        # The one refusal that depends on the draw; it must be true.
        absent = int(re.search(r"leaves class (\d+) without a labeled image", str(error))[1])
        drawn = random.Random(seed).sample(np.flatnonzero(np.isin(labels, targets)).tolist(), budget)
        assert absent in targets and absent not in labels[drawn]
        return
    is_target = np.isin(labels, targets)
    labeled, pool = set(split.labeled.tolist()), set(split.unlabeled.tolist())
    assert len(labeled) == len(split.labeled) == budget
    assert len(pool) == len(split.unlabeled)
    assert not labeled & pool
    assert is_target[split.labeled].all()
    assert set(labels[split.labeled].tolist()) == set(targets)
    assert labeled | {index for index in pool if is_target[index]} == set(np.flatnonzero(is_target).tolist())
    # The smallest number of others that reaches the mismatch: one fewer falls short (or misses it by rounding alone).
    n_others, n_pool = np.sum(~is_target[split.unlabeled]), len(pool)
    assert n_others / n_pool >= mismatch - 1e-12
    assert n_others == 0 or (n_others - 1) / max(n_pool - 1, 1) <= mismatch + 1e-12
    assert sorted(split.contrast().tolist()) == sorted(labeled | pool)
    assert split.test.tolist() == np.flatnonzero(is_target).tolist()


# Annotation

LABELS = np.asarray([0, 1, 2, 3] * 10)


@pytest.fixture
def split():
    return make_split(LABELS, LABELS[:8], target_classes=(1, 0), mismatch=0.5, initial_budget=6)


def test_annotate(split):
    targets = [index for index in split.unlabeled.tolist() if LABELS[index] < 2]
    others = [index for index in split.unlabeled.tolist() if LABELS[index] >= 2]
    assert (len(targets), len(others)) == (14, 14)
    queried = np.asarray([others[3], targets[5], targets[0], others[1], targets[9]])
    after = split.annotate(queried, LABELS)
    assert after.labeled.tolist() == [*split.labeled.tolist(), targets[5], targets[0], targets[9]]
    assert after.set_aside.tolist() == [others[3], others[1]]
    assert after.unlabeled.tolist() == [i for i in split.unlabeled.tolist() if i not in queried.tolist()]
    assert len(after.unlabeled) == 23
    assert after.digest == split.digest
    assert after.test.tolist() == split.test.tolist()
    assert (len(split.labeled), len(split.unlabeled), len(split.set_aside)) == (6, 28, 0)  # the old one is untouched
    # A second cycle goes on from there.
    again = after.annotate(np.asarray([others[0], targets[1]]), LABELS)
    assert again.labeled.tolist() == [*after.labeled.tolist(), targets[1]]
    assert again.set_aside.tolist() == [others[3], others[1], others[0]]
    assert len(again.unlabeled) == 21
    assert again.digest == split.digest
    assert (split.history, again.history) == ((), ((5, 3), (2, 1)))


def test_annotate_everything_and_nothing(split):
    after = split.annotate(split.unlabeled, LABELS)
    assert (len(after.labeled), len(after.unlabeled), len(after.set_aside)) == (20, 0, 14)
    same = split.annotate(np.asarray([]), LABELS)
    assert same.labeled.tolist() == split.labeled.tolist()
    assert same.unlabeled.tolist() == split.unlabeled.tolist()
    assert same.set_aside.dtype == np.int64
    assert same.set_aside.tolist() == []
    assert (after.history, same.history) == (((28, 14),), ())


def test_annotate_refuses_strangers(split):
    outside = sorted(set(range(len(LABELS))) - set(split.labeled.tolist()) - set(split.unlabeled.tolist()))
    for stranger in (split.labeled[0], outside[0], len(LABELS), -1):
        with pytest.raises(InputError, match=rf"image {stranger} is not in the pool"):
            split.annotate(np.asarray([split.unlabeled[0], stranger]), LABELS)
    after = split.annotate(split.unlabeled[:2], LABELS)
    with pytest.raises(InputError, match=rf"image {split.unlabeled[1]} is not in the pool"):
        after.annotate(split.unlabeled[1:3], LABELS)


def test_class_numbers_are_positions_in_the_list():
    labels = np.asarray(list(range(8)) * 5)
    split = make_split(labels, labels, target_classes=(7, 2, 5), mismatch=0.2, initial_budget=14)
    numbers = split.class_numbers(np.asarray([2, 7, 5, 5, 2], dtype=np.uint8))
    assert numbers.tolist() == [1, 0, 2, 2, 1]
    assert numbers.dtype == np.int64
    assert split.class_numbers(np.asarray([], dtype=np.int64)).tolist() == []


# Refusals

NO_TEST_IMAGE = "the test set has no image of a target class; the accuracy could not be measured"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_classes": ()}, "--target_classes is empty; name at least one class"),
        ({"target_classes": (0, 1, 0)}, "--target_classes names a class twice: 0 1 0"),
        ({"target_classes": (0, 4)}, "--target_classes: class 4 has no images; the data set has classes 0, 1, 2, 3"),
        ({"target_classes": (-1,)}, "--target_classes: class -1 has no images; the data set has classes 0, 1, 2, 3"),
        ({"mismatch": 1.0}, "--mismatch must be in [0, 1), got 1.0"),
        ({"mismatch": -0.01}, "--mismatch must be in [0, 1), got -0.01"),
        ({"mismatch": math.nan}, "--mismatch must be in [0, 1), got nan"),
        ({"mismatch": math.inf}, "--mismatch must be in [0, 1), got inf"),
        ({"initial_budget": 0}, "--initial_budget must be from 1 to 19 (target images less one), got 0"),
        ({"initial_budget": -3}, "--initial_budget must be from 1 to 19 (target images less one), got -3"),
        ({"initial_budget": 20}, "--initial_budget must be from 1 to 19 (target images less one), got 20"),
        ({"test_labels": np.asarray([2, 3])}, NO_TEST_IMAGE),
        ({"test_labels": np.asarray([], dtype=np.int64)}, NO_TEST_IMAGE),
    ],
)
def test_refusals(change, message):
    good = {
        "train_labels": LABELS,
        "test_labels": LABELS[:8],
        "target_classes": (1, 0),
        "mismatch": 0.5,
        "initial_budget": 6,
    }
    asked = good | change
    with pytest.raises(InputError) as caught:
        make_split(asked.pop("train_labels"), asked.pop("test_labels"), **asked)
    assert str(caught.value) == message


def test_a_class_left_without_a_labeled_image_is_named():
    """One image labeled for two classes leaves out the class that was not drawn."""
    (drawn,) = random.Random(0).sample([index for index in range(40) if LABELS[index] < 2], 1)
    absent = 1 - LABELS[drawn]
    with pytest.raises(InputError, match=rf"--initial_budget 1 leaves class {absent} without a labeled image; raise"):
        make_split(LABELS, LABELS, target_classes=(0, 1), mismatch=0.5, initial_budget=1)


LIMIT = re.compile(
    r"--mismatch (?P<mismatch>[\d.]+) asks for (?P<asked>\d+) images of other classes and (?P<existing>\d+) exist; "
    r"the largest possible here is (?P<largest>\d\.\d{4})$"
)


def refused_mismatch(labels, mismatch):
    with pytest.raises(InputError) as caught:
        make_split(labels, labels, target_classes=(0,), mismatch=mismatch, initial_budget=1)
    return LIMIT.search(str(caught.value))


def test_a_mismatch_too_large_for_cifar():
    labels = np.arange(50_000) % 10
    with pytest.raises(InputError) as caught:
        make_split(labels, labels, target_classes=(0, 1), mismatch=0.9, initial_budget=800)
    found = LIMIT.search(str(caught.value))
    # 0.9 * 9200 / 0.1 = 82,800, and one more by rounding up; 40000 / 49200 = 0.81300...
    assert found.group("mismatch", "asked", "existing", "largest") == ("0.9", "82801", "40000", "0.8130")
    make_split(labels, labels, target_classes=(0, 1), mismatch=0.8130, initial_budget=800)


# 400 / 500 is 0.8, which asks for 401: (0.8 * 100) / (1 - 0.8) is 400.00000000000006; the same at CIFAR's size.
@pytest.mark.parametrize(
    ("n_pool_targets", "n_others"),
    [(100, 400), (100, 100), (100, 900), (10, 30), (9200, 36800), (7, 50), (50, 7), (1, 1), (3, 9997), (20, 0)],
)
def test_the_largest_mismatch_named_works_and_a_little_more_fails(n_pool_targets, n_others):
    labels = np.asarray([0] * (1 + n_pool_targets) + [1] * n_others)
    found = refused_mismatch(labels, 0.9999)
    assert found["asked"] == str(math.ceil((0.9999 * n_pool_targets) / (1 - 0.9999)))
    assert found["existing"] == str(n_others)
    largest = float(found["largest"])
    split = make_split(labels, labels, target_classes=(0,), mismatch=largest, initial_budget=1)
    assert np.sum(labels[split.unlabeled] == 1) <= n_others
    with pytest.raises(InputError):
        make_split(labels, labels, target_classes=(0,), mismatch=largest + 0.001, initial_budget=1)


@pytest.mark.parametrize(
    ("labels", "listed"),
    [([5], "classes 5"), ([2, 0], "classes 0, 2"), (range(22), f"classes {', '.join(map(str, range(20)))} and 2 more")],
)
def test_the_classes_that_exist_are_listed(labels, listed):
    images = np.asarray(list(labels) * 2)
    with pytest.raises(InputError) as caught:
        make_split(images, images, target_classes=(99,), mismatch=0, initial_budget=1)
    assert str(caught.value) == f"--target_classes: class 99 has no images; the data set has {listed}"


def test_the_largest_mismatch_is_named_to_the_last_decimal():
    """0.8 asks for 401 images beside 100 targets in double precision, and 400 exist: 0.7999 is the next."""
    labels = np.repeat([0, 1], [101, 400])
    with pytest.raises(InputError) as caught:
        make_split(labels, labels, target_classes=(0,), mismatch=0.9, initial_budget=1)
    assert str(caught.value) == (
        "--mismatch 0.9 asks for 901 images of other classes and 400 exist; the largest possible here is 0.7999"
    )


def test_other_images_may_be_given():
    """Only they are drawn from; with as many as are asked for, all of them join the pool."""
    others = np.asarray([6, 2, 11, 3, 15])
    split = make_split(LABELS, LABELS, target_classes=(0, 1), mismatch=0.5, initial_budget=15, others=others)
    pool = split.unlabeled.tolist()
    assert pool[5:] == random.Random(0).sample(others.tolist(), 5)
    assert all(LABELS[index] < 2 for index in pool[:5])
    with pytest.raises(InputError, match=r"asks for 6 images of other classes and 5 exist"):
        make_split(LABELS, LABELS, target_classes=(0, 1), mismatch=0.5, initial_budget=14, others=others)


def digest_by_hand(*lists, content=""):
    found = hashlib.sha256()
    for values in lists:
        found.update(struct.pack(f"<q{len(values)}q", len(values), *values))
    found.update(content.encode())
    return found.hexdigest()


def test_what_a_split_says_of_itself():
    settings = {"target_classes": (1, 0), "mismatch": 0.4, "initial_budget": 6, "seed": 9}
    split = make_split(LABELS, LABELS[:8], **settings)
    assert (split.mismatch, split.seed, split.target_classes) == (0.4, 9, (1, 0))
    assert split.set_aside.dtype == split.labeled.dtype == split.contrast().dtype == np.int64
    lists = split.labeled.tolist(), split.unlabeled.tolist(), [0, 1, 4, 5], [1, 0]
    assert split.digest == digest_by_hand(*lists)
    with_images = make_split(LABELS, LABELS[:8], **settings, content="abc")
    assert with_images.digest == digest_by_hand(*lists, content="abc") != split.digest


def test_nobody_but_the_owner_has_labeled():
    known = np.asarray([1, UNKNOWN, 0, UNKNOWN, 2, 1])
    split = given_split(known, np.asarray([2, 0, 1, 1]), num_classes=3, seed=4, content="abc")
    assert split.labeled.tolist() == [0, 2, 4, 5]
    assert split.unlabeled.tolist() == [1, 3]
    assert split.set_aside.tolist() == []
    assert split.test.tolist() == [0, 1, 2, 3]
    assert (split.target_classes, split.mismatch, split.seed) == ((0, 1, 2), None, 4)
    assert {part.dtype for part in (split.labeled, split.unlabeled, split.set_aside, split.test)} == {
        np.dtype(np.int64)
    }
    assert split.digest == digest_by_hand([0, 2, 4, 5], [1, 3], [1, 0, 2, 1], [0, 1, 2], content="abc")
    other = given_split(known, np.asarray([2, 0, 1, 1]), num_classes=3)
    assert other.digest == digest_by_hand([0, 2, 4, 5], [1, 3], [1, 0, 2, 1], [0, 1, 2])
    assert other.seed == 0
    assert given_split(known.astype(np.int32), np.asarray([0]), num_classes=3).labeled.dtype == np.int64


def test_annotate_tells_what_is_wrong(split):
    inside, outside = split.unlabeled.tolist(), int(split.labeled[0])
    labels = LABELS.copy()
    labels[inside[3:5]] = UNKNOWN
    for asked, message in (
        ([inside[0], inside[0]], "an image was queried twice in one cycle; each may be annotated once"),
        ([inside[0], outside], f"image {outside} is not in the pool and cannot be annotated"),
        ([inside[2], inside[3], inside[4]], f"nobody has labeled image {inside[3]} yet, so it cannot be annotated"),
        ([inside[4]], f"nobody has labeled image {inside[4]} yet, so it cannot be annotated"),
    ):
        with pytest.raises(InputError) as caught:
            split.annotate(np.asarray(asked), labels)
        assert str(caught.value) == message


def test_lists_of_nothing_are_whole_numbers_too(split):
    """NumPy makes an empty list one of floats, which cannot index images."""
    nothing = np.empty(0, dtype=np.int64)
    assert split.class_numbers(nothing).dtype == np.int64
    assert dataclasses.replace(split, labeled=nothing, unlabeled=nothing).contrast().dtype == np.int64
