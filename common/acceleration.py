"""What makes the same computation faster: number formats, compilation and memory that is kept."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.console import warn
from utils import InputError

# What a processor calls its instructions for bfloat16 products (x86 AVX-512 and AMX, and Arm's).
CPU_BF16 = ("avx512_bf16", "amx_bf16", "bf16")
TRIAL_CALLS = 3  # torch.compile's CUDA graphs warm up in the first call, record in the second and replay in the third


@dataclass(frozen=True)
class Precision:
    """The number format of an encoder's convolutions and matrix products.

    Weights, their updates, BatchNorm's statistics, augmentation, losses and scores are float32 under each of them.

    Attributes:
        name: ``fp32``; ``tf32``, float32 whose convolutions keep 10 bits of the factors' mantissas (GPUs); or ``bf16``,
            torch's autocast to bfloat16.
        device_type: ``cpu`` or ``cuda``.
    """

    name: str = "fp32"
    device_type: str = "cpu"

    @classmethod
    def resolve(cls, name: str, device: torch.device) -> Precision:
        """The precision of a flag's value; ``auto`` is bf16 where the device computes it natively, else fp32.

        Raises:
            InputError: The device lacks the format that was asked for.
        """
        if name == "auto":
            name = "bf16" if has_native_bf16(device) else "fp32"
        if name == "tf32" and device.type != "cuda":
            raise InputError("--precision tf32 is a format of GPUs; on the CPU choose auto, fp32 or bf16")
        if name == "bf16" and device.type == "cuda" and not has_native_bf16(device):
            raise InputError("--precision bf16: this GPU has no bfloat16 (Ampere was the first); choose tf32 or fp32")
        return cls(name, device.type)

    def apply_to_products(self) -> None:
        """Makes float32 products on GPUs what the name says: torch's default would run convolutions in TF32.

        Matrix products stay exact: beside the encoder's small heads they are NT-Xent's and the scores'.
        """
        if self.device_type == "cuda":
            torch.set_float32_matmul_precision("highest")
            torch.backends.cudnn.allow_tf32 = self.name != "fp32"

    def encode(self, encoder: nn.Module, images: Tensor) -> Any:
        """The encoder's output (a named tuple of tensors) for images, computed in this format, as float32."""
        if self.name != "bf16":
            return encoder(images)
        with torch.autocast(self.device_type, dtype=torch.bfloat16):
            output = encoder(images)
        return type(output)(*(part.float() for part in output))


FP32 = Precision()


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware; elsewhere it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in CPU_BF16)


def wants_compilation(choice: str, device: torch.device, *, processes: int, deterministic: bool = False) -> bool:
    """Whether ``--compile`` asks for compilation here; ``auto`` does on a GPU, where small batches are launch-bound.

    Raises:
        InputError: ``on`` with several processes, or on a GPU with ``--deterministic``.
    """
    if choice == "on" and processes > 1:
        raise InputError("--compile on works in one process; with several, leave it at auto (which is off there)")
    if choice == "on" and deterministic and device.type == "cuda":
        raise InputError(
            "--compile on picks kernels by speed, and --deterministic wants the same ones: give one of them"
        )
    automatic = device.type == "cuda" and processes == 1 and not deterministic
    return choice == "on" or (choice == "auto" and automatic)


def compile_step(
    step: Callable[..., tuple[Tensor, Any]],
    example: tuple[Any, ...],
    *,
    parameters: Iterable[nn.Parameter],
    buffers: Iterable[Tensor],
    device: torch.device,
) -> Callable[..., tuple[Tensor, Any]]:
    """Compiles a training step's forward and backward pass; on a GPU they are replayed as CUDA graphs.

    Torch compiles at the first calls, so these are made here, on the example, and leave no trace. Whatever goes wrong
    in them (no C++ compiler, say) is said in one warning, and the step is returned as it is.

    Args:
        step: Returns the loss, a scalar, and what else is to be known.
        example: Arguments as they will come; another shape later is compiled when it comes.
        parameters: What the loss is differentiated for; their gradients are None afterwards.
        buffers: What the step changes in place (BatchNorm's statistics); they are put back.
        device: Where the step runs.
    """
    graphs = device.type == "cuda"
    compiled = torch.compile(step, mode="reduce-overhead" if graphs else "default", dynamic=False)

    def run(*arguments: Any) -> tuple[Tensor, Any]:
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()
        return compiled(*arguments)

    parameters, buffers = list(parameters), list(buffers)
    kept = [buffer.clone() for buffer in buffers]
    failure = None
    try:
        for _ in range(TRIAL_CALLS if graphs else 1):
            run(*example)[0].backward()
            _forget_gradients(parameters)
    except Exception as error:  # compilers raise nearly anything
        failure = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    _forget_gradients(parameters)
    with torch.no_grad():
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)
    if failure is None:
        return run
    torch.compiler.reset()
    warn(f"torch.compile failed ({failure}); training goes on without it, with the same result")
    return step


def _forget_gradients(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def keep_freed_memory() -> None:
    """Has the C library keep freed memory for the next allocation instead of handing it back to the system (Linux).

    A training step on a CPU frees and allocates gigabytes of activations. Handed back, each comes again as fresh pages
    that the system must clear: up to a quarter of a step's time. What is kept is at most the step's own peak.
    """
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # names and numbers of malloc.h
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library, or another system
        library = ctypes.CDLL(None)
        for parameter, value in ((m_mmap_max, 0), (m_trim_threshold, 2**31 - 1), (m_top_pad, 2**28)):
            library.mallopt(parameter, value)
