"""The tiny reference models: the architecture with random weights, run by its original implementation."""

from pathlib import Path

import numpy as np
import pytest

from src.pretrained.cache import open_cache
from src.pretrained.checkpoint import open_checkpoint

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session", params=["softmax", "sigmoid"])
def model(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def checkpoint(model):
    return open_checkpoint(str(DATA / model / "step_00250000"), model)


@pytest.fixture(scope="session")
def cache(checkpoint, tmp_path_factory):
    return open_cache(checkpoint, tmp_path_factory.mktemp("cache"), "float32")


@pytest.fixture(scope="session")
def reference(model) -> dict[str, np.ndarray]:
    with np.load(DATA / model / "reference.npz") as arrays:
        return dict(arrays)
