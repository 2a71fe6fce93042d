"""What all benchmarks share: timing two formulations in turn, memory, the device's peak, and the report.

A benchmark runs a plain formulation and ours alternately in one process, so that a change of the machine's speed meets
both, and reports medians and their ratio. The report is a table on the terminal, a JSON file and a PNG.
"""

from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from common.files import atomic_write, write_json
from common.flags import Parser, positive_int
from common.provenance import git_commit, versions
from utils import InputError

MIB = 2**20


@dataclass(frozen=True)
class Comparison:
    """One line of a report.

    Attributes:
        work: What was computed.
        plain: Seconds of the plain formulation, one per repeat (after scaling, where ``note`` says so).
        ours: Seconds of ours, likewise.
        plain_memory: Peak MiB of the plain formulation: resident memory on a CPU, allocated memory on a GPU.
        ours_memory: Of ours.
        flop: Floating-point operations of ours, or None where arithmetic is not what bounds it.
        peak: Measured peak of the device at our precision in FLOP/s, or None.
        note: Sizes, precision and whatever else the figures need.
    """

    work: str
    plain: Sequence[float]
    ours: Sequence[float]
    plain_memory: float
    ours_memory: float
    flop: float | None = None
    peak: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float:
        """Median of the plain formulation over median of ours."""
        return statistics.median(self.plain) / statistics.median(self.ours)

    @property
    def share_of_peak(self) -> float | None:
        """Our FLOP/s over the device's measured peak."""
        if self.flop is None or self.peak is None:
            return None
        return self.flop / statistics.median(self.ours) / self.peak


def add_common_args(parser: Parser, *, repeats: int) -> None:
    """The flags that every benchmark has."""
    group = parser.add_argument_group("benchmark")
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU if there is one")
    group.add_argument("--repeats", type=positive_int, default=repeats, help="timed runs of each, in turn")
    group.add_argument("--out_path", metavar="DIR", help="where the JSON file and the PNG go (default: not written)")
    group.add_argument("--quick", action="store_true", help="tiny sizes: checks that both run and agree, no figures")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")


def compare(
    work: str,
    plain: Callable[[], object],
    ours: Callable[[], object],
    *,
    device: torch.device,
    repeats: int,
    warmup: int = 1,
    scale: float = 1.0,
    **details: Any,
) -> Comparison:
    """Times two calls in turn, plain first, after a warm-up of each.

    Args:
        work: What is computed, for the report.
        plain: The plain formulation.
        ours: Ours.
        device: Whose work is waited for, and whose memory is measured.
        repeats: Timed runs of each.
        warmup: Runs of each that do not count.
        scale: Factor on the plain formulation's seconds, where it is run on a part of the work.
        details: Further fields of Comparison.
    """
    times: tuple[list[float], list[float]] = ([], [])
    memory = [0.0, 0.0]
    for run in range(warmup + repeats):
        for which, call in enumerate((plain, ours)):
            seconds, peak = timed(call, device)
            if run >= warmup:
                times[which].append(seconds * (scale if which == 0 else 1.0))
                memory[which] = max(memory[which], peak)
    return Comparison(work, times[0], times[1], memory[0], memory[1], **details)


def compare_processes(
    work: str,
    plain: Callable[[], Callable[[], object]],
    ours: Callable[[], Callable[[], object]],
    *,
    device: torch.device,
    repeats: int,
    warmup: int = 1,
    **details: Any,
) -> Comparison:
    """Like ``compare``, with each formulation in a process of its own, which takes turns with the other's.

    For what is set per process, such as how the C library keeps memory; and each has a peak memory of its own.

    Args:
        work: What is computed, for the report.
        plain: Makes the plain formulation's call, in its process; can be pickled.
        ours: Makes ours.
        device: Whose work is waited for, and whose memory is measured.
        repeats: Timed runs of each.
        warmup: Runs of each that do not count.
        details: Further fields of Comparison.
    """
    context = multiprocessing.get_context("spawn")
    ends, workers = [], []
    for make in (plain, ours):
        here, there = context.Pipe()
        ends.append(here)
        workers.append(context.Process(target=_work, args=(make, device, torch.get_num_threads(), there), daemon=True))
        workers[-1].start()
        there.close()  # so that a worker's death is an end of file here
    times: tuple[list[float], list[float]] = ([], [])
    memory = [0.0, 0.0]
    for run in range(warmup + repeats):
        for which, end in enumerate(ends):
            try:
                end.send("go")
                seconds, peak = end.recv()
            except (EOFError, OSError):
                name = ("the plain formulation", "ours")[which]
                raise InputError(f"{work}: the process of {name} ended, see above") from None
            memory[which] = max(memory[which], peak)
            if run >= warmup:
                times[which].append(seconds)
    for end, worker in zip(ends, workers):
        end.send("stop")
        worker.join()
    return Comparison(work, times[0], times[1], memory[0], memory[1], **details)


def _work(make: Callable[[], Callable[[], object]], device: torch.device, threads: int, end: Connection) -> None:
    torch.set_num_threads(threads)
    call = make()
    while end.recv() == "go":
        end.send(timed(call, device))


def timed(call: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Seconds of a call, the device's work included, and its peak memory in MiB."""
    gc.collect()
    reset_peak_memory(device)
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start, peak_memory(device)


def synchronize(device: torch.device) -> None:
    """Waits for a GPU's work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_memory(device: torch.device) -> None:
    """Starts a new measurement of the peak, where the system can (Linux, GPUs)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    except OSError:
        return  # the peak then stays the whole process's


def peak_memory(device: torch.device) -> float:
    """MiB: allocated on a GPU; elsewhere the process's resident memory, the interpreter included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    except (OSError, StopIteration):
        unit = 1 if platform.system() == "Darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def resident_memory() -> float:
    """MiB that the process holds now, on Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB


def measured_peak(device: torch.device, dtype: torch.dtype, *, size: int | None = None, repeats: int = 5) -> float:
    """FLOP/s of the faster of a large matrix product and a large 3x3 convolution: what this device gives in practice.

    Args:
        device: The device.
        dtype: float32 or bfloat16. On GPUs float32 is measured under the current TF32 setting.
        size: Rows and columns of the matrices (default: 8192 on GPUs, 2048 elsewhere).
        repeats: Timed runs; the fastest counts.
    """
    size = size or (8192 if device.type == "cuda" else 2048)
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(size, size, generator=generator).to(device, dtype)
    channels, batch = max(size // 8, 16), max(size // 64, 1)
    images = torch.randn(batch, channels, 16, 16, generator=generator).to(device, dtype)
    weight = torch.randn(channels, channels, 3, 3, generator=generator).to(device, dtype)
    images, weight = (x.contiguous(memory_format=torch.channels_last) for x in (images, weight))
    best = 0.0
    for call, flop in (
        (lambda: matrix @ matrix, 2 * size**3),
        (lambda: torch.conv2d(images, weight, padding=1), 2 * 9 * batch * 256 * channels**2),
    ):
        call()
        best = max(best, max(flop / timed(call, device)[0] for _ in range(repeats)))
    return best


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "git_commit": git_commit(),
        **versions(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def format_table(rows: Sequence[Comparison]) -> str:
    """The comparisons as a table of plain text: medians, ratio, share of the peak, peak memory."""
    width = max([len("work"), *(len(row.work) for row in rows)])
    lines = [
        f"{'work':{width}} {'plain (s)':>10} {'ours (s)':>10} {'ratio':>8} {'of peak':>8} {'MiB plain / ours':>17}"
    ]
    for row in rows:
        share = "-" if row.share_of_peak is None else f"{100 * row.share_of_peak:.0f} %"
        memory = f"{row.plain_memory:.0f} / {row.ours_memory:.0f}"
        lines.append(
            f"{row.work:{width}} {statistics.median(row.plain):>10.4g} {statistics.median(row.ours):>10.4g} "
            f"{row.ratio:>7.2f}x {share:>8} {memory:>17}" + (f"  {row.note}" if row.note else "")
        )
    return "\n".join(lines)


def report(name: str, rows: Sequence[Comparison], *, device: torch.device, out_path: str | None) -> None:
    """Prints the table and, where a folder is given, writes <name>.json and <name>.png into it."""
    about = machine(device)
    print(f"{about['device']}, {about['threads']} threads, torch {about['torch']}, commit {about['git_commit'][:12]}")
    print(format_table(rows))
    if out_path is None:
        return
    folder = Path(out_path)
    content = {"benchmark": name, "command": " ".join(sys.argv[1:]), "machine": about, "rows": []}
    for row in rows:
        derived = {
            "plain_median": statistics.median(row.plain),
            "ours_median": statistics.median(row.ours),
            "ratio": row.ratio,
            "share_of_peak": row.share_of_peak,
        }
        content["rows"].append({**dataclasses.asdict(row), **derived})
    write_json(folder / f"{name}.json", content)
    draw(folder / f"{name}.png", rows, title=f"{name}: {about['device']}")
    print(f"wrote {folder / name}.json and .png")


def draw(path: Path, rows: Sequence[Comparison], *, title: str) -> None:
    """Horizontal bars of each comparison's ratio, every single run as a dot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.5 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(rows))
    axes.barh(places, [row.ratio for row in rows], height=0.6, color="C0", alpha=0.7)
    for place, row in zip(places, rows):
        ratios = [plain / ours for plain, ours in zip(row.plain, row.ours)]
        axes.plot(ratios, [place] * len(ratios), ".", color="black", markersize=5)
        axes.annotate(f" {row.ratio:.1f}x", (max([row.ratio, *ratios]), place), va="center")
    axes.set_yticks(places, [row.work for row in rows])
    axes.invert_yaxis()
    axes.axvline(1, color="gray", linewidth=1)
    if max(row.ratio for row in rows) > 10:
        axes.set_xscale("log")
    axes.set_xlabel("times as fast as the plain formulation (bar: medians, dots: single runs)")
    axes.margins(x=0.12)
    axes.set_title(title, fontsize=10)
    with atomic_write(path) as file:
        FigureCanvasAgg(figure).print_png(file)
