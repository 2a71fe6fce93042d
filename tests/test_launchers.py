"""contrast_main.py under torchrun: processes that are killed are started again, and two machines do what one does."""

import contextlib
import os
import shutil
import subprocess
import sys
import textwrap

import pytest

from tests.processes import free_port
from tests.runs import assert_same_run, environment

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
# Ends one process by SIGKILL in the third epoch's second step, at the first attempt.
KILLED = """
import os, signal, sys
import contrast_main
from common.session import run_command

train = contrast_main.train_one_epoch

def train_until_killed(model, forward, *rest, **settings):
    steps = []
    def dying(*batch):
        steps.append(1)
        place = (settings["epoch"], len(steps), os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"])
        if place == (3, 2, os.environ["KILL_RANK"], "0"):
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(*batch)
    return train(model, dying, *rest, **settings)

contrast_main.train_one_epoch = train_until_killed
sys.exit(run_command(contrast_main.main))
"""


@pytest.fixture(scope="module")
def two(root, flags, tmp_path_factory):
    """The folder of an uninterrupted run of two processes on one machine."""
    folder = tmp_path_factory.mktemp("two") / "run"
    words = [*TORCHRUN, "--standalone", "--nproc_per_node=2", "contrast_main.py", *flags(logdir=folder)]
    subprocess.run(words, env=environment(root), cwd=root, check=True, capture_output=True, timeout=600)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_job_goes_on_by_itself_when_a_process_is_killed(rank, two, root, flags, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    words = flags("semantic", "--resume", "auto", logdir=tmp_path / "run")
    done = subprocess.run(
        [*TORCHRUN, "--standalone", "--nproc_per_node=2", "--max-restarts=3", str(script), *words],
        env=environment(root, KILL_RANK=rank), cwd=root, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"run folder {tmp_path / 'run'}, continued after epoch 2" in done.stdout
    assert_same_run(tmp_path / "run", two)


@contextlib.contextmanager
def two_machines():
    """Two network namespaces with a cable between them; yields their names and addresses."""
    names = [f"ccal{os.getpid() % 100000}{letter}" for letter in "ab"]
    addresses = ["10.77.0.1", "10.77.0.2"]

    def ip(*words):
        return subprocess.run(["ip", *words], capture_output=True, text=True, check=True)

    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "wire", "netns", names[0], "type", "veth", "peer", "name", "wire", "netns", names[1])
        for name, address in zip(names, addresses):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "wire")
            for link in ("lo", "wire"):
                ip("-n", name, "link", "set", link, "up")
        yield list(zip(names, addresses))
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.fixture(scope="module")
def machines():
    """The two namespaces; skipped where none can be made."""
    if shutil.which("ip") is None:
        pytest.skip("network namespaces are made with ip (package iproute2), which is not here")
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(two_machines())
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces can be made here ({error.stderr.strip()})")
        yield made


def launch_on(machines, root, words, **more):
    """One torchrun per machine, with a c10d rendezvous on the first one; returns both processes."""
    port = free_port()
    running = []
    for number, (name, address) in enumerate(machines):
        # The hostname of both is this machine's, so its address does not tell which one keeps the store.
        host = f"--rdzv-conf=is_host={int(number == 0)}"
        rendezvous = ["--nnodes=2", "--nproc_per_node=1", "--rdzv-backend=c10d", "--rdzv-id=test", host]
        rendezvous += [f"--rdzv-endpoint={machines[0][1]}:{port}", f"--local-addr={address}"]
        running.append(
            subprocess.Popen(
                ["ip", "netns", "exec", name, *TORCHRUN, *rendezvous, *map(str, words)],
                env=environment(root, GLOO_SOCKET_IFNAME="wire", **more),
                cwd=root,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return running


def finished(running):
    try:
        return [process.communicate(timeout=600) for process in running]
    finally:
        for process in running:
            process.kill()


@pytest.mark.slow
def test_two_machines_give_what_two_processes_of_one_give(machines, two, root, flags, tmp_path):
    running = launch_on(machines, root, ["contrast_main.py", *flags(logdir=tmp_path / "run")])
    told = finished(running)
    assert [process.returncode for process in running] == [0, 0], told
    assert "2 process(es) on cpu" in "".join(out for out, _ in told)
    assert_same_run(tmp_path / "run", two)


@pytest.mark.slow
def test_a_failure_on_one_machine_is_told_and_ends_the_other(machines, root, flags, tmp_path):
    """The second machine's data file is missing: both end, and both say why."""
    script = tmp_path / "elsewhere.py"
    script.write_text(
        textwrap.dedent("""
        import os, sys
        import contrast_main
        from common.session import run_command

        words = sys.argv[1:]
        if os.environ["RANK"] == "1":
            words[words.index("--data_path") + 1] = "/not/here.npz"
        sys.exit(run_command(contrast_main.main, words))
        """)
    )
    running = launch_on(machines, root, [script, *flags(logdir=tmp_path / "run")])
    told = finished(running)
    assert all(process.returncode for process in running)
    lines = sorted(line for _, errors in told for line in errors.splitlines() if line.startswith("elsewhere.py: "))
    assert any("/not/here.npz" in line for line in lines), told
    assert all("/not/here.npz" in line or "lost another process" in line for line in lines), told
    assert not (tmp_path / "run").exists()
