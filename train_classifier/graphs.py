"""Steps of many small kernels as CUDA graphs: recorded once, then launched as a whole.

A small network keeps a GPU waiting for the host, which launches some hundred kernels per step. A recorded step costs
one launch, and independent parts of it (see fork_join) run beside each other.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from common.console import warn

WARM_UP = 3  # runs before the recording, in which libraries choose kernels and allocate what they keep

Step = Callable[..., Tensor]


class GraphedStep:
    """Calls a step; where graphs are enabled, the step is recorded at its first call and replayed from then on.

    There is one recording per shape and type of the inputs and per mode (train or eval) of the modules. Recording runs
    the step a few times, so the modules and optimizers are put back afterwards, bit for bit: the results are those of
    the step itself. What cannot be recorded runs as it is, after one warning.

    The step maps tensors to a tensor. It must draw nothing at random, must not read values on the host, must change the
    state of modules and optimizers in place and must clear gradients to None before it computes new ones.

    Args:
        step: The step.
        modules: Those whose parameters or buffers it changes, or whose mode it depends on.
        optimizers: Those that it steps. On a GPU they must be ``capturable`` (SGD: fused, its rate a tensor), and state
            that they make at their first step must start at zero (Adam's and SGD's does).
        enabled: Whether to record, which needs a GPU.
    """

    def __init__(
        self,
        step: Step,
        *,
        modules: Sequence[nn.Module],
        optimizers: Sequence[torch.optim.Optimizer] = (),
        enabled: bool,
    ) -> None:
        self._step, self._modules, self._optimizers, self._enabled = step, modules, optimizers, enabled
        self._prepared: dict[tuple, tuple[list[Tensor], Callable[[], Tensor]]] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The step's result for these inputs; a tensor of the caller's own."""
        shapes = tuple((value.shape, value.dtype) for value in inputs)
        key = (shapes, tuple(module.training for module in self._modules))
        if key not in self._prepared:
            self._prepared[key] = self._prepare(inputs)
        buffers, call = self._prepared[key]
        for buffer, value in zip(buffers, inputs, strict=True):
            buffer.copy_(value)
        return call()

    def _prepare(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], Callable[[], Tensor]]:
        """Buffers like the inputs, and a call that works on what they hold."""
        buffers = [value.clone() for value in inputs]
        if self._enabled:
            state = StepState(self._modules, self._optimizers)
            try:
                return buffers, functools.partial(_replay, *record(self._step, buffers))
            except RuntimeError as error:
                self._enabled = False
                reason = str(error).partition("\n")[0]
                warn(f"the step could not be recorded as a CUDA graph ({reason}); going on, slower, without")
            finally:
                state.restore()
        return buffers, functools.partial(self._step, *buffers)


def record(step: Step, buffers: Sequence[Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """Runs a step a few times and records it.

    Returns:
        The graph, and the tensor that holds the step's result after each replay.

    Raises:
        RuntimeError: The step cannot be recorded (it waits for the GPU, say), or memory does not suffice.
    """
    # Not the stream that everything else runs on, which cannot be recorded; libraries keep work space per stream.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), warnings.catch_warnings():
        # An optimizer says once that ``capturable`` costs time while nothing is recorded.
        warnings.filterwarnings("ignore", message=".*capturable")
        for _ in range(WARM_UP):
            step(*buffers)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        output = step(*buffers)
    return graph, output


def _replay(graph: torch.cuda.CUDAGraph, output: Tensor) -> Tensor:
    graph.replay()
    return output.clone()  # the next replay writes over it


class StepState:
    """A copy of what a training step changes: parameters, buffers and optimizers' tensors; gradients are made anew."""

    def __init__(self, modules: Sequence[nn.Module], optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers
        tensors = [value for module in modules for value in (*module.parameters(), *module.buffers())]
        tensors += _state_tensors(optimizers)
        self._saved = [(tensor, tensor.detach().clone()) for tensor in tensors]

    @torch.no_grad()
    def restore(self) -> None:
        """Writes the copy back in place, since a graph knows the addresses; optimizer state made since becomes zero."""
        known = {id(tensor) for tensor, _ in self._saved}
        for tensor, value in self._saved:
            tensor.copy_(value)
        for tensor in _state_tensors(self._optimizers):
            if id(tensor) not in known:
                tensor.zero_()


def _state_tensors(optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[Tensor]:
    for optimizer in optimizers:
        for entries in optimizer.state.values():
            yield from (value for value in entries.values() if isinstance(value, Tensor))


def fork_join(calls: Sequence[Callable[[], Tensor]], streams: Sequence[torch.cuda.Stream]) -> list[Tensor]:
    """Runs independent calls beside each other, each on a GPU stream of its own, and returns their results.

    A backward pass inside a call runs on that call's stream. The caller's stream waits for all of them.

    Args:
        calls: What to run. No call may change what another one reads.
        streams: One per call, the same ones every time; none (on a CPU) runs the calls one after another.
    """
    if not streams:
        return [call() for call in calls]
    here = torch.cuda.current_stream()
    results = []
    for call, stream in zip(calls, streams, strict=True):
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            results.append(call())
    for stream in streams:
        here.wait_stream(stream)
    return results


def make_streams(count: int, device: torch.device) -> list[torch.cuda.Stream]:
    """Streams for fork_join: ``count`` of them on a GPU, none on a CPU."""
    return [torch.cuda.Stream(device) for _ in range(count)] if device.type == "cuda" else []
