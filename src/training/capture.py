"""Training steps on a GPU as one CUDA graph: launched at once instead of kernel by kernel."""

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], Tensor]  # inputs and targets to losses

WARM_UP = 2  # steps before the capture, in which libraries and optimisers set themselves up


class CapturedStep:
    """A training step that is recorded once and then replayed.

    A step of a small model is about a thousand short kernels, which Python launches more slowly than a GPU runs them.
    A graph launches them all. The first steps, and those of batches of another size than the first, as an
    epoch's last may be, are run as they are. The step must do the same whatever the numbers are: what Python decides
    in it is decided once, and the host may not wait for the GPU.
    """

    def __init__(self, step: Step):
        self.step, self.steps_taken = step, 0
        self.stream = torch.cuda.Stream()  # the capture's; gradients are to be of the stream of the first steps
        self.graph: torch.cuda.CUDAGraph | None = None
        self.shape: torch.Size | None = None

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        self.shape = self.shape or inputs.shape
        if inputs.shape != self.shape:
            return self.step(inputs, targets)
        if self.steps_taken < WARM_UP:
            self.steps_taken += 1
            return self._aside(inputs, targets)
        if self.graph is None:
            self._capture(inputs, targets)
        self.inputs.copy_(inputs)
        self.targets.copy_(targets)
        self.graph.replay()
        return self.losses.clone()  # the next replay writes over them

    def _aside(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The step on the stream of the capture, in order with the current one."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            losses = self.step(inputs, targets)
        torch.cuda.current_stream().wait_stream(self.stream)
        return losses

    def _capture(self, inputs: Tensor, targets: Tensor) -> None:
        """Record the step, which does not run it."""
        self.inputs, self.targets = inputs.clone(), targets.clone()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.losses = self.step(self.inputs, self.targets)
