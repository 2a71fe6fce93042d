"""The argument parser: one line for what is wrong, help of 80 columns, and numbers within bounds."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from common.cli import wait_for_the_first_process


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows each default, but not that of a switch, nor of a flag whose help says what happens without it.

    The usage line names what must be given only: the flags follow in their groups.
    """

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False or action.default == ""
        return action.help if silent else super()._get_help_string(action)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return getattr(action.type, "metavar", None) or super()._get_default_metavar_for_optional(action)

    def add_usage(self, usage: str | None, actions: Iterable[argparse.Action], groups: Any, prefix: Any = None) -> None:
        needed = [
            f"{action.option_strings[0]} {action.metavar or self._get_default_metavar_for_optional(action)}"
            for action in actions
            if action.required and action.option_strings
        ]
        words = [action.metavar or action.dest.upper() for action in actions if not action.option_strings]
        super().add_usage(" ".join(["%(prog)s", *needed, *words, "[flags]"]), actions, groups, prefix)


class Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description, formatter_class=HelpFormatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            wait_for_the_first_process()
            raise SystemExit(2)
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (see --help)\n")


def number(
    kind: type, low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False
) -> Callable:
    """An argparse type: a finite number of ``kind`` within the bounds, which count unless open."""
    bounds = f"{'above' if open_low else 'at least'} {low}"
    if high < math.inf:
        bounds += f" and {'below' if open_high else 'at most'} {high}"
    what = "a whole number" if kind is int else "a number"

    def parse(text: str) -> Any:
        try:
            value = kind(text)
            finite = math.isfinite(value)
        except (ValueError, OverflowError):  # an int of 400 digits has no float
            raise argparse.ArgumentTypeError(f"must be {what} {bounds}, got {text!r}") from None
        too_low = value <= low if open_low else value < low
        too_high = value >= high if open_high else value > high
        if not finite or too_low or too_high:
            raise argparse.ArgumentTypeError(f"must be {what} {bounds}, got {text}")
        return value

    parse.metavar = "N" if kind is int else "X"
    return parse


positive_int = number(int, 1)
natural = number(int, 0)
positive = number(float, 0, open_low=True)
seed_number = number(int, 0, 2**63 - 1)
