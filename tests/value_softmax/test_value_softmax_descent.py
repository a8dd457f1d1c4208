"""Compiled descent: the plain loop's iterates, the records, interruption and divergence."""

import signal
import threading

import numpy as np
import pytest
import torch

from src.value_softmax import descent, plain
from src.value_softmax.descent import Diverged, descend, log_spaced, rule
from src.value_softmax.kernels import LOSSES, NORMALISATIONS, PAPERS_NORMALISATIONS, TABLE
from src.value_softmax.model import gradients, loss, value_softmax


@pytest.fixture
def start(draw_model):
    """A logistic model and a start: model, V (4, 6), a (6)."""
    rng = np.random.default_rng(1)
    return draw_model(rng, "logistic", 4), 0.1 * rng.normal(size=(4, 6)), np.zeros(6)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_the_steps_are_the_plain_loops(draw_model, name, normalisation, tied):
    rng = np.random.default_rng(7)
    steps = 1000 if normalisation in PAPERS_NORMALISATIONS and name != "linear" else 200  # tied, linear: e^t
    model = draw_model(rng, name, 6, normalisation, tied)
    V = np.eye(6) + 0.1 * rng.normal(size=(6, 6))
    a = 1 + 0.1 * rng.normal(size=6 + TABLE[normalisation].parameters)
    run = descend(model, V, a, steps=steps, lr=0.02, record=[steps])
    plain_V, plain_a = plain.descend(model, V, a, steps, 0.02)
    moved_V, moved_a = plain.descend(model, V * (1 + 1e-15), a, steps, 0.02)
    rounding = max(np.abs(moved_V - plain_V).max(), np.abs(moved_a - plain_a).max())
    assert np.abs(plain_V - V).max() > 1e-2  # it went somewhere
    # Sum can pass near its pole, where the plain loop itself turns 1e-15 into 1e-5 (square loss, tied).
    np.testing.assert_allclose(run.V[0], plain_V, rtol=1e-12, atol=1e-12 + 30 * rounding)
    np.testing.assert_allclose(run.a[0], plain_a, rtol=1e-12, atol=1e-12 + 30 * rounding)


class SignDescent(torch.optim.Optimizer):
    """PyTorch has none: x -= lr (sign(g) + λ x)."""

    def __init__(self, params, lr, weight_decay):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for x in group["params"]:
                x.sub_(group["lr"] * (x.grad.sign() + group["weight_decay"] * x))


OPTIMIZERS = {
    "sgd": (rule("sgd", decay=0.1), lambda x, lr: torch.optim.SGD(x, lr, weight_decay=0.1)),
    "momentum": (rule("momentum", momentum=0.8), lambda x, lr: torch.optim.SGD(x, lr, momentum=0.8)),
    "sign": (rule("sign", decay=0.1), lambda x, lr: SignDescent(x, lr, 0.1)),
    "adam": (rule("adam"), lambda x, lr: torch.optim.Adam(x, lr)),
    "adam, other constants": (
        rule("adam", betas=(0.5, 0.95), eps=1e-3),
        lambda x, lr: torch.optim.Adam(x, lr, (0.5, 0.95), 1e-3),
    ),
    "adamw": (rule("adamw"), lambda x, lr: torch.optim.AdamW(x, lr)),
    "adamw, other decay": (rule("adamw", decay=0.3), lambda x, lr: torch.optim.AdamW(x, lr, weight_decay=0.3)),
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("loss", "normalisation"), [("logistic", "Softmax"), ("cross-entropy", "softmax_sink")])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_thousand_steps_are_torch_optims(draw_model, name, loss, normalisation, tied):
    rng = np.random.default_rng(7)
    model = draw_model(rng, loss, 4, normalisation, tied)
    V, a = 0.1 * rng.normal(size=(4, 4)), 0.1 * rng.normal(size=4 + TABLE[normalisation].parameters)
    ours, theirs = OPTIMIZERS[name]
    run = descend(model, V, a, steps=1000, lr=1e-3, record=[1000], optimizer=ours)
    x = [torch.tensor(V, requires_grad=True), torch.tensor(a, requires_grad=True)]
    optimizer = theirs(x, 1e-3)
    for _ in range(1000):
        for parameter, gradient in zip(x, plain.gradients(model, *(p.detach().numpy() for p in x)), strict=True):
            parameter.grad = torch.tensor(gradient)
        optimizer.step()
    assert np.abs(run.V[0] - V).max() > 1e-2
    np.testing.assert_allclose(run.V[0], x[0].detach(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(run.a[0], x[1].detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["sgd", "momentum", "sign", "adam", "adamw"])
def test_every_optimizer_lowers_the_loss_of_rows_of_scores(start, name):
    model, V, _ = start
    run = descend(model, V, np.zeros((3, 6)), steps=300, lr=1e-2, optimizer=name)
    assert run.loss[-1] < run.loss[0] - 1e-2
    np.testing.assert_array_equal(run.a[:, 0], run.a[:, 2])  # equal rows stay equal


def test_adam_without_eps_leaves_what_has_no_gradient():
    """A ReLU weight that is 0 has none; 0/0 would be nan."""
    model = value_softmax("logistic", [1.0], "ReLU")
    run = descend(model, [[0.1, 0.2]], [1.0, -1.0], steps=100, lr=1e-2, optimizer=rule("adam", eps=0.0))
    np.testing.assert_array_equal(run.a[:, 1], -1)
    np.testing.assert_array_equal(run.V[:, 0, 1], 0.2)
    assert (np.diff(run.V[:, 0, 0]) > 0).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rule("adagrad"), "optimizer is 'adagrad': choose one of sgd"),
        (lambda: rule("adam", betas=(1.0, 0.9)), r"betas\[0\] is 1.0: it must be a number in \[0, 1\)"),
        (lambda: rule("adam", betas=(0.9, -0.1)), r"betas\[1\] is -0.1"),
        (lambda: rule("adam", betas=0.9), "betas is 0.9: give two numbers"),
        (lambda: rule("adam", eps=-1e-8), "eps is -1e-08"),
        (lambda: rule("adam", eps=np.nan), "eps is nan"),
        (lambda: rule("adamw", decay=-0.1), "decay is -0.1"),
        (lambda: rule("adam", decay=0.1), "decay is 0.1: Adam has none here, choose adamw"),
        (lambda: rule("momentum", momentum=1), "momentum is 1"),
        (lambda: rule("sgd", decay=np.inf), "decay is inf"),
    ],
)
def test_a_wrong_rule_is_refused_in_one_sentence(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_one_step_by_hand():
    model = value_softmax("square", [1.0])
    run = descend(model, [[0.0, 2.0]], [0.0, 0.0], steps=1, lr=0.5, record=[0, 1])
    # s = (1/2, 1/2), β̂ = 1 = β: nothing moves
    np.testing.assert_array_equal(run.V[1], run.V[0])
    run = descend(model, [[0.0, 4.0]], [0.0, 0.0], steps=1, lr=0.5, record=[1])
    # g = 1; ∂L/∂V = (1/2, 1/2); ∂L/∂a = s ∘ (Vᵀg - ⟨s, Vᵀg⟩) = (-1, 1)
    np.testing.assert_allclose(run.V[0], [[-0.25, 3.75]])
    np.testing.assert_allclose(run.a[0], [0.5, -0.5])


def test_equal_rows_of_scores_move_together_as_one_does(start):
    """The mean loss of T equal rows is that of one: V moves as for one, each row T times slower."""
    model, V, a = start
    dV, da = gradients(model, V, a)
    rows_dV, rows_dA = gradients(model, V, np.tile(a, (5, 1)))
    np.testing.assert_allclose(rows_dV, dV, rtol=1e-13)
    np.testing.assert_allclose(rows_dA, np.tile(da / 5, (5, 1)), rtol=1e-13)


def test_records_are_states_of_one_run(start):
    model, V, a = start
    every = descend(model, V, a, steps=50, lr=0.1, record=range(51))
    some = descend(model, V, a, steps=50, lr=0.1, record=[0, 7, 50])
    np.testing.assert_array_equal(every.V[0], V)
    np.testing.assert_array_equal(some.V, every.V[[0, 7, 50]])
    np.testing.assert_array_equal(some.a, every.a[[0, 7, 50]])
    np.testing.assert_array_equal(some.steps, [0, 7, 50])
    np.testing.assert_allclose(some.t, [0, 0.7, 5])
    np.testing.assert_allclose(every.loss[7], loss(model, every.beta_hat[7]), rtol=1e-14)
    assert (np.diff(every.loss) < 0).all()


def test_slices_change_nothing(start, monkeypatch):
    model, V, a = start
    whole = descend(model, V, a, steps=100, lr=0.1)
    monkeypatch.setattr(descent, "SLICE", 7 * V.size)
    np.testing.assert_array_equal(descend(model, V, a, steps=100, lr=0.1).V, whole.V)


def test_rows_keep_their_shape(start):
    model, V, _ = start
    run = descend(model, V, np.zeros((3, 6)), steps=5, lr=0.1, record=[0, 5])
    assert run.a.shape == run.s.shape == (2, 3, 6)
    assert run.beta_hat.shape == (2, 3, 4)
    assert run.gamma.shape == (2, 3)


def test_the_start_is_left_alone(start):
    model, V, a = start
    before = V.copy()
    descend(model, V, a, steps=5, lr=0.1)
    np.testing.assert_array_equal(V, before)


def test_log_spaced_steps_are_increasing_and_hold_both_ends():
    steps = log_spaced(1_000_000, 2000)
    assert steps[0] == 0
    assert steps[-1] == 1_000_000
    assert (np.diff(steps) > 0).all()
    assert 1000 < len(steps) <= 2001  # the first steps are fewer than asked for
    np.testing.assert_array_equal(log_spaced(1, 5), [0, 1])


def test_divergence_stops_with_the_record_so_far():
    model = value_softmax("square", [1.0, 0.0])
    with pytest.raises(Diverged, match="not finite: lower the learning rate from 50") as caught:
        descend(model, np.eye(2), [0.1, 0.0], steps=10_000, lr=50, record=range(10_001))
    record = caught.value.trajectory
    assert 3 < len(record.t) < 10_000
    assert np.isfinite(record.V).all()
    np.testing.assert_array_equal(record.steps, np.arange(len(record.t)))


@pytest.mark.parametrize("steps", [1, 2])
def test_a_state_that_overflows_is_not_recorded(steps):
    """V goes from 100 to -inf by a gradient that is finite, in the last step or before it."""
    with pytest.raises(Diverged, match="after step 1 is not finite") as caught:
        descend(value_softmax("square", [0.0]), [[100.0]], [0.0], steps=steps, lr=1e308, record=range(steps + 1))
    np.testing.assert_array_equal(caught.value.trajectory.V, [[[100.0]]])


def test_the_bar_counts_every_step(start, monkeypatch):
    class Bar(descent.tqdm):
        def close(self):
            closed.append((self.n, self.total))
            super().close()

    closed = []
    monkeypatch.setattr(descent, "tqdm", Bar)
    monkeypatch.setattr(descent, "SLICE", 24 * 30)
    model, V, a = start
    descend(model, V, a, steps=100, lr=0.1)
    assert closed[0] == (100, 100)


def test_ctrl_c_stops_a_long_run(start):
    model, V, a = start
    descend(model, V, a, steps=1, lr=0.1)  # compiled before the clock starts
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        descend(model, V, a, steps=10**12, lr=1e-9, record=[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"steps": True}, "steps is True"),
        ({"lr": 0}, "lr is 0"),
        ({"lr": -1}, "lr is -1"),
        ({"lr": np.nan}, "lr is nan"),
        ({"lr": "fast"}, "lr is 'fast'"),
        ({"record": [0, 11]}, "record ends at step 11: the run has only 10"),
        ({"record": [-1, 5]}, "record starts at -1"),
        ({"record": [5, 5]}, "does not increase"),
        ({"record": [0.5]}, "fraction"),
        ({"record": []}, "record has shape"),
        ({"V": np.full((4, 6), np.inf)}, "V is inf at"),
        ({"V": np.zeros((3, 6))}, "V has shape"),
        ({"a": np.zeros(5)}, "V has shape"),
        ({"a": np.zeros((2, 2, 6))}, "a has shape"),
        ({"a": 1.0}, "a has shape"),
    ],
)
def test_wrong_input_is_refused_before_any_work(start, monkeypatch, change, words):
    monkeypatch.setattr(descent.kernels, "descend", lambda *_: pytest.fail("work began"))
    model, V, a = start
    arguments = {"V": V, "a": a, "steps": 10, "lr": 0.1} | change
    with pytest.raises(ValueError, match=words):
        descend(model, **arguments)


def test_log_spaced_refuses_no_records():
    with pytest.raises(ValueError, match="records is 0"):
        log_spaced(10, 0)
