"""benchmark.py: the protocols' numbers, one small comparison from start to end, what later starts add, and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import active_main
import benchmark
from common.paper import BENCHMARKS, PROTOCOLS
from common.session import run_command
from datasets.index_files import read_index_file
from datasets.split import make_split
from evals.report.comparison import read_rows
from train_classifier.recipes import RECIPES
from utils import InputError

CYCLES, PER_CLASS = 2, 4


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 train and 50 test images of 5 classes, and features that tell these apart, more or less."""
    folder, generator = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    labels = {"train": np.arange(200) % 5, "test": np.arange(50) % 5}
    images = {
        f"{name}_images": generator.integers(0, 256, (len(v), 8, 8, 3), dtype=np.uint8) for name, v in labels.items()
    }
    np.savez(folder / "data.npz", **images, **{f"{name}_labels": values for name, values in labels.items()})
    points = generator.normal(size=(5, 6))[np.concatenate([*labels.values()])] + generator.normal(size=(250, 6))
    np.save(folder / "features.npy", points.astype(np.float32))
    np.save(folder / "train_only.npy", points[:200].astype(np.float32))
    for name in ("own.py", "own2.py"):
        (folder / name).write_text("def one(inputs):\n    raise AssertionError\n")
    return folder


def words(files: Path, out: Path, *more: str) -> list[str]:
    split = f"--dataset npz --data_path {files / 'data.npz'} --target_classes 3 1 --initial_budget 10 --mismatch 0.6"
    return [
        *split.split(),
        *f"--features {files / 'features.npy'} --queries_per_class {PER_CLASS} --cycles {CYCLES} --device cpu".split(),
        *f"--load_path {files} --out {out}".split(),
        *(more or "--strategies random certainty coreset ceiling --seeds 0 1".split()),
    ]


@pytest.fixture(scope="module")
def finished(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    benchmark.main(words(files, folder))
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def made(monkeypatch: pytest.MonkeyPatch) -> list[benchmark.Unit]:
    """What later starts work on."""
    units, run = [], benchmark.run_unit
    monkeypatch.setattr(benchmark, "run_unit", lambda *given: units.append(given[-1]) or run(*given))
    return units


def without_time(path: Path) -> list:
    return [
        (*[getattr(row, name) for name in ("strategy", "seed", "classifier", "cycle", "found", "recall", "accuracy")],)
        for row in read_rows(path / "results.csv")
    ]


@pytest.mark.parametrize(
    ("protocol", "seed", "classes", "labeled", "aside", "targets", "others", "budget"),
    [
        ("ccal", 0, (0, 1), 800, 0, 9200, 36801, 750),
        ("lfosa", 0, (0, 1), 100, 0, 9900, 40000, 750),
        ("mqnet", 0, (4, 2, 5, 7), 200, 300, 19800, 29700, 125),
        ("mqnet", 6, (7, 1, 2, 5), 200, 300, 19800, 29700, 125),
    ],
)
def test_the_protocols_splits_of_cifar10(protocol, seed, classes, labeled, aside, targets, others, budget):
    labels = np.arange(50_000) % 10
    data = SimpleNamespace(train_labels=labels, num_classes=10, class_names=tuple("abcdefghij"))
    given = benchmark.build_parser().parse(["--out", "x", "--protocol", protocol])
    asked = benchmark.protocol_data(given, data, seed)
    draw = {"target_classes": asked.target_classes or (0, 1), "mismatch": asked.mismatch, "seed": asked.split_seed}
    # What is left to the data set, CIFAR-10's entry in PROTOCOLS says.
    counts = {"initial_budget": asked.initial_budget or PROTOCOLS["cifar10"].initial_budget}
    counts["initial_others"] = asked.initial_others or 0
    split = make_split(labels, labels, **draw, **counts)
    is_target = np.isin(labels[split.unlabeled], classes)
    assert (split.target_classes, len(split.labeled), len(split.set_aside)) == (classes, labeled, aside)
    assert (is_target.sum(), (~is_target).sum()) == (targets, others)
    assert not np.intersect1d(split.set_aside, split.unlabeled).size
    assert BENCHMARKS[protocol].budget == budget * len(classes)


def test_a_start_in_the_pools_proportion_needs_that_proportion():
    data = SimpleNamespace(train_labels=np.arange(50_000) % 10, num_classes=10, class_names=tuple("abcdefghij"))
    given = benchmark.build_parser().parse("--out x --protocol mqnet --mismatch all".split())
    with pytest.raises(InputError, match="a --mismatch in numbers"):
        benchmark.protocol_data(given, data, 0)


def test_the_protocols_cycles_classifiers_and_recall():
    numbers = {name: (entry.cycles, entry.recipe, entry.start_counts) for name, entry in BENCHMARKS.items()}
    expected = {"ccal": (5, "proper", False), "lfosa": (10, "lfosa", True), "mqnet": (10, "mqnet", False)}
    assert numbers == expected
    assert (RECIPES["lfosa"].lr, RECIPES["lfosa"].epochs, RECIPES["lfosa"].batch_size) == (0.01, 100, 128)
    assert (RECIPES["mqnet"].lr, RECIPES["mqnet"].epochs, RECIPES["mqnet"].steps) == (0.1, 200, 100)


def test_one_row_per_strategy_seed_and_cycle_and_what_the_rows_say(finished, files):
    rows = read_rows(finished / "results.csv")
    assert sorted((row.strategy, row.seed, row.cycle) for row in rows) == sorted(
        (strategy, seed, cycle)
        for strategy in ("random", "certainty", "coreset", "ceiling")
        for seed in (0, 1)
        for cycle in range(CYCLES + 1)
    )
    labels = np.load(files / "data.npz")["train_labels"]
    for row in rows:
        file = read_index_file(finished / "queries" / row.strategy / f"seed_{row.seed}" / f"cycle_{row.cycle}.json")
        found = int(np.isin(labels[file.queried], (3, 1)).sum())
        assert (row.asked, row.found, row.labeled) == (len(file.queried), found, len(file.labeled))
        assert row.asked == (2 * PER_CLASS if row.cycle else 0)
        assert row.precision == (100 * found / row.asked if row.cycle else None)
        assert row.recall == pytest.approx(100 * (len(file.labeled) - 10) / 70, abs=1e-4)
        assert 0 < row.accuracy <= 100
        if row.strategy == "ceiling":
            assert row.found == row.asked
    starts = {(row.seed, row.accuracy) for row in rows if not row.cycle}
    assert len(starts) == 2 and {seed for seed, _ in starts} == {0, 1}
    assert {path.name for path in finished.iterdir()} >= {"benchmark.json", "report.html", "table.md", "report_figures"}


def test_a_query_is_that_of_active_main(finished, files, tmp_path):
    active_main.main(
        f"--dataset npz --data_path {files / 'data.npz'} --target_classes 3 1 --initial_budget 10 --mismatch 0.6 "
        f"--split_seed 1 --seed 1 --strategy coreset --features {files / 'features.npy'} --device cpu "
        f"--queries_per_class {PER_CLASS} --cycles {CYCLES} --index_dir {tmp_path}".split()
    )
    for cycle in range(CYCLES + 1):
        one, other = (
            read_index_file(f / f"cycle_{cycle}.json") for f in (tmp_path, finished / "queries/coreset/seed_1")
        )
        assert (one.queried, one.split_digest) == (other.queried, other.split_digest)
        assert one.metrics == other.metrics


def test_a_finished_run_is_kept_and_further_strategies_join_it(copied, files, monkeypatch):
    before, units = without_time(copied), made(monkeypatch)
    benchmark.main(words(files, copied))
    assert not units and without_time(copied) == before
    benchmark.main(words(files, copied, "--strategies", "random", "margin", "--seeds", "0"))
    assert units == [benchmark.Unit("margin", 0, (0,))]
    assert [row for row in without_time(copied) if row[0] != "margin"] == before


def test_a_run_that_was_stopped_ends_as_one_that_was_not(copied, files, finished, monkeypatch):
    """Of one query the last cycle is missing, of another all, and of the rows those of both."""
    (copied / "queries/coreset/seed_0/cycle_2.json").unlink()
    shutil.rmtree(copied / "queries/certainty/seed_1")
    lines = (copied / "results.csv").read_text().splitlines(keepends=True)
    lost = ("coreset,0,", "certainty,1,")
    (copied / "results.csv").write_text("".join(line for line in lines if not line.startswith(lost)))
    units = made(monkeypatch)
    benchmark.main(words(files, copied))
    assert units == [benchmark.Unit("coreset", 0, (0,)), benchmark.Unit("certainty", 1, (1,))]
    assert sorted(without_time(copied)) == sorted(without_time(finished))


def test_other_data_and_results_of_unknown_settings_are_refused(copied, files, tmp_path, capsys):
    data = dict(np.load(files / "data.npz"))
    np.savez(tmp_path / "other.npz", **data | {"train_labels": np.roll(data["train_labels"], 1)})
    given = words(files, copied, "--strategies", "margin")
    given[given.index("--data_path") + 1] = str(tmp_path / "other.npz")
    assert run_command(benchmark.main, given) == 2
    assert "other images or labels" in capsys.readouterr().err
    (copied / "benchmark.json").write_text("[]")
    assert run_command(benchmark.main, words(files, copied)) == 2
    assert "benchmark.json" in capsys.readouterr().err
    (copied / "benchmark.json").unlink()
    assert run_command(benchmark.main, words(files, copied)) == 2
    assert "holds results without benchmark.json" in capsys.readouterr().err


def test_what_is_measured_stays_measured_and_a_network_joins_the_linear_model(copied, files, monkeypatch):
    before = without_time(copied)
    monkeypatch.setattr(benchmark, "is_done", lambda *given: False)
    benchmark.main(words(files, copied, "--strategies", "random", "--seeds", "0", "--measured", "1"))
    assert without_time(copied) == before
    more = "--strategies random --seeds 0 --measured 0 --classifier scratch --epochs 1"
    benchmark.main(words(files, copied, *more.split()))
    assert [row for row in without_time(copied) if row[2] == "linear"] == before
    benchmark.main(words(files, copied, "--strategies", "random", "--seeds", "0"))
    assert json.loads((copied / "benchmark.json").read_text())["settings"]["epochs"] == 1


def test_own_strategies_and_a_file_that_changed(copied, files, tmp_path, capsys):
    own = tmp_path / "mine.py"
    own.write_text(
        "from evals.query import dealt\n\n\ndef first(inputs):\n    return dealt(inputs.pool.argsort(), inputs)\n"
    )
    more = ["--strategies", f"{own}:first", "--seeds", "0"]
    benchmark.main(words(files, copied, *more))
    labels = np.load(files / "data.npz")["train_labels"]
    split = make_split(labels, labels, target_classes=(3, 1), mismatch=0.6, initial_budget=10)
    queried = read_index_file(copied / "queries/first/seed_0/cycle_1.json").queried
    assert sorted(queried) == sorted(split.unlabeled)[: 2 * PER_CLASS]
    own.write_text(own.read_text() + "\n")
    assert run_command(benchmark.main, words(files, copied, *more)) == 2
    assert "another version of the strategy's file" in capsys.readouterr().err


def test_classifiers_from_scratch_in_some_cycles_and_seeds_of_the_training_alone(copied, files, monkeypatch):
    monkeypatch.setattr("train_classifier.main.keep_freed_memory", lambda: None)
    out = copied.parent / "scratch"
    more = "--strategies random --seeds 3 4 --classifier scratch --vary training --measured 0 2 --epochs 1"
    benchmark.main(words(files, out, *more.split()))
    rows = read_rows(out / "results.csv")
    assert [(row.seed, row.cycle, row.accuracy is not None) for row in rows] == [
        (seed, cycle, cycle != 1) for seed in (3, 4) for cycle in range(CYCLES + 1)
    ]
    assert [path.name for path in (out / "queries/random").iterdir()] == ["seed_0"]
    assert {row.training_seconds is None for row in rows if row.cycle != 1} == {False}


@pytest.mark.parametrize(
    ("more", "phrase"),
    [
        ("--strategies ccal", "ccal needs distinctive and semantic features"),
        ("--strategies nosuch", "must be one of ccal"),
        ("--strategies a.py:ceiling", "another name than ceiling"),
        ("--strategies {files}/own.py:one {files}/own2.py:one", "have one name"),
        ("--strategies random --k 50", "--k was 100.0, is 50.0"),
        ("--strategies random --vary training", "has no seed"),
        ("--strategies random --split_seed 3", "--seeds draw the splits"),
        ("--strategies random --features nosuch.npy", "there is no file nosuch.npy"),
        ("--strategies random --load_semantic_path nosuch.model", "nosuch.model does not exist"),
        ("--strategies random --protocol nosuch", "invalid choice"),
        ("--strategies random --queries_per_class 400", "the pool has"),
        ("--strategies random --features {files}/train_only.npy", "a row for all 200 train, then 50 test images"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(copied, files, more, phrase, capsys):
    out = copied if "--k" in more else copied.parent / "new"
    before = (copied / "results.csv").read_bytes(), json.loads((copied / "benchmark.json").read_text())
    try:
        status = run_command(benchmark.main, words(files, out, *more.format(files=files).split()))
    except SystemExit as stop:
        status = stop.code
    lines = capsys.readouterr().err.strip().splitlines()
    assert status == 2 and phrase in lines[-1] and "Traceback" not in "".join(lines)
    assert before == ((copied / "results.csv").read_bytes(), json.loads((copied / "benchmark.json").read_text()))
    assert not (out / "queries").exists() or out == copied


def test_without_features_the_linear_classifier_is_refused(files, tmp_path, capsys):
    given = words(files, tmp_path / "run", "--strategies", "random")
    place = given.index("--features")
    assert run_command(benchmark.main, given[:place] + given[place + 2 :]) == 2
    assert "--classifier linear trains on features" in capsys.readouterr().err


@pytest.mark.slow
def test_several_processes_find_what_one_finds(files, finished, tmp_path):
    more = "--strategies random certainty coreset ceiling --seeds 0 1 --jobs 2"
    benchmark.main(words(files, tmp_path / "run", *more.split()))
    assert sorted(without_time(tmp_path / "run")) == sorted(without_time(finished))
