"""Losses and gradients on a GPU as one CUDA graph: launched at once instead of kernel by kernel."""

import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Gradients = Callable[[Tensor, Tensor], Tensor]  # inputs and targets to losses; leaves gradients in the parameters

WARM_UP = 2  # batches before the capture, in which libraries set themselves up
TOLERANCE = 1e-3  # relative, between a graph and what it records: they round differently


class CapturedGradients:
    """Losses and gradients of a batch, recorded once and then replayed.

    A step of a small model is about a thousand short kernels, which Python launches more slowly than a GPU runs them;
    a graph launches them all. It reads the parameters where they are and carries nothing from one batch to the next.
    So it is compared with the function that it records, on a batch that it was not recorded on. Where it differs or
    cannot be recorded, which is said, the function goes on in its place, as it does for the first batches, and for
    those of another size, as an epoch's last may be.
    """

    def __init__(self, gradients: Gradients, parameters: Iterable[Tensor]):
        self.gradients, self.parameters = gradients, list(parameters)
        self.stream = torch.cuda.Stream()  # of the capture; autograd is to meet the parameters there first
        self.batches, self.usable = 0, True
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        if self.batches == 0:
            self.inputs, self.targets = inputs.clone(), targets.clone()  # what the graph reads
        if not self.usable or inputs.shape != self.inputs.shape:
            return self.gradients(inputs, targets)
        self.batches += 1
        if self.batches <= WARM_UP:
            return self._aside(inputs, targets)
        if self.graph is None:
            self._capture(inputs, targets)
        return self._replay(inputs, targets) if self.usable else self.gradients(inputs, targets)

    def _aside(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The function on the stream of the capture, in order with the current one."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            losses = self.gradients(inputs, targets)
        torch.cuda.current_stream().wait_stream(self.stream)
        return losses

    def _capture(self, inputs: Tensor, targets: Tensor) -> None:
        """Record the function on the first batch, and compare the two on this one."""
        self.graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self.graph, stream=self.stream):
                self.losses = self.gradients(self.inputs, self.targets)
            self.recorded = [parameter.grad for parameter in self.parameters]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._give_up(f"cannot be recorded ({str(error).partition(chr(10))[0]})")
            return
        wanted = [self._aside(inputs, targets), *(p.grad for p in self.parameters)]
        found = [self._replay(inputs, targets), *(p.grad for p in self.parameters)]
        apart = difference(wanted, found)
        if not apart <= TOLERANCE:
            self._give_up(f"differs from them by {apart:.1e}")

    def _replay(self, inputs: Tensor, targets: Tensor) -> Tensor:
        self.inputs.copy_(inputs)
        self.targets.copy_(targets)
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.recorded, strict=True):
            parameter.grad = gradient
        return self.losses.clone()  # the next replay writes over them

    def _give_up(self, why: str) -> None:
        warnings.warn(f"training goes on step by step: a CUDA graph of the steps {why}", stacklevel=2)
        self.usable, self.graph, self.losses, self.recorded = False, None, None, []


def difference(wanted: list[Tensor | None], found: list[Tensor | None]) -> float:
    """How far losses and the gradients after them (None: of a parameter that has none) are from those wanted, relative
    to their norms, at most. A gradient that is rounding alone, as of the keys' bias under softmax, is held against a
    hundredth of the largest. What is not finite in those wanted, as of a member that has diverged, is left out."""
    if [x is None for x in wanted] != [x is None for x in found]:
        return float("inf")
    pairs = [(a, b) for a, b in zip(wanted, found, strict=True) if a is not None]
    finite = [(torch.where(a.isfinite(), a, 0), torch.where(a.isfinite(), b, 0)) for a, b in pairs]
    errors = torch.stack([(a - b).norm() for a, b in finite])
    sizes = torch.stack([a.norm() for a, _ in finite])
    sizes[1:] = torch.maximum(sizes[1:], 1e-2 * sizes[1:].max())
    return (errors / (sizes + torch.finfo(sizes.dtype).tiny)).nan_to_num(torch.inf).max().item()
