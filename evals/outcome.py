"""The result of a whole experiment: one table, as text, csv and markdown, and a figure, beside the published values."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common import plots
from common.files import atomic_write
from common.paper import PUBLISHED_FOUND, PUBLISHED_LABELED, PUBLISHED_POOL, PUBLISHED_QUERIED
from common.provenance import int64_digest
from datasets.index_files import IndexFile
from datasets.split import Split
from evals.summary import CycleSummary, summarize

PUBLISHED_NOTE = (
    "published: what the authors' own query lists for this very split found, with encoders of the full schedule"
)


@dataclass(frozen=True)
class ResultRow(CycleSummary):
    """One cycle's row; None is what was not measured.

    Attributes:
        auroc_semantic: AUROC of target against other images of the pool, for the similarity s.
        auroc_joint: The same for the score that was queried by.
        published_found: Target images in the authors' own query of this cycle.
        published_precision: In percent.
    """

    auroc_semantic: float | None
    auroc_joint: float | None
    published_found: int | None
    published_precision: float | None


def published_found(split: Split, *, target: int) -> tuple[int, ...]:
    """What the authors' queries found by cycle, from 1; empty unless the split is theirs, index for index.

    Args:
        split: The initial split.
        target: Images queried per class and cycle.
    """
    same = (
        int64_digest(split.labeled) == PUBLISHED_LABELED
        and int64_digest(split.unlabeled) == PUBLISHED_POOL
        and target * len(split.target_classes) == PUBLISHED_QUERIED
    )
    return PUBLISHED_FOUND if same else ()


def result_rows(
    queried: Sequence[IndexFile],
    random: Sequence[IndexFile],
    accuracies: dict[str, list[float]],
    *,
    published: Sequence[int],
) -> list[ResultRow]:
    """A row per index file.

    Args:
        queried: From cycle 0 on.
        random: Of the random strategy.
        accuracies: See evals.summary.read_accuracies.
        published: See published_found.
    """
    rows = []
    for content in queried:
        summary = summarize(content, list(random), accuracies)
        found = published[content.cycle - 1] if 1 <= content.cycle <= len(published) else None
        rows.append(
            ResultRow(
                **dataclasses.asdict(summary),
                auroc_semantic=content.metrics.get("auroc_semantic"),
                auroc_joint=content.metrics.get("auroc_utility"),
                published_found=found,
                published_precision=None if found is None else 100 * found / PUBLISHED_QUERIED,
            )
        )
    return rows


def table_cells(rows: Sequence[ResultRow]) -> list[list[str]]:
    """Heading and rows as text; the published columns are there only where a row has such a value."""
    compared = any(row.published_found is not None for row in rows)
    heading = ["cycle", "queried", "target found", "precision", "random query", "AUROC of s", "AUROC of the score"]
    heading += ["labeled", "accuracy (last epoch)"] + ["published found", "published precision"] * compared
    cells = [heading]
    for row in rows:
        deviation = "" if row.deviation is None else f" ± {row.deviation:.2f}"
        line = [str(row.cycle), str(row.queried), str(row.found), _text(row.precision, ".1f", " %")]
        line += [_text(row.random_precision, ".1f", " %"), _text(row.auroc_semantic, ".4f")]
        line += [_text(row.auroc_joint, ".4f"), str(row.labeled), _text(row.accuracy, ".2f", f"{deviation} %")]
        if compared:
            line += [_text(row.published_found, "d"), _text(row.published_precision, ".1f", " %")]
        cells.append(line)
    return cells


def _text(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def plain_table(cells: Sequence[Sequence[str]]) -> str:
    """Right-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths)) for line in cells)


def markdown_table(cells: Sequence[Sequence[str]]) -> str:
    """The heading, a rule and the rows."""
    lines = [cells[0], ["---"] * len(cells[0]), *cells[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_csv(path: Path, rows: Sequence[ResultRow]) -> None:
    """Writes the rows with a column per field; what was not measured is empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(ResultRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def write_markdown(path: Path, title: str, *, notes: Sequence[str], parts: dict[str, Sequence[Sequence[str]]]) -> None:
    """Writes a page: the title, a list of notes, the figure beside it, and a table under each part's heading."""
    text = f"# {title}\n\n" + "".join(f"- {note}\n" for note in notes)
    for heading, cells in parts.items():
        text += f"\n## {heading}\n\n{markdown_table(cells)}\n"
        if heading == "Result":
            text += "\n![Query precision by cycle, and accuracy by number of labeled images](result.png)\n"
    with atomic_write(path) as file:
        file.write(text.encode())


def draw(path: Path, rows: Sequence[ResultRow], *, title: str) -> None:
    """Precision by cycle (the query's, the random one's, the published), beside accuracy by labeled images."""
    curves = {"joint score": "precision", "random": "random_precision"}
    points = {
        name: [(row.cycle, value) for row in rows if (value := getattr(row, field)) is not None]
        for name, field in curves.items()
    }
    plots.plot_summary(
        path,
        precision=points,
        accuracy=[(row.labeled, row.accuracy, row.deviation) for row in rows if row.accuracy is not None],
        published=[(row.cycle, row.published_precision) for row in rows if row.published_precision is not None],
        title=title,
    )
