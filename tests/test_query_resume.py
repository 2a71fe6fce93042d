"""The query, stopped and continued: by --resume auto, after signals, kills and damage."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import active_main
from common.files import read_json, write_json
from common.lock import folder_lock
from datasets.index_files import index_path
from evals import banks, index_folder
from tests import test_active_main
from tests.test_active_main import LAUNCH, SHIFTS, Place, files_in, resave, rewrite_data, run, run_program

place, template = test_active_main.place, test_active_main.template
one_thread, program_name = test_active_main.one_thread, test_active_main.program_name
CYCLES = 4
STRATEGIES = ("ccal", "semantic", "distinctive", "random")


def words_of(place: Place, *more: str) -> list[str]:
    return place.words("--split", str(CYCLES), *more)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, by name; index files without the time that their cycle took."""
    found = {}
    for name in files_in(folder):
        found[name] = (folder / name).read_bytes()
        if re.fullmatch(r"cycle_\d+\.json", name):
            found[name] = re.sub(rb'"seconds": [\d.e-]+', b'"seconds": 0', found[name])
    return found


@pytest.fixture(scope="module")
def whole(template, tmp_path_factory) -> Callable[[str], dict[str, bytes]]:
    """What a query that is not stopped writes, by strategy; made once."""
    made = {}

    def of(strategy: str) -> dict[str, bytes]:
        if strategy not in made:
            out = tmp_path_factory.mktemp("whole") / "indices"
            assert run(words_of(template, "--strategy", strategy, "--index_dir", str(out), "--save_score")) == 0
            made[strategy] = contents(out)
        return made[strategy]

    return of


def without_scores(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name.endswith(".json")}


def count_extractions(monkeypatch) -> list[str]:
    made, extract = [], banks.extract_features
    monkeypatch.setattr(banks, "extract_features", lambda *a, **kw: (made.append(kw["name"]), extract(*a, **kw))[1])
    return made


# Continued


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_continued_query_writes_what_one_without_a_stop_does(template, place, whole, strategy, stop):
    """The stop comes as a larger --split here: it asks for the cycles that are left."""
    words = ["--strategy", strategy, "--resume", "auto", "--save_score"]
    # Names of files are on record, too: the checkpoints are those of the template here.
    words += ["--load_path", str(template.folder / "model")]
    assert run(words_of(place, *words, "--split", str(stop))) == 0
    early = {path: path.stat().st_mtime_ns for path in place.out.glob("cycle_*.json")}
    assert len(early) == stop + 1
    assert run(words_of(place, *words)) == 0
    assert contents(place.out) == whole(strategy)
    assert {path: path.stat().st_mtime_ns for path in early} == early


def test_in_a_fixed_order_a_query_on_the_cpu_writes_the_same(template, whole, tmp_path, capsys):
    out = tmp_path / "indices"
    assert run(words_of(template, "--deterministic", "--index_dir", str(out), "--save_score")) == 0
    assert contents(out) == whole("ccal")
    assert "--deterministic: on the CPU two runs" in capsys.readouterr().out


def test_two_processes_continue_what_one_began(template, place, root, tmp_path):
    words = ["--resume", "auto", "--test_batch_size", "9"]  # batches for both processes
    assert run(words_of(place, *words, "--index_dir", str(tmp_path / "whole"))) == 0
    assert run(words_of(place, *words, "--split", "2")) == 0
    status, printed, errors = run_program(
        [*LAUNCH, str(root / "active_main.py"), *words_of(place, *words)], cwd=tmp_path
    )
    assert status == 0, errors
    assert printed.count("cycle 3: queried") == 1 and "cycle 2: queried" not in printed
    assert contents(place.out) == contents(tmp_path / "whole")


def test_a_finished_query_has_nothing_left_to_do(place, monkeypatch, capsys):
    assert run(words_of(place, "--resume", "auto")) == 0
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in place.out.iterdir()}
    made = count_extractions(monkeypatch)
    capsys.readouterr()
    for cycles in (CYCLES, 2):
        assert run(words_of(place, "--resume", "auto", "--split", str(cycles))) == 0
        assert f"cycles 0 to {CYCLES} are in {place.out}: nothing is left to query" in capsys.readouterr().out
    assert made == []
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in place.out.iterdir()} == before


def test_an_empty_pool_leaves_nothing_to_do(place, capsys):
    words = ["--resume", "auto", "--target", "20", "--split"]
    assert run(words_of(place, *words, "20")) == 0
    before = contents(place.out)
    capsys.readouterr()
    assert run(words_of(place, *words, "30")) == 0
    assert "nothing is left to query" in capsys.readouterr().out
    assert contents(place.out) == before


def test_checkpoints_may_move(place, tmp_path):
    assert run(words_of(place, "--resume", "auto", "--split", "1")) == 0
    shutil.copytree(place.folder / "model", tmp_path / "elsewhere")
    assert run(words_of(place, "--resume", "auto", "--load_path", str(tmp_path / "elsewhere"))) == 0
    assert len(place.cycles()) == CYCLES + 1


# Damaged


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def blank(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_query(path: Path) -> None:
    content = read_json(path)
    moved = content["labeled"][-1]
    write_json(path, content | {"labeled": content["labeled"][:-1], "set_aside": [*content["set_aside"], moved]})


def twice_queried(path: Path) -> None:
    content = read_json(path)
    write_json(path, content | {"queried": content["labeled"][:2]})


DAMAGES = {
    "cut": (cut, "is damaged"),
    "blank": (blank, "is damaged"),
    "empty": (empty, "is damaged"),
    "other images": (other_query, "is damaged"),
    "images that are labeled already": (twice_queried, "is damaged"),
    "gone": (Path.unlink, "is missing"),
}


@pytest.mark.parametrize("number", [0, 1, CYCLES])
@pytest.mark.parametrize(("damage", "state"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_named_and_written_again(template, place, whole, capsys, number, damage, state):
    if number == 0 and damage is other_query:
        damage = cut  # the initial set has set nothing aside
    words = words_of(place, "--resume", "auto", "--load_path", str(template.folder / "model"))
    assert run(words) == 0
    damage(index_path(place.out, number))
    capsys.readouterr()
    assert run(words) == 0
    out = capsys.readouterr().out
    if number == CYCLES and state == "is missing":
        assert "warning" not in out  # nothing tells that it was there
    else:
        warning = f"warning: {index_path(place.out, number)} {state}: the query goes on from there, and writes it again"
        assert out.count("warning") == 1 and warning in out
    assert [f"cycle {n}: queried" in out for n in range(1, CYCLES + 1)] == [n >= number for n in range(1, CYCLES + 1)]
    assert contents(place.out) == without_scores(whole("ccal"))


def test_what_kills_left_beside_the_files_goes(place):
    words = words_of(place, "--resume", "auto")
    assert run([*words, "--split", "1"]) == 0
    (place.out / ".cycle_2.json.abcd1234.tmp").write_text("{")
    (place.out / "notes.tmp").write_text("mine")
    assert run(words) == 0
    assert files_in(place.out) == [*(f"cycle_{number}.json" for number in range(CYCLES + 1)), "notes.tmp"]


# Refused


def rewrite(place: Place, number: int, **changes) -> None:
    write_json(index_path(place.out, number), read_json(index_path(place.out, number)) | changes)


def rewrite_settings(place: Place, change: Callable[[dict], object]) -> None:
    settings = place.cycles()[0]["settings"]
    change(settings)
    rewrite(place, 0, settings=settings)


def without_record_of_split(place: Place) -> None:
    for name in SHIFTS:
        (place.model(name).parent / "args.json").unlink()


# What is done to the place, the arguments that are added, and what the one line must say.
OTHERS = {
    "k": (None, "--k 50", r"cycle_0\.json was written with --k 100\.0, not 50\.0: give the same"),
    "t": (None, "--t 0.5", r"--t 0\.9, not 0\.5"),
    "target": (None, "--target 5", "--target 6, not 5"),
    "strategy": (None, "--strategy distinctive", "--strategy ccal, not distinctive"),
    "seed": (None, "--seed 1", "--seed 0, not 1"),
    "views": (None, "--ood_samples 2", "--ood_samples 1, not 2"),
    "crop": (None, "--resize_factor 0.3", r"--resize_factor 0\.54, not 0\.3"),
    "numbers": (None, "--feature_dtype float16", "--feature_dtype float32, not float16"),
    "split": (
        without_record_of_split,
        "--split_seed 1",
        r"belongs to another split \(digest \w{12}, here \w{12}\): give that query's --dataset, .* --split_seed",
    ),
    "checkpoint": (
        lambda place: resave(place, "semantic", seed=9),
        "",
        r"--load_semantic_path \(SHA-256 \w{12}\), not \(SHA-256 \w{12}\): give the same",
    ),
    "other checkpoint": (
        lambda place: resave(place, "distinctive", seed=9),
        "",
        r"--load_feature_path \(SHA-256 \w{12}\), not \(SHA-256",
    ),
    "pixels": (
        lambda place: rewrite_data(place, lambda arrays: arrays["train_images"].__iadd__(1)),
        "",
        r"--data_path \(SHA-256 \w{12}\), not \(SHA-256",
    ),
    "before digests were recorded": (
        lambda place: rewrite_settings(place, lambda settings: settings.pop("images_digest")),
        "",
        r"--data_path \(not recorded\), not \(SHA-256",
    ),
    "more on record": (
        lambda place: rewrite_settings(place, lambda settings: settings.update(margin=3)),
        "",
        r"--margin 3, not \(not recorded\)",
    ),
    "later file": (
        lambda place: rewrite(place, 2, strategy="random"),
        "",
        r"cycle_2\.json was written with --strategy random, not ccal",
    ),
    "no index file": (
        lambda place: index_path(place.out, 1).write_text("[1]"),
        "",
        r"cycle_1\.json is no index file of format version 1",
    ),
    "later version": (
        lambda place: rewrite(place, 1, format_version=3),
        "",
        r"cycle_1\.json is no index file of format version 1",
    ),
    "renamed": (lambda place: rewrite(place, 2, cycle=1), "", r"cycle_2\.json is of cycle 1"),
    "overwrite, too": (None, "--overwrite", "--overwrite replaces .* --resume auto continues it"),
    "no word": (None, "--resume always", "--resume: invalid choice: 'always'"),
}


@pytest.mark.parametrize(("change", "more", "pattern"), OTHERS.values(), ids=OTHERS)
def test_another_query_is_refused_and_stays(place, capsys, monkeypatch, change, more, pattern):
    assert run(words_of(place, "--split", "2")) == 0
    if change:
        change(place)
    before = {path: (place.folder / path).read_bytes() for path in files_in(place.folder)}
    made = count_extractions(monkeypatch)
    capsys.readouterr()
    assert run(words_of(place, "--resume", "auto", *more.split())) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and re.search(pattern, lines[0]), lines
    assert made == []
    assert {path: (place.folder / path).read_bytes() for path in files_in(place.folder)} == before


# Stopped


STOPS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 0}


def interrupt_at(monkeypatch, number: signal.Signals, *, cycle: int) -> None:
    """Sends this process a signal as it writes a cycle's index file (0: before any feature is extracted)."""
    if cycle == 0:
        load = active_main.load_encoder
        monkeypatch.setattr(
            active_main, "load_encoder", lambda *a, **kw: (signal.raise_signal(number), load(*a, **kw))[1]
        )
        return
    write = index_folder.write_index_file

    def stop_and_write(folder, content, **more):
        if content.cycle == cycle:
            signal.raise_signal(number)
        return write(folder, content, **more)

    monkeypatch.setattr(index_folder, "write_index_file", stop_and_write)


@pytest.mark.parametrize("cycle", [0, 1, 3])
@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_a_signal_ends_the_query_with_its_state_saved(template, place, whole, monkeypatch, capsys, number, cycle):
    words = words_of(place, "--resume", "auto", "--load_path", str(template.folder / "model"))
    with monkeypatch.context() as patch:
        interrupt_at(patch, number, cycle=cycle)
        assert run(words) == STOPS[number]
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"active_main.py: stopped by {number.name}: ") and line.endswith("; --resume auto continues")
    if cycle:
        assert f"cycles 0 to {cycle} are in {place.out}; the features will be extracted again" in line
        assert len(place.cycles()) == cycle + 1
    else:
        assert f"no cycle is in {place.out} yet; what was being extracted is lost" in line
        assert not place.out.exists()
    assert run(words) == 0
    assert contents(place.out) == without_scores(whole("ccal"))


def test_a_signal_at_the_last_cycle_finds_the_query_finished(place, monkeypatch):
    interrupt_at(monkeypatch, signal.SIGTERM, cycle=CYCLES)
    assert run(words_of(place)) == 0


def test_kept_features_are_not_lost(place, tmp_path, monkeypatch, capsys):
    words = words_of(place, "--resume", "auto", "--feature_cache", str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        interrupt_at(patch, signal.SIGUSR1, cycle=1)
        assert run(words) == 0
    assert f"cycles 0 to 1 are in {place.out}; nothing is lost; --resume" in capsys.readouterr().err
    assert run(words) == 0
    assert capsys.readouterr().out.count(": kept from") == 2


def test_a_stop_within_the_extraction_keeps_no_half_features(place, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    words = words_of(place, "--resume", "auto", "--feature_cache", str(cache), "--test_batch_size", "9")
    project, seen = active_main.Precision.encode, []

    def encode(self, encoder, copies):
        seen.append(len(copies))
        if len(seen) == 12:  # ten batches of the semantic encoder have gone before
            signal.raise_signal(signal.SIGTERM)
        return project(self, encoder, copies)

    monkeypatch.setattr(active_main.Precision, "encode", encode)
    assert run(words) == 143
    assert len(seen) == 12
    assert files_in(cache) == ["semantic.json", "semantic.npy"]
    assert run(words) == 0
    assert len(place.cycles()) == CYCLES + 1


def test_the_time_limit_ends_the_query_with_status_0(template, place, whole, capsys):
    words = words_of(place, "--resume", "auto", "--load_path", str(template.folder / "model"))
    assert run([*words, "--max_minutes", "1e-6"]) == 0
    assert "stopped by --max_minutes 1e-06: no cycle is in" in capsys.readouterr().err
    assert run([*words, "--max_minutes", "5"]) == 0
    assert contents(place.out) == without_scores(whole("ccal"))


def test_a_second_query_on_one_folder_names_the_first(place, capsys):
    words = words_of(place, "--strategy", "random")
    with folder_lock(place.out):
        assert run(words) == 2
        assert f"{place.out} is in use by process {os.getpid()} on " in capsys.readouterr().err
        assert files_in(place.out) == [".lock"]
    assert run(words) == 0
    assert ".lock" not in files_in(place.out)
