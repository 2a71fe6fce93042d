"""README, docs, Makefile and the commands agree: every command and flag that they show is known to the real parsers."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

import active_main
import benchmark
import benchmarks.beyond_purity
import benchmarks.cifar10_h200
import benchmarks.cifar10_npz
import benchmarks.classifier
import benchmarks.folder_index
import benchmarks.pool_scale
import benchmarks.query
import benchmarks.train_step
import contrast_main
import evals.report.__main__
import evals.summary
import reproduce
import train_classifier.main
from common.flags import MODE_SPELLINGS, SPELLINGS

ROOT = Path(__file__).resolve().parent.parent
MODULES = {
    "contrast_main.py": contrast_main,
    "active_main.py": active_main,
    "main.py": train_classifier.main,
    "train_classifier.main": train_classifier.main,
    "evals.report": evals.report.__main__,
    "evals.summary": evals.summary,
    "reproduce.py": reproduce,
    "benchmark.py": benchmark,
    "benchmarks.beyond_purity": benchmarks.beyond_purity,
    "benchmarks.cifar10_h200": benchmarks.cifar10_h200,
    "benchmarks.cifar10_npz": benchmarks.cifar10_npz,
    "benchmarks.classifier": benchmarks.classifier,
    "benchmarks.folder_index": benchmarks.folder_index,
    "benchmarks.pool_scale": benchmarks.pool_scale,
    "benchmarks.query": benchmarks.query,
    "benchmarks.train_step": benchmarks.train_step,
}
# As the original's README gives them; they must run as written.
ORIGINAL = """\
python -m torch.distributed.launch --nproc_per_node=4 contrast_main.py --mismatch 0.8 --dataset cifar10 \
--model resnet18 --mode senmatic --shift_trans_type none --batch_size 32 --epoch 700 --logdir './model/semantic'
python -m torch.distributed.launch --nproc_per_node=4 contrast_main.py --mismatch 0.8 --dataset cifar10 \
--model resnet18 --mode feature --shift_trans_type rotation --batch_size 32 --epoch 700 --logdir './model/distinctive'
python active_main.py --mode eval --k 100.0 --t 0.9 --dataset cifar10 --model resnet18 --mismatch 0.8 --target 750 \
--shift_trans_type rotation --print_score --ood_samples 10 --resize_factor 0.54 --resize_fix \
--load_feature_path './model/distinctive/last.model' --load_senmatic_path './model/semantic/last.model' \
--load_path './model'
cd train_classifier; python main.py --cuda --split 5 --dataset cifar10 --mismatch 0.8 --number 1 --epoch 100
"""
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "results").rglob("*.md"))]


def parser_of(name: str) -> argparse.ArgumentParser:
    module = MODULES[name]
    return module.PARSER if hasattr(module, "PARSER") else module.build_parser()


def commands_in(text: str) -> list[list[str]]:
    """Every call of one of our commands, as [program, arguments ...]."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"\s*;\s*|\s+&&\s+", line.split("#")[0]):
            words = shlex.split(part) if any(name in part for name in MODULES) else []
            starts = [position for position, word in enumerate(words) if word in MODULES]
            if starts and {"python", "torchrun", ".venv/bin/python"} & set(words):
                found.append(words[starts[0] :])
    return found


def shell_blocks(path: Path) -> str:
    return "\n".join(re.findall(r"```(?:bash|sh)\n(.*?)```", path.read_text(), flags=re.DOTALL))


def makefile_commands() -> str:
    """The Makefile's recipes with its variables put in."""
    text = (ROOT / "Makefile").read_text()
    values = dict(re.findall(r"^(\w+)\s*:?\??=\s*(.*)$", text, flags=re.MULTILINE))
    while re.search(r"\$\((\w+)\)", text):
        text = re.sub(r"\$\((\w+)\)", lambda match: values.get(match[1], ""), text)
    return "\n".join(line.lstrip("\t@") for line in text.splitlines() if line.startswith("\t"))


SHOWN = {
    f"{path.relative_to(ROOT)}-{n}": command
    for path in DOCUMENTS
    for n, command in enumerate(commands_in(shell_blocks(path)))
}
MADE = {f"Makefile-{n}": command for n, command in enumerate(commands_in(makefile_commands()))}


@pytest.mark.parametrize("command", [*SHOWN.values(), *MADE.values()], ids=[*SHOWN, *MADE])
def test_the_command_parses(command: list[str]) -> None:
    parser_of(command[0]).parse_args(command[1:])


def test_no_command_was_overlooked() -> None:
    assert len(MADE) == 11  # two encoders, four queries, two classifiers, summary and report of the demo; reproduce
    assert {command[0] for command in SHOWN.values()} == set(MODULES)
    assert ORIGINAL in shell_blocks(ROOT / "README.md")


def test_the_plain_names_say_what_the_originals_say() -> None:
    """README's four commands with plain names give the values of the original's four, but for how many classifiers."""
    commands = commands_in(shell_blocks(ROOT / "README.md"))
    first = next(n for n, command in enumerate(commands) if "senmatic" in command)
    for original, plain in zip(commands[first : first + 3], commands[first + 4 : first + 7]):
        one, other = (vars(parser_of(words[0]).parse_args(words[1:])) for words in (original, plain))
        differing = {name for name in one if str(one[name]).removeprefix("./") != str(other[name]).removeprefix("./")}
        assert differing <= {"model", "load_path", "load_semantic_path", "load_distinctive_path"}  # their defaults


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_flags_and_files_that_a_page_names_exist(path: Path) -> None:
    text = path.read_text()
    known = {flag for name in MODULES for flag in re.findall(r"--[a-z]\w*", parser_of(name).format_help())}
    known |= {"--kills"}  # of the fault campaign
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert set(re.findall(r"`(--[a-z]\w*)", prose)) - {"--max", "--rdzv", "--signals"} <= known
    linked = [path.parent / link for link in re.findall(r"\]\((?!http)([^)#]+)", text)]
    named = re.findall(r"`([a-z_]+/[\w./]*\.(?:py|sh))`", text)
    assert not [str(place) for place in [*linked, *(ROOT / name for name in named)] if not place.exists()]


def test_anchors_lead_to_a_heading() -> None:
    for path in DOCUMENTS:
        for target, anchor in re.findall(r"\]\(((?!http)[^)#]*)#([^)]+)\)", path.read_text()):
            page = (path.parent / target if target else path).read_text()
            headings = re.findall(r"^#+ (.*)$", page, flags=re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_the_spellings_of_the_original_are_in_one_table() -> None:
    table = (ROOT / "docs" / "flags.md").read_text().partition("## The original's spellings")[2].partition("\n## ")[0]
    assert all(f"`{old}`" in table and f"--{new}" in table for new, old in SPELLINGS.items())
    assert all(f"--mode {old}" in table for old in MODE_SPELLINGS)
