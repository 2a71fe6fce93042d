"""Query strategies, one file a family.

A strategy is a function from ``QueryInputs`` to utilities (U, C): how much each unqueried image is worth for each
target class, -inf where it is not a candidate. It may come from a user's own file, see ``find_strategy``. To add one
here, write the function, enter it in STRATEGIES with the features that it needs, and add its name to
``common.settings.STRATEGIES``, the flag's choices.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from common import settings
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


FEATURES = {"semantic", "distinctive", "penultimate"}
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
    """A strategy by its name, or by FILE.py:NAME: a Strategy in that file, or a function of QueryInputs.

    A function stands for ``Strategy(function, needs=("penultimate",), by_class=False)``: an image's class is suggested
    to people who label only where a Strategy says that it may be.

    Raises:
        InputError: There is no such strategy, file or name in it, or the file cannot be imported.
    """
    if text in STRATEGIES:
        return STRATEGIES[text]
    try:
        settings.strategy(text)
    except ArgumentTypeError as error:
        raise InputError(f"--strategy {error}") from None
    path, name = settings.strategy_file(text), settings.strategy_name(text)
    if not path.is_file():
        raise InputError(f"--strategy {text}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"strategies of {path.resolve()}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
    try:  # of the source: bytecode may be that of an earlier version
        exec(spec.loader.source_to_code(path.read_bytes(), str(path)), vars(module))
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = lines[-1] if lines else getattr(error, "lineno", None)
        reason = f"{f'line {line}: ' if line else ''}{type(error).__name__}: {error}"
        raise InputError(f"--strategy {text}: {path} cannot be imported ({reason})") from error
    found = getattr(module, name, None)
    if not callable(found) and not isinstance(found, Strategy):
        raise InputError(f"--strategy {text}: {path} has no function or Strategy of the name {name}")
    found = found if isinstance(found, Strategy) else Strategy(found, needs=("penultimate",), by_class=False)
    if not isinstance(found.needs, tuple) or not {*found.needs} <= FEATURES:
        raise InputError(f"--strategy {text} needs {found.needs!r}, not a tuple of {', '.join(sorted(FEATURES))}")
    return found
