"""What tasks share: drawing sequences."""

import torch
from torch import Generator, Tensor


def sample_distinct(num_rows: int, num_items: int, size: int, generator: Generator) -> Tensor:
    """For each row `size` of the numbers 0 … num_items − 1, distinct, uniform, in random order: (rows, size).

    A Fisher-Yates shuffle of all rows at once, stopped after `size` places.
    """
    items = torch.arange(num_items).repeat(num_rows, 1)
    for i in range(size):
        j = torch.randint(i, num_items, (num_rows, 1), generator=generator)
        chosen = items.gather(1, j)
        items.scatter_(1, j, items[:, i : i + 1])
        items[:, i] = chosen[:, 0]
    return items[:, :size]
