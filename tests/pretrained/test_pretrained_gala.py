"""The architecture against its original implementation, and properties at other sizes."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from src.errors import ConfigError
from src.pretrained.gala import GalaConfig, Head, Layer, alibi_slopes, attention_bias, stored_shapes
from src.pretrained.statistics import query_quantities

TOLERANCE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def forward(cache, reference):
    """Logits, and each layer's output and weights, of the reference inputs."""
    ids = torch.from_numpy(reference["input_ids"]).long()
    outer, bias = cache.outer(torch.float32), attention_bias(cache.config, ids)
    x, outputs, weights = outer["embedding"][ids], [], []
    for i in range(cache.config.num_layers):
        x, p = Layer.from_stored(cache.config, cache.layer(i, torch.float32))(x, bias)
        outputs.append(x.numpy())
        weights.append(p.weights)
    head = Head(cache.config, outer)
    return {"logits": head(x), "final_hidden": head.norm(x), "layer_outputs": outputs, "weights": weights}


def test_logits_and_outputs(forward, reference):
    assert_allclose(forward["logits"], reference["logits"], **TOLERANCE)
    assert_allclose(forward["final_hidden"], reference["final_hidden"], **TOLERANCE)
    assert_allclose(forward["layer_outputs"], reference["layer_outputs"], **TOLERANCE)


def test_attention_weights(forward, reference):
    weights = torch.stack(forward["weights"])
    assert_allclose(weights, reference["attn_probs"], **TOLERANCE)
    assert torch.equal(weights == 0, torch.from_numpy(reference["attn_probs"] == 0))  # masked exactly


def test_query_quantities(forward, reference):
    names = {
        "max_proportion": "max_attention_weight",
        "max_share": "proportion_of_total_weight",
        "first_token_proportion": "first_token_proportion_of_total_weight",
        "row_sum": "total_attention_weight",
    }
    for layer, weights in enumerate(forward["weights"]):
        found = query_quantities(weights, torch.zeros(len(weights), weights.shape[-1], dtype=torch.bool))
        for ours, theirs in names.items():
            assert_allclose(found[ours], reference[theirs][layer], **TOLERANCE)


def test_alibi_slopes(reference):
    assert_allclose(alibi_slopes(4), reference["alibi_slopes"], rtol=1e-6)
    assert alibi_slopes(1).tolist() == [2**-8]
    assert_allclose(alibi_slopes(32)[[0, -1]], [2**-0.25, 2**-8])
    # 6 heads: those of 4, then the 1st and 3rd of 8
    assert_allclose(alibi_slopes(6), [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])


def random_layer(config: GalaConfig, seed: int = 0) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: shape[1:] for name, shape in stored_shapes(config).items() if shape[0] == config.num_layers}
    return Layer.from_stored(config, {name: torch.randn(s, generator=generator) * 0.3 for name, s in shapes.items()})


@pytest.mark.parametrize("attention", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("heads", "length"), [(1, 1), (3, 5), (6, 33)])
def test_other_sizes(attention, heads, length):
    """Head counts that are no power of two, heads × width that is not D, other lengths: by plain loops."""
    config = GalaConfig(
        attention=attention, num_layers=7, hidden_dim=20, num_heads=heads, head_dim=5, ffn_dim=24, vocab_size=30
    )
    layer, ids = random_layer(config), torch.randint(1, 30, (2, length), generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, length, 20, generator=torch.Generator().manual_seed(2))
    output, (weights, keys, values) = layer(x, attention_bias(config, ids))
    assert keys.shape == values.shape == (2, heads, length, 5)
    assert output.shape == x.shape
    assert weights.shape == (2, heads, length, length)
    u = layer.attention_prenorm(x)
    w = layer.qkv.weight.view(3, heads, 5, 20)
    for n, slope in enumerate(alibi_slopes(heads).tolist()):
        q, k = (u[1] @ w[0, n].T)[-1], u[1] @ w[1, n].T  # the last query of the second prompt
        norm = [(z / np.sqrt((z**2).mean(-1, keepdims=True) + 1e-5)) for z in (q.numpy(), k.numpy())]
        scores = (norm[1] * layer.key_norm.scale.numpy()) @ (norm[0] * layer.query_norm.scale.numpy()) / math.sqrt(5)
        scores = scores - slope * np.arange(length)[::-1]
        expected = np.exp(scores) / np.exp(scores).sum()
        if attention == "sigmoid":
            expected = 1 / (1 + np.exp(-(scores - math.log(4096))))
        assert_allclose(weights[1, n, -1], expected, rtol=2e-4, atol=1e-7)


def test_padding_changes_nothing(cache):
    """A prompt's weights are the same whatever pads follow it."""
    layer = Layer.from_stored(cache.config, cache.layer(0, torch.float32))
    embedding, ids = cache.outer(torch.float32)["embedding"], torch.tensor([[5, 9, 0, 7]])
    padded = torch.nn.functional.pad(ids, (0, 3))
    (x, (p, *_)), (y, (q, *_)) = (layer(embedding[i], attention_bias(cache.config, i)) for i in (ids, padded))
    assert_allclose(x, y[:, :4], rtol=1e-5, atol=1e-6)
    assert_allclose(p, q[:, :, :4, :4], rtol=1e-5, atol=1e-7)


def test_bfloat16_is_near(cache, reference):
    """Statistics move by about 1e-3 and single weights by less than 0.1, as in the original."""
    ids = torch.from_numpy(reference["input_ids"]).long()
    x, bias = cache.outer(torch.bfloat16)["embedding"][ids], attention_bias(cache.config, ids)
    for i in range(cache.config.num_layers):
        x, (p, *_) = Layer.from_stored(cache.config, cache.layer(i, torch.bfloat16))(x, bias)
        assert x.dtype == torch.bfloat16
        difference = np.abs(p.float().numpy() - reference["attn_probs"][i])
        assert difference.max() < 0.1
        assert difference.mean() < 2e-3


def test_wrong_config():
    good = dataclasses.asdict(GalaConfig(attention="softmax"))
    for wrong in ({"attention": "relu"}, {"num_heads": 0}, {"attention": "sigmoid", "sigmoid_bias_seq_len": None}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            GalaConfig.from_dict(good | wrong)
    with pytest.raises(ConfigError, match="vocab_size is missing"):
        GalaConfig.from_dict({name: value for name, value in good.items() if name != "vocab_size"})
