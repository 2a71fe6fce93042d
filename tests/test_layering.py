"""Imports go one way: utils < common < {datasets, models} < {training, evals, ...} < the main scripts < reproduce."""

from __future__ import annotations

import ast
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
    "benchmarks": 5,
    "reproduce": 5,
}
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


@pytest.mark.parametrize(("package", "path"), our_files(), ids=lambda value: getattr(value, "name", value))
def test_a_file_imports_only_from_layers_below(package: str, path: Path) -> None:
    assert not wrong_imports(package, path.read_text())


@pytest.mark.parametrize(
    ("package", "source", "wrong"),
    [
        ("datasets", "from models import build_encoder", {"models"}),
        ("evals", "import training.engine", {"training"}),
        ("utils", "from common import plots", {"common"}),
        ("models", "def f():\n    from contrast_main import main", {"contrast_main"}),
        ("training", "from common import distributed\nimport models.encoder, torch", set()),
    ],
)
def test_the_check_sees_wrong_imports(package: str, source: str, wrong: set[str]) -> None:
    assert wrong_imports(package, source) == wrong


def test_importing_seeds_nothing_and_opens_no_window(root: Path) -> None:
    """A package that is imported leaves the global random streams alone and chooses no matplotlib backend."""
    import subprocess
    import sys

    code = (
        "import rich.style;"  # it draws one number when it is imported, which is before set_seed
        "import random, sys; random.seed(1); expected = random.Random(1).random();"
        "import torch; torch.manual_seed(1); state = torch.get_rng_state();"
        "import contrast_main, active_main, train_classifier.main, evals.summary, reproduce;"
        "assert random.random() == expected; assert torch.equal(torch.get_rng_state(), state);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
