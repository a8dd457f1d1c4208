"""Hugging Face models: tiny random ones against plain computation from `output_attentions`, and refusals."""

import numpy as np
import pytest
import torch
import transformers
from numpy.testing import assert_allclose

from src.config import ConfigError
from src.pretrained import huggingface
from src.pretrained.huggingface import Observed, analyse_model
from src.pretrained.texts import Prompts

SIZES = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
WIDE = SIZES | {"intermediate_size": 32, "max_position_embeddings": 128}
CONFIGS = {
    "gpt2": transformers.GPT2Config(vocab_size=50, n_embd=24, n_layer=3, n_head=4, n_positions=128),
    "llama": transformers.LlamaConfig(**WIDE, num_key_value_heads=2),
    "mistral": transformers.MistralConfig(**WIDE, num_key_value_heads=2, head_dim=6, sliding_window=5),
    "gpt_neox": transformers.GPTNeoXConfig(**WIDE),
    "bert": transformers.BertConfig(**WIDE),
}


def build(config):
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)  # away from uniform attention
    return model


@pytest.fixture
def prompts() -> Prompts:
    generator = torch.Generator().manual_seed(1)
    lengths = [70, 3, 66, 1, 20]
    return Prompts.from_lists([torch.randint(1, 50, (n,), generator=generator).tolist() for n in lengths], 70, 0)


@pytest.mark.parametrize("name", CONFIGS)
def test_against_output_attentions(name, prompts, tmp_path):
    model = build(CONFIGS[name])
    found = analyse_model(model, prompts, tmp_path, batch_size=2, device="cpu")
    rows, tops = [], []
    for ids, valid in zip(prompts.ids, prompts.valid, strict=True):
        with torch.no_grad():
            output = model(ids[None, valid], output_attentions=True, output_hidden_states=True)
        rows.append(torch.cat(output.attentions))  # (L, N, T, T), of one prompt without padding
        tops.append([h[0].abs().amax() for h in output.hidden_states[1:-1]])
    queries = sum(p.shape[2] for p in rows)

    def mean(quantity):
        return sum(quantity(p.double()).sum(-1) for p in rows) / queries

    causal = name != "bert"
    assert found["causal"] == causal
    assert_allclose(found["max_share"], mean(lambda p: p.amax(-1)), rtol=1e-4)
    assert_allclose(found["first_token_proportion"], mean(lambda p: p[..., 0]), rtol=1e-4)
    assert_allclose(found["row_sum"], np.ones((3, 4)), rtol=1e-5)
    assert_allclose(found["entropy"], mean(lambda p: -torch.special.xlogy(p, p).sum(-1)), rtol=1e-4)
    alpha = [p[:, :, :64, 0].mean(-1) for p in rows if p.shape[2] >= 64]
    expected = torch.stack(alpha).mean(0) if causal else mean(lambda p: p[..., 0])
    assert_allclose(found["alpha_1"], expected, rtol=1e-4)
    # of the layers but the last, whose listed state has gone through the final norm
    assert_allclose(found["largest"][:-1, 0], np.mean(tops, axis=0), rtol=1e-4)
    head = found["sink_map_head"][1]
    assert head == found["first_token_proportion"][1].argmax()
    assert_allclose(found["sink_map"][1], rows[0][1, head, :64, :64], rtol=1e-3, atol=1e-6)


def test_windows_count_what_is_seen(prompts, tmp_path):
    """With a window of 5, uniform attention has normalised entropy 1 in every row that sees several keys."""
    model = build(CONFIGS["mistral"])
    for layer in model.layers:
        layer.self_attn.q_proj.weight.data.zero_()
    found = analyse_model(model, prompts, tmp_path, batch_size=3, device="cpu")
    assert_allclose(found["normalised_entropy"], np.ones((3, 4)), rtol=1e-5)


def test_learned_sink(prompts, tmp_path):
    """gpt-oss has a logit of its own in the softmax: the weights leave out its share, which is reported."""
    config = transformers.GptOssConfig(
        **WIDE, num_key_value_heads=2, head_dim=6, num_local_experts=2, num_experts_per_tok=1
    )
    model = build(config)
    for layer in model.layers:
        layer.self_attn.sinks.data.copy_(torch.tensor([-50.0, 0, 2, 50]))
        layer.self_attn.q_proj.weight.data.zero_()
        layer.self_attn.q_proj.bias.data.zero_()
    share = analyse_model(model, prompts, tmp_path, batch_size=3, device="cpu")["learned_sink_share"]
    seen = torch.cat([torch.arange(1, n + 1) for n in prompts.valid.sum(1).tolist()])
    seen = [seen.clamp(max=config.sliding_window).double()] * 3
    expected = [[0, *((np.e**s / (n + np.e**s)).mean() for s in (0, 2)), 1] for n in seen]
    assert_allclose(share, expected, atol=1e-5)


def test_resumed(prompts, tmp_path, monkeypatch):
    """Stopped in the middle it goes on with the batch after the last saved one, and the results are the same."""
    model = build(CONFIGS["gpt2"])
    whole = analyse_model(model, prompts, tmp_path / "whole", batch_size=2, device="cpu")
    monkeypatch.setattr(huggingface, "SECONDS_BETWEEN_SAVES", 0)
    real, starts = huggingface.measure, []

    def stops(observed, layers, start, ids, valid):
        starts.append(start)
        if len(starts) in (2, 4):
            raise KeyboardInterrupt
        real(observed, layers, start, ids, valid)

    monkeypatch.setattr(huggingface, "measure", stops)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            analyse_model(model, prompts, tmp_path / "parts", batch_size=2, device="cpu")
    parts = analyse_model(model, prompts, tmp_path / "parts", batch_size=2, device="cpu")
    assert starts == [0, 2, 2, 4, 4]
    for name in whole.keys() - {"seconds"}:
        assert_allclose(parts[name], whole[name], err_msg=name)


def test_eager_is_asserted():
    model = transformers.AutoModel.from_config(CONFIGS["gpt2"], attn_implementation="sdpa")
    with pytest.raises(ConfigError, match="sdpa, which gives no weights"):
        Observed(model)


def test_encoder_decoder_is_refused():
    config = transformers.T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(ConfigError, match="encoder-decoder"):
        Observed(transformers.AutoModel.from_config(config, attn_implementation="eager"))
