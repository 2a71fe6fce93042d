"""All four commands, the summary and the report, end to end."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

import active_main
import contrast_main
import evals.report.__main__ as report
import train_classifier.main as classifier
from evals import summary

FLAGS = "--dataset npz --data_path {data} --target_classes 2 0 --initial_budget 12 --mismatch 0.5"
CYCLES = 2


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Runs everything in a folder of its own; the commands' outputs by name, and the folder."""
    folder = tmp_path_factory.mktemp("pipeline")
    rng = np.random.default_rng(0)
    labels = {"train": np.arange(120) % 4, "test": np.arange(40) % 4}
    arrays = {f"{part}_labels": values for part, values in labels.items()}
    for part, values in labels.items():
        # Each class has its own gray level, so that there is something to learn.
        noise = rng.integers(0, 40, (len(values), 8, 8, 3))
        arrays[f"{part}_images"] = (noise + 50 * values[:, None, None, None]).astype(np.uint8)
    np.savez(folder / "data.npz", **arrays)
    data = FLAGS.format(data=folder / "data.npz")
    train = f"{data} --device cpu --model resnet8 --epochs 2 --warmup 1 --batch_size 16 --save_step 1"
    commands = {
        "semantic": f"{train} --mode senmatic --shift_trans_type none --logdir {folder}/semantic",
        "distinctive": f"{train} --mode feature --shift_trans_type rotation --logdir {folder}/distinctive",
        "query": f"{data} --model resnet8 --shift_trans_type rotation --load_path {folder} --target 5 "
        f"--split {CYCLES} --ood_samples 2 --resize_factor 0.54 --resize_fix --index_dir {folder}/query",
        "random": f"{data} --strategy random --target 5 --split {CYCLES} --index_dir {folder}/random",
        "classifier": f"{data} --split {CYCLES} --runs 2 --epochs 2 "
        f"--index_dir {folder}/query --out_path {folder}/classifier",
        "report": f"{folder}",
        "summary": f"--index_dir {folder}/query --random_dir {folder}/random "
        f"--results {folder}/classifier/results.csv --out_path {folder}",
    }
    mains = {"query": active_main.main, "random": active_main.main, "classifier": classifier.main}
    mains |= {"report": report.main, "summary": summary.main}
    outputs = {"folder": str(folder)}
    for name, command in commands.items():
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            mains.get(name, contrast_main.main)(command.split())
        outputs[name] = printed.getvalue()
    return outputs


def index_files(run: dict[str, str], name: str) -> list[dict]:
    return [json.loads((Path(run["folder"]) / name / f"cycle_{n}.json").read_text()) for n in range(CYCLES + 1)]


def test_the_cycles_keep_the_budget_and_grow_the_labeled_set(run: dict[str, str]) -> None:
    files = index_files(run, "query")
    for before, after in zip(files, files[1:]):
        assert len(after["queried"]) == 10
        assert after["labeled"][: len(before["labeled"])] == before["labeled"]
        joined = set(after["labeled"]) - set(before["labeled"])
        assert {image % 4 for image in joined} <= {0, 2}
        assert set(after["queried"]) == joined | (set(after["set_aside"]) - set(before["set_aside"]))


def test_all_stages_agree_on_the_split(run: dict[str, str]) -> None:
    folder = Path(run["folder"])
    digests = {
        json.loads((folder / name / "args.json").read_text())["split_digest"] for name in ("semantic", "distinctive")
    }
    digests |= {content["split_digest"] for name in ("query", "random") for content in index_files(run, name)}
    assert len(digests) == 1


def test_every_cycle_and_seed_has_its_accuracy(run: dict[str, str]) -> None:
    with open(Path(run["folder"]) / "classifier" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["cycle"], row["seed"]) for row in rows] == [(c, s) for c in "012" for s in "01"]
    assert all(0 <= float(row["accuracy"]) <= float(row["best_epoch_accuracy"]) <= 100 for row in rows)


def test_the_summary_repeats_what_the_files_say(run: dict[str, str]) -> None:
    with open(Path(run["folder"]) / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    query, random = index_files(run, "query"), index_files(run, "random")
    assert [int(row["found"]) for row in rows[1:]] == [content["metrics"]["found"] for content in query[1:]]
    assert [float(row["random_precision"]) for row in rows[1:]] == [c["metrics"]["precision"] for c in random[1:]]
    assert [int(row["labeled"]) for row in rows] == [len(content["labeled"]) for content in query]
    assert all(row["accuracy"] and row["deviation"] for row in rows)
    assert (Path(run["folder"]) / "summary.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_has_every_section_without_further_flags(run: dict[str, str]) -> None:
    folder = Path(run["folder"])
    page = (folder / "report.html").read_text()
    assert 'class="missing"' not in page  # nothing is left out, and the scores computed again query the same images
    for content in index_files(run, "query")[1:]:
        found, precision = content["metrics"]["found"], content["metrics"]["precision"]
        shown = f'<td class="number">10</td><td class="number">{found}</td><td class="number">{precision:.2f}</td>'
        assert f'<td>ccal</td><td class="number">{content["cycle"]}</td>{shown}' in page
    pictures = {path.stem for path in (folder / "report_figures").iterdir()}
    assert {"precision", "recall", "accuracy_annotated", "semantic_loss", "distinctive_test_probe_accuracy"} <= pictures
    for cycle in (1, 2):
        assert {f"scores_run1_cycle_{cycle}", f"images_run1_cycle_{cycle}_highest"} <= pictures
        assert {f"scatter_run1_cycle_{cycle}_class_{number}" for number in (0, 1)} <= pictures
    assert {f"map_run1_{encoder}_{kind}" for encoder in ("semantic", "distinctive") for kind in ("class", "query")} <= (
        pictures
    )


def test_each_command_names_what_it_wrote(run: dict[str, str]) -> None:
    for name, written in (
        ("semantic", "semantic/last.model"),
        ("query", "query/cycle_0.json"),
        ("classifier", "classifier/results.csv"),
        ("summary", "summary.png"),
        ("report", "report.html"),
    ):
        path = str(Path(run["folder"]) / written)
        assert path in run[name]
        assert Path(path).exists()
