"""The table of a run, from files made by hand."""

from __future__ import annotations

import pytest

from common.cli import run_cli
from common.provenance import int64_digest
from datasets.index_files import IndexFile, write_index_file
from evals import summary

HEADER = "dataset,mismatch,strategy,recipe,epochs,batch_size,lr,seed,index_digest,accuracy\n"


def write_run(folder, strategy, precisions, digest="d"):
    labeled, found = [1, 2], 0
    for cycle, precision in enumerate([None, *precisions]):
        if cycle:
            found = round(precision / 10)
            labeled = labeled + [100 * cycle + n for n in range(found)]
        write_index_file(
            folder,
            IndexFile(
                dataset="npz", mismatch=0.5, split_digest=digest, target_classes=[0, 1], strategy=strategy, cycle=cycle,
                labeled=labeled, queried=list(range(1000 * cycle, 1000 * cycle + 10)) if cycle else [], set_aside=[],
                metrics={"found": found, "precision": precision} if cycle else {},
            ),
        )  # fmt: skip
    return labeled


def test_the_table_puts_together_what_the_files_hold(tmp_path, capsys):
    last = write_run(tmp_path / "ccal", "ccal", [90.0, 50.0])
    write_run(tmp_path / "random", "random", [20.0, 30.0])
    results = tmp_path / "results.csv"
    first = int64_digest([1, 2])
    lines = [
        f"npz,0.5,ccal,proper,5,32,0.1,0,{int64_digest(last)},11",  # of other settings than the last row: not counted
        f"npz,0.5,ccal,proper,9,32,0.1,0,{int64_digest(last)},80",
        f"npz,0.5,ccal,proper,9,32,0.1,0,{first},70",
        f"npz,0.5,ccal,proper,9,32,0.1,1,{int64_digest(last)},84",
        f"npz,0.5,random,proper,9,32,0.1,0,{first},10",  # the same initial set under another strategy: not counted
    ]
    results.write_text(HEADER + "\n".join(lines) + "\n")
    argv = ["--index_dir", str(tmp_path / "ccal"), "--random_dir", str(tmp_path / "random"), "--results", str(results)]
    assert run_cli(summary.main, [*argv, "--out_path", str(tmp_path)]) == 0
    rows = (tmp_path / "summary.csv").read_text().splitlines()
    assert rows[0] == "cycle,labeled,queried,found,precision,random_precision,accuracy,deviation"
    assert rows[1] == "0,2,0,0,,,70,"
    assert rows[2] == "1,11,10,9,90,20,,"
    assert rows[3] == "2,16,10,5,50,30,82,2.82843"  # (80 + 84) / 2; |84 - 80| / sqrt(2), ddof = 1
    shown = capsys.readouterr().out
    assert "82.00 % ± 2.83" in shown
    assert str(tmp_path / "summary.png") in shown


def test_accuracies_of_labels_that_were_corrected_since_do_not_count(tmp_path):
    """The labeled list of cycle a got other labels after its first two seeds; that of cycle b was not touched."""
    rows = [
        ("a", "before", 0, 10), ("a", "before", 1, 20), ("b", "same", 0, 50),
        ("a", "after", 0, 80), ("b", "same", 1, 60), ("a", "after", 2, 90),
    ]  # fmt: skip
    lines = [f"npz,0.5,ccal,proper,9,32,0.1,{seed},{index},{value},{data}" for index, data, seed, value in rows]
    path = tmp_path / "results.csv"
    path.write_text("\n".join([HEADER.strip() + ",data_digest", *lines]) + "\n")
    assert summary.read_accuracies(path, "ccal") == {"a": [80, 90], "b": [50, 60]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: (path / "ccal" / "cycle_0.json").unlink(), "holds no cycle_0.json"),
        (lambda path: (path / "results.csv").unlink(), "does not exist"),
        (lambda path: (path / "results.csv").write_text("a,b\n1,2\n"), "no results.csv of the classifier"),
        (
            lambda path: (path / "results.csv").write_text(HEADER + "npz,0.5,ccal,proper,5,32,0.1,0,d,many\n"),
            "no results.csv",
        ),
        (lambda path: write_run(path / "random", "random", [10.0], digest="other"), "different splits"),
    ],
)
def test_what_cannot_be_put_together_is_refused(tmp_path, capsys, change, message):
    write_run(tmp_path / "ccal", "ccal", [90.0])
    write_run(tmp_path / "random", "random", [20.0])
    (tmp_path / "results.csv").write_text(HEADER)
    change(tmp_path)
    argv = ["--index_dir", str(tmp_path / "ccal"), "--random_dir", str(tmp_path / "random")]
    assert run_cli(summary.main, [*argv, "--results", str(tmp_path / "results.csv")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "ccal" / "summary.csv").exists()
