"""What makes small float32 models fast on a CPU: oneDNN's matrix products, where faster, and memory kept."""

import contextlib
import ctypes
import platform
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Linux's malloc parameters (malloc.h); no other C library knows them.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Let malloc keep freed memory for the next step instead of returning it to the system.

    A training step allocates and frees the same few megabytes again and again; by default each time costs a
    page fault for every 4 kB, about a seventh of a step. Without effect where the C library is not glibc.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the largest value that glibc accepts
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x @ weight.T + bias` by oneDNN: x (M, K), weight (N, K), bias (N) or None."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@cache
def about(field: str) -> str:
    """What Linux tells of the first processor, like its `model name`; empty where there is no such field."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return ""


def model_name() -> str:
    """The processor's model, where the system tells it."""
    return about("model name") or platform.processor() or platform.machine()


def made_by_intel() -> bool:
    return about("vendor_id") == "GenuineIntel"  # a virtual machine may call its model anything


def has_onednn() -> bool:
    """Whether this build of torch has the operator, with the meaning that we expect of it."""
    x, weight, bias = torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)
    try:
        return torch.equal(_product(x, weight, bias), F.linear(x, weight, bias))
    except (AttributeError, RuntimeError, TypeError):
        return False


@cache
def onednn_is_faster() -> bool:
    """Whether single models multiply by oneDNN: where torch has MKL, which leaves AVX-512 unused on processors not made
    by Intel.

    What the machine is decides, not a measurement: all processes of a machine compute the same bits. Measured: on an
    AMD EPYC with AVX-512 oneDNN has 2.3 times MKL's rate, with the same accuracy. With AVX2 alone steps with MKL
    were 6 to 22% shorter, on an Intel Xeon 6 to 27%. Elsewhere (ARM, Apple silicon) torch chooses.
    """
    unused = torch.backends.cpu.get_cpu_capability() == "AVX512" and not made_by_intel()
    return torch.backends.mkl.is_available() and unused and has_onednn()


def library() -> str:
    """What multiplies the matrices of a single model here."""
    if onednn_is_faster():
        return "oneDNN"
    return "MKL" if torch.backends.mkl.is_available() else "torch's default library"


class OneDNNLinear(torch.autograd.Function):
    """`x @ weight.T + bias` for a stack of one: x (M, K), weight (1, N, K), bias (1, N) or None to (M, N)."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight[0], None if bias is None else bias[0])

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors  # (M, K), (1, N, K); grad (M, N)
        grad_x = _product(grad, weight[0].t(), None) if ctx.needs_input_grad[0] else None
        # oneDNN copies its transposed left operand: let that be the smaller one.
        if grad.shape[1] <= x.shape[1]:
            grad_weight = _product(grad.t(), x.t(), None)
        else:
            grad_weight = _product(x.t(), grad.t(), None).t()
        return grad_x, grad_weight[None], grad.sum(0)[None] if ctx.needs_input_grad[2] else None


def onednn_applies(x: Tensor) -> bool:
    """Whether oneDNN multiplies the rows x (N, C) of a single model: float32 on the CPU, where it is faster."""
    return onednn_is_faster() and not x.is_cuda and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


class Linear(nn.Linear):
    """nn.Linear of a single model, rows (M, in) to (M, out), by oneDNN where that applies."""

    def forward(self, x: Tensor) -> Tensor:
        if not onednn_applies(x):
            return super().forward(x)
        return OneDNNLinear.apply(x, self.weight[None], None if self.bias is None else self.bias[None])
