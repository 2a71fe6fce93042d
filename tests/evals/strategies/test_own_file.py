"""Strategies from a user's own file: how they are found, and what is said where they cannot be."""

import dataclasses
import sys

import pytest

from evals.strategies import STRATEGIES, find_strategy
from utils import InputError

SOURCE = """\
from __future__ import annotations
import dataclasses
from evals.strategies import Strategy

@dataclasses.dataclass
class Options:  # dataclasses look their module up
    power: float = 2.0

def plain(inputs):
    return Options().power

{more}
"""


def write(path, more=""):
    path.write_text(SOURCE.format(more=more))
    return path


def test_a_function_and_a_strategy_of_a_file(tmp_path):
    file = write(tmp_path / "mine.py", 'chosen = Strategy(plain, needs=("semantic", "distinctive"))')
    plain, chosen = find_strategy(f"{file}:plain"), find_strategy(f"{file}:chosen")
    assert (plain.needs, plain.by_class, plain.utilities(None)) == (("penultimate",), False, 2.0)
    assert (chosen.needs, chosen.by_class, chosen.utilities(None)) == (("semantic", "distinctive"), True, 2.0)
    assert list(tmp_path.iterdir()) == [file]  # no bytecode beside it


def test_files_of_one_name_and_later_versions_do_not_mix(tmp_path, monkeypatch):
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        write(tmp_path / str(number) / "json.py", f"def number(inputs): return {number}")
    first, second = (find_strategy(f"{tmp_path / str(number)}/json.py:number") for number in (1, 2))
    assert (first.utilities(None), second.utilities(None)) == (1, 2)
    assert not str(getattr(sys.modules["json"], "__file__", "")).startswith(str(tmp_path))
    write(tmp_path / "1" / "json.py", "def number(inputs): return 3")
    assert find_strategy(f"{tmp_path}/1/json.py:number").utilities(None) == 3
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_strategy("~/2/json.py:number").utilities(None) == 2


def test_built_in_ones_and_those_added_to_the_table(monkeypatch):
    assert find_strategy("ccal") is STRATEGIES["ccal"]
    added = dataclasses.replace(STRATEGIES["random"])
    monkeypatch.setitem(STRATEGIES, "added", added)
    assert find_strategy("added") is added


@pytest.mark.parametrize(
    ("more", "name", "phrase"),
    [
        ("", "other", r"has no function or Strategy of the name other"),
        ("number = 3", "number", r"has no function or Strategy of the name number"),
        ("\n1 / 0", "plain", r"cannot be imported \(line 13: ZeroDivisionError: division by zero\)"),
        ("import nowhere_to_be_found", "plain", r"\(line 12: ModuleNotFoundError: No module named 'nowhere"),
        ("def broken(:", "plain", r"\(line 12: SyntaxError: "),
        ("import numpy as np\nnp.linalg.inv(np.zeros((2, 2)))", "plain", r"\(line 13: LinAlgError: "),
        ("raise SystemExit(1)", "plain", r"\(line 12: SystemExit: 1\)"),
        (
            "one = Strategy(plain, needs='penultimate')",
            "one",
            r"needs 'penultimate', not a tuple of distinctive, penul",
        ),
        ("one = Strategy(plain, needs=('clip',))", "one", r"needs \('clip',\), not a tuple"),
    ],
)
def test_what_a_file_may_lack(tmp_path, more, name, phrase):
    file = write(tmp_path / "mine.py", more)
    with pytest.raises(InputError, match=phrase) as caught:
        find_strategy(f"{file}:{name}")
    assert f"{file}:{name}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("posteriour", "must be one of ccal, .*, or FILE.py:NAME, got 'posteriour'"),
        ("mine.txt:name", "must be one of"),
        ("mine.py:", "must be one of"),
        ("mine.py:two words", "must be one of"),
        ("mine.py:" + 101 * "n", "must be one of"),
        ("mine.py:badge", "mine.py:badge: badge is a built-in strategy; give yours another name"),
        ("gone/mine.py:name", "--strategy gone/mine.py:name: there is no file gone/mine.py"),
    ],
)
def test_what_names_no_strategy(text, phrase):
    with pytest.raises(InputError, match=phrase):
        find_strategy(text)
