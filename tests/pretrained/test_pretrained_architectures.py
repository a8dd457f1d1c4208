"""Many families of Transformers, tiny and random, against plain computation from `output_attentions`."""

import numpy as np
import pytest
import torch
from architectures import DECODERS, ENCODERS, HYBRIDS, REFUSED, build
from numpy.testing import assert_allclose

from src.errors import ConfigError
from src.pretrained.huggingface import analyse_model
from src.pretrained.texts import Prompts

ALL = DECODERS | ENCODERS | {name: config for name, (config, _) in HYBRIDS.items()}


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    generator = torch.Generator().manual_seed(1)
    lengths = [70, 3, 66, 5, 20]
    return Prompts.from_lists([torch.randint(3, 50, (n,), generator=generator).tolist() for n in lengths], 70, 0)


def plain(model, prompts) -> list[torch.Tensor]:
    """Attention (L, N, T, T) of each prompt without padding, of the layers that have it."""
    rows = []
    for ids, valid in zip(prompts.ids, prompts.valid, strict=True):
        with torch.no_grad():
            found = model(ids[None, valid], output_attentions=True).attentions
        rows.append(torch.cat([weights for weights in found if weights is not None]).double())
    return rows


@pytest.mark.parametrize("name", ALL)
def test_against_output_attentions(name, prompts, tmp_path):
    model = build(ALL[name]())
    found, rows = analyse_model(model, prompts, tmp_path, batch_size=2, device="cpu"), plain(model, prompts)
    queries = sum(p.shape[2] for p in rows)

    def mean(quantity):
        return sum(quantity(p).sum(-1) for p in rows) / queries

    without = HYBRIDS[name][1] if name in HYBRIDS else []
    layers = [i for i in range(len(found["row_sum"])) if i not in without]
    assert np.isnan(found["row_sum"][without]).all()
    assert np.isfinite(found["largest"]).all()
    causal = name not in ENCODERS
    assert found["causal"] == causal
    assert_allclose(found["max_share"][layers], mean(lambda p: p.amax(-1) / p.sum(-1)), rtol=1e-4)
    assert_allclose(found["first_token_proportion"][layers], mean(lambda p: p[..., 0] / p.sum(-1)), rtol=1e-4)
    normalised = [p / p.sum(-1, keepdim=True) for p in rows]
    entropies = sum(-torch.special.xlogy(p, p).sum((-1, -2)) for p in normalised) / queries
    assert_allclose(found["entropy"][layers], entropies, rtol=1e-3)
    alpha = [(p[..., 0] / p.sum(-1))[..., :64].mean(-1) for p in rows if p.shape[2] >= 64]
    expected = torch.stack(alpha).mean(0) if causal else mean(lambda p: p[..., 0])
    assert_allclose(found["alpha_1"][layers], expected, rtol=1e-4)
    if name != "granite_swa":  # whose sink acts on the output, and not on the weights that it shows
        assert_allclose(found["row_sum"][layers], mean(lambda p: p.sum(-1)), rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "bloom", "qwen3_5_text"])
def test_next_token_loss(name, prompts, tmp_path):
    """Against the model's own loss, over all prompts' tokens."""
    model = build(ALL[name](), head=True)
    found = analyse_model(model, prompts, tmp_path, batch_size=2, device="cpu")
    sums, counts = [], []
    for ids, valid in zip(prompts.ids, prompts.valid, strict=True):
        with torch.no_grad():
            loss = model(ids[None, valid], labels=ids[None, valid]).loss.item()
        counts.append(int(valid.sum()) - 1)
        sums.append(loss * counts[-1])
    assert found["next_token_loss"] == pytest.approx(sum(sums) / sum(counts), rel=1e-4)
    assert_allclose(found["loss_sum"], sums, rtol=1e-4)
    assert found["next_token_loss_se"] > 0


def test_encoders_have_no_next_token(prompts, tmp_path):
    assert "next_token_loss" not in analyse_model(build(ENCODERS["bert"]()), prompts, tmp_path, 3, "cpu")


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, prompts, tmp_path):
    with pytest.raises(ConfigError, match=f"{name.split('_')[0]}.*(not supported|choose)"):
        analyse_model(build(REFUSED[name]()), prompts, tmp_path, batch_size=2, device="cpu")


@pytest.mark.parametrize("name", ["gpt_oss", "granite_swa"])
def test_learned_sink(name, prompts, tmp_path):
    """A logit of its own in the softmax, or a factor of the output: both take the same share."""
    model = build(DECODERS[name]())
    for layer in model.layers:
        layer.self_attn.sinks.data.copy_(torch.tensor([-50.0, 0, 2, 50]))
        layer.self_attn.q_proj.weight.data.zero_()
        if layer.self_attn.q_proj.bias is not None:
            layer.self_attn.q_proj.bias.data.zero_()
    found = analyse_model(model, prompts, tmp_path, batch_size=3, device="cpu")
    windows = [model.config.sliding_window if "sliding" in kind else 128 for kind in model.config.layer_types]
    seen = torch.cat([torch.arange(1, n + 1) for n in prompts.valid.sum(1).tolist()]).double()
    expected = [[0, *((np.e**s / (seen.clamp(max=window) + np.e**s)).mean() for s in (0, 2)), 1] for window in windows]
    assert_allclose(found["learned_sink_share"], expected, atol=1e-5)
    assert_allclose(found["row_sum"], 1 - np.array(expected), atol=1e-5)


def test_norms_are_those_of_values_and_keys(prompts, tmp_path):
    """Llama's two key-value heads serve two heads each; rotations leave norms as they are."""
    model = build(DECODERS["llama"]())
    found = analyse_model(model, prompts, tmp_path, batch_size=2, device="cpu")
    attention, caught = model.layers[1].self_attn, []
    attention.v_proj.register_forward_hook(lambda module, inputs, output: caught.append(output[0]))
    ratios = []
    for ids, valid in zip(prompts.ids, prompts.valid, strict=True):
        with torch.no_grad():
            model(ids[None, valid])
        norms = caught.pop().view(int(valid.sum()), 2, 8).norm(dim=2)
        ratios.append(norms[0] / norms[1:].mean(0))
    expected = torch.stack(ratios).mean(0).repeat_interleave(2)
    assert_allclose(found["value_norm_ratio"][1], expected, rtol=1e-4)
    assert np.isfinite(found["key_norm_ratio"]).all()
