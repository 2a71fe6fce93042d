"""The table and the figure of a query: what each cycle found, and the accuracy of the classifiers trained on it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from common.flags import Parser
from common.settings import OutputSettings, option


@dataclass(frozen=True)
class SummarySettings:
    """What the table is made of."""

    title: ClassVar[str] = "summary"
    index_dir: str = option(help="index files of the query", metavar="DIR")
    random_dir: str | None = option(None, "index files of --strategy random, to compare with", metavar="DIR")
    beside: tuple[str, ...] | None = option(
        None, "index files of further queries, called by their folders, in a second table", several=True, metavar="DIR"
    )
    results: str | None = option(None, "the classifier's results.csv", metavar="FILE")
    out_path: str | None = option(None, "where summary.csv and summary.png go (default: --index_dir)", metavar="DIR")


def build_parser() -> Parser:
    """The command's flags."""
    return Parser(__doc__, summary=SummarySettings, output=OutputSettings)


if __name__ == "__main__":
    build_parser().parse()  # --help and a mistyped flag end here, before torch is imported, which takes seconds

from common import plots
from common.console import finish, log, set_quiet
from common.files import atomic_write, require_writable
from common.paper import PUBLISHED_FOUND, PUBLISHED_LABELED, PUBLISHED_QUERIED
from common.provenance import int64_digest
from common.session import run_command
from datasets.index_files import IndexFile, index_path, numbered_files, read_index_file
from datasets.results_file import Accuracy, Row, latest_rows, mean_text, plain_table, read_rows, write_csv
from utils import InputError

PUBLISHED_NOTE = "published: found by the authors' own query lists for this split, with encoders of the full schedule"


@dataclass(frozen=True)
class CycleRow:
    """One row of the table: a cycle, of which 0 is the initial set; None is what was not measured."""

    cycle: int
    labeled: int  # target images, after the cycle
    queried: int
    found: int  # targets among the queried
    precision: float | None  # in percent, as random_precision
    random_precision: float | None  # of the random query's same cycle
    accuracy: float | None  # of the classifiers after the last epoch, in percent: the mean over their seeds
    deviation: float | None  # the standard deviation (ddof = 1), in percentage points
    auroc_semantic: float | None  # of target against other images of the pool, for the similarity s
    auroc_joint: float | None  # for the score that was queried by
    published_found: int | None  # by the authors' own query of this cycle
    published_precision: float | None
    recall: float | None  # share of the pool's targets that all cycles so far have found, in percent
    pool: int | None  # images left
    seeds: int  # classifiers trained
    annotated: int  # images shown to the annotator in all cycles so far, those of other classes included
    balanced_accuracy: float | None  # as accuracy: the mean over the classes
    rejection: float | None  # percent of other images that the classifiers reject where 95 % of the targets pass


def main(argv: Sequence[str] | None = None) -> None:
    settings = build_parser().parse(argv)
    given = settings.summary
    set_quiet(settings.output.quiet)
    folder = Path(given.out_path or given.index_dir)
    require_writable(folder, "--out_path")
    queried = read_cycles(Path(given.index_dir))
    random = read_cycles(Path(given.random_dir)) if given.random_dir else []
    further = {name: read_cycles(Path(name)) for name in given.beside or ()}
    further |= {given.random_dir: random} if random else {}
    for name, files in further.items():
        if files[0].split_digest != queried[0].split_digest:
            raise InputError(f"{name} and {given.index_dir} are of different splits and cannot be compared")
    if given.results and not Path(given.results).is_file():
        raise InputError(f"--results {given.results} does not exist; name the results.csv of the classifier")
    results = read_rows(Path(given.results)) if given.results else []
    rows = cycle_rows(queried, random=random, results=results)
    if given.results and not any(row.seeds for row in rows):
        problem = f"{given.results} has no classifier of the query in {given.index_dir}"
        raise InputError(f"{problem} (the same split, order of classes and labeled images): name that query's results")
    queries = {queried[0].strategy: rows}
    queries |= {Path(name).resolve().name: cycle_rows(files, results=results) for name, files in further.items()}
    log(plain_table(table_cells(rows)))
    if given.beside:
        log(f"targets among the queried, and accuracy:\n{plain_table(side_by_side(queries))}")
    log(headline(queries))
    table, figure = folder / "summary.csv", folder / "summary.png"
    write_csv(table, rows)
    draw(figure, rows, strategy=queried[0].strategy, random=cycle_rows(random, results=results) if random else ())
    finish([table, figure])


def read_cycles(folder: Path) -> list[IndexFile]:
    """All index files of a folder, by cycle; raises InputError without cycle_0.json, or where one is damaged."""
    if not index_path(folder, 0).is_file():
        raise InputError(f"{folder} holds no cycle_0.json; name the index folder of a query")
    files = []
    while index_path(folder, len(files)).is_file():
        files.append(read_index_file(index_path(folder, len(files))))
    if later := [number for number in numbered_files(folder) if number > len(files)]:
        gap = f"holds cycle_{later[0]}.json but no cycle_{len(files)}.json"
        raise InputError(f"{folder} {gap}: restore it, or query again")
    return files


def published_found(queried: Sequence[IndexFile]) -> tuple[int, ...]:
    """What the authors' queries found from cycle 1 on; nothing unless these are of their split and budget."""
    first = queried[0]
    same = first.dataset == "cifar10" and first.mismatch == 0.8 and int64_digest(first.labeled) == PUBLISHED_LABELED
    same = same and all(len(content.queried) == PUBLISHED_QUERIED for content in queried[1:2])
    return PUBLISHED_FOUND if same else ()


def cycle_rows(
    queried: Sequence[IndexFile], *, random: Sequence[IndexFile] = (), results: Sequence[Row] = ()
) -> list[CycleRow]:
    """A row per index file of a query from cycle 0 on, beside those of a random one.

    ``results`` are rows of results.csv, of any strategies and settings.
    """
    published = published_found(queried)
    trained = latest_rows(results, queried[0].strategy, queried[0].split_digest)
    rows: list[CycleRow] = []
    for content in queried:
        metrics = content.metrics
        beside = random[content.cycle].metrics if content.cycle < len(random) else {}
        classifiers = trained.get(int64_digest(content.labeled))
        accuracy = Accuracy.of(classifiers) if classifiers else None
        found = published[content.cycle - 1] if 1 <= content.cycle <= len(published) else None
        row = CycleRow(
            cycle=content.cycle,
            labeled=len(content.labeled),
            queried=len(content.queried),
            found=metrics.get("found", 0),
            random_precision=beside.get("precision"),
            accuracy=accuracy and accuracy.mean,
            deviation=accuracy and accuracy.deviation,
            auroc_joint=metrics.get("auroc_utility"),
            published_found=found,
            published_precision=None if found is None else 100 * found / PUBLISHED_QUERIED,
            seeds=accuracy.seeds if accuracy else 0,
            annotated=len(content.queried) + (rows[-1].annotated if rows else 0),
            balanced_accuracy=accuracy and accuracy.balanced,
            rejection=accuracy and accuracy.rejection,
            **{name: metrics.get(name) for name in ("precision", "auroc_semantic", "recall", "pool")},
        )
        rows.append(row)
    return rows


def headline(queries: Mapping[str, Sequence[CycleRow]]) -> str:
    """What queries found, in a sentence such as ``1,475 of 1,500 queried were targets; random 309``; "" without any.

    The first one is named unless a random query alone stands beside it.
    """
    totals = [(name, sum(row.found for row in rows), rows[-1].annotated) for name, rows in queries.items()]
    (first, found, asked), *others = [total for total in totals if total[2]] or [("", 0, 0)]
    title = "" if first != "random" and {name for name, *_ in others} <= {"random"} else f"{first}: "
    beside = [f"; {name} {own:,}" + ("" if queried == asked else f" of {queried:,}") for name, own, queried in others]
    return f"{title}{found:,} of {asked:,} queried were targets{''.join(beside)}" if asked else ""


def side_by_side(queries: Mapping[str, Sequence[CycleRow]]) -> list[list[str]]:
    """Heading and rows of what each query found and, where classifiers were trained on it, their accuracy."""
    trained = [name for name, rows in queries.items() if any(row.seeds for row in rows)]
    cells = [["cycle", *queries, *(f"{name} accuracy" for name in trained)]]
    for cycle in range(max(map(len, queries.values()))):
        by_name = {name: rows[cycle] for name, rows in queries.items() if cycle < len(rows)}
        found = [str(by_name[name].found) if name in by_name else "" for name in queries]
        accuracy = [by_name.get(name) for name in trained]
        cells.append([str(cycle), *found, *(mean_text(row.accuracy, row.deviation) if row else "" for row in accuracy)])
    return cells


def table_cells(rows: Sequence[CycleRow]) -> list[list[str]]:
    """Heading and rows as text, without the columns in which no row has a value."""

    def column(name: str, form: str = "{}") -> list[str]:
        return ["-" if (value := getattr(row, name)) is None else form.format(value) for row in rows]

    columns = {
        "cycle": column("cycle"),
        "queried": column("queried"),
        "target found": column("found"),
        "precision": column("precision", "{:.1f} %"),
        "random query": column("random_precision", "{:.1f} %"),
        "AUROC of s": column("auroc_semantic", "{:.4f}"),
        "AUROC of the score": column("auroc_joint", "{:.4f}"),
        "labeled": column("labeled"),
        "accuracy (last epoch)": [mean_text(row.accuracy, row.deviation) for row in rows],
        "balanced": column("balanced_accuracy", "{:.2f} %"),
        "others rejected": column("rejection", "{:.1f} %"),
        "published found": column("published_found"),
        "published precision": column("published_precision", "{:.1f} %"),
    }
    shown = [[heading, *values] for heading, values in columns.items() if set(values) != {"-"}]
    return [list(line) for line in zip(*shown, strict=True)]


def write_markdown(
    path: Path, title: str, rows: Sequence[CycleRow], *, notes: Sequence[str], figure: str, commands: str
) -> None:
    """Writes a page with the notes, the table, the figure beside it and the commands that made it."""
    heading, *cells = table_cells(rows)
    table = "\n".join(f"| {' | '.join(line)} |" for line in (heading, ["---"] * len(heading), *cells))
    listed = "\n".join(f"- {note}" for note in notes)
    shown = f"![Query precision by cycle, and accuracy by number of labeled images]({figure})"
    with atomic_write(path) as file:
        file.write(f"# {title}\n\n{listed}\n\n{table}\n\n{shown}\n\n```\n{commands}\n```\n".encode())


def draw(
    path: Path, rows: Sequence[CycleRow], *, strategy: str, random: Sequence[CycleRow] = (), title: str = ""
) -> None:
    """Precision by cycle (the query's, the random one's, the published), beside accuracy by images annotated."""

    def points(field: str) -> list[tuple[int, float]]:
        return [(row.cycle, value) for row in rows if (value := getattr(row, field)) is not None]

    precision, accuracy = {strategy: points("precision")}, {strategy: accuracy_points(rows, "annotated")}
    if strategy != "random":
        precision["random"], accuracy["random"] = points("random_precision"), accuracy_points(random, "annotated")
    published = points("published_precision")
    plots.plot_summary(path, precision=precision, accuracy=accuracy, published=published, title=title)


def accuracy_points(rows: Sequence[CycleRow], by: str) -> list[tuple[int, float, float | None]]:
    """A field, mean accuracy in percent and its deviation, of each cycle after which classifiers were trained."""
    return [(getattr(row, by), row.accuracy, row.deviation) for row in rows if row.accuracy is not None]


if __name__ == "__main__":
    sys.exit(run_command(main))
