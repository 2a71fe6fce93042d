"""Every reader of the project refuses what could run code, and downloads are checked before they are used."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import pytest

import datasets.torchvision_sets
from datasets import load_dataset
from tests.hostile import Payload
from utils import InputError

ROOT = Path(__file__).resolve().parent.parent
OWN = [path for path in sorted(ROOT.rglob("*.py")) if not {".venv", "tests"} & set(path.relative_to(ROOT).parts)]
# Calls that execute what they read, or do so without the keyword that forbids it.
NEVER = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "np.fromregex", "np.loadtxt", "np.genfromtxt", "eval", "exec",
    "joblib.load", "torch.jit.load", "torch.package.PackageImporter", "shelve.open", "marshal.loads", "yaml.load",
    "zipfile.ZipFile.extractall", "os.system", "torch.hub.load", "urllib.request.urlopen", "urllib.request.urlretrieve",
}  # fmt: skip
ONLY_WITH = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
ONLY_WITH |= {"np.lib.format.read_array": ("allow_pickle", False)}


def unsafe_calls(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        wanted = ONLY_WITH.get(name)
        missing = wanted is not None and keywords.get(wanted[0]) != str(wanted[1])
        shell = name.startswith("subprocess.") and "shell" in keywords
        if name in NEVER or missing or shell or name.endswith((".extractall", ".extract", ".exec_module")):
            found.append(ast.unparse(node))
    return found


def test_nothing_executes_what_it_reads():
    found = {str(path.relative_to(ROOT)): unsafe_calls(path.read_text()) for path in OWN}
    # The file that a user's --strategy names is there to be run.
    assert [call.partition("(")[0] for call in found.pop("evals/strategies/__init__.py")] == ["exec"]
    assert {path: calls for path, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)", "torch.load(path, weights_only=False)", "np.load(path)", "np.load(p, allow_pickle=True)",
        "pickle.load(file)", "eval(text)", "archive.extractall(folder)", "spec.loader.exec_module(module)",
        "subprocess.run(line, shell=True)",
    ],
)  # fmt: skip
def test_the_scan_finds(source):
    assert unsafe_calls(f"x = {source}") == [source]
    assert not unsafe_calls("torch.load(file, weights_only=True); np.load(p, allow_pickle=False); encoder.eval()")


@pytest.mark.parametrize(("name", "folder"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
def test_cifar_of_another_checksum_is_not_unpickled(tmp_path, monkeypatch, name, folder):
    """Their batches are pickles: torchvision reads them, once their md5 is that of the makers' files."""
    trace = tmp_path / "executed"
    source = datasets.torchvision_sets.SOURCES[name]
    (tmp_path / folder).mkdir()
    for file, _ in [*source.train_list, *source.test_list, (source.meta["filename"], None)]:
        (tmp_path / folder / file).write_bytes(pickle.dumps(Payload(trace), 2))

    def offline(*_, **__):
        raise ConnectionError("no network in this test")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    with pytest.raises(InputError, match="could not be downloaded"):
        load_dataset(name, tmp_path)
    assert not trace.exists()
