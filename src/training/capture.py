"""Losses and gradients on a GPU as one CUDA graph: launched at once instead of kernel by kernel."""

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

Gradients = Callable[[Tensor, Tensor], Tensor]  # inputs and targets to losses; leaves gradients in the parameters

WARM_UP = 2  # batches before the recording, in which libraries set themselves up
COMPARED = 2  # batches on which a graph is compared with what it records: a step lies between them


@functools.cache
def recording_stream() -> torch.cuda.Stream:
    """The process's one stream for recordings: torch keeps working memory for each that there ever was."""
    return torch.cuda.Stream()


class CapturedGradients:
    """Losses and gradients of a batch, recorded once and then replayed.

    A step of a small model is about a thousand short kernels, which Python launches more slowly than a GPU runs them;
    a graph launches them all. It reads the parameters where they are and carries nothing from one batch to the next.
    So it is compared with the function that it records, on the batches after the one that it was recorded on. Where it
    differs by more than the tolerance or cannot be recorded, which is said, the function goes on in its place, as it
    does for the first batches, and for those of another size, as an epoch's last may be.
    """

    def __init__(self, gradients: Gradients, parameters: Iterable[Tensor], tolerance: float):
        self.gradients, self.parameters, self.tolerance = gradients, list(parameters), tolerance
        self.batches, self.compared, self.usable = 0, 0, True
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
            self._record()
        if self.usable and self.compared < COMPARED:
            self._compare(inputs, targets)
        return self._replay(inputs, targets) if self.usable else self.gradients(inputs, targets)

    def _aside(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The function on the stream of the recording, where autograd is to meet the parameters, in order with the
        current one."""
        stream = recording_stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            losses = self.gradients(inputs, targets)
        torch.cuda.current_stream().wait_stream(stream)
        return losses

    def _record(self) -> None:
        """Record the function on the first batch, which does not run it."""
        self.graph = torch.cuda.CUDAGraph()
        here = torch.cuda.stream(torch.cuda.current_stream())  # where a recording that fails would not return to
        try:
            with here, torch.cuda.graph(self.graph, stream=recording_stream()):
                self.losses = self.gradients(self.inputs, self.targets)
            self.recorded = [parameter.grad for parameter in self.parameters]
        except RuntimeError as last:
            errors = [error for error in (last.__context__, last) if error]  # that of the end may hide the first
            for error in errors:
                if isinstance(error, torch.OutOfMemoryError):  # it is for the stack to be cut
                    raise error from None
            self._give_up(f"cannot be recorded ({str(errors[0]).partition(chr(10))[0]})")

    def _compare(self, inputs: Tensor, targets: Tensor) -> None:
        wanted = [self._aside(inputs, targets), *(parameter.grad for parameter in self.parameters)]
        found = [self._replay(inputs, targets), *(parameter.grad for parameter in self.parameters)]
        apart = difference(wanted, found)
        self.compared += 1
        if not apart <= self.tolerance:
            self._give_up(f"differs from them by {apart:.1e}")
        del wanted, found
        torch.cuda.empty_cache()  # of what the function took beside the graph

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


def difference(wanted: Sequence[Tensor | None], found: Sequence[Tensor | None]) -> float:
    """How far the losses (S,) and gradients (S, ...) of any member are from those wanted, at most, relative to their
    norms; None is the gradient of a parameter without. One that is rounding alone, as of the keys' bias under softmax,
    is held against a hundredth of the member's largest. What is not finite in those wanted, as of a run that has
    diverged, is left out."""
    if [x is None for x in wanted] != [x is None for x in found]:
        return float("inf")
    errors, sizes = [], []
    for a, b in zip(wanted, found, strict=True):
        if a is not None:
            finite = a.isfinite()
            a, b = (torch.where(finite, x, 0).reshape(len(x), -1).double() for x in (a, b))
            errors.append((a - b).norm(dim=1))
            sizes.append(a.norm(dim=1))
    errors, sizes = torch.stack(errors), torch.stack(sizes)  # (losses and gradients, S)
    sizes[1:] = torch.maximum(sizes[1:], 1e-2 * sizes[1:].amax(0))
    return (errors / (sizes + torch.finfo(sizes.dtype).tiny)).nan_to_num(torch.inf).max().item()
