"""From settings to flags: a parser is made of dataclasses whose fields say all that a flag needs.

This module and common/settings.py import neither torch nor NumPy, so ``--help`` and a mistyped flag answer at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

from utils import InputError, is_first_process, launcher, program

# The original's spellings, accepted beside the plain flags; past the parser there is one name for each thing.
SPELLINGS = {
    "epochs": "--epoch",
    "cycles": "--split",
    "queries_per_class": "--target",
    "views": "--ood_samples",
    "load_semantic_path": "--load_senmatic_path",
    "load_distinctive_path": "--load_feature_path",
    "local_rank": "--local-rank",
}
MODE_SPELLINGS = {"senmatic": "semantic", "feature": "distinctive"}


def setting(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    kind: Callable[[str], Any] = str,
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
    several: bool = False,
    positional: bool = False,
    exclusive: str = "",
    identity: bool = True,
) -> Any:
    """A dataclass field that is a flag; a bool whose default is False is a switch.

    Args:
        default: Without one the flag is required.
        help: A sentence, with the unit.
        kind: Turns the flag's word into the value; raises argparse.ArgumentTypeError.
        choices: The only values.
        metavar: What stands for the value in the help.
        several: Whether it takes one or more words; the value is a tuple.
        positional: Whether the words stand without a flag.
        exclusive: Flags of one such name exclude each other.
        identity: Whether another value makes another result, so that stages compare it.
    """
    flag = {"help": help, "kind": kind, "choices": choices, "metavar": metavar, "several": several}
    flag |= {"positional": positional, "exclusive": exclusive, "identity": identity}
    return dataclasses.field(default=default, metadata=flag)


def pick(group: type, *names: str, title: str = "", **defaults: Any) -> type:
    """A class with the named fields of a settings class, perhaps with another title or other defaults."""
    kept = []
    for field in (group.__dataclass_fields__[name] for name in names):
        default = defaults.get(field.name, field.default)
        kept.append((field.name, Any, dataclasses.field(default=default, metadata=field.metadata)))
    namespace = {"title": title or group.title}
    return dataclasses.make_dataclass(group.__name__, kept, frozen=True, namespace=namespace)


def number(
    kind: type, low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False
) -> Callable[[str], Any]:
    """A flag's kind: a finite number of type ``kind`` within the bounds, which belong to it unless open."""
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


def mode(text: str) -> str:
    """A flag's kind: the encoder that is trained, in our spelling or the original's."""
    found = MODE_SPELLINGS.get(text, text)
    if found not in MODE_SPELLINGS.values():
        raise argparse.ArgumentTypeError(f"must be semantic or distinctive, got {text!r}")
    return found


def threshold(text: str) -> float | str:
    """A flag's kind: a number from 0 to 1, or ``auto``."""
    return text if text == "auto" else number(float, 0, 1)(text)


threshold.metavar = "{X,auto}"


def share(text: str) -> float | str:
    """A flag's kind: a number from 0 to below 1, or ``all``."""
    return text if text == "all" else number(float, 0, 1, open_high=True)(text)


share.metavar = "{X,all}"


def class_name(text: str) -> int | str:
    """A flag's kind: a class by its number or by its name."""
    if re.fullmatch("-?(0|[1-9][0-9]*)", text):
        return natural(text)
    if not text:
        raise argparse.ArgumentTypeError("must be a class's name or number, got ''")
    return text


class Parser(argparse.ArgumentParser):
    """Parses a command's flags into one frozen settings object per group, and says what is wrong in one line.

    Example:
        >>> from common.settings import DataSettings
        >>> Parser("Loads data.", data=DataSettings).parse(["--mismatch", "0.6"]).data.mismatch
        0.6

    Args:
        description: What the command does; its first line is shown.
        groups: Settings classes, by the name under which ``parse`` returns them.
    """

    def __init__(self, description: str, **groups: type) -> None:
        fields = [field for group in groups.values() for field in dataclasses.fields(group)]
        needed = [
            field.metadata["metavar"] if field.metadata["positional"] else f"--{field.name} {_metavar(field)}"
            for field in fields
            if field.default is dataclasses.MISSING
        ]
        usage = " ".join(["%(prog)s", *needed, "[flags]"])
        about = description.strip().splitlines()[0]
        super().__init__(prog=program(), description=about, usage=usage, allow_abbrev=False)
        self._settings = groups
        for group in groups.values():
            self._add(group)

    def _add(self, group: type) -> None:
        target, exclusive = self.add_argument_group(group.title), {}
        for field in dataclasses.fields(group):
            flag = field.metadata
            where = target
            if flag["exclusive"]:
                if flag["exclusive"] not in exclusive:
                    exclusive[flag["exclusive"]] = target.add_mutually_exclusive_group()
                where = exclusive[flag["exclusive"]]
            if field.default is False:
                where.add_argument(*_words(field.name), action="store_true", help=flag["help"])
                continue
            options: dict[str, Any] = {"type": flag["kind"], "choices": flag["choices"], "metavar": _metavar(field)}
            options["nargs"] = "+" if flag["several"] else None
            if flag["positional"]:
                where.add_argument(field.name, help=flag["help"], **options)
                continue
            required = field.default is dataclasses.MISSING
            default = None if required else field.default
            text = flag["help"] if default is None or default == "" else f"{flag['help']} (default: {default})"
            where.add_argument(*_words(field.name), default=default, required=required, help=text, **options)

    def parse(self, argv: Sequence[str] | None = None) -> SimpleNamespace:
        """The settings objects by group; wrong flags or launcher's variables end the program with status 2."""
        try:
            launcher()
        except InputError as error:
            self.error(str(error))
        values = vars(self.parse_args(argv))
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        found = SimpleNamespace()
        for name, group in self._settings.items():
            setattr(found, name, group(**{field.name: values[field.name] for field in dataclasses.fields(group)}))
        return found

    def error(self, message: str) -> NoReturn:
        if not is_first_process(on_this_machine=True):
            time.sleep(3)  # the first process says it; a launcher ends all as soon as one has failed
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (see --help)\n")


def _words(name: str) -> list[str]:
    return [f"--{name}", *([SPELLINGS[name]] if name in SPELLINGS else [])]


def _metavar(field: dataclasses.Field) -> str | None:
    flag = field.metadata
    if flag["choices"]:
        return None
    return flag["metavar"] or getattr(flag["kind"], "metavar", field.name.upper())


def as_flags(*groups: Any, but: Sequence[str] = ()) -> list[str]:
    """The words that give these settings again: each field that differs from its default, but for those named."""
    words = []
    for group in groups:
        for field in dataclasses.fields(group):
            value = getattr(group, field.name)
            if value == field.default or field.name in but:
                continue
            words.append(f"--{field.name}")
            if field.default is not False:
                words += [str(item) for item in (value if isinstance(value, tuple) else (value,))]
    return words
