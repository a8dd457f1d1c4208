"""What is measured of every task's model at the end: where attention goes to, and whether doing nothing needs it."""

import torch
from torch import Tensor

from src import metrics
from src.model.transformer import EVERYWHERE, Shown, Transformer
from src.tasks import Task


def measures(model: Transformer, task: Task, inputs: Tensor) -> list[dict[str, float]]:
    """For each member, of evaluation inputs (S, B, T, ...).

    By layer and head, `{layer}_{head}_…`: sink_place, sink_share, row_sum, value_drain, and gate where there is one; by
    layer, `{layer}_…`: residual_peak, residual_max_median, residual_kurtosis.
    """
    shown: list[Shown] = []
    _, weights = model(inputs, EVERYWHERE, shown)
    counted = task.counted(inputs)

    def of_heads(layer: tuple[Tensor, Shown]) -> dict[str, Tensor]:
        own, block = layer
        results = metrics.sink_place(own, counted)
        results["value_drain"] = metrics.value_drain(block.values, task.anchor)
        if block.gates is not None:
            results["gate"] = metrics.average(block.gates, counted)
        return results

    heads = metrics.collect(of_heads, list(zip(weights, shown, strict=True)))
    peaks = [metrics.residual_peaks(block.states, task.anchor) for block in shown]
    names = [f"{layer}_{name}" for layer, peak in enumerate(peaks) for name in peak]
    values = torch.stack([value for peak in peaks for value in peak.values()], dim=1)
    layers = [dict(zip(names, row, strict=True)) for row in values.tolist()]
    return [one | other for one, other in zip(heads, layers, strict=True)]
