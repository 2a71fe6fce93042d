"""The recipes: their numbers, what flags override, and the learning rate of every epoch."""

from __future__ import annotations

import pytest
import torch

from common import settings
from common.settings import ClassifierSettings
from train_classifier.network import NETWORKS
from train_classifier.recipes import RECIPES, TrainingRecipe, resolved

SGD = {"momentum": 0.9, "weight_decay": 5e-4, "network": "cifar_resnet18", "crop": True}


def test_each_recipes_numbers() -> None:
    assert RECIPES == {
        "proper": TrainingRecipe(100, 32, 5e-4, (), 0.0, 0.0, None, "torchvision_resnet18", False, False),
        "original": TrainingRecipe(100, 32, 5e-4, (), 0.0, 0.0, None, "torchvision_resnet18", False, True),
        "lfosa": TrainingRecipe(100, 128, 0.01, (20, 40, 60, 80), **SGD),
        "mqnet": TrainingRecipe(200, 64, 0.1, (100, 150), steps=100, **SGD),
    }
    assert tuple(RECIPES) == settings.RECIPES
    assert {recipe.network for recipe in RECIPES.values()} == set(NETWORKS)


def test_flags_override_the_recipes_numbers() -> None:
    def numbers(**given) -> tuple:
        found = resolved(ClassifierSettings(**given))
        assert resolved(found) == found
        return found.recipe, found.epochs, found.batch_size, found.lr

    assert numbers() == ("proper", 100, 32, 5e-4)
    assert numbers(recipe="lfosa") == ("lfosa", 100, 128, 0.01)
    assert numbers(recipe="mqnet", epochs=3) == ("mqnet", 3, 64, 0.1)
    assert numbers(recipe="mqnet", batch_size=8, lr=0.2) == ("mqnet", 200, 8, 0.2)


@pytest.mark.parametrize("name", RECIPES)
def test_the_rates_are_those_of_torchs_schedule(name: str) -> None:
    recipe = RECIPES[name]
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, recipe.milestones, gamma=0.5)
    for epoch in range(1, recipe.epochs + 1):
        [lr] = schedule.get_last_lr()
        assert recipe.rate(epoch, lr=recipe.lr, epochs=recipe.epochs) == pytest.approx(lr)
        optimizer.step()
        schedule.step()


def test_the_milestones_scale_with_the_epochs() -> None:
    def rates(name: str, epochs: int) -> list[float]:
        return [RECIPES[name].rate(epoch, lr=16.0, epochs=epochs) for epoch in range(1, epochs + 1)]

    assert rates("lfosa", 10) == [16, 16, 8, 8, 4, 4, 2, 2, 1, 1]
    assert rates("mqnet", 4) == [16, 16, 8, 4]
    assert rates("mqnet", 7) == [
        16,
        16,
        16,
        16,
        8,
        8,
        4,
    ]  # 3.5 and 5.25 epochs have passed in the fifth and the seventh
    assert rates("lfosa", 1) == [16]
