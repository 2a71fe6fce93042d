"""common/next_steps.py: each command names the next one, which runs as it stands."""

import shlex

import pytest

import active_main
import contrast_main
import evals.summary
import train_classifier.main
from common import next_steps

COMMANDS = {
    "contrast_main.py": contrast_main.main,
    "active_main.py": active_main.main,
    "train_classifier.main": train_classifier.main.main,
    "evals.summary": evals.summary.main,
}


def after(capsys, command, words):
    """Runs a command and returns the words of the one that it proposes, without ``python``; none where it ends."""
    COMMANDS[command](words)
    proposed = [
        line.removeprefix("next: ") for line in capsys.readouterr().out.splitlines() if line.startswith("next:")
    ]
    assert len(proposed) <= 1
    return shlex.split(proposed[0])[1:] if proposed else []


def test_the_commands_lead_from_the_first_to_the_last(tmp_path, capsys):
    """Only the sizes are cut down on the way, so that it is short; every other word is the proposal's."""
    folder = tmp_path / "a run" / "semantic"
    words = ["contrast_main.py", "--dataset", "digits", "--model", "resnet8", "--epochs", "1", "--mismatch", "0.5"]
    words += ["--mode", "semantic", "--logdir", str(folder), "--initial_budget", "30"]
    shorter = {"--ood_samples": "1", "--target": "9", "--split": "2"}
    passed = []
    while words:
        command, *flags = words[1:] if words[0] == "-m" else words
        passed.append(command)
        flags = [shorter.get(before, word) for before, word in zip(["", *flags], flags)]
        if command == "active_main.py":
            flags += ["--split", "2", "--index_dir", str(tmp_path / "query")]
        if command == "train_classifier.main":
            flags += ["--runs", "1", "--epochs", "1", "--out_path", str(tmp_path / "classifier")]
        words = after(capsys, command, flags)
    assert passed[:5] == [
        "contrast_main.py", "contrast_main.py", "active_main.py", "train_classifier.main", "evals.summary",
    ]  # fmt: skip
    assert (tmp_path / "a run" / "distinctive" / "last.model").is_file()
    assert (tmp_path / "query" / "summary.csv").is_file()


def proposal(folder, mode="semantic", shift="none", annotate=False):
    return next_steps.after_training(
        mode, folder, training=["--epochs", "3"], query=["--model", "resnet8"], shift=shift, target=7, annotate=annotate
    )


def test_the_other_encoder_is_looked_for_under_the_same_name(tmp_path):
    assert proposal(tmp_path / "digits_semantic_1") == (
        "python contrast_main.py --mode distinctive --shift_trans_type rotation --epochs 3 --logdir "
        f"{tmp_path}/digits_distinctive_1"
    )
    assert proposal(tmp_path / "x", "distinctive", "cutperm") == (
        f"python contrast_main.py --mode semantic --epochs 3 --logdir {tmp_path}/semantic"
    )


@pytest.mark.parametrize(
    ("names", "where"),
    [
        (("semantic", "distinctive"), "--load_path {0}"),
        (
            ("a_semantic", "a_distinctive"),
            "--load_semantic_path {0}/a_semantic/last.model --load_feature_path {0}/a_distinctive/last.model",
        ),
    ],
)
def test_the_query_follows_where_both_are_there(tmp_path, names, where):
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "last.model").touch()
    head = "python active_main.py --model resnet8 --shift_trans_type cutperm --ood_samples 10 --resize_factor 0.54 "
    where = where.format(tmp_path)
    assert proposal(tmp_path / names[1], "distinctive", "cutperm") == f"{head}--resize_fix {where} --target 7"
    assert (
        proposal(tmp_path / names[1], "distinctive", "cutperm", annotate=True)
        == f"{head}--resize_fix {where} --annotate"
    )
