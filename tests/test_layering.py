"""The house's rules: imports go one way, few entries a folder, short functions, nothing seeded or opened on import."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

LAYERS = {
    "utils": 0,
    "common": 1,
    "datasets": 2,
    "models": 2,
    "training": 3,
    "evals": 3,
    "train_classifier": 3,
    "contrast_main": 4,
    "active_main": 4,
    "reproduce": 4,
    "benchmark": 5,
    "benchmarks": 5,
}
ENTRIES = {"common": 12, "datasets": 11, "evals": 14}  # at most
FUNCTION, MAIN = 80, 60  # lines, at most
ROOT = Path(__file__).resolve().parent.parent


def imported_packages(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which layer is meant"
            names.add((node.module or "").split(".")[0])
    return names & set(LAYERS)


def wrong_imports(package: str, source: str) -> set[str]:
    own = LAYERS[package]
    return {name for name in imported_packages(source) if name != package and LAYERS[name] >= own}


def our_files() -> list[tuple[str, Path]]:
    found = []
    for package in LAYERS:
        single = ROOT / f"{package}.py"
        paths = [single] if single.is_file() else sorted((ROOT / package).rglob("*.py"))
        assert paths, f"{package} has no files"
        found += [(package, path) for path in paths]
    return found


@pytest.mark.parametrize("package", LAYERS)
def test_a_package_imports_only_from_layers_below(package: str) -> None:
    wrong = {str(path): wrong_imports(package, path.read_text()) for name, path in our_files() if name == package}
    assert not {path: names for path, names in wrong.items() if names}


@pytest.mark.parametrize("package", ENTRIES)
def test_a_folder_has_few_entries(package: str) -> None:
    found = [path.name for path in (ROOT / package).iterdir() if path.name != "__pycache__"]
    assert len(found) <= ENTRIES[package], sorted(found)


def test_functions_fit_on_a_screen_and_main_reads_as_a_table_of_contents() -> None:
    long = []
    for package, path in our_files():
        if package == "benchmarks":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > (MAIN if node.name == "main" else FUNCTION):
                    long.append(f"{path.relative_to(ROOT)}: {node.name}, {lines} lines")
    assert not long


def test_no_layer_below_the_scripts_knows_a_commands_name() -> None:
    """What to run next is put together in the scripts."""
    names = ("contrast_main", "active_main", "reproduce.py", "train_classifier.main", "train_classifier/main")
    named = []
    for package, path in our_files():
        if LAYERS[package] >= 4 or path.name in ("main.py", "__main__.py"):
            continue
        tree = ast.parse(path.read_text())
        texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings may
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
                named += [f"{path.relative_to(ROOT)}:{node.lineno}" for name in names if name in node.value]
    assert not named


def test_nothing_seeds_a_global_generator_or_opens_a_window() -> None:
    """Figures are drawn without pyplot, which chooses a backend; generators are arguments."""
    forbidden = re.compile(r"\bpyplot\b|(torch|np\.random|\brandom)\.(manual_)?seed\(|set_rng_state\(|\.setstate\(")
    found = {str(path): forbidden.findall(path.read_text()) for package, path in our_files() if package != "benchmarks"}
    assert not {path: calls for path, calls in found.items() if calls}
