"""Recorded steps: what they leave behind, what they return, and what happens where recording fails.

Without a GPU a stand-in takes the place of the recording: it runs the step as a recording's warm-up does, and its
replay runs it on the buffers again.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn

from train_classifier import graphs
from train_classifier.graphs import WARM_UP, GraphedStep, fork_join, make_streams

CPU = torch.device("cpu")


class Training:
    """A network with BatchNorm, its Adam, and a training step that counts its runs."""

    def __init__(self, device: torch.device = CPU) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).to(device)
        on_gpu = device.type == "cuda"
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=0.1, fused=True, capturable=on_gpu)
        self.runs = 0

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        self.runs += 1
        loss = (self.network(inputs)[:, 0] - targets).square().mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def graphed(self, *, enabled: bool) -> GraphedStep:
        return GraphedStep(self.step, modules=[self.network], optimizers=[self.optimizer], enabled=enabled)

    def state(self) -> list[Tensor]:
        """Copies of all that a step changes."""
        optimizer = [value for entry in self.optimizer.state.values() for value in entry.values()]
        return [value.detach().clone() for value in (*self.network.state_dict().values(), *optimizer)]


class Replay:
    """Stands in for a torch.cuda.CUDAGraph: writes the step's result into the same tensor each time."""

    def __init__(self, step, buffers, output: Tensor) -> None:
        self.step, self.buffers, self.output = step, buffers, output

    def replay(self) -> None:
        self.output.copy_(self.step(*self.buffers))


def record_stand_in(step, buffers):
    for _ in range(WARM_UP):
        output = step(*buffers)
    return Replay(step, buffers, output), output


def record_failing(step, buffers):
    for _ in range(WARM_UP):
        step(*buffers)
    raise RuntimeError("operation not permitted when stream is capturing\nCompile with ...")


def batches(sizes: list[int], device: torch.device = CPU) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 3, generator=generator).to(device), torch.randn(size, generator=generator).to(device))
        for size in sizes
    ]


def assert_equal_states(first: Training, second: Training) -> None:
    assert all(torch.equal(*pair) for pair in zip(first.state(), second.state(), strict=True))


@pytest.fixture(params=["off", "recorded", "failing"])
def enabled(request, monkeypatch) -> bool:
    """Graphs off, graphs on with the stand-in, and graphs on where recording fails."""
    stand_in = {"off": None, "recorded": record_stand_in, "failing": record_failing}[request.param]
    monkeypatch.setattr(graphs, "record", stand_in)
    return request.param != "off"


def test_steps_equal_plain_steps_to_the_bit(enabled):
    plain, ours = Training(), Training()
    step = ours.graphed(enabled=enabled)
    for number, batch in enumerate(batches([5, 5, 2, 5, 2, 5])):
        for training in (plain, ours):
            training.network.train(number < 4)  # both shapes, then both again in eval mode
        assert torch.equal(step(*batch), plain.step(*batch))
        assert_equal_states(plain, ours)
    assert int(ours.network[1].num_batches_tracked) == 4


def test_one_recording_per_shape_and_mode(monkeypatch):
    shapes = []

    def note(step, buffers):
        shapes.append(len(buffers[0]))
        return record_stand_in(step, buffers)

    monkeypatch.setattr(graphs, "record", note)
    training = Training()
    step = training.graphed(enabled=True)
    for train in (True, False, True):
        training.network.train(train)
        for batch in batches([5, 2, 5]):
            step(*batch)
    assert shapes == [5, 2, 5, 2]


def test_inputs_are_copied_into_the_same_buffers(enabled):
    seen = []

    def double(values: Tensor) -> Tensor:
        seen.append(values.data_ptr())
        return 2 * values

    step = GraphedStep(double, modules=[], enabled=enabled)
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])
    results = [step(first), step(second)]
    assert [result.tolist() for result in results] == [[2.0, 4.0], [6.0, 10.0]], "a result is the caller's own"
    assert len(set(seen)) == 1 and seen[0] not in (first.data_ptr(), second.data_ptr())


def test_a_failing_recording_warns_once_and_goes_on_eagerly(monkeypatch, capsys):
    monkeypatch.setattr(graphs, "record", record_failing)
    training = Training()
    step = training.graphed(enabled=True)
    for batch in batches([5, 2, 5]):
        step(*batch)
    assert training.runs == WARM_UP + 3, "the second shape is not tried"
    assert capsys.readouterr().out.splitlines() == [
        "warning: the step could not be recorded as a CUDA graph (operation not permitted when stream is capturing); "
        "going on, slower, without"
    ]


def test_fork_join_keeps_the_order():
    assert make_streams(3, CPU) == []
    calls = [functools.partial(torch.full, (), value) for value in (3.0, 1.0, 2.0)]
    assert [float(result) for result in fork_join(calls, [])] == [3.0, 1.0, 2.0]


@pytest.fixture
def gpu() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.mark.gpu
def test_recorded_steps_equal_plain_steps_on_a_gpu(gpu, capsys):
    plain, ours = Training(gpu), Training(gpu)
    step = ours.graphed(enabled=True)
    for number, batch in enumerate(batches([5, 5, 2, 5, 2, 5], gpu)):
        for training in (plain, ours):
            training.network.train(number < 4)
        torch.testing.assert_close(step(*batch), plain.step(*batch), rtol=1e-5, atol=1e-5)
    for first, second in zip(plain.state(), ours.state(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
    assert ours.runs == 4 * (WARM_UP + 1), "four recordings; their replays run no Python"
    assert "warning" not in capsys.readouterr().out


@pytest.mark.gpu
def test_a_step_that_waits_for_the_gpu_falls_back(gpu, capsys):
    plain, ours = Training(gpu), Training(gpu)

    def waiting(*batch: Tensor) -> Tensor:
        loss = ours.step(*batch)
        loss.item()
        return loss

    step = GraphedStep(waiting, modules=[ours.network], optimizers=[ours.optimizer], enabled=True)
    for batch in batches([5, 2, 5], gpu):
        torch.testing.assert_close(step(*batch), plain.step(*batch), rtol=1e-5, atol=1e-5)
    assert capsys.readouterr().out.count("could not be recorded as a CUDA graph") == 1
