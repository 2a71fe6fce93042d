"""The query command: what it reads, writes, prints and refuses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import runpy
import shutil
import subprocess
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
from common.cli import run_cli
from common.files import read_json, write_json
from datasets import load_data_and_split
from datasets.index_files import index_path, read_index_file
from datasets.split import Split
from evals import banks
from evals.features import FeatureBank
from models import build_encoder

TARGETS = (2, 0)
PER_CLASS = 30
BUDGET = 8
MISMATCH = 0.35
DIM = 16
SHIFTS = {"semantic": ("none", 1), "distinctive": ("rotation", 4)}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads that wait for each other cost more than these tiny products."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def program_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["active_main.py"])


@dataclasses.dataclass
class Place:
    """A folder with data.npz (8x8 images, three classes) and both encoders, with args.json beside each."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data.npz"

    @property
    def out(self) -> Path:
        return self.folder / "indices"

    def model(self, name: str) -> Path:
        return self.folder / "model" / name / "last.model"

    def words(self, *more: str) -> list[str]:
        """The command's arguments; a later one overrides an earlier one."""
        words = f"--dataset npz --data_path {self.data} --target_classes {TARGETS[0]} {TARGETS[1]}"
        words += f" --initial_budget {BUDGET} --mismatch {MISMATCH} --model resnet8 --simclr_dim {DIM} --device cpu"
        words += f" --shift_trans_type rotation --resize_factor 0.54 --resize_fix --load_path {self.folder / 'model'}"
        return [*words.split(), "--target", "6", "--split", "2", "--index_dir", str(self.out), *more]

    def split(self) -> Split:
        _, split = load_data_and_split(
            "npz", self.data, mismatch=MISMATCH, target_classes=TARGETS, initial_budget=BUDGET
        )
        return split

    def labels(self) -> np.ndarray:
        return np.load(self.data)["train_labels"]

    def cycles(self, out: Path | None = None) -> list[dict]:
        """The index files' contents, in order."""
        out = out or self.out
        return [read_json(index_path(out, number)) for number in range(len(list(out.glob("cycle_*.json"))))]


def save_encoders(folder: Path, digest: str, *, dataset: str, num_classes: int) -> None:
    for seed, (name, (shift, count)) in enumerate(SHIFTS.items()):
        encoder = build_encoder("resnet8", num_classes=num_classes, shifts=count, simclr_dim=DIM, seed=seed)
        checkpoint.save(folder / name / "last.model", encoder.state_dict())
        arguments = {"mode": name, "dataset": dataset, "model": "resnet8", "shift_trans_type": shift}
        checkpoint.write_args(folder / name, arguments, split_digest=digest, processes=1)


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Place:
    place = Place(tmp_path_factory.mktemp("place"))
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat(np.arange(3), PER_CLASS))
    images = generator.integers(0, 256, (len(labels), 8, 8, 3))
    images = ((images + 60 * labels[:, None, None, None]) / 1.5).clip(0, 255).astype(np.uint8)
    np.savez(place.data, train_images=images, train_labels=labels, test_images=images[:9], test_labels=labels[:9])
    save_encoders(place.folder / "model", place.split().digest, dataset="npz", num_classes=3)
    return place


@pytest.fixture
def place(template, tmp_path) -> Place:
    """A copy that a test may change."""
    return Place(Path(shutil.copytree(template.folder, tmp_path / "place")))


def run(words: list[str]) -> int:
    """The command's exit status."""
    try:
        return run_cli(active_main.main, words)
    except SystemExit as stop:
        return stop.code


def run_program(words: list[str], *, cwd: Path) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command; one that hangs is ended with all its processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=cwd, env=environment, **streams) as process:
        try:
            printed, errors = process.communicate(timeout=300)
        except BaseException:
            process.terminate()  # a launcher ends its workers on SIGTERM; on SIGKILL it could not
            raise
    return process.returncode, printed, errors


def without_seconds(cycles: list[dict]) -> list[dict]:
    return [{key: value for key, value in cycle.items() if key != "seconds"} for cycle in cycles]


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("strategy", ["ccal", "semantic", "distinctive", "random"])
def test_index_files_agree_with_the_labels(place, capsys, strategy):
    assert run(place.words("--strategy", strategy, "--split", "3")) == 0
    assert files_in(place.out) == [f"cycle_{number}.json" for number in range(4)]
    split, labels, cycles = place.split(), place.labels(), place.cycles()
    assert cycles[0]["labeled"] == split.labeled.tolist()
    assert cycles[0]["queried"] == cycles[0]["set_aside"] == []
    in_pool = int(np.isin(labels[split.unlabeled], TARGETS).sum())
    pool = set(split.unlabeled.tolist())
    printed = [line for line in capsys.readouterr().out.splitlines() if re.match(r"cycle \d", line)]
    assert len(printed) == 3
    for number in range(1, 4):
        before, cycle = cycles[number - 1], cycles[number]
        content = read_index_file(index_path(place.out, number), split_digest=split.digest, n_images=len(labels))
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
        assert metrics["queried"] == len(queried)
        assert metrics["found_per_class"] == per_class
        assert metrics["found"] == len(found)
        assert metrics["precision"] == pytest.approx(100 * len(found) / len(queried))
        assert metrics["recall"] == pytest.approx(100 * (len(cycle["labeled"]) - BUDGET) / in_pool)
        assert metrics["labeled"] == len(cycle["labeled"])
        assert metrics["pool"] == len(pool)
        assert (metrics["auroc_semantic"] is None) == (strategy == "random")
        assert printed[number - 1].startswith(
            f"cycle {number}: queried {len(queried)}  target {len(found)} (2 {per_class[0]}, 0 {per_class[1]})  "
            f"precision {metrics['precision']:.1f} %  recall {metrics['recall']:.1f} %  labeled {metrics['labeled']}  "
            f"pool {metrics['pool']}  "
        )


def test_the_settings_are_on_record(place):
    assert run(place.words("--k", "7", "--t", "0.25", "--seed", "3", "--ood_samples", "2")) == 0
    expected = {
        "k": 7.0,
        "t": 0.25,
        "target": 6,
        "ood_samples": 2,
        "resize_factor": 0.54,
        "resize_fix": True,
        "seed": 3,
        "feature_dtype": "float32",
        "precision": Precision.resolve("auto", torch.device("cpu")).name,
    }
    expected["checkpoints"] = {name: str(place.model(name)) for name in SHIFTS}
    expected["checkpoint_digests"] = {
        name: hashlib.sha256(place.model(name).read_bytes()).hexdigest() for name in SHIFTS
    }
    split = place.split()
    used = np.load(place.data)["train_images"][np.sort(np.concatenate([split.labeled, split.unlabeled]))]
    expected["images_digest"] = hashlib.sha256(used.tobytes()).hexdigest()
    expected |= {"model": "resnet8", "simclr_dim": DIM, "shift_trans_type": "rotation"}
    assert [cycle["settings"] for cycle in place.cycles()] == [expected] * 3


def test_a_query_without_encoders_records_none(place):
    assert run(place.words("--strategy", "random", "--split", "1")) == 0
    settings = place.cycles()[0]["settings"]
    assert settings["checkpoints"] == {} and settings["target"] == 6
    assert not {"checkpoint_digests", "images_digest", "model", "simclr_dim", "shift_trans_type"} & set(settings)


@pytest.mark.parametrize("strategy", ["ccal", "random"])
def test_the_same_seed_writes_the_same_files(place, tmp_path, strategy):
    runs = []
    for seed, name in ((1, "a"), (1, "b"), (2, "c")):
        out = tmp_path / name
        assert run(place.words("--strategy", strategy, "--seed", str(seed), "--index_dir", str(out))) == 0
        runs.append(without_seconds(place.cycles(out)))
    assert len(runs[0]) == 3
    assert runs[0] == runs[1]
    assert runs[0][1]["queried"] != runs[2][1]["queried"]


def test_the_original_spelling_of_the_command(place, tmp_path):
    """METHOD 8, with the paths and sizes of this place."""
    assert run(place.words("--k", "100.0", "--t", "0.9", "--ood_samples", "2")) == 0
    legacy = f"--mode eval --k 100.0 --t 0.9 --dataset npz --model resnet8 --mismatch {MISMATCH} --target 6"
    legacy += " --shift_trans_type rotation --print_score --ood_samples 2 --resize_factor 0.54 --resize_fix"
    legacy += f" --load_feature_path {place.model('distinctive')} --load_senmatic_path {place.model('semantic')}"
    legacy += f" --load_path {place.folder / 'model'} --local-rank 0 --split 2 --index_dir {tmp_path / 'legacy'}"
    legacy += f" --data_path {place.data} --target_classes {TARGETS[0]} {TARGETS[1]} --initial_budget {BUDGET}"
    assert run([*legacy.split(), "--simclr_dim", str(DIM)]) == 0
    assert without_seconds(place.cycles()) == without_seconds(place.cycles(tmp_path / "legacy"))


@pytest.mark.parametrize(
    ("strategy", "mismatch", "folder"),
    [
        ("semantic", "0.8", "get_index_80/digits/semantic"),
        ("random", "0.8", "get_index_80/digits/random"),
        ("random", "0.125", "get_index_12.5/digits/random"),
    ],
)
def test_the_default_place(tmp_path, monkeypatch, strategy, mismatch, folder):
    monkeypatch.setattr(active_main, "ROOT", tmp_path)
    _, split = load_data_and_split("digits", "", mismatch=float(mismatch))
    save_encoders(tmp_path / "model", split.digest, dataset="digits", num_classes=10)
    words = f"--dataset digits --mismatch {mismatch} --strategy {strategy} --model resnet8 --simclr_dim {DIM}"
    words += f" --load_path {tmp_path / 'model'} --target 20 --split 1 --device cpu"
    assert run(words.split()) == 0
    assert files_in(tmp_path / "train_classifier") == [f"{folder}/cycle_0.json", f"{folder}/cycle_1.json"]
    assert read_json(tmp_path / "train_classifier" / folder / "cycle_1.json")["metrics"]["queried"] == 40


def test_the_default_place_of_ccal(tmp_path, monkeypatch):
    monkeypatch.setattr(active_main, "ROOT", tmp_path)
    _, split = load_data_and_split("digits", "", mismatch=0.8)
    save_encoders(tmp_path / "model", split.digest, dataset="digits", num_classes=10)
    words = f"--dataset digits --model resnet8 --simclr_dim {DIM} --load_path {tmp_path / 'model'} --target 20"
    assert run([*words.split(), "--split", "1", "--device", "cpu", "--shift_trans_type", "rotation"]) == 0
    assert files_in(tmp_path / "train_classifier") == [f"get_index_80/digits/cycle_{number}.json" for number in (0, 1)]


SCORE_NAMES = {
    "ccal": ["semantic similarity", "semantic", "distinctive distance", "distinctive", "query score"],
    "semantic": ["semantic similarity", "semantic", "query score"],
    "random": ["query score"],
}


@pytest.mark.parametrize("strategy", SCORE_NAMES)
def test_printed_and_saved_scores(place, capsys, strategy):
    words = place.words("--strategy", strategy, "--print_score", "--save_score", "--k", "5", "--t", "0.5")
    assert run(words) == 0
    assert files_in(place.out / "scores") == ["cycle_1.npz", "cycle_1.png", "cycle_2.npz", "cycle_2.png"]
    names = SCORE_NAMES[strategy]
    number = r"(-?\d[\d.e+-]*)"
    pattern = "  ({}) +mean {} +std {} +".format("|".join(names), number, number)
    pattern += " +".join(f"{10 * step}% {number}" for step in range(11))
    lines = [match for line in capsys.readouterr().out.splitlines() if (match := re.fullmatch(pattern, line))]
    assert [line[1] for line in lines] == names * 2
    pool = place.split().unlabeled
    for cycle in (1, 2):
        saved = dict(np.load(place.out / "scores" / f"cycle_{cycle}.npz"))
        for line in lines[(cycle - 1) * len(names) : cycle * len(names)]:
            values = saved[line[1].replace(" ", "_")]
            summary = [values.mean(), values.std(), *np.quantile(values, np.linspace(0, 1, 11))]
            printed = [float(text) for text in line.groups()[1:]]
            assert printed == pytest.approx(summary, rel=1e-3, abs=1e-4)
        content = place.cycles()[cycle]
        assert saved["indices"].tolist() == pool.tolist()
        assert saved["queried"].tolist() == content["queried"]
        assert saved["is_target"].tolist() == np.isin(place.labels()[pool], TARGETS).tolist()
        assert saved["query_score"].shape == (len(pool),)
        if strategy == "ccal":
            rows = np.arange(len(pool))
            joint = saved["semantic"] + saved["distinctive"][rows, saved["pseudo_class"]]
            np.testing.assert_allclose(saved["query_score"], joint, rtol=0, atol=1e-6)
            similarity = saved["semantic_similarity"]
            normalised = (similarity - similarity.min()) / (similarity.max() - similarity.min())
            np.testing.assert_allclose(saved["semantic"], np.tanh(2.5 * (normalised - 0.5)), rtol=0, atol=1e-5)
            expected = []
            for label in range(2):
                candidates = [(-joint[row], pool[row]) for row in rows if saved["pseudo_class"][row] == label]
                expected += [index for _, index in sorted(candidates)[:6]]
            assert content["queried"] == expected
        assert matplotlib.image.imread(place.out / "scores" / f"cycle_{cycle}.png").std() > 0.01
        pool = pool[~np.isin(pool, content["queried"])]


def saved_scores(place: Place, *more: str) -> dict[str, np.ndarray]:
    assert run(place.words("--split", "1", "--save_score", "--overwrite", *more)) == 0
    return dict(np.load(place.out / "scores" / "cycle_1.npz"))


FEATURE_FLAGS = {
    "--ood_samples": "2",
    "--resize_factor": "0.3",
    "--seed": "1",
}


@pytest.mark.parametrize(("flag", "value"), FEATURE_FLAGS.items())
def test_feature_flags_change_the_features(place, flag, value):
    before, after = saved_scores(place), saved_scores(place, flag, value)
    assert (abs(after["semantic_similarity"] - before["semantic_similarity"]) > 1e-6).mean() > 0.9
    assert (abs(after["distinctive_distance"] - before["distinctive_distance"]) > 1e-6).mean() > 0.9


@pytest.mark.parametrize(("flag", "value"), [("--k", "5"), ("--t", "0.3")])
def test_score_flags_change_the_score_alone(place, flag, value):
    before, after = saved_scores(place), saved_scores(place, flag, value)
    for name in ("semantic_similarity", "distinctive_distance", "distinctive"):
        np.testing.assert_array_equal(after[name], before[name])
    assert (abs(after["semantic"] - before["semantic"]) > 0.01).mean() > 0.1


@pytest.mark.parametrize("size", ["1", "17", "1000"])
def test_the_batch_size_of_the_query_changes_nothing(place, size):
    before, after = saved_scores(place), saved_scores(place, "--test_batch_size", size)
    for name in ("semantic_similarity", "distinctive_distance"):
        np.testing.assert_allclose(after[name], before[name], rtol=0, atol=1e-5)


def test_a_class_that_runs_short_is_named(place, capsys):
    """Half of the pool per class: the pseudo classes never divide it evenly here."""
    half = len(place.split().unlabeled) // 2
    assert run(place.words("--target", str(half), "--split", "1")) == 0
    content = place.cycles()[1]
    short = re.findall(r"  class (\d): (\d+) fewer than --target, no more candidates", capsys.readouterr().out)
    assert len(short) == 1
    assert content["metrics"]["queried"] == 2 * half - int(short[0][1])
    assert short[0][0] in ("0", "2")


def test_an_empty_pool_ends_the_run(place, capsys):
    assert run(place.words("--target", "20", "--split", "50")) == 0
    cycles = place.cycles()
    assert 3 < len(cycles) < 20
    assert cycles[-1]["metrics"]["pool"] == 0
    assert cycles[-1]["metrics"]["recall"] == 100
    assert "the pool is empty" in capsys.readouterr().out


LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def test_two_processes_write_what_one_does(place, tmp_path, root):
    assert run(place.words("--test_batch_size", "9")) == 0
    out = tmp_path / "two"
    words = place.words("--test_batch_size", "9", "--index_dir", str(out))
    status, printed, errors = run_program([*LAUNCH, str(root / "active_main.py"), *words], cwd=tmp_path)
    assert status == 0, errors
    assert printed.count("cycle 1: queried") == 1
    assert files_in(out) == files_in(place.out)
    for one, two in zip(place.cycles(), place.cycles(out), strict=True):
        for name in ("labeled", "queried", "set_aside", "split_digest"):
            assert one[name] == two[name]
        assert set(one["metrics"]) == set(two["metrics"])
        for name, value in one["metrics"].items():
            assert value == pytest.approx(two["metrics"][name], abs=1e-9)


@pytest.mark.slow
def test_a_late_process_does_not_take_new_files_for_an_earlier_querys(place, tmp_path, root):
    """Without features nothing but the look into the folder keeps the processes together."""
    program = tmp_path / "late.py"
    program.write_text(
        "import os, sys, time\n"
        f"sys.path.insert(0, {str(root)!r})\n"
        "import active_main\n"
        "check = active_main.check_budget\n"
        "late = os.environ['RANK'] == '1'\n"
        "active_main.check_budget = lambda *args, **more: (time.sleep(5 * late), check(*args, **more))\n"
        "sys.exit(active_main.run_cli(active_main.main))\n"
    )
    status, _, errors = run_program([*LAUNCH, str(program), *place.words("--strategy", "random")], cwd=tmp_path)
    assert status == 0, errors
    assert len(place.cycles()) == 3


def test_earlier_index_files_are_kept_unless_asked(place, capsys):
    assert run(place.words("--split", "4", "--target", "3", "--save_score")) == 0
    before = {path: (place.out / path).read_bytes() for path in files_in(place.out)}
    assert run(place.words("--split", "1")) == 2
    assert "already holds index files (cycle_0.json, ...): give --resume auto to continue" in capsys.readouterr().err
    assert {path: (place.out / path).read_bytes() for path in files_in(place.out)} == before
    (place.out / "notes.txt").write_text("mine")
    assert run(place.words("--split", "1", "--overwrite")) == 0
    assert sorted(path.name for path in place.out.glob("*")) == ["cycle_0.json", "cycle_1.json", "notes.txt", "scores"]
    assert place.cycles()[1]["metrics"]["queried"] == 12
    assert files_in(place.out / "scores") == []


def test_overwrite_needs_a_usable_checkpoint_before_it_removes_anything(place):
    assert run(place.words("--split", "1")) == 0
    before = {path: (place.out / path).read_bytes() for path in files_in(place.out)}
    place.model("distinctive").write_bytes(b"garbage")
    assert run(place.words("--overwrite")) == 2
    assert {path: (place.out / path).read_bytes() for path in files_in(place.out)} == before


def test_a_checkpoint_without_settings_warns_and_works(place, tmp_path, capsys):
    assert run(place.words()) == 0
    assert "warning" not in capsys.readouterr().out
    for name in SHIFTS:
        (place.model(name).parent / "args.json").unlink()
    assert run(place.words("--index_dir", str(tmp_path / "again"))) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert [line.split(" has no args.json")[0] for line in warnings] == [
        f"warning: {place.model(name)}" for name in SHIFTS
    ]
    assert without_seconds(place.cycles()) == without_seconds(place.cycles(tmp_path / "again"))


def test_a_checkpoint_with_the_originals_unused_heads_loads(place, tmp_path, capsys):
    assert run(place.words()) == 0
    for name in SHIFTS:
        state = torch.load(place.model(name), weights_only=True)
        heads = {f"joint_distribution_layer.{part}": torch.ones(7, 3) for part in ("weight", "bias")}
        checkpoint.save(
            place.model(name), state | heads | {"shift_dis.weight": torch.ones(2), "shift_dis.bias": torch.ones(1)}
        )
    assert run(place.words("--index_dir", str(tmp_path / "again"))) == 0
    assert "warning" not in capsys.readouterr().out
    runs = [without_seconds(place.cycles(out)) for out in (place.out, tmp_path / "again")]
    digests = [[cycle["settings"].pop("checkpoint_digests") for cycle in cycles] for cycles in runs]
    assert digests[0][0] != digests[1][0]
    assert runs[0] == runs[1]


def test_no_strict_loads_what_fits_and_names_the_rest(place, capsys):
    state = torch.load(place.model("semantic"), weights_only=True)
    del state["linear.bias"]
    checkpoint.save(place.model("semantic"), state | {"stranger.weight": torch.ones(2)})
    assert run(place.words()) == 2
    assert "linear.bias" in capsys.readouterr().err
    assert run(place.words("--no_strict")) == 0
    out = capsys.readouterr().out
    assert f"warning: {place.model('semantic')}: lacks linear.bias; does not know stranger.weight" in out


def resave(place: Place, name: str, **changes) -> None:
    """Writes an encoder of another shape as a checkpoint."""
    model = changes.pop("model", "resnet8")
    settings = {"num_classes": 3, "shifts": SHIFTS[name][1], "simclr_dim": DIM, "seed": 0} | changes
    checkpoint.save(place.model(name), build_encoder(model, **settings).state_dict())


def truncate(place: Place) -> None:
    whole = place.model("semantic").read_bytes()
    place.model("semantic").write_bytes(whole[: len(whole) // 2])


def swap(place: Place, *, settings: bool) -> None:
    first, second = (place.model(name).parent for name in SHIFTS)
    first.rename(first.parent / "kept")
    second.rename(first)
    (first.parent / "kept").rename(second)
    if not settings:
        for folder in (first, second):
            (folder / "args.json").unlink()


def other_settings(place: Place, name: str, **changes) -> None:
    path = place.model(name).parent / "args.json"
    record = read_json(path)
    record["arguments"] |= changes
    write_json(path, record)


def spoil(place: Place, value: float) -> None:
    state = torch.load(place.model("distinctive"), weights_only=True)
    state["layer2.0.conv1.weight"][0, 0, 0, 0] = value
    checkpoint.save(place.model("distinctive"), state)


def rewrite_data(place: Place, change: Callable[[dict], None]) -> None:
    arrays = dict(np.load(place.data))
    change(arrays)
    np.savez(place.data, **arrays)


def leave_index_file(place: Place) -> None:
    place.out.mkdir()
    (place.out / "cycle_3.json").write_text("{}")


SEMANTIC, DISTINCTIVE = "model/semantic/last.model", "model/distinctive/last.model"
# What is done to the place, the arguments that are added, and what the one line on stderr must say.
BAD = {
    "semantic checkpoint missing": (
        lambda place: place.model("semantic").unlink(),
        "",
        [f"the semantic checkpoint .*{SEMANTIC} does not exist", "--load_semantic_path"],
    ),
    "distinctive checkpoint missing": (
        lambda place: place.model("distinctive").unlink(),
        "",
        [f"the distinctive checkpoint .*{DISTINCTIVE} does not exist", "--load_feature_path"],
    ),
    "named checkpoint missing": (
        None,
        "--load_semantic_path nowhere/last.model",
        ["nowhere/last.model does not exist"],
    ),
    "checkpoint truncated": (truncate, "", [f"{SEMANTIC} is damaged or no checkpoint"]),
    "checkpoint empty": (
        lambda place: place.model("semantic").write_bytes(b""),
        "",
        [f"{SEMANTIC} is damaged or no checkpoint"],
    ),
    "checkpoint garbage": (
        lambda place: place.model("distinctive").write_bytes(bytes(range(256)) * 9),
        "",
        [f"{DISTINCTIVE} is damaged or no checkpoint"],
    ),
    "checkpoint of a resume": (
        lambda place: checkpoint.save(place.model("semantic"), {"model": {}, "epoch": 3}),
        "",
        ["is no state_dict; give the file last.model"],
    ),
    "checkpoints swapped": (lambda place: swap(place, settings=True), "", ["with --mode distinctive, not semantic"]),
    "checkpoints swapped, without settings": (
        lambda place: swap(place, settings=False),
        "",
        ["differs in the shape of shift_cls_layer.weight, shift_cls_layer.bias"],
    ),
    "checkpoint of a deeper network": (
        lambda place: resave(place, "semantic", model="resnet20"),
        "",
        [r"does not know layer1\.1\.conv1\.weight, .* and \d+ more", "--model"],
    ),
    "settings of another network": (
        lambda place: other_settings(place, "semantic", model="resnet20"),
        "",
        ["was trained with --model resnet20, not resnet8"],
    ),
    "settings of other shifts": (
        lambda place: other_settings(place, "distinctive", shift_trans_type="cutperm"),
        "",
        ["was trained with --shift_trans_type cutperm, not rotation"],
    ),
    "settings of another data set": (
        lambda place: other_settings(place, "semantic", dataset="digits"),
        "",
        ["was trained with --dataset digits, not npz"],
    ),
    "settings that are no json": (
        lambda place: (place.model("semantic").parent / "args.json").write_text("{"),
        "",
        ["args.json is not valid JSON"],
    ),
    "settings of another kind": (
        lambda place: (place.model("semantic").parent / "args.json").write_text("[]"),
        "",
        ["args.json is no settings file"],
    ),
    "other projection": (
        None,
        "--simclr_dim 32",
        [r"differs in the shape of simclr_layer\.2\.weight, simclr_layer\.2\.bias", "--simclr_dim"],
    ),
    "checkpoint of other classes": (
        lambda place: resave(place, "semantic", num_classes=10),
        "",
        [r"differs in the shape of linear\.weight, linear\.bias"],
    ),
    "other split": (None, "--split_seed 1", ["was trained on another split", "--split_seed"]),
    "other mismatch": (None, "--mismatch 0.2", ["was trained on another split", "--mismatch"]),
    "no shifts": (None, "--shift_trans_type none", ["needs --shift_trans_type rotation or cutperm"]),
    "target beyond the pool": (
        None,
        "--target 1000",
        ["--target 1000 asks for 2000 images a cycle", "largest --target"],
    ),
    "one labeled image in a class": (
        None,
        "--initial_budget 2 --mismatch 0.3 --split_seed 2",
        ["has 1 labeled image and the distinctive score needs two", "--initial_budget"],
    ),
    "unknown class": (None, "--target_classes 0 7", ["class 7 has no images; the data set has classes 0 to 2"]),
    "class twice": (None, "--target_classes 1 1", ["names a class twice: 1 1"]),
    "negative class": (None, "--target_classes -1 0", ["--target_classes"]),
    "mismatch of one": (None, "--mismatch 1", ["--mismatch: must be a number at least 0 and below 1, got 1"]),
    "mismatch below zero": (None, "--mismatch -0.1", ["--mismatch: must be a number at least 0 and below 1"]),
    "mismatch not a number": (None, "--mismatch nan", ["--mismatch: must be a number at least 0 and below 1, got nan"]),
    "mismatch too large for the data": (
        None,
        "--mismatch 0.9",
        [r"asks for \d+ images of other classes and 30 exist; the largest possible here is 0\.3658"],
    ),
    "weights not numbers": (
        lambda place: spoil(place, float("nan")),
        "",
        [r"holds weights that are not finite \(layer2\.0\.conv1\.weight\)"],
    ),
    "weights infinite": (lambda place: spoil(place, float("inf")), "", ["holds weights that are not finite"]),
    "data missing": (lambda place: place.data.unlink(), "", [r"data\.npz is not a file"]),
    "data no npz": (lambda place: place.data.write_text("hello"), "", ["cannot be read as an npz file"]),
    "images of a wrong shape": (
        lambda place: rewrite_data(place, lambda arrays: arrays.update(train_images=arrays["train_images"][..., :2])),
        "",
        [r"train_images in .* must have shape \(N, H, W, 3\) or \(N, H, W\), got \(90, 8, 8, 2\)"],
    ),
    "images of two sizes": (
        lambda place: rewrite_data(place, lambda arrays: arrays.update(test_images=arrays["test_images"][:, :4])),
        "",
        [r"train and test images must have one size, got \(8, 8\) and \(4, 8\)"],
    ),
    "labels missing": (
        lambda place: rewrite_data(place, lambda arrays: arrays.pop("train_labels")),
        "",
        ["lacks train_labels"],
    ),
    "too few labels": (
        lambda place: rewrite_data(place, lambda arrays: arrays.update(train_labels=arrays["train_labels"][:80])),
        "",
        ["80 labels for 90 images"],
    ),
    "index files there": (
        leave_index_file,
        "",
        [r"already holds index files \(cycle_3\.json, \.\.\.\)", "--overwrite"],
    ),
    "index folder is a file": (lambda place: place.out.write_text("mine"), "", ["indices"]),
    "index folder below a file": (
        lambda place: (place.folder / "file").write_text("mine"),
        "--index_dir {folder}/file/indices",
        ["file"],
    ),
    "k of zero": (None, "--k 0", ["--k: must be a number above 0, got 0"]),
    "t above one": (None, "--t 2", ["--t: must be a number at least 0 and at most 1, got 2"]),
    "no views": (None, "--ood_samples 0", ["--ood_samples: must be a whole number at least 1, got 0"]),
    "no cycles": (None, "--split 0", ["--split: must be a whole number at least 1, got 0"]),
    "no target": (None, "--target 0", ["--target: must be a whole number at least 1, got 0"]),
    "no batch": (None, "--test_batch_size 0", ["--test_batch_size: must be a whole number at least 1"]),
    "crop of nothing": (None, "--resize_factor 0", ["--resize_factor: must be a number above 0 and at most 1"]),
    "unknown strategy": (None, "--strategy margin", ["--strategy: invalid choice: 'margin'"]),
    "unknown network": (None, "--model resnet50", ["--model: invalid choice: 'resnet50'"]),
    "unknown data set": (None, "--dataset imagenet", ["--dataset: invalid choice: 'imagenet'"]),
    "unknown flag": (None, "--margin 3", ["unrecognized arguments: --margin 3"]),
}


@pytest.mark.parametrize(("spoil_place", "more", "patterns"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_writes_nothing(place, capsys, spoil_place, more, patterns):
    if spoil_place:
        spoil_place(place)
    before = {path: (place.folder / path).read_bytes() for path in files_in(place.folder)}
    folders = sorted(path for path in place.folder.rglob("*") if path.is_dir())
    words = place.words(*more.format(folder=place.folder).split())
    assert run(words) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("active_main.py: error: ")
    for pattern in patterns:
        assert re.search(pattern, lines[0]), lines[0]
    assert "Traceback" not in captured.out + captured.err
    assert {path: (place.folder / path).read_bytes() for path in files_in(place.folder)} == before
    assert sorted(path for path in place.folder.rglob("*") if path.is_dir()) == folders


def test_debug_shows_the_traceback(place):
    place.model("semantic").write_bytes(b"")
    with pytest.raises(active_main.InputError, match="damaged"):
        run(place.words("--debug"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(place, capsys):
    assert run(place.words("--device", "cuda")) == 2
    assert "error: --device cuda: torch sees no GPU here" in capsys.readouterr().err
    assert not place.out.exists()


def test_the_command_as_a_program(place, root, tmp_path, monkeypatch, capsys):
    """From another folder, with its exit status: bad input is 2 and one line, and nothing else is printed."""
    monkeypatch.chdir(tmp_path)
    program = root / "active_main.py"
    monkeypatch.setattr(sys, "argv", [str(program), *place.words("--target", "1000")])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(program), run_name="__main__")
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"active_main\.py: error: --target 1000 asks for [^\n]*\n", captured.err)


def test_index_files_are_json_that_ends_in_a_newline(place):
    assert run(place.words("--split", "1")) == 0
    text = index_path(place.out, 1).read_text()
    assert text.endswith("}\n")
    assert json.loads(text)["format_version"] == 1


# Features kept on disk


def test_kept_features_give_the_same_files(place, tmp_path, capsys):
    runs, printed = [], []
    cache = tmp_path / "cache"
    for name, more in (("plain", []), ("first", ["--feature_cache"]), ("second", ["--feature_cache"])):
        words = [word for flag in more for word in (flag, str(cache))]
        assert run(place.words(*words, "--index_dir", str(tmp_path / name))) == 0
        runs.append(without_seconds(place.cycles(tmp_path / name)))
        printed.append(capsys.readouterr().out)
    assert runs[0] == runs[1] == runs[2]
    assert len(runs[0]) == 3
    assert files_in(cache) == sorted(f"{name}.{end}" for name in SHIFTS for end in ("npy", "json"))
    count = len(np.concatenate([place.split().unlabeled, place.split().labeled]))
    kept = [f"{name} features of {count} images: kept from {cache}" for name in SHIFTS]
    assert [[line in out for line in kept] for out in printed] == [[False] * 2, [False] * 2, [True] * 2]


def test_kept_features_serve_another_strategy_and_only_what_lacks_is_made(place, tmp_path, capsys):
    cache, again = ["--feature_cache", str(tmp_path / "cache")], ["--index_dir", str(tmp_path / "again")]
    assert run(place.words(*cache, "--strategy", "semantic")) == 0
    capsys.readouterr()
    assert run(place.words(*cache, *again)) == 0
    out = capsys.readouterr().out
    assert re.search(r"semantic features of \d+ images: kept from", out)
    assert re.search(r"distinctive features of \d+ images: [\d.]+ s", out)
    assert run(place.words("--index_dir", str(tmp_path / "plain"))) == 0
    assert without_seconds(place.cycles(tmp_path / "again")) == without_seconds(place.cycles(tmp_path / "plain"))


def test_two_processes_with_a_cache_write_what_one_does(place, tmp_path, root, capsys):
    assert run(place.words("--feature_cache", str(tmp_path / "one"))) == 0
    words = place.words("--feature_cache", str(tmp_path / "two"), "--index_dir", str(tmp_path / "made"))
    status, printed, errors = run_program([*LAUNCH, str(root / "active_main.py"), *words], cwd=tmp_path)
    assert status == 0, errors
    assert without_seconds(place.cycles(tmp_path / "made")) == without_seconds(place.cycles())
    assert files_in(tmp_path / "two") == files_in(tmp_path / "one")
    for path in files_in(tmp_path / "one"):
        assert (tmp_path / "two" / path).read_bytes() == (tmp_path / "one" / path).read_bytes()
    capsys.readouterr()
    assert run(place.words("--feature_cache", str(tmp_path / "two"), "--index_dir", str(tmp_path / "kept"))) == 0
    assert capsys.readouterr().out.count(f"kept from {tmp_path / 'two'}") == 2
    assert without_seconds(place.cycles(tmp_path / "kept")) == without_seconds(place.cycles())


OTHER_FEATURES = {
    "seed": (None, "--seed 1", "seed"),
    "views": (None, "--ood_samples 2", "views"),
    "crop": (None, "--resize_factor 0.3", "augmentation"),
    "numbers": (None, "--feature_dtype float16", "dtype"),
    "labeled set": (
        lambda place: [(place.model(name).parent / "args.json").unlink() for name in SHIFTS],
        "--mismatch 0.2",
        "images, indices",
    ),
    "checkpoint": (lambda place: resave(place, "semantic", seed=9), "", "checkpoint"),
}


@pytest.mark.parametrize(("change", "more", "named"), OTHER_FEATURES.values(), ids=OTHER_FEATURES)
def test_features_of_other_flags_are_one_line_and_stay(place, tmp_path, capsys, change, more, named):
    cache = ["--feature_cache", str(tmp_path / "cache")]
    assert run(place.words(*cache, "--index_dir", str(tmp_path / "first"))) == 0
    before = {path: (tmp_path / "cache" / path).read_bytes() for path in files_in(tmp_path / "cache")}
    assert len(before) == 4
    if change:
        change(place)
    capsys.readouterr()
    assert run(place.words(*cache, *more.split())) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1, errors
    assert f"the semantic features in {tmp_path / 'cache'} were made with another {named}: give" in errors[0]
    assert {path: (tmp_path / "cache" / path).read_bytes() for path in files_in(tmp_path / "cache")} == before
    assert not place.out.exists()


SPEED_FLAGS = {
    "tf32": (None, "--precision tf32", "--precision tf32 is a format of GPUs; on the CPU choose auto, fp32 or bf16"),
    "unknown precision": (None, "--precision fp16", "--precision: invalid choice: 'fp16'"),
    "unknown numbers": (None, "--feature_dtype bfloat16", "--feature_dtype: invalid choice: 'bfloat16'"),
    "cache is a file": (
        lambda place: (place.folder / "cache").write_text("mine"),
        "--feature_cache {folder}/cache",
        "--feature_cache",
    ),
    "cache below a file": (
        lambda place: (place.folder / "file").write_text("mine"),
        "--feature_cache {folder}/file/cache",
        "--feature_cache",
    ),
}


@pytest.mark.parametrize(("change", "more", "message"), SPEED_FLAGS.values(), ids=SPEED_FLAGS)
def test_flags_of_speed_that_cannot_be_followed_are_one_line(place, capsys, change, more, message):
    if change:
        change(place)
    before = files_in(place.folder)
    assert run(place.words(*more.format(folder=place.folder).split())) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1, errors
    assert message in errors[0]
    assert files_in(place.folder) == before


def test_half_precision_features_in_memory_and_on_disk_select_the_same(place, tmp_path):
    runs = []
    for name, more in (("memory", []), ("disk", ["--feature_cache", str(tmp_path / "cache")])):
        words = place.words("--feature_dtype", "float16", "--index_dir", str(tmp_path / name), *more)
        assert run(words) == 0
        runs.append(without_seconds(place.cycles(tmp_path / name)))
    assert runs[0] == runs[1]
    assert runs[0][0]["settings"]["feature_dtype"] == "float16"
    assert np.load(tmp_path / "cache" / "semantic.npy").dtype == np.float16


def test_an_empty_name_keeps_no_features(place):
    """As an empty shell variable gives it."""
    before = files_in(place.folder)
    assert run(place.words("--feature_cache", "", "--split", "1")) == 0
    assert files_in(place.folder) == sorted([*before, "indices/cycle_0.json", "indices/cycle_1.json"])


def test_a_query_that_needs_no_features_says_so(place, capsys):
    assert run(place.words("--strategy", "random", "--split", "1", "--feature_cache", "cache")) == 0
    assert "--feature_cache cache is not used: this strategy needs no features" in capsys.readouterr().out
    assert not Path("cache").exists()


def test_kept_features_that_are_not_finite_cost_no_earlier_file(place, tmp_path, capsys):
    words = place.words("--feature_cache", str(tmp_path / "cache"), "--overwrite")
    assert run(words) == 0
    before = {path: (place.out / path).read_bytes() for path in files_in(place.out)}
    kept = np.load(tmp_path / "cache" / "distinctive.npy")
    kept[-1, 3, 2] = np.nan
    np.save(tmp_path / "cache" / "distinctive.npy", kept)
    assert run(words) == 2
    assert "distinctive.npy holds a value that is not finite; remove it" in capsys.readouterr().err
    assert {path: (place.out / path).read_bytes() for path in files_in(place.out)} == before


@pytest.mark.parametrize("end", ["npy", "json"])
def test_a_folder_in_the_features_place_is_one_line(place, tmp_path, capsys, end):
    (tmp_path / "cache" / f"semantic.{end}").mkdir(parents=True)
    assert run(place.words("--feature_cache", str(tmp_path / "cache"))) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and "irectory" in errors[0], errors
    assert not place.out.exists()
    assert not [path for path in files_in(tmp_path / "cache") if path.endswith(".tmp")]


def test_every_process_extracts_in_one_order(monkeypatch):
    """The encoders' own: processes that take another one would gather features of different encoders."""
    names = [f"encoder {number}" for number in range(12)]
    made = []

    def extract(encoder, images, indices, how, *, name, check):
        made.append(name)
        return FeatureBank(indices, torch.zeros(len(indices), 1, 2))

    monkeypatch.setattr(banks, "extract_features", extract)
    made_banks = banks.feature_banks(
        dict.fromkeys(names),
        np.zeros((3, 2, 2, 3), dtype=np.uint8),
        np.arange(3),
        dict.fromkeys(names),
        sources=banks.Sources(dict.fromkeys(names), dict.fromkeys(names), ""),
        cache=None,
        dtype="float32",
        device=torch.device("cpu"),
    )
    assert made == [f"{name} features" for name in names]
    assert list(made_banks) == names
