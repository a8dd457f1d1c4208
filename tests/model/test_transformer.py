import dataclasses
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny

from benchmarks import plain
from src.model import cpu, transformer
from src.model.layers import Embedding, LayerNorm, Linear
from src.model.registry import ATTENTION
from src.model.transformer import distinct, prefix_ids
from src.tasks import TASKS
from src.training.loop import build_model, build_stack, stream

SWITCHES = [
    {"use_mlp": mlp, "use_layernorm": norm, "positional_type": positions, "num_layers": layers}
    for mlp, norm, positions, layers in itertools.product(
        (True, False), (True, False), ("add", "concat", "no"), (1, 2, 3)
    )
]
CONFIGS = [tiny(task, attention_type=name) for task in TASKS for name in ATTENTION]
CONFIGS += [tiny(task, **switches) for task in ("induction", "classification") for switches in SWITCHES]
CONFIGS += [tiny("trigger", **switches) for switches in SWITCHES[::5]]
CONFIGS += [tiny(task, use_residual=False, use_mlp=use_mlp) for task in TASKS for use_mlp in (True, False)]
CONFIGS += [tiny(aux_loss_weight=0.0, shift_query_token=False), tiny(num_layers=1, num_heads=1, embed_dim=64)]


def models(config, dtype=torch.float64):
    """The model of a run and the plainest possible one, with the same parameters; a batch of the task."""
    model, reference = build_model(config).to(dtype), plain.PlainTransformer(config).to(dtype)
    for block in model.blocks:
        for number in block.attention.numbers.values():  # not where they start, so that their part is seen
            number.data += torch.randn(number.shape, generator=torch.Generator().manual_seed(0))
    reference.load_state_dict({name: value[0] for name, value in model.state_dict().items()})
    sequences = TASKS[config.task](config).sequences(40, stream(config, "test"))
    return model, reference, *(x.to(dtype) if x.is_floating_point() else x for x in sequences)


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
        task.loss(logits[None], targets[None]).backward()
        for (name, parameter), other in zip(model.named_parameters(), reference.parameters(), strict=True):
            grads = [torch.zeros_like(other) if g is None else g.view_as(other) for g in (parameter.grad, other.grad)]
            torch.testing.assert_close(*grads, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    "config",
    [tiny(), tiny(positional_type="add", num_heads=1), tiny(positional_type="no"), tiny("classification"),
     tiny("classification", positional_type="concat"), tiny(vocab_size=99, aux_loss_weight=0.0)],
    ids=lambda c: f"{c.task}-{c.positional_type}-{c.vocab_size}",
)  # fmt: skip
def test_sizes_that_do_not_depend_on_the_tokens_give_the_same(config, monkeypatch):
    """What a GPU is given, here on the CPU: for a stack of two, logits, weights and gradients."""
    task = TASKS[config.task](config)
    inputs, targets = task.sequences(60, stream(config, "test"))
    inputs, targets = torch.stack([inputs[:30], inputs[30:]]), torch.stack([targets[:30], targets[30:]])
    results = []
    for static in (False, True):
        monkeypatch.setattr(transformer, "static_sizes", lambda tokens, static=static: static)
        model = build_stack([config, dataclasses.replace(config, seed=1)]).double()
        logits, weights = model(inputs, task.read)
        task.loss(logits, targets).sum().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        results.append([logits, *weights, *grads])
    torch.testing.assert_close(*results)


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


@pytest.mark.parametrize(("read", "sets"), [(slice(-1, None), 30), (slice(1, 3), 54), (slice(None), 81)])
@pytest.mark.parametrize("members", [1, 2])
def test_sequences_of_the_same_tokens_are_run_once(members, read, sets, monkeypatch):
    """Those at `read` in their order: logits, weights at each token's place, and gradients, as of all sequences."""
    configs = [tiny("classification", seed=seed, num_layers=3) for seed in range(members)]
    inputs = torch.randint(1, 4, (members, 60, 4), generator=torch.Generator().manual_seed(0))  # 81 there can be
    results, run = [], []
    each_sequence = transformer.Transformer.each_sequence
    monkeypatch.setattr(
        transformer.Transformer, "each_sequence", lambda self, x, *rest: run.append(x) or each_sequence(self, x, *rest)
    )
    for any_order in (True, False):
        model = build_stack(configs).double()
        model.any_order = any_order
        logits, weights = model(inputs, read)
        logits.square().sum().backward()
        results.append([logits, *weights, *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*results)
    once, all_of_them = (x.shape[1] for x in run)
    assert all_of_them == 60
    assert once <= min(sets + 3, 60)


def test_attention_of_ones_own_may_depend_on_the_order(tmp_path):
    """The nearer key gets more: sequences of the same tokens stay apart."""
    (tmp_path / "near.py").write_text(
        "import torch\n\ndef near(q, k, mask):\n"
        "    T = k.shape[-2]\n"
        "    places = torch.arange(T, dtype=q.dtype)\n"
        "    scores = q @ k.mT - (places[:, None] - places).abs()[-q.shape[-2]:]\n"
        "    return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)\n"
    )
    config = tiny("classification", attention_type=f"{tmp_path}/near.py:near")
    model = build_model(config)
    tokens = torch.tensor([[1, 2, 3, 4, 0], [4, 3, 2, 1, 0]]).repeat(20, 1)
    first, second = model(tokens, slice(-1, None))[0][:2]
    assert not torch.allclose(first, second)


def test_a_sequence_does_not_depend_on_the_others_of_its_batch():
    model, _, inputs, _ = models(tiny())
    alone = torch.cat([model(row[None])[0] for row in inputs])
    torch.testing.assert_close(model(inputs)[0], alone)


@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=12))
def test_prefix_ids_tell_prefixes_apart(rows):
    tokens = torch.tensor(rows)
    ids = prefix_ids(tokens[None])[0].tolist()
    prefixes = {}
    for row, row_ids in zip(rows, ids, strict=True):
        for t, i in enumerate(row_ids):
            prefixes.setdefault(i, set()).add(tuple(row[: t + 1]))
    assert all(len(p) == 1 for p in prefixes.values())
    assert len(prefixes) == len({tuple(row[: t + 1]) for row in rows for t in range(4)})


@given(st.lists(st.integers(0, 9), min_size=6, max_size=6))
def test_distinct_rows_stand_where_they_did(values):
    ids = torch.tensor(values).view(2, 3)
    stack = torch.stack([ids, torch.zeros_like(ids), 10 - ids])  # members with fewer distinct ids, and others
    for members in (ids[None], stack):
        first, index = distinct(members)
        assert first.shape[1] % 16 == 0
        S, N = first.shape
        for i, (own, own_first, own_index) in enumerate(zip(members, first, index.view(S, 2, 3), strict=True)):
            assert torch.equal(own.flatten()[own_first][own_index - i * N], own)
            assert own_index.max() - i * N < len(own.unique())


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


@pytest.mark.skipif(not cpu.has_onednn(), reason="this build of torch has no oneDNN")
@pytest.mark.parametrize("shape", [(7, 5, 3), (64, 32, 128), (1, 1, 1)])
def test_onednn_linear_is_linear(shape, monkeypatch):
    monkeypatch.setattr(cpu, "onednn_is_faster", lambda: True)  # on any machine
    check_layer(Linear, torch.nn.Linear, 1, shape[1:], torch.randn(1, *shape[:2]), torch.float32)


@pytest.mark.parametrize("members", [1, 3])
def test_layers_of_a_stack_are_torchs(members):
    x = torch.randn(members, 7, 5, dtype=torch.float64)
    check_layer(Linear, torch.nn.Linear, members, (5, 3), x, torch.float64)
    check_layer(LayerNorm, torch.nn.LayerNorm, members, (5,), x, torch.float64)
    check_layer(Embedding, torch.nn.Embedding, members, (9, 4), torch.randint(9, (members, 7)), torch.float64)


def check_layer(stacked, single, members, sizes, x, dtype):
    """Outputs and gradients of a stacked layer, beside torch's own layer for each member."""
    layer, twins = stacked(members, *sizes).to(dtype), [single(*sizes).to(dtype) for _ in range(members)]
    layer.load_state_dict({name: torch.stack([t.state_dict()[name] for t in twins]) for name in layer.state_dict()})
    x, y = (x.clone().requires_grad_(x.is_floating_point()) for _ in range(2))
    expected = torch.cat([twin(rows) for twin, rows in zip(twins, y, strict=True)])
    out = layer(x.flatten(0, 1) if x.is_floating_point() else x)
    grad = torch.randn_like(out)
    out.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    for name, parameter in layer.named_parameters():
        of_twins = torch.stack([dict(t.named_parameters())[name].grad for t in twins])
        torch.testing.assert_close(parameter.grad, of_twins, rtol=1e-5, atol=1e-5)
    if x.requires_grad:
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-5)


def test_linear_works_under_autocast_and_in_double():
    layer, x = Linear(1, 4, 3), torch.randn(5, 4)
    layer.initialise([torch.Generator()])
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64
