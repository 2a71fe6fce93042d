"""How long an experiment takes, from the measured parts of it, and the scale that fits into a given time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from common.experiment import PROBE_STEP, Recipe
from utils import InputError

GRID = 10_000  # scales are whole multiples of 1 / GRID: at that step no schedule skips an epoch
RESERVE = 0.05  # share of the time left that no plan uses, since a few measured steps stand for all of them


@dataclass(frozen=True)
class Sizes:
    """How much of everything there is.

    Attributes:
        images: Pool and labeled images, which the encoders train on and the query encodes.
        steps: Training steps per epoch of an encoder.
        probed: Test images of the linear probe.
        tested: Test images of the classifier.
        labeled: Labeled images at the start.
        most_labeled: Labeled images once every target image of the pool is found.
        classes: Target classes.
    """

    images: int
    steps: int
    probed: int
    tested: int
    labeled: int
    most_labeled: int
    classes: int

    def labeled_by_cycle(self, recipe: Recipe) -> list[int]:
        """Training images of the classifier, from cycle 0 on, if every query finds nothing but targets."""
        per_cycle = recipe.target * self.classes
        return [min(self.labeled + cycle * per_cycle, self.most_labeled) for cycle in range(recipe.cycles + 1)]


@dataclass(frozen=True)
class Measured:
    """Seconds that the parts of the experiment take here.

    Attributes:
        setup: Of an encoder's training, whatever its length, by encoder.
        step: Of a training step, by encoder.
        view: Of one image's view in the query, all its shifts together, by encoder.
        probe: Of one test image of the linear probe.
        classifier: Of one classifier, whatever its epochs.
        classifier_image: Of one labeled image in one epoch of a classifier, its share of the test set included.
    """

    setup: dict[str, float]
    step: dict[str, float]
    view: dict[str, float]
    probe: float
    classifier: float
    classifier_image: float


def predict(recipe: Recipe, sizes: Sizes, measured: Measured) -> dict[str, float]:
    """Seconds by stage; the classifier's are an upper bound, see Sizes.labeled_by_cycle."""
    seconds = {}
    for name, step in measured.step.items():
        epochs = recipe.epochs(name)
        probes = -(-epochs // PROBE_STEP)
        seconds[name] = measured.setup[name] + epochs * sizes.steps * step + probes * sizes.probed * measured.probe
    seconds["query"] = sizes.images * recipe.ood_samples * sum(measured.view.values())
    labeled = sizes.labeled_by_cycle(recipe)
    once = len(labeled) * measured.classifier + recipe.classifier_epochs * sum(labeled) * measured.classifier_image
    seconds["classifier"] = recipe.runs * once
    return seconds


def pick_scale(cost: Callable[[float], float], available: float) -> float | None:
    """The largest scale on the grid, 1 at most, whose cost is within what is available; None if there is none.

    Args:
        cost: Seconds at a scale; they must not fall as the scale grows.
        available: Seconds, of which RESERVE is kept.
    """
    usable = (1 - RESERVE) * available
    return next((n / GRID for n in range(GRID, 0, -1) if cost(n / GRID) <= usable), None)


def fit_scale(
    recipe: Recipe, sizes: Sizes, measured: Measured, *, minutes: float, spent: float
) -> tuple[float, dict[str, float]]:
    """The scale of a recipe that fits into a time, and the predicted seconds by stage.

    Args:
        recipe: At scale 1.
        sizes: Of the experiment.
        measured: On this machine.
        minutes: For everything.
        spent: Seconds of them that are gone.

    Raises:
        InputError: Even an epoch of everything takes longer; the message says how much time is needed.
    """

    def cost(scale: float) -> float:
        return sum(predict(recipe.scaled(scale), sizes, measured).values())

    scale = pick_scale(cost, 60 * minutes - spent)
    if scale is None:
        least = math.ceil((spent + cost(1 / GRID) / (1 - RESERVE)) / 60)
        raise InputError(
            f"--budget_minutes {minutes:g} is too short: the query's features "
            f"({predict(recipe, sizes, measured)['query'] / 60:.1f} min) and one epoch of each training need at least "
            f"{least} minutes here; a smaller --model, fewer --ood_samples or fewer --runs need less"
        )
    return scale, predict(recipe.scaled(scale), sizes, measured)
