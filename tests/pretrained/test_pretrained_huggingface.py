"""Hugging Face models: tiny random ones against plain computation from `output_attentions`, and refusals."""

import math

import numpy as np
import pytest
import torch
import transformers
from architectures import DECODERS, build
from numpy.testing import assert_allclose

from src.errors import ConfigError
from src.pretrained import huggingface
from src.pretrained.huggingface import Observed, analyse_model
from src.pretrained.texts import Prompts


@pytest.fixture
def prompts() -> Prompts:
    generator = torch.Generator().manual_seed(1)
    lengths = [70, 3, 66, 1, 20]
    return Prompts.from_lists([torch.randint(1, 50, (n,), generator=generator).tolist() for n in lengths], 70, 0)


def test_states_and_map_are_the_models(prompts, tmp_path):
    """Against the model's own hidden states and weights."""
    model = build(DECODERS["gpt2"]())
    found, tops = analyse_model(model, prompts, tmp_path, batch_size=2, device="cpu"), []
    for ids, valid in zip(prompts.ids, prompts.valid, strict=True):
        with torch.no_grad():
            output = model(ids[None, valid], output_attentions=True, output_hidden_states=True)
        tops.append([h[0].abs().amax() for h in output.hidden_states[1:-1]])
        if len(tops) == 1:
            first = output.attentions[1][0]
    # of the layers but the last, whose listed state has gone through the final norm
    assert_allclose(found["largest"][:-1, 0], np.mean(tops, axis=0), rtol=1e-4)
    head = found["sink_map_head"][1]
    assert head == found["first_token_proportion"][1].argmax()
    assert_allclose(found["sink_map"][1], first[head, :64, :64], rtol=1e-3, atol=1e-6)


def test_windows_count_what_is_seen(prompts, tmp_path):
    """With a window of 5, uniform attention has normalised entropy 1 in every row that sees several keys."""
    model = build(DECODERS["mistral"]())
    for layer in model.layers:
        layer.self_attn.q_proj.weight.data.zero_()
    found = analyse_model(model, prompts, tmp_path, batch_size=3, device="cpu")
    assert_allclose(found["normalised_entropy"], np.ones((3, 4)), rtol=1e-5)


def test_resumed(prompts, tmp_path, monkeypatch):
    """Stopped in the middle it goes on with the batch after the last saved one, and the results are the same."""
    model = build(DECODERS["gpt2"](), head=True)
    whole = analyse_model(model, prompts, tmp_path / "whole", batch_size=2, device="cpu")
    monkeypatch.setattr(huggingface, "SECONDS_BETWEEN_SAVES", 0)
    monkeypatch.setattr(huggingface, "SAVE_SHARE", math.inf)
    real, starts = huggingface.measure, []

    def stops(observed, measurement, start, *rest):
        starts.append(start)
        if len(starts) in (2, 4):
            raise KeyboardInterrupt
        real(observed, measurement, start, *rest)

    monkeypatch.setattr(huggingface, "measure", stops)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            analyse_model(model, prompts, tmp_path / "parts", batch_size=2, device="cpu")
    parts = analyse_model(model, prompts, tmp_path / "parts", batch_size=2, device="cpu")
    assert starts == [0, 2, 2, 4, 4]
    for name in whole.keys() - {"seconds"}:
        assert_allclose(parts[name], whole[name], err_msg=name)


def test_eager_is_asserted():
    model = transformers.AutoModel.from_config(DECODERS["gpt2"](), attn_implementation="sdpa")
    with pytest.raises(ConfigError, match="sdpa, which gives no weights"):
        Observed(model)
