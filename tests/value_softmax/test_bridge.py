"""The bridge: the state is the transformer's own, the rungs start as one, and what is committed can be drawn."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from src.analysis.figures import save
from src.config import RunConfig
from src.value_softmax import bridge
from src.value_softmax.beyond import figures


def configs(optimizer="adamw", lr=1e-3, seeds=2):
    """A small stack of the bridge's setting."""
    small = bridge.SETTING | {"embed_dim": 16, "optimizer": optimizer, "lr": lr}
    return [RunConfig(**small, seed=seed) for seed in range(seeds)]


def test_the_state_gives_the_transformers_own_logits_and_weights():
    members = configs()
    stack, rows = bridge.started(members), bridge.rows_of(members[0])
    state = bridge.state_of(stack)
    logits, weights = stack(rows.expand(2, -1, -1), slice(-1, None))
    torch.testing.assert_close(state.logits(rows), logits[:, :, -1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(state.weights(rows), weights[0][:, :, 0, -1], atol=1e-6, rtol=1e-4)
    labels = torch.arange(4).expand(2, -1).flatten()
    losses = torch.nn.functional.cross_entropy(logits[:, :, -1].flatten(0, 1), labels, reduction="none")
    torch.testing.assert_close(state.loss(rows), losses.view(2, 4).mean(1), atol=1e-5, rtol=1e-4)


def test_u_is_what_moves_the_scores():
    """-∂L_l/∂a_i = γ s_i (u_i - ū) for each row, γ = 1 - p_l."""
    members = configs()
    rows = bridge.rows_of(members[0])
    start = bridge.state_of(bridge.started(members))
    a = start.a.detach().requires_grad_()
    state = bridge.State(a, start.V.detach(), start.o.detach())
    p = state.logits(rows).softmax(-1)
    s, u = state.weights(rows).detach(), state.u(rows).detach()
    for label in range(4):
        (gradient,) = torch.autograd.grad(p[:, label, label].log().sum(), a, retain_graph=True)
        gamma = 1 - p[:, label, label].detach()[:, None]
        expected = gamma * s[:, label] * (u[:, label] - (s * u)[:, label].sum(-1, keepdim=True))
        torch.testing.assert_close(gradient[:, rows[label]], expected, atol=1e-6, rtol=1e-4)


def test_from_zero_all_scores_are_zero():
    assert (bridge.state_of(bridge.started(configs(), from_zero=True)).a == 0).all()


@pytest.mark.parametrize(("optimizer", "lr"), [("adamw", 1e-5), ("sgd", 1e-3), ("sign", 1e-5), ("momentum", 1e-3)])
def test_the_first_step_of_scores_and_of_values_lowers_the_loss_alike_on_all_rungs(optimizer, lr):
    members = configs(optimizer, lr)
    rows, stack = bridge.rows_of(members[0]), bridge.started(members)
    linear = bridge.Linearised(bridge.started(members))
    with torch.no_grad():
        start = bridge.state_of(stack)
    model = bridge.Model(start, *bridge.speeds(members))
    leaves = bridge.State(*(x.clone().requires_grad_() for x in (start.a, start.V, start.o)))
    leaves.loss(rows).sum().backward()
    falls = []
    for module, state in ((stack, lambda: bridge.state_of(stack)), (linear, linear.state), (model, model.state)):
        bridge.descended(module, state, members, 1)
        with torch.no_grad():
            now = state()
        parts = ((leaves.a.grad, now.a - start.a), (leaves.V.grad, now.V - start.V))
        falls.append(torch.stack([-(g * moved).flatten(1).sum(1) for g, moved in parts]))
    assert (falls[0] > 0).all()
    torch.testing.assert_close(falls[1], falls[0], rtol=0.05, atol=1e-7)
    torch.testing.assert_close(falls[2], falls[0], rtol=0.05, atol=1e-7)


def test_what_is_followed_is_written_and_read(tmp_path, monkeypatch):
    monkeypatch.setattr(bridge, "SEEDS", range(2))
    monkeypatch.setattr(bridge, "TUNING_SEEDS", range(100, 101))
    monkeypatch.setattr(bridge, "STEPS", 4)
    monkeypatch.setattr(bridge, "SETTING", bridge.SETTING | {"embed_dim": 8})
    monkeypatch.setattr(bridge, "OPTIMIZERS", {"SGD": {"optimizer": "sgd"}, "sign": {"optimizer": "sign", "lr": 1e-3}})
    bridge.measure(tmp_path / "bridge.npz")
    followed = bridge.load(tmp_path / "bridge.npz")
    assert set(followed) == {(name, start) for name in ("SGD", "sign") for start in bridge.STARTS}
    run = followed["SGD", "from zero scores"]
    assert run["u"].shape == (2, 4, 11)
    assert run["lr"] in bridge.RATES["sgd"]
    assert run["transformer/entropy"].shape == (len(run["steps"]), 2, 4)
    np.testing.assert_allclose(run["transformer/entropy"][0], 1, atol=1e-6)
    assert list(tmp_path.iterdir()) == [tmp_path / "bridge.npz"]


def test_bos_is_followed_in_induction():
    small = {
        "embed_dim": 16,
        "num_train": 16,
        "batch_size": 8,
        "num_epochs": 1,
        "num_eval": 4,
        "positional_type": "add",
    }
    followed = bridge.follow_bos([RunConfig(task="induction", seed=seed, **small) for seed in range(2)], sequences=4)
    assert followed["share"].shape == followed["largest"].shape == (2, 2, 4)  # steps, seeds, heads
    assert (np.abs(followed["share"] - 0.2) < 0.1).all()  # nearly uniform: the mean of 1/2 … 1/10 is 0.21


def test_the_largest_key_is_relative_to_what_rows_see():
    """Uniform causal weights favour BOS in the mean, and yet it is not larger than what stands beside it."""

    def uniform(bonus):
        seen = torch.ones(12, 12).tril()
        seen[:, 0] += bonus
        return lambda _: (None, [None, (seen / seen.sum(1, keepdim=True)).expand(3, 2, -1, -1)])

    for bonus, largest in ((-0.2, False), (0.2, True)):
        recorder = bridge.BosRecorder(torch.zeros(3, 12))
        recorder.on_step(1, torch.zeros(()), uniform(bonus))
        assert recorder.largest[0].tolist() == [largest, largest]


def test_the_committed_measurement_is_drawn(tmp_path):
    followed = {name: run for (name, start), run in bridge.load().items() if start == "as initialised"}
    assert set(followed) == set(bridge.OPTIMIZERS)
    figure = figures.bridge(followed)
    assert all(path.stat().st_size > 3000 for path in save(figure, "bridge", tmp_path))
    shares = [bridge.won_by(run, "transformer", run["u"].argmax(-1)).mean() for run in followed.values()]
    assert f"{np.mean(shares):.0%}" in figure.get_suptitle()
    plt.close("all")
