"""One run's main query as the report's sections on images see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evals.report.page import Section
from evals.report.pool import Material
from evals.report.runs import Query, Run
from evals.report.scores import OTHER, TARGET, UNKNOWN


@dataclass(frozen=True)
class Pool:
    """One run's main query, and all that is known of its pool.

    Attributes:
        key: Short and safe for the names of files.
        run: The run.
        query: Its main query.
        material: What was loaded or computed.
    """

    key: str
    run: Run
    query: Query
    material: Material

    @property
    def title(self) -> str:
        """For a heading."""
        return f"{self.run.name}: {self.query.strategy}"

    def class_name(self, label: int) -> str:
        """Of a class of the data set."""
        data, names = self.material.data, getattr(self.query.files[-1], "class_names", None)
        if data is not None:
            return data.class_names[label]
        return names[label] if names and label < len(names) else str(label)

    @property
    def targets(self) -> list[int]:
        """Target classes."""
        return self.query.files[0].target_classes

    def truth(self, images: np.ndarray) -> np.ndarray:
        """UNKNOWN, OTHER or TARGET of each image, (n,)."""
        return self.material.truth.of(images)

    def label_text(self, image: int) -> str:
        """What is known of an image's class, in words."""
        data = self.material.data
        if data is not None and data.train_labels[image] >= 0:
            return self.class_name(int(data.train_labels[image]))
        return {TARGET: "target", OTHER: "other", UNKNOWN: "not annotated"}[int(self.truth(np.asarray([image]))[0])]


def evenly(values: Sequence, count: int) -> list:
    """At most ``count`` of some values, the first and the last among them."""
    if len(values) <= count:
        return list(values)
    return [values[round(place)] for place in np.linspace(0, len(values) - 1, count)]


def pool_heading(section: Section, pool: Pool, pools: Sequence[Pool]) -> None:
    """The run's name, where there are several."""
    if len(pools) > 1:
        section.head(pool.title)
