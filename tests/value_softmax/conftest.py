"""What the tests of the value-softmax model share."""

import numpy as np
import pytest

from src.value_softmax.model import value_softmax


@pytest.fixture(scope="session")
def draw_model():
    """A function from a generator, a loss and d to a random model of predictions with d entries."""

    def draw(rng, loss: str, d: int, normalisation: str = "Softmax", tied: bool = False):
        X = rng.normal(size=(d + 2, d)) / d if loss == "regression" else None
        target = rng.normal(size=d + 2 if loss == "regression" else d)
        if loss == "logistic":
            target /= np.linalg.norm(target)
        if loss == "cross-entropy":
            target = np.exp(target) / np.exp(target).sum()
        return value_softmax(loss, target, normalisation, X=X, tied=tied)

    return draw
