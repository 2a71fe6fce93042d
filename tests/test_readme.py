"""README, Makefile and the commands agree: every command that they show is parsed by the real parser."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path

import pytest

import active_main
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
from common import arguments

ROOT = Path(__file__).resolve().parent.parent
PARSERS = {
    "contrast_main.py": contrast_main.build_parser,
    "active_main.py": active_main.build_parser,
    "main.py": train_classifier.main.build_parser,
    "train_classifier.main": train_classifier.main.build_parser,
    "evals.report": evals.report.__main__.build_parser,
    "evals.summary": evals.summary.build_parser,
    "benchmarks.classifier": benchmarks.classifier.build_parser,
    "benchmarks.folder_index": benchmarks.folder_index.build_parser,
    "benchmarks.pool_scale": benchmarks.pool_scale.build_parser,
    "benchmarks.query": benchmarks.query.build_parser,
    "benchmarks.train_step": benchmarks.train_step.build_parser,
    "reproduce.py": reproduce.build_parser,
}
# As METHOD.md, section 8, gives the original's: they must run as written.
ORIGINAL = """
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


def commands_in(text: str) -> list[list[str]]:
    """Every call of one of our commands, as [program, arguments ...]."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"\s*;\s*|\s+&&\s+", line.split("#")[0]):
            words = shlex.split(part) if any(name in part for name in PARSERS) else []
            starts = [position for position, word in enumerate(words) if word in PARSERS]
            if starts and words[0] in ("python", "torchrun", ".venv/bin/python"):
                found.append(words[starts[0] :])
    return found


def shell_blocks(path: Path) -> str:
    return "\n".join(re.findall(r"```(?:bash|sh)\n(.*?)```", path.read_text(), flags=re.DOTALL))


def documents() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "results").rglob("*.md"))]


def makefile_commands() -> str:
    """The Makefile's recipes with its variables put in."""
    text = (ROOT / "Makefile").read_text()
    values = dict(re.findall(r"^(\w+)\s*:?\??=\s*(.*)$", text, flags=re.MULTILINE))
    while re.search(r"\$\((\w+)\)", text):
        text = re.sub(r"\$\((\w+)\)", lambda match: values.get(match[1], ""), text)
    return "\n".join(line.lstrip("\t@") for line in text.splitlines() if line.startswith("\t"))


SHOWN = [
    pytest.param(command, id=f"{source.name}-{number}-{command[0]}")
    for source in documents()
    for number, command in enumerate(commands_in(shell_blocks(source)))
]
MADE = [pytest.param(command, id=f"Makefile-{n}") for n, command in enumerate(commands_in(makefile_commands()))]
AS_PUBLISHED = [pytest.param(command, id=f"original-{n}") for n, command in enumerate(commands_in(ORIGINAL))]


@pytest.mark.parametrize("command", SHOWN + MADE + AS_PUBLISHED)
def test_the_command_parses(command: list[str]) -> None:
    PARSERS[command[0]]().parse_args(command[1:])


def test_enough_commands_were_found() -> None:
    assert len(AS_PUBLISHED) == 4
    assert len(MADE) == 8  # the demo: two encoders, two queries, the classifier, the summary, the report; and reproduce
    assert {param.values[0][0] for param in SHOWN} == set(PARSERS)


def test_a_wrong_flag_would_be_seen(capsys: pytest.CaptureFixture) -> None:
    [command] = commands_in("python active_main.py --tarrget 750")
    with pytest.raises(SystemExit):
        PARSERS[command[0]]().parse_args(command[1:])
    assert "--tarrget" in capsys.readouterr().err


def test_flags_of_the_readme_exist() -> None:
    """Every --flag that README names in its prose or tables belongs to one of the parsers or launchers."""
    known = {"--nproc_per_node", "--help", "--slow"}
    for build in PARSERS.values():
        known |= {option for action in build()._actions for option in action.option_strings}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z_]*", (ROOT / "README.md").read_text()))
    assert named <= known


def test_every_flag_is_read() -> None:
    """Each flag's value is read by the command that declares it, or goes into its record on purpose."""
    legacy = {"local_rank", "mode", "debug", "help"}  # launchers pass the first; run_cli looks for --debug itself
    for name, path in (
        ("contrast_main.py", "contrast_main.py"),
        ("active_main.py", "active_main.py"),
        ("main.py", "train_classifier/main.py"),
        ("evals.report", "evals/report/__main__.py"),
        ("evals.summary", "evals/summary.py"),
        ("reproduce.py", "reproduce.py"),
    ):
        source = (ROOT / path).read_text()
        if "split_settings(args)" in source:
            source += inspect.getsource(arguments.split_settings)
        names = {action.dest for action in PARSERS[name]()._actions} - legacy
        unread = {dest for dest in names if f"args.{dest}" not in source and f'"{dest}"' not in source}
        assert not unread, f"{path} never reads {sorted(unread)}"


def test_paths_of_the_readme_exist() -> None:
    """Files of the repository that README links or names in backticks are there."""
    text = (ROOT / "README.md").read_text()
    linked = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    named = re.findall(r"`((?:evals|models|datasets|docs|results|benchmarks)/[\w./]*\w)`", text)
    missing = [path for path in linked + named if not (ROOT / path).exists()]
    assert not missing
