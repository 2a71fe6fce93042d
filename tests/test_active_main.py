"""The query command: what it reads, writes, prints and refuses."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

import active_main
from common import checkpoint
from common.acceleration import Precision
from common.files import read_json
from common.flags import Parser
from common.session import folder_lock, run_command
from common.settings import ClassifierSettings, DataSettings, ProcessSettings
from datasets import load_data_and_split
from datasets.index_files import index_path, read_index_file
from datasets.split import Split
from evals import kept
from evals.features import Extraction
from models import build_encoder
from models.transform_layers import Augmentation
from tests.processes import run_processes

TARGETS = (2, 0)
PER_CLASS = 30
BUDGET = 8
MISMATCH = 0.35
DIM = 16
SHIFTS = {"semantic": ("none", 1), "distinctive": ("rotation", 4)}
STRATEGIES = ("ccal", "semantic", "distinctive", "posterior", "random", "badge", "mqnet")
CYCLES = 3


@pytest.fixture(autouse=True)
def program_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["active_main.py"])


@dataclasses.dataclass
class Place:
    """A folder with data.npz (8x8 images, three classes), both encoders with their args.json, and their features."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data.npz"

    @property
    def out(self) -> Path:
        return self.folder / "indices"

    def model(self, name: str) -> Path:
        return self.folder / "model" / name / "last.model"

    def words(self, *more: object, features: str = "--feature_cache {0.folder}/features") -> list[str]:
        """The command's arguments; a later one overrides an earlier one."""
        words = f"--dataset npz --data_path {self.data} --target_classes {TARGETS[0]} {TARGETS[1]}"
        words += f" --initial_budget {BUDGET} --mismatch {MISMATCH} --model resnet8 --simclr_dim {DIM} --device cpu"
        words += f" --shift_trans_type rotation --resize_factor 0.54 --resize_fix --load_path {self.folder / 'model'}"
        words += f" --k 5 --t 0.5 --views 2 --seed 3 {features.format(self)}"
        words += f" --queries_per_class 6 --cycles {CYCLES} --index_dir {self.out}"
        return [*words.split(), *map(str, more)]

    def settings(self) -> DataSettings:
        return DataSettings(
            dataset="npz", data_path=str(self.data), mismatch=MISMATCH, target_classes=TARGETS, initial_budget=BUDGET
        )

    def split(self) -> Split:
        return load_data_and_split(self.settings())[1]

    def labels(self) -> np.ndarray:
        return np.load(self.data)["train_labels"]

    def cycles(self, out: Path | None = None) -> list[dict]:
        """The index files' contents, in order, without the time that a cycle took."""
        out = out or self.out
        contents = [read_json(index_path(out, number)) for number in range(len(list(out.glob("cycle_*.json"))))]
        return [{key: value for key, value in content.items() if key != "seconds"} for content in contents]

    def queries(self, out: Path | None = None) -> list[dict]:
        """The same without settings, of which the checkpoints' paths are another place's."""
        return [{key: value for key, value in cycle.items() if key != "settings"} for cycle in self.cycles(out)]


@dataclasses.dataclass
class Finished(Place):
    """A place, and the queries that were run there, by strategy: folder of index files and lines printed."""

    printed: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def out_of(self, strategy: str) -> Path:
        return self.folder / "finished" / strategy


def save_encoders(folder: Path, digest: str, *, dataset: str, num_classes: int) -> None:
    for seed, (name, (shift, count)) in enumerate(SHIFTS.items()):
        encoder = build_encoder("resnet8", num_classes=num_classes, shifts=count, simclr_dim=DIM, seed=seed)
        checkpoint.save(folder / name / "last.model", encoder.state_dict())
        arguments = {"mode": name, "dataset": dataset, "model": "resnet8", "shift_trans_type": shift}
        checkpoint.write_args(folder / name, arguments, split_digest=digest, processes=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Finished:
    """Not to be changed: a query by each strategy."""
    place = Finished(tmp_path_factory.mktemp("finished"))
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat(np.arange(3), PER_CLASS))
    images = generator.integers(0, 256, (len(labels), 8, 8, 3))
    images = ((images + 60 * labels[:, None, None, None]) / 1.5).clip(0, 255).astype(np.uint8)
    np.savez(place.data, train_images=images, train_labels=labels, test_images=images[:9], test_labels=labels[:9])
    save_encoders(place.folder / "model", place.split().digest, dataset="npz", num_classes=3)
    capture = pytest.MonkeyPatch()
    for strategy in STRATEGIES:
        lines = place.printed[strategy] = []
        for module in ("active_main", "evals.cycle_report"):
            capture.setattr(f"{module}.log", lambda text, lines=lines: lines.extend(text.splitlines()))
        capture.setattr("active_main.finish", lambda wrote, then, lines=lines: lines.append(f"next: {then}"))
        words = place.words("--strategy", strategy, "--index_dir", place.out_of(strategy))
        assert run([*words, "--print_score", "--save_score"]) == 0
    capture.undo()
    return place


@pytest.fixture
def place(finished, tmp_path) -> Place:
    """A copy that a test may change, without index files."""
    ignore = shutil.ignore_patterns("finished")
    return Place(Path(shutil.copytree(finished.folder, tmp_path / "place", ignore=ignore)))


def run(words: list[str]) -> int:
    """The command's exit status."""
    try:
        return run_command(active_main.main, [str(word) for word in words])
    except SystemExit as stop:
        return stop.code


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def contents(folder: Path) -> dict[str, bytes]:
    return {path: (folder / path).read_bytes() for path in files_in(folder)}


# What it writes and prints


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_index_files_and_lines_agree_with_the_labels(finished, strategy):
    out = finished.out_of(strategy)
    split, labels, cycles = finished.split(), finished.labels(), finished.cycles(out)
    assert cycles[0]["labeled"] == split.labeled.tolist()
    assert cycles[0]["queried"] == cycles[0]["set_aside"] == []
    in_pool = int(np.isin(labels[split.unlabeled], TARGETS).sum())
    pool = set(split.unlabeled.tolist())
    printed = [line for line in finished.printed[strategy] if re.match(r"cycle \d", line)]
    assert len(printed) == len(cycles) - 1 == CYCLES
    for number in range(1, CYCLES + 1):
        before, cycle = cycles[number - 1], cycles[number]
        content = read_index_file(index_path(out, number), split_digest=split.digest, n_images=len(labels))
        assert (content.dataset, content.mismatch, content.strategy) == ("npz", MISMATCH, strategy)
        assert (content.cycle, content.target_classes) == (number, list(TARGETS))
        queried, metrics = cycle["queried"], cycle["metrics"]
        assert 0 < len(queried) <= 12
        assert set(queried) <= pool
        pool -= set(queried)
        found = [index for index in queried if labels[index] in TARGETS]
        assert cycle["labeled"] == before["labeled"] + found
        assert cycle["set_aside"] == before["set_aside"] + [index for index in queried if index not in found]
        per_class = [sum(labels[index] == label for index in found) for label in TARGETS]
        assert metrics["precision"] == pytest.approx(100 * len(found) / len(queried))
        assert metrics["recall"] == pytest.approx(100 * (len(cycle["labeled"]) - BUDGET) / in_pool)
        assert (metrics["auroc_semantic"] is None) == (strategy not in ("ccal", "semantic"))
        assert printed[number - 1].startswith(
            f"cycle {number}: queried {len(queried)}  target {len(found)} (2 {per_class[0]}, 0 {per_class[1]})  "
            f"precision {metrics['precision']:.1f} %  recall {metrics['recall']:.1f} %  labeled "
            f"{len(cycle['labeled'])}  pool {len(pool)}  "
        )


def test_what_the_query_was_made_from_is_on_record(finished):
    split = finished.split()
    used = np.load(finished.data)["train_images"][np.sort(np.concatenate([split.labeled, split.unlabeled]))]
    expected = {"strategy": "ccal", "k": 5.0, "t": 0.5, "queries_per_class": 6, "views": 2, "seed": 3}
    expected |= {"feature_dtype": "float16", "resize_factor": 0.54, "resize_fix": True}
    expected["images_digest"] = hashlib.sha256(used.tobytes()).hexdigest()
    expected |= {"features": {}, "feature_digests": {}}
    random = expected | {"strategy": "random", "checkpoints": {}, "checkpoint_digests": {}}
    expected |= {"model": "resnet8", "simclr_dim": DIM, "shift_trans_type": "rotation"}
    expected |= {"precision": Precision.resolve("auto", torch.device("cpu")).name}
    expected["checkpoints"] = {name: str(finished.model(name)) for name in SHIFTS}
    expected["checkpoint_digests"] = {
        name: hashlib.sha256(finished.model(name).read_bytes()).hexdigest() for name in SHIFTS
    }
    settings = {name: [cycle["settings"] for cycle in finished.cycles(finished.out_of(name))] for name in STRATEGIES}
    assert settings["ccal"] == [expected] * (CYCLES + 1)
    assert settings["random"] == [random] * (CYCLES + 1)  # which needs no encoder


@pytest.mark.parametrize("strategy", ["ccal", "distinctive", "semantic", "posterior"])
def test_features_from_files_query_as_those_of_the_encoders(finished, tmp_path, strategy):
    """The kept features of an earlier query, given as files for all of its images; there are no checkpoints."""
    split, kept_features = finished.split(), finished.folder / "features"
    needs = {"posterior": ["penultimate"]}.get(strategy, [name for name in SHIFTS if strategy in ("ccal", name)])
    rows = np.sort(np.concatenate([split.labeled, split.unlabeled]))
    words = []
    for name in needs:
        values = np.load(kept_features / f"{name}.npy")
        everything = np.full((PER_CLASS * 3, *values.shape[1:]), 9, dtype=values.dtype)
        everything[rows] = values
        np.save(tmp_path / f"{name}.npy", everything)
        flag = "--features" if strategy in ("semantic", "posterior") else f"--{name}_features"
        words += [flag, tmp_path / f"{name}.npy"]
    out = tmp_path / "out"
    words = finished.words("--strategy", strategy, "--index_dir", out, *words, features="--load_path gone")
    assert run(words) == 0
    assert finished.queries(out) == finished.queries(finished.out_of(strategy))
    settings = finished.cycles(out)[1]["settings"]
    digests = {name: hashlib.sha256((tmp_path / f"{name}.npy").read_bytes()).hexdigest() for name in needs}
    assert (settings["checkpoints"], settings["feature_digests"]) == ({}, digests)


def test_posterior_takes_features_side_by_side_and_needs_no_checkpoint(finished, tmp_path):
    words = [f"--{name}_features={finished.folder / 'features' / name}.npy" for name in SHIFTS]
    words = finished.words("--strategy", "posterior", "--index_dir", tmp_path, *words, features="--load_path gone")
    assert run(words) == 0
    assert [len(cycle["queried"]) for cycle in finished.cycles(tmp_path)] == [0] + [12] * CYCLES


@pytest.mark.parametrize("given", [("penultimate", "distinctive"), ("penultimate",), ("distinctive",)], ids=", ".join)
def test_mqnet_takes_each_of_its_features_from_a_file_or_a_checkpoint(finished, tmp_path, given):
    flags = {"penultimate": "--features", "distinctive": "--distinctive_features"}
    words = [word for name in given for word in (flags[name], finished.folder / "features" / f"{name}.npy")]
    words = ["--strategy", "mqnet", "--index_dir", tmp_path, "--cycles", 1, *words]
    assert run(finished.words(*words, features="--no_feature_cache")) == 0
    assert finished.queries(tmp_path) == finished.queries(finished.out_of("mqnet"))[:2]
    settings = finished.cycles(tmp_path)[1]["settings"]
    assert (settings["features"].keys(), settings["checkpoints"].keys()) == ({*given}, flags.keys() - {*given})


OWN = """\
import torch
from evals.strategies import Strategy
from evals.strategies.badge import badge as mine

worthless = Strategy(lambda inputs: torch.full((len(inputs.pool), 2), torch.nan), needs=())
"""


def test_a_strategy_of_ones_own_goes_by_its_name(finished, tmp_path, capsys):
    file, out = tmp_path / "own.py", tmp_path / "out"
    file.write_text(OWN)
    words = ["--strategy", f"{file}:mine", "--index_dir", out]
    assert run(finished.words(*words, features="--no_feature_cache")) == 0
    expected = [cycle | {"strategy": "mine"} for cycle in finished.queries(finished.out_of("badge"))]
    assert finished.queries(out) == expected
    settings = finished.cycles(out)[1]["settings"]
    assert settings["strategy"] == "mine"
    assert settings["strategy_digest"] == hashlib.sha256(file.read_bytes()).hexdigest()
    capsys.readouterr()
    assert run(finished.words("--strategy", f"{file}:worthless", "--index_dir", tmp_path / "nothing")) == 2
    assert "active_main.py: error: the strategy gave NaN for 80 of 80 images" in capsys.readouterr().err


def test_what_a_strategy_does_not_read_is_said(finished):
    said = {name: [line for line in lines if " ignores --" in line] for name, lines in finished.printed.items()}
    expected = dict.fromkeys(("posterior", "random", "badge"), "--k, --t, --views")
    expected |= dict.fromkeys(("distinctive", "mqnet"), "--k, --t")
    expected = {name: [f"--strategy {name} ignores {flags}"] for name, flags in expected.items()}
    assert said == {"ccal": [], "semantic": []} | expected


SCORE_NAMES = {
    "ccal": ["semantic similarity", "semantic", "distinctive distance", "distinctive", "query score"],
    "semantic": ["semantic similarity", "semantic", "query score"],
    "random": ["query score"],
}


@pytest.mark.parametrize("strategy", SCORE_NAMES)
def test_printed_and_saved_scores(finished, strategy):
    names, number = SCORE_NAMES[strategy], r"(-?\d[\d.e+-]*)"
    pattern = "  ({}) +mean {} +std {} +".format("|".join(names), number, number)
    pattern += " +".join(f"{10 * step}% {number}" for step in range(11))
    lines = [match for line in finished.printed[strategy] if (match := re.fullmatch(pattern, line))]
    assert [line[1] for line in lines] == names * CYCLES
    out, pool = finished.out_of(strategy), finished.split().unlabeled
    for cycle in range(1, CYCLES + 1):
        saved = dict(np.load(out / "scores" / f"all_scores_{cycle}.npz"))
        for line in lines[(cycle - 1) * len(names) : cycle * len(names)]:
            values = saved[line[1].replace(" ", "_")]
            summary = [values.mean(), values.std(), *np.quantile(values, np.linspace(0, 1, 11))]
            assert [float(text) for text in line.groups()[1:]] == pytest.approx(summary, rel=1e-3, abs=1e-4)
        content = finished.cycles(out)[cycle]
        assert saved["indices"].tolist() == pool.tolist()
        assert saved["queried"].tolist() == content["queried"]
        assert saved["is_target"].tolist() == np.isin(finished.labels()[pool], TARGETS).tolist()
        assert matplotlib.image.imread(out / "scores" / f"cycle_{cycle}.png").std() > 0.01
        pool = pool[~np.isin(pool, content["queried"])]


@pytest.mark.parametrize("strategy", ["ccal", "random"])
def test_what_the_report_shows_is_kept(finished, strategy):
    out, labels, pool = finished.out_of(strategy), finished.labels(), finished.split().unlabeled
    for number in range(1, CYCLES + 1):
        cycle, queried = kept.read_cycle(kept.cycle_path(out, number)), finished.cycles(out)[number]["queried"]
        assert cycle.pool.tolist() == sorted(pool) and cycle.queried.tolist() == queried
        assert cycle.is_target.tolist() == np.isin(labels[cycle.pool], TARGETS).tolist()
        assert cycle.names.tolist() == [str(label) for label in labels[queried]] and cycle.paths is None
        pool = pool[~np.isin(pool, queried)]


def test_the_next_command_takes_the_same_data_and_all_cycles(finished):
    """From the folder in which the query ran, whichever that is."""
    python, script, *words = shlex.split(finished.printed["ccal"][-1].removeprefix("next: "))
    assert python == "python" and Path(script).resolve() == active_main.ROOT / "train_classifier" / "main.py"
    parser = Parser("Reads.", data=DataSettings, classifier=ClassifierSettings, process=ProcessSettings)
    settings = parser.parse(words)
    assert settings.data == finished.settings()
    assert (settings.classifier.cycles, settings.classifier.index_dir) == (CYCLES, str(finished.out_of("ccal")))


def test_the_original_spelling_of_the_command(finished, place):
    """METHOD 8, with the paths and sizes of this place."""
    legacy = f"--mode eval --k 5.0 --t 0.5 --dataset npz --model resnet8 --mismatch {MISMATCH} --target 6"
    legacy += " --shift_trans_type rotation --print_score --ood_samples 2 --resize_factor 0.54 --resize_fix"
    legacy += f" --load_feature_path {place.model('distinctive')} --load_senmatic_path {place.model('semantic')}"
    legacy += f" --load_path {place.folder / 'model'} --local-rank 0 --split {CYCLES} --index_dir {place.out} --seed 3"
    legacy += f" --data_path {place.data} --target_classes {TARGETS[0]} {TARGETS[1]} --initial_budget {BUDGET}"
    assert run([*legacy.split(), "--simclr_dim", str(DIM)]) == 0
    assert place.queries() == finished.queries(finished.out_of("ccal"))


def test_every_feature_flag_reaches_the_extraction(place, monkeypatch):
    seen = {}
    real = active_main.feature_banks

    def note(*given, **more):
        seen.update(given[3])
        return real(*given, **more)

    monkeypatch.setattr(active_main, "feature_banks", note)
    flags = "--views 3 --resize_factor 0.3 --seed 7 --test_batch_size 9 --feature_dtype float32 --precision fp32"
    assert run([*place.words(*flags.split(), "--cycles", 1)]) == 0
    semantic = Extraction(Augmentation(0.3, True), 3, "none", (0,), seed=7, batch_size=9)
    assert seen == {
        "semantic": semantic,
        "distinctive": dataclasses.replace(semantic, shift="rotation", shift_numbers=(0, 1, 2, 3)),
    }


def test_the_default_place(tmp_path, monkeypatch):
    monkeypatch.setattr(active_main, "ROOT", tmp_path)
    words = "--dataset digits --mismatch 0.125 --strategy random --queries_per_class 20 --cycles 1 --device cpu"
    assert run(words.split()) == 0
    place = tmp_path / "train_classifier" / "get_index_12.5" / "digits" / "random"
    assert files_in(place) == ["cycle_0.json", "cycle_1.json", "scores/cycle_1.npz", "scores/sample.npz"]
    assert read_json(place / "cycle_1.json")["metrics"]["queried"] == 40


def test_a_class_that_runs_short_is_named_and_an_empty_pool_ends_the_run(place, capsys):
    """Half of the pool per class: the pseudo classes never divide it evenly here, so what is left takes more cycles."""
    half = len(place.split().unlabeled) // 2
    assert run(place.words("--queries_per_class", half, "--cycles", 50)) == 0
    out, cycles = capsys.readouterr().out, place.cycles()
    name, missing = re.findall(r"  class (\d): (\d+) fewer than", out)[0]
    assert cycles[1]["metrics"]["queried"] == 2 * half - int(missing) and name in ("0", "2")
    assert 2 < len(cycles) < 20
    assert (cycles[-1]["metrics"]["pool"], cycles[-1]["metrics"]["recall"]) == (0, 100)
    assert "the pool is empty" in out and f"--cycles {len(cycles) - 1} " in out


def test_no_strict_loads_what_fits_and_names_the_rest(place, capsys):
    state = torch.load(place.model("semantic"), weights_only=True)
    del state["linear.bias"]
    checkpoint.save(place.model("semantic"), state | {"stranger.weight": torch.ones(2)})
    assert run(place.words()) == 2
    assert "linear.bias" in capsys.readouterr().err
    assert run(place.words("--no_strict")) == 0
    out = capsys.readouterr().out
    assert "linear.bias" in out and "stranger.weight" in out


# Features


def test_features_are_kept_beside_the_index_files_and_give_the_same_query(finished, place, capsys):
    """Extracted into a file, read from it, and in memory alone; --deterministic changes nothing on a CPU."""
    memory = place.folder / "memory"
    assert run(place.words("--deterministic", features="")) == 0
    assert "kept from" not in capsys.readouterr().out
    assert run(place.words("--overwrite", features="")) == 0
    assert f"distinctive features of 88 images: kept from {place.out / 'features'}" in capsys.readouterr().out
    assert run(place.words("--index_dir", memory, features="--no_feature_cache")) == 0
    expected = finished.queries(finished.out_of("ccal"))
    assert place.queries() == place.queries(memory) == expected
    assert files_in(place.out / "features") == sorted(f"{name}.{end}" for name in SHIFTS for end in ("npy", "json"))
    assert not (memory / "features").exists()


# Several processes, stops and other runs


def query(words, rank, query_words):
    active_main.main(query_words)


def test_two_processes_write_what_one_does(place, tmp_path):
    assert run(place.words("--test_batch_size", 9, features="--no_feature_cache")) == 0
    words = place.words("--test_batch_size", 9, "--index_dir", tmp_path / "two", features="")
    ended = run_processes(query, tmp_path, words)
    assert [process.status for process in ended] == [0, 0], ended[0].told
    assert "".join(process.told for process in ended).count("cycle 1: queried") == 1
    assert place.queries(tmp_path / "two") == place.queries()
    made = [f"features/{name}.{end}" for name in SHIFTS for end in ("npy", "json")]
    assert files_in(tmp_path / "two") == sorted([*files_in(place.out), *made])


STOPS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 0}


@pytest.mark.parametrize(("number", "status"), STOPS.items(), ids=lambda value: getattr(value, "name", ""))
def test_a_signal_ends_the_query_at_once_with_whole_files(finished, place, monkeypatch, capsys, number, status):
    """It comes as the second cycle is to be written."""
    write = active_main.write_index_file

    def stop(folder, content):
        if content.cycle == 2:
            signal.raise_signal(number)
        return write(folder, content)

    monkeypatch.setattr(active_main, "write_index_file", stop)
    assert run(place.words()) == status
    assert place.queries() == finished.queries(finished.out_of("ccal"))[:2]
    error = capsys.readouterr().err
    assert f"stopped by {number.name}: cycles 0 to 1 are in {place.out}" in error and "--overwrite" in error
    monkeypatch.undo()
    assert run(place.words("--overwrite")) == 0
    assert place.queries() == finished.queries(finished.out_of("ccal"))


@pytest.mark.parametrize("folder", ["indices", "features"])
def test_a_second_query_on_one_folder_names_the_first(place, capsys, folder):
    with folder_lock(place.folder / folder):
        assert run(place.words()) == 2
        assert f"{place.folder / folder} is in use by process" in capsys.readouterr().err
    assert not list(place.out.glob("*"))


# Bad input


def swap(place: Place) -> None:
    first, second = (place.model(name).parent for name in SHIFTS)
    first.rename(first.parent / "kept")
    second.rename(first)
    (first.parent / "kept").rename(second)


# What is done to the place, the arguments that are added, and a key phrase; more cases are in test_bad_input.py.
BAD: dict[str, tuple[Callable[[Place], object] | None, str, str]] = {
    "checkpoints swapped": (swap, "", "mode"),
    "no shifts": (None, "--shift_trans_type none", "needs --shift_trans_type rotation or cutperm"),
    "a cache and none": (None, "--no_feature_cache", "not allowed with argument"),
    "features for a strategy of none": (None, "--strategy random --features x.npy", "random takes no features"),
    "one file too many": (None, "--strategy semantic --distinctive_features x.npy", "has no use for --dist"),
    "features for both encoders": (
        None, "--features x.npy", "ccal takes --semantic_features and --distinctive_features; leave --features out"
    ),
    "two files of one kind": (
        None, "--strategy mqnet --features x.npy --semantic_features x.npy", "for --semantic_features beside --features"
    ),
    "a file and a checkpoint": (
        None, "--strategy badge --features x.npy --load_semantic_path {folder}/m", "encoder: leave it or --load_sem"
    ),
    "a mistyped strategy": (None, "--strategy posteriour", "--strategy: must be one of ccal, semantic, "),
    "a built-in strategy's name": (None, "--strategy own.py:badge", "badge is a built-in strategy; give yours another"),
    "a strategy of no file": (None, "--strategy {folder}/own.py:mine", "there is no file .*/own.py"),
    "a file without the strategy": (
        lambda place: (place.folder / "own.py").write_text(OWN), "--strategy {folder}/own.py:yours", "no function or "
    ),
    "indices of no features": (None, "--feature_indices x.npy", "--feature_indices says what the rows"),
    "no features there": (None, "--strategy posterior --features gone.npy", "gone.npy"),
    "features of other images": (
        lambda place: np.save(place.folder / "f.npy", np.ones((5, 2))),
        "--strategy posterior --features {folder}/f.npy",
        "f.npy: it has 5 rows; 90 ",
    ),
    "labels with --export": (None, "--export out --labels filled.csv", "--export takes no labels"),
    "labels without --annotate": (None, "--labels filled.csv", "--labels filled.csv goes with --annotate"),
    "partial without labels": (None, "--annotate --partial", "--partial says how to take --labels"),
    "--annotate of data with labels": (None, "--annotate", "is for images that nobody has labeled yet"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "more", "phrase"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_writes_nothing(place, capsys, spoil, more, phrase):
    if spoil:
        spoil(place)
    before, folders = contents(place.folder), sorted(path for path in place.folder.rglob("*") if path.is_dir())
    assert run(place.words(*more.format(folder=place.folder).split())) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("active_main.py: error: "), captured.err
    assert re.search(phrase, lines[0]), lines[0]
    assert contents(place.folder) == before
    assert sorted(path for path in place.folder.rglob("*") if path.is_dir()) == folders
