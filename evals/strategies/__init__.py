"""Query strategies, one file a family.

A strategy is a function from ``QueryInputs`` to utilities (U, C): how much each unqueried image is worth for each
target class, -inf where it is not a candidate. To add one, write the function, enter it in STRATEGIES with the features
that it needs, and add its name to ``common.settings.STRATEGIES``, the flag's choices.
"""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from evals.query import QueryInputs
from evals.strategies.badge import badge
from evals.strategies.ccal import ccal, distinctive, semantic
from evals.strategies.coreset import coreset, coreset_others
from evals.strategies.e2oal import e2oal
from evals.strategies.eaoa import eaoa
from evals.strategies.eoal import eoal
from evals.strategies.lfosa import lfosa
from evals.strategies.mahalanobis import mahalanobis
from evals.strategies.mqnet import mqnet
from evals.strategies.neat import neat
from evals.strategies.posterior import posterior
from evals.strategies.random import uniform_random
from evals.strategies.typiclust import typiclust
from evals.strategies.uncertainty import certainty, confidence, entropy, margin
from utils import InputError


@dataclass(frozen=True)
class Strategy:
    """A query strategy and the features that it needs.

    ``semantic`` and ``distinctive`` are the encoders' projections, averaged over views, as in the paper;
    ``penultimate`` are the semantic encoder's penultimate features of the image as it is, or features from files.
    Without ``by_class`` images are dealt out to the classes, and say nothing of an image's own.
    """

    utilities: Callable[[QueryInputs], Tensor]
    needs: tuple[str, ...]
    by_class: bool = True


UNCERTAINTY = (entropy, margin, confidence, certainty)
RIVALS = (*UNCERTAINTY, coreset, coreset_others, badge, typiclust, neat, mahalanobis, lfosa, eoal, eaoa, e2oal)

STRATEGIES = {
    "ccal": Strategy(ccal, needs=("semantic", "distinctive")),
    "semantic": Strategy(semantic, needs=("semantic",)),
    "distinctive": Strategy(distinctive, needs=("distinctive",)),
    "posterior": Strategy(posterior, needs=("penultimate",)),
    "random": Strategy(uniform_random, needs=(), by_class=False),
    **{rival.__name__: Strategy(rival, needs=("penultimate",), by_class=rival in (eaoa, e2oal)) for rival in RIVALS},
    "mqnet": Strategy(mqnet, needs=("penultimate", "distinctive"), by_class=False),
}


def find_strategy(text: str) -> Strategy:
    """A strategy by its name, or FILE.py:NAME: a Strategy in that file, or a function of QueryInputs.

    A function is taken for one that needs ``penultimate`` features.

    Raises:
        InputError: There is no such file or name, or the file cannot be imported.
    """
    if text in STRATEGIES:
        return STRATEGIES[text]
    file, _, name = text.rpartition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        raise InputError(f"--strategy {text}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"strategies_of_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        line = error.lineno if isinstance(error, SyntaxError) else traceback.extract_tb(error.__traceback__)[-1].lineno
        raise InputError(f"{path} cannot be imported, line {line}: {type(error).__name__}: {error}") from None
    found = getattr(module, name, None)
    if not callable(found) and not isinstance(found, Strategy):
        raise InputError(f"--strategy {text}: {path} has no strategy {name}, a function of QueryInputs or a Strategy")
    return found if isinstance(found, Strategy) else Strategy(found, needs=("penultimate",))
