"""Runs the whole experiment: both encoders, the query and a random one, the classifier, the table and the report.

Every stage is a command of its own, printed before it runs. What is done is kept, what was interrupted continues.
"""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from common import settings
from common.flags import Parser, as_flags, number, pick, positive_int
from common.paper import SHIFTS, Recipe, recipe_for


@dataclass(frozen=True)
class RunSettings:
    """The run as a whole."""

    title: ClassVar[str] = "run"
    out: str = settings.option(help="folder of the run, new or one to continue with the same flags", metavar="RUN")
    scale: float = settings.option(
        1.0,
        "shortens every schedule (encoders, warm-up, classifier) by this factor, to no less than an epoch",
        kind=number(float, 0, 1, open_low=True),
    )
    batch_size: int = settings.option(128, "images per step of the encoders, all GPUs together", kind=positive_int)
    queries_per_class: int | None = settings.option(
        None,
        "images queried per target class and cycle (default: cifar10 750, cifar100 75, others that share of the pool)",
        kind=positive_int,
    )


def build_parser() -> Parser:
    """The command's flags; their defaults are the paper's."""
    return Parser(
        __doc__,
        run=RunSettings,
        encoder=pick(settings.EncoderSettings, "model", "precision"),
        training=pick(settings.TrainingSettings, "optimizer", "lr_init"),
        query=pick(settings.QuerySettings, "cycles", "views", "k", "t", views=Recipe.views),
        classifier=pick(settings.ClassifierSettings, "runs"),
        data=settings.DataSettings,
        process=settings.ProcessSettings,
    )


if __name__ == "__main__":
    build_parser().parse()  # --help and a mistyped flag end here, before torch is imported, which takes seconds

import torch

from common.checkpoint import MODEL_FILE
from common.console import as_a_stage, duration, finish, log, set_quiet
from common.files import require_writable
from common.provenance import file_digest
from common.session import StopRequest, folder_lock, run_command
from datasets import load_data_and_split
from datasets.results_file import plain_table, read_rows
from evals.query import check_budget
from evals.report.__main__ import main as write_report
from evals.summary import PUBLISHED_NOTE, cycle_rows, draw, read_cycles, table_cells, write_csv, write_markdown
from utils import InputError, Interrupted, launcher

ROOT = Path(__file__).resolve().parent


def main(argv: Sequence[str] | None = None) -> None:
    given = build_parser().parse(argv)
    folder = Path(given.run.out)
    set_quiet(given.process.quiet)
    if launcher().world_size > 1:
        raise InputError("reproduce.py starts the processes itself, one per GPU: run it without a launcher")
    require_writable(folder, "--out")
    with StopRequest(max_minutes=given.process.max_minutes, raises=True) as stop, folder_lock(folder), as_a_stage():
        stop.kept = f"what is done is in {folder}; the same command continues it"
        stop.reserve(30.0)  # seconds that a stage may take to save what it has
        data, split = load_data_and_split(given.data)
        if not data.has_oracle:
            raise InputError(f"{given.data.data_path}/unlabeled has no labels: there is no query to simulate")
        paper = recipe_for(given.data.dataset, pool=len(split.unlabeled), classes=len(split.target_classes))
        chosen = vars(given.training) | vars(given.query) | vars(given.classifier)
        chosen["global_batch_size"] = given.run.batch_size
        chosen["queries_per_class"] = given.run.queries_per_class or paper.queries_per_class
        recipe = dataclasses.replace(paper, **chosen).scaled(given.run.scale)
        check_budget(split, data.train_labels, recipe.queries_per_class, ("semantic", "distinctive"))
        stages, commands = stages_of(folder, recipe, given), []
        queries = [name for name in stages if name.startswith("query")]
        for name in queries:  # other settings are refused before anything runs
            is_finished(folder, stages[name], given)
        for name, groups in stages.items():
            if name == "classifier":  # the pool may have been empty before the last cycle
                groups = [dataclasses.replace(*groups, cycles=read_cycles(folder / "query" / "ccal")[-1].cycle)]
            commands.append(command(name, groups, recipe, given))
            if name in queries and is_finished(folder, stages[name], given):  # with the encoders as they are now
                log(f"{folder / name} is finished")
            else:
                run(commands[-1])
        title, scale = f"{data.name}, mismatch {split.mismatch:g}", recipe.beside(paper, given.run.scale)
        write_results(folder, title, note=scale, commands=commands)
        write_report([str(folder)])


def stages_of(folder: Path, recipe: Recipe, given: SimpleNamespace) -> dict[str, list[Any]]:
    """The settings of each stage, by the name of its folder, in the order in which they run."""

    def from_recipe(group: type, **more: Any) -> Any:
        names = [field.name for field in dataclasses.fields(group) if hasattr(recipe, field.name)]
        return group(**{name: getattr(recipe, name) for name in names}, **more)

    stages: dict[str, list[Any]] = {}
    for mode, shift in SHIFTS.items():
        own = {"epochs": getattr(recipe, f"{mode}_epochs"), "logdir": str(folder / mode), "resume": "auto"}
        encoder = settings.EncoderSettings(**vars(given.encoder), shift_trans_type=shift)
        stages[mode] = [from_recipe(settings.TrainingSettings, mode=mode, **own), encoder]
    for strategy in ("ccal", "random"):
        own = {"load_path": str(folder), "feature_cache": str(folder / "features"), "overwrite": True}
        own |= {"strategy": strategy, "index_dir": str(folder / "query" / strategy)}
        crop = from_recipe(settings.CropSettings, resize_fix=True)
        stages[f"query/{strategy}"] = [from_recipe(settings.QuerySettings, **own), crop, encoder]
    own = {"index_dir": str(folder / "query" / "ccal"), "out_path": str(folder / "classifier")}
    return stages | {"classifier": [from_recipe(settings.ClassifierSettings, epochs=recipe.classifier_epochs, **own)]}


def command(name: str, groups: Sequence[Any], recipe: Recipe, given: SimpleNamespace) -> list[str]:
    """The words after ``python``; an encoder is trained by one process per GPU, as far as they share a batch evenly."""
    scripts = {"query": "active_main.py", "classifier": "train_classifier/main.py"}
    script = ROOT / scripts.get(name.partition("/")[0], "contrast_main.py")
    words = [str(script), *as_flags(*groups, given.data, given.process, but=["max_minutes"])]
    gpus = torch.cuda.device_count() if name in SHIFTS and given.process.device != "cpu" else 1
    processes = next(n for n in range(max(gpus, 1), 0, -1) if recipe.global_batch_size % n == 0)
    if processes == 1:
        return words
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *words]


def is_finished(folder: Path, groups: Sequence[Any], given: SimpleNamespace) -> bool:
    """Whether a query's index files are those of all cycles, made with the encoders that are there.

    Raises:
        InputError: They were made with other settings.
    """
    query, crop, _ = groups
    try:
        files = read_cycles(Path(query.index_dir))
    except InputError:  # none, or a damaged one
        return False
    recorded, wanted = files[0].settings, settings.identity(query, crop, given.process)
    known = {name: recorded.get(name) for name in wanted}
    settings.require_same(known, wanted, what=query.index_dir, remedy="give another --out")
    if files[-1].cycle < query.cycles and files[-1].metrics.get("pool") != 0:
        return False
    digests = {folder / mode / MODEL_FILE: digest for mode, digest in recorded.get("checkpoint_digests", {}).items()}
    return all(path.is_file() and file_digest(path) == digest for path, digest in digests.items())


def run(words: Sequence[str]) -> None:
    """Runs Python with these words to its end; asked to stop, it has the command save and stop first.

    Raises SystemExit where the command has failed; it has said why.
    """
    start = time.perf_counter()
    log(f"$ python {shlex.join(words)}")
    with subprocess.Popen([sys.executable, *words]) as process:  # which waits for its end
        try:
            status = process.wait()
        except Interrupted:
            process.terminate()
            raise
    if status:
        raise SystemExit(status if status > 0 else 128 - status)  # as a shell counts a signal
    log(f"done in {duration(time.perf_counter() - start)}")


def write_results(folder: Path, title: str, *, note: str, commands: Sequence[Sequence[str]]) -> None:
    """Prints the table and writes it as csv, as markdown with all that it rests on, and as a figure."""
    queried, random = (read_cycles(folder / "query" / strategy) for strategy in ("ccal", "random"))
    rows = cycle_rows(queried, random=random, results=read_rows(folder / "classifier" / "results.csv"))
    notes = [note, *[PUBLISHED_NOTE] * any(row.published_found is not None for row in rows)]
    log("\n".join([title, *notes, plain_table(table_cells(rows))]))
    shown = "\n".join(f"python {shlex.join(words)}" for words in commands)
    write_csv(folder / "result.csv", rows)
    write_markdown(folder / "result.md", title, rows, notes=notes, figure="result.png", commands=shown)
    draw(folder / "result.png", rows, strategy="joint score", title=f"{title}\n{note}")
    finish([folder / name for name in ("result.csv", "result.md", "result.png")])


if __name__ == "__main__":
    sys.exit(run_command(main))
