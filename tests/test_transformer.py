import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny

from benchmarks import plain
from src.attention import ATTENTION
from src.cpu import ONEDNN, Linear
from src.tasks import TASKS
from src.training import build_model, stream
from src.transformer import distinct, prefix_ids

SWITCHES = [
    {"use_mlp": mlp, "use_layernorm": norm, "positional_type": positions, "num_layers": layers}
    for mlp, norm, positions, layers in itertools.product(
        (True, False), (True, False), ("add", "concat", "no"), (1, 2, 3)
    )
]
CONFIGS = [tiny(task, attention_type=name) for task in TASKS for name in ATTENTION]
CONFIGS += [tiny(task, **switches) for task in TASKS for switches in SWITCHES]
CONFIGS += [tiny(aux_loss_weight=0.0, shift_query_token=False), tiny(num_layers=1, num_heads=1, embed_dim=64)]


def models(config, dtype=torch.float64):
    """The model of a run and the plainest possible one, with the same parameters; a batch of the task."""
    model, reference = build_model(config).to(dtype), plain.PlainTransformer(config).to(dtype)
    reference.load_state_dict(model.state_dict())
    return model, reference, *TASKS[config.task](config).sequences(40, stream(config, "test"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.task}-{c.attention_type}-{c.hash[:4]}")
def test_the_model_is_the_plainest_one(config):
    """Logits, weights, loss and every gradient, for what the loss reads and for what evaluation reads."""
    model, reference, inputs, targets = models(config)
    task = TASKS[config.task](config)
    expected, all_weights = reference(inputs)
    plain.plain_loss(config, expected, targets).backward()
    for read in (task.read, task.evaluated):
        model.zero_grad()
        logits, weights = model(inputs, read)
        torch.testing.assert_close(logits, expected[:, read])
        for w, all_w in zip(weights[:-1], all_weights[:-1], strict=True):
            torch.testing.assert_close(w, all_w)
        torch.testing.assert_close(weights[-1], all_weights[-1][:, :, read])
        task.loss(logits, targets).backward()
        for (name, parameter), other in zip(model.named_parameters(), reference.parameters(), strict=True):
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in (parameter, other)]
            torch.testing.assert_close(*grads, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("task", TASKS)
def test_float32_agrees_with_float64(task):
    config = tiny(task, embed_dim=64)
    model, reference, inputs, _ = models(config, torch.float32)
    torch.testing.assert_close(model(inputs)[0], reference(inputs)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ATTENTION)
def test_no_position_sees_a_later_one(name):
    config = tiny(attention_type=name)
    model, _, inputs, _ = models(config)
    for t in range(1, inputs.shape[1]):
        changed = inputs.clone()
        changed[:, t] = (changed[:, t] + 1) % config.vocab_size
        before, after = model(inputs)[0], model(changed)[0]
        torch.testing.assert_close(before[:, :t], after[:, :t])
        assert not torch.allclose(before[:, t:], after[:, t:])


def test_classification_sees_every_position_in_any_order():
    model, _, inputs, _ = models(tiny("classification"))
    read = slice(-1, None)
    order = [2, 0, 3, 1, 4]  # CLS stays last
    torch.testing.assert_close(model(inputs, read)[0], model(inputs[:, order], read)[0])
    for t in range(inputs.shape[1]):
        changed = inputs.clone()
        changed[:, t] = (changed[:, t] + 1) % 21
        assert not torch.allclose(model(inputs, read)[0], model(changed, read)[0])


def test_a_sequence_does_not_depend_on_the_others_of_its_batch():
    model, _, inputs, _ = models(tiny())
    alone = torch.cat([model(row[None])[0] for row in inputs])
    torch.testing.assert_close(model(inputs)[0], alone)


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=12))
def test_prefix_ids_tell_prefixes_apart(rows):
    tokens = torch.tensor(rows)
    ids = prefix_ids(tokens).tolist()
    prefixes = {}
    for row, row_ids in zip(rows, ids, strict=True):
        for t, i in enumerate(row_ids):
            prefixes.setdefault(i, set()).add(tuple(row[: t + 1]))
    assert all(len(p) == 1 for p in prefixes.values())
    assert len(prefixes) == len({tuple(row[: t + 1]) for row in rows for t in range(4)})


@given(st.lists(st.integers(0, 9), min_size=6, max_size=6))
def test_distinct_rows_stand_where_they_did(values):
    ids = torch.tensor(values).view(2, 3)
    first, index = distinct(ids)
    assert torch.equal(ids.flatten()[first][index], ids)
    assert len(first) % 16 == 0


def test_initialisation_is_pytorchs_default():
    """The distribution of nn.Linear and nn.Embedding, from the run's generator alone."""
    config = tiny(embed_dim=64)
    model = build_model(config)
    weight = model.blocks[0].mlp[1].weight
    assert weight.abs().max() <= 64**-0.5
    assert weight.std().item() == pytest.approx(64**-0.5 / 3**0.5, rel=0.05)
    assert model.token_embedding.weight.std().item() == pytest.approx(1, rel=0.1)
    torch.manual_seed(1)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), build_model(config).parameters(), strict=True))


@pytest.mark.skipif(not ONEDNN, reason="this build of torch has no oneDNN")
@pytest.mark.parametrize("shape", [(7, 5, 3), (64, 32, 128), (1, 1, 1)])
def test_onednn_linear_is_linear(shape):
    rows, inner, outer = shape
    layer = Linear(inner, outer)
    twin = torch.nn.Linear(inner, outer)
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(rows, inner, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    grad = torch.randn(rows, outer)
    layer(x).backward(grad)
    twin(y).backward(grad)
    torch.testing.assert_close(layer(x), twin(y), rtol=1e-5, atol=1e-5)
    for a, b in ((x, y), (layer.weight, twin.weight), (layer.bias, twin.bias)):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)


def test_linear_works_under_autocast_double_and_function_transforms():
    layer, x = Linear(4, 3), torch.randn(5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    rows = torch.func.vmap(lambda row: torch.func.functional_call(layer, dict(layer.named_parameters()), row[None])[0])(
        x
    )
    torch.testing.assert_close(rows, layer(x))
    assert layer.double()(x.double()).dtype == torch.float64
