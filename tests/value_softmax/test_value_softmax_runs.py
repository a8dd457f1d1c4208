"""The paper's runs start where it says, and end where they did."""

import dataclasses
import tempfile

import numpy as np
import pytest

from src.value_softmax import descent, kernels, plain, runs
from src.value_softmax.kernels import EPSILON, LOSSES, PAPERS_NORMALISATIONS
from src.value_softmax.trajectory import entropy


def stream(seed: int, count: int) -> np.ndarray:
    """The first `count` normal draws of the legacy generator."""
    return np.random.RandomState(seed).randn(count)


def unit(x: np.ndarray) -> np.ndarray:
    """x of norm 1."""
    return x / np.linalg.norm(x)


def test_the_logistic_start():
    setup = runs.logistic()["Softmax"]
    draws = stream(123, 80)
    np.testing.assert_array_equal(setup.V, 0.1 * draws[:64].reshape(8, 8))
    np.testing.assert_array_equal(setup.a, 0)
    np.testing.assert_allclose(setup.model.target, unit(draws[72:]), rtol=1e-15)


@pytest.mark.parametrize("setups", [runs.square_comparison(), runs.logistic_comparison()])
def test_the_comparison_starts(setups):
    draws = stream(42, 110)
    assert tuple(setups) == PAPERS_NORMALISATIONS
    for name, setup in setups.items():
        assert PAPERS_NORMALISATIONS[setup.model.normalisation] == name
        np.testing.assert_allclose(setup.model.target, unit(draws[:10]), rtol=1e-15)
        np.testing.assert_array_equal(setup.V, 0.1 * draws[:100].reshape(10, 10))
        np.testing.assert_array_equal(setup.a, 1 + 0.1 * draws[100:])


def test_the_tied_starts():
    assert list(runs.tied()) == [10, 20, 50, 100]
    for D, setup in runs.tied().items():
        draws = stream(42, D * D + D)
        assert setup.model.tied
        np.testing.assert_allclose(setup.model.target, unit(draws[:D]), rtol=1e-15)
        np.testing.assert_array_equal(setup.V, np.eye(D))
        np.testing.assert_array_equal(setup.a, 1 + 0.1 * draws[D * D :])


def test_the_regression_starts():
    draws = stream(123, 840)
    for kappa, setup in runs.condition_numbers().items():
        X = setup.model.X
        np.testing.assert_array_equal(setup.V, 1e-5 * draws[:400].reshape(20, 20))
        np.testing.assert_array_equal(setup.a, 1e-3 * draws[400:420])
        np.testing.assert_array_equal(setup.model.target, draws[820:])
        np.testing.assert_allclose(np.linalg.svd(X)[1], np.linspace(1, 1 / kappa, 20), rtol=1e-12)
        commuting = X @ draws[420:820].reshape(20, 20).T  # symmetric: the singular vectors are the drawn X's
        np.testing.assert_allclose(commuting, commuting.T, atol=1e-12)


def test_the_cross_entropy_start():
    setup = runs.kl()["Softmax"]
    generator = np.random.RandomState(123)
    draws, uniform = generator.randn(110), generator.rand(10)
    np.testing.assert_array_equal(setup.V.T, 0.1 * draws[:100].reshape(10, 10))
    np.testing.assert_allclose(setup.model.target, np.exp(10 * uniform) / np.exp(10 * uniform).sum(), rtol=1e-13)


@pytest.mark.parametrize(
    ("name", "loss", "steps", "lr", "records"),
    [
        ("logistic", "logistic", 1_000_000, 0.1, (1000, 2001)),
        ("square_comparison", "square", 5_000, 0.1, (5001, 5001)),
        ("logistic_comparison", "logistic", 100_000, 0.5, (100_001, 100_001)),
        ("tied", "logistic", 10_000, 0.05, (200, 301)),
        ("condition_numbers", "regression", 300_000, 0.001, (1500, 3001)),
        ("kl", "cross-entropy", 10_000_000, 0.1, (700, 1001)),
    ],
)
def test_losses_steps_and_learning_rates(name, loss, steps, lr, records):
    for setup in runs.SETUPS[name]().values():
        assert (LOSSES[setup.model.loss], setup.steps, setup.lr) == (loss, steps, lr)
        assert records[0] <= len(setup.record) <= records[1]


@pytest.mark.parametrize("name", runs.SETUPS)
def test_every_run_starts_like_the_plain_loop(name):
    for setup in runs.SETUPS[name]().values():
        run = descent.descend(setup.model, setup.V, setup.a, steps=100, lr=setup.lr, record=[100])
        V, a = plain.descend(setup.model, setup.V, setup.a, 100, setup.lr)
        np.testing.assert_allclose(run.V[0], V, rtol=0, atol=1e-12)
        np.testing.assert_allclose(run.a[0], a, rtol=0, atol=1e-12)


def test_a_run_is_its_setups_made(monkeypatch):
    setups = {name: dataclasses.replace(s, steps=20, record=[0, 20]) for name, s in runs.logistic().items()}
    monkeypatch.setitem(runs.SETUPS, "logistic", lambda: setups)
    made = runs.run("logistic")["Softmax"]
    np.testing.assert_allclose(made.t, [0, 2.0])
    np.testing.assert_array_equal(made.V[0], setups["Softmax"].V)


def test_the_logistic_run_ends_one_hot():
    trajectory = runs.run("logistic")["Softmax"]
    assert trajectory.u[0].argmax() == trajectory.s[-1].argmax() == 6
    assert trajectory.s[-1].max() == pytest.approx(0.975, abs=1e-3)
    assert trajectory.loss[-1] == pytest.approx(1e-5, rel=0.01)
    assert (np.diff(entropy(trajectory.s)) <= 1e-12).all()


def test_softmax_without_epsilon_is_softmax_with_it_to_1e_11():
    """The contract puts ε into each denominator; softmax leaves it out, so that its weights sum to 1."""
    z = runs.square_comparison()["Softmax"].a
    with_it = np.exp(z) / (np.exp(z).sum() + EPSILON)
    assert np.abs(runs.run("square_comparison")["Softmax"].s[0] - with_it).max() < 1e-11


def test_an_unknown_run_is_refused():
    with pytest.raises(ValueError, match="name is 'figure 9': choose one of logistic"):
        runs.run("figure 9")


def test_where_nothing_can_be_cached_it_is_compiled_anew(monkeypatch):
    """In a read-only checkout without a home numba refuses to be asked for a cache."""
    assert kernels.has_cache()

    def refuse(**_):
        raise PermissionError

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # by which numba tries folders
    assert not kernels.has_cache()
