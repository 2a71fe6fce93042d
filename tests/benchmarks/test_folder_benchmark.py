"""The benchmark of reading folders: it runs, and its check sees other pixels."""

import pytest

from benchmarks import folder_index
from common.session import run_command


def test_the_benchmark_runs_quickly_and_agrees(capsys):
    assert run_command(folder_index.main, ["--quick"]) == 0
    assert capsys.readouterr().out == "both agree\n"


def test_other_pixels_are_seen(tmp_path, monkeypatch):
    folder_index.write_images(tmp_path, 50, side=40)
    folder_index.check_agreement(tmp_path)
    real = folder_index.our_images
    monkeypatch.setattr(folder_index, "our_images", lambda root: real(root)[::-1])
    with pytest.raises(AssertionError, match="pixels differ"):
        folder_index.check_agreement(tmp_path)
