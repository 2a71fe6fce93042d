"""common/settings.py: what makes a run's identity, and the one comparison."""

import dataclasses
import json

import pytest

from common import settings
from common.settings import (
    ClassifierSettings,
    CropSettings,
    EncoderSettings,
    ProcessSettings,
    QuerySettings,
    TrainingSettings,
    as_record,
    differences,
    identity,
    identity_names,
    require_same,
)
from datasets import LOADERS
from evals.strategies import STRATEGIES
from models import BACKBONES
from models.transform_layers import SHIFT_COUNTS
from utils import InputError


def test_the_choices_are_what_there_is():
    assert set(settings.DATASETS) == set(LOADERS)
    assert set(settings.MODELS) == set(BACKBONES)
    assert set(settings.SHIFTS) == set(SHIFT_COUNTS)
    assert set(settings.STRATEGIES) == set(STRATEGIES)


@pytest.mark.parametrize(
    ("group", "names"),
    [
        (EncoderSettings, "model simclr_dim shift_trans_type precision"),
        (CropSettings, "resize_factor resize_fix"),
        (TrainingSettings, "mode temperature sim_lambda epochs optimizer lr_scheduler lr_init warmup weight_decay"),
        (QuerySettings, "strategy k t queries_per_class views feature_dtype"),
        (ClassifierSettings, "recipe epochs batch_size lr"),
        (ProcessSettings, "seed"),
    ],
)
def test_what_changes_a_result_is_part_of_the_identity(group, names):
    assert identity_names(group) == names.split()


def test_records_are_plain_json():
    training = TrainingSettings(mode="semantic", epochs=4)
    record = as_record(training, settings.DataSettings(target_classes=(0, "cat")))
    assert record["target_classes"] == [0, "cat"] and record["epochs"] == 4 and record["logdir"] is None
    assert json.loads(json.dumps(record)) == record
    assert identity(training)["epochs"] == 4 and "logdir" not in identity(training)


def test_differences_name_the_flag_and_both_values():
    recorded = {"epochs": 4, "classes": [0, 1], "gone": 1, "split_digest": "a", "same": (1, 2)}
    wanted = {"epochs": 6, "classes": (0, 2), "new": "x" * 200, "split_digest": "b", "same": [1, 2]}
    assert differences(recorded, wanted) == [
        "--epochs was 4, is 6",
        "--classes was 0 1, is 0 2",
        f"--new was not given, is {'x' * 97}...",
        "another split",
        "--gone was 1, is not given",
    ]


def test_the_comparison_refuses_with_a_remedy():
    require_same({"k": 1.0}, {"k": 1.0}, what="run", remedy="start anew")
    with pytest.raises(InputError, match=r"^run was made with .* \(--k was 1.0, is 2.0\): give the same set"):
        require_same({"k": 1.0}, {"k": 2.0}, what="run", remedy="start anew")
    with pytest.raises(InputError, match=r"\(another split\): give that run's --dataset, .*, or start anew$"):
        require_same({"split_digest": "a"}, {"split_digest": "b"}, what="run", remedy="start anew")


def test_the_backbone_follows_the_size_of_the_images():
    def model(size, given=None):
        return EncoderSettings(model=given).resolved(image_size=size, precision="bf16").model

    assert [model(None), model(127), model(128), model(224, "resnet8")] == [
        "resnet18", "resnet18", "resnet18_imagenet", "resnet8",
    ]  # fmt: skip
    assert EncoderSettings().resolved(image_size=None, precision="bf16").precision == "bf16"


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CropSettings().resize_fix = True
