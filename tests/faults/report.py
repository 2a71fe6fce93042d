"""The campaign's table, as it is printed and written."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from common.provenance import git_commit
from tests.faults.campaign import WEIGHTS, Tally


def processor() -> str:
    """The name of the processor, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def table(tallies: Mapping[str, Tally]) -> str:
    """One row per job, and their sum."""
    names = ["run", "runs", *WEIGHTS, "resumes", "equal"]
    rows = [[name, *_numbers(tally)] for name, tally in tallies.items()]
    rows.append(["all", *(sum(column) for column in zip(*(row[1:] for row in rows)))])
    lines = [names, ["---", *["---:"] * (len(names) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _numbers(tally: Tally) -> list[int]:
    return [tally.runs, *(tally.faults[kind] for kind in WEIGHTS), tally.resumes, tally.equal]


def page(tallies: Mapping[str, Tally], *, command: str, seconds: float, launches: int) -> str:
    """The table with all that is needed to make it again."""
    problems = [f"- {name}: {' '.join(text.split())}" for name, tally in tallies.items() for text in tally.problems]
    found = "\n".join(problems) or "Nothing went otherwise than it should."
    return f"""# Faults

Commands on the digits with resnet8 and a short recipe, disturbed again and again: killed (SIGKILL) at drawn moments and
at drawn steps of writing a file, stopped by SIGTERM, SIGINT and SIGUSR1, out of disk space from a drawn step of writing
on, and left with half a file under its final name. Each run is continued with the same flags until it is done, and
compared to the bit with a run that nothing disturbed: the encoder's weights and its log's values, the index files, the
rows of results.csv (all without measured times). Of two ranks one is hit, under torchrun.

{table(tallies)}

"kill" counts kills between writes, "kill in a write" those from the opening of a file to its renaming; "resumes" are
launches after a fault, "equal" the runs whose result is that of the undisturbed run.

{found}

    {command}

{launches} launches in {seconds / 60:.0f} minutes, {processor()}, Python {platform.python_version()}, torch \
{torch.__version__}, commit {git_commit()}.
"""
