"""Interventions: that each changes what it says, and nothing else."""

import numpy as np
import pytest
import torch
from architectures import DECODERS, build
from numpy.testing import assert_allclose
from test_pretrained_loading import save_tokenizer

from src.errors import ConfigError
from src.pretrained import interventions
from src.pretrained.encoder import Encoder
from src.pretrained.huggingface import Change, Measurement, analyse_model, examine, measure, measure_all
from src.pretrained.interventions import INTERVENTIONS, Setting, as_many_others, intervene, prefixed
from src.pretrained.observed import Observed
from src.pretrained.texts import Prompts


@pytest.fixture
def prompts() -> Prompts:
    generator = torch.Generator().manual_seed(1)
    return Prompts.from_lists([torch.randint(6, 50, (n,), generator=generator).tolist() for n in (70, 65, 40)], 70, 0)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Encoder:
    return Encoder.of(save_tokenizer(tmp_path_factory.mktemp("tokenizer")), "none")


@pytest.fixture(scope="module")
def model():
    """A decoder whose first layer gives the first dimension of token 7 a massive activation."""
    model = build(DECODERS["llama"](), head=True)
    model.model.embed_tokens.weight.data[7, 3] = 1e6
    return model


def weights_with(model, prompts, masked) -> dict[int, torch.Tensor]:
    found, observed = {}, Observed(model)
    with torch.inference_mode():
        observed.run(
            prompts.ids, prompts.valid, lambda i, heads, seen: found.update({i: heads.weights}), lambda *_: None, masked
        )
    return found


def test_masked_keys_are_seen_by_themselves_alone(model, prompts):
    masked = torch.tensor([0, 5, 39])
    for weights in weights_with(model, prompts, masked).values():
        for i, key in enumerate(masked.tolist()):
            assert (weights[i, :, key + 1 :, key] == 0).all()
            assert (weights[i, :, key, key] > 0).all()
            other = (key + 7) % 30
            assert (weights[i, :, 31:, other] > 0).any()
        assert_allclose(weights.sum(-1), torch.ones(weights.shape[:-1]), rtol=1e-5)


def test_masking_is_refused_where_it_would_do_nothing(prompts):
    with pytest.raises(ConfigError, match="bloom .* can't be masked"):
        weights_with(build(DECODERS["bloom"]()), prompts, torch.tensor([0, 5, 39]))


def test_loss_with_a_masked_key_is_that_of_a_mask(model, prompts):
    """Of the same model with the mask given from outside."""
    observed = Observed(model)
    anatomy = examine(observed, prompts, "cpu")
    measurement = Measurement(prompts, anatomy)
    with torch.inference_mode():
        measure(observed, measurement, 0, 3, "cpu", Change(masked=torch.tensor([2, 2, 2])))
        allowed = torch.ones(70, 70).tril().bool()
        allowed[3:, 2] = False
        output = model(
            input_ids=prompts.ids[:1],
            attention_mask=torch.zeros(1, 1, 70, 70).masked_fill(~allowed, torch.finfo(torch.float32).min),
        )
    logp = output.logits[0, :-1].log_softmax(-1)
    expected = -logp.gather(1, prompts.ids[0, 1:, None]).sum()
    assert measurement.losses.arrays["loss_sum"][0] == pytest.approx(expected.item(), rel=1e-5)


def test_massive_activations_are_set(model, prompts, encoder, tmp_path):
    """To 0, and to the mean; as many others of the same tokens; and where there are none, the change is None."""
    results = analyse_model(model, prompts, tmp_path, 3, "cpu")
    assert (results["massive_per_prompt"] > 0).any()
    setting = Setting(prompts, results, encoder, seed=0)
    hidden = torch.randn(2, 4, 24)
    hidden[0, 1, 3] = hidden[1, 2, 3] = 9e5
    valid = torch.ones(2, 4, dtype=torch.bool)
    changed = {
        name: INTERVENTIONS[name].make(setting)[0].hidden(0, hidden, valid)
        for name in ("massive_zero", "massive_mean", "random_zero", "random_mean")
    }
    mean = torch.from_numpy(results["massive_mean"][0])
    for name, value in (("massive_zero", torch.tensor(0.0)), ("massive_mean", mean[3])):
        assert (changed[name] != hidden).nonzero().tolist() == [[0, 1, 3], [1, 2, 3]]
        assert_allclose(changed[name][0, 1, 3], value, rtol=1e-5)
    for name in ("random_zero", "random_mean"):
        (one, two) = (changed[name] != hidden).nonzero().tolist()
        assert one[:2] == [0, 1]
        assert two[:2] == [1, 2]
        assert one[2] == two[2] != 3
        assert_allclose(changed[name][tuple(one)], 0 if name == "random_zero" else mean[one[2]], rtol=1e-5)
    none = Setting(prompts, results | {"massive_per_prompt": np.zeros(3)}, encoder, seed=0)
    assert INTERVENTIONS["massive_zero"].make(none) is None


def test_as_many_others():
    entries = torch.zeros(1, 3, 6, dtype=torch.bool)
    entries[0, 0, [1, 4]] = entries[0, 2, 1] = True
    chosen = as_many_others(entries, torch.tensor([5, 0, 2, 3]))
    assert chosen.nonzero().tolist() == [[0, 0, 0], [0, 0, 5], [0, 2, 5]]


def test_random_keys_are_early_and_not_the_first(prompts, encoder):
    change, same = INTERVENTIONS["mask_random"].make(Setting(prompts, {}, encoder, seed=0))
    assert same is prompts
    assert change.masked.min() >= 1
    assert change.masked.max() < interventions.EARLY


def test_prefixes_leave_the_same_tokens_to_predict(model, prompts, encoder, tmp_path):
    """The loss of texts with a token before them, against the model's own over the text's tokens but the first."""
    changed = prefixed(prompts, torch.full((3, 1), 1))
    assert changed.ids[:, 1:].equal(prompts.ids)
    observed = Observed(model)
    found = measure_all(
        observed, examine(observed, changed, "cpu"), changed, tmp_path / "progress.npz", 2, "cpu"
    ).results()
    plain = analyse_model(model, prompts, tmp_path / "plain", 2, "cpu")
    assert_allclose(found["loss_tokens"], plain["loss_tokens"])
    with torch.no_grad():
        logp = model(changed.ids[:1]).logits[0, 1:-1].log_softmax(-1)
    expected = -logp.gather(1, changed.ids[0, 2:, None]).sum()
    assert found["loss_sum"][0] == pytest.approx(expected.item(), rel=1e-5)
    assert prefixed(changed, torch.zeros(3, 0, dtype=torch.long)).ids.equal(prompts.ids)


def test_effects_are_paired_and_finished_ones_are_kept(model, prompts, encoder, tmp_path, monkeypatch):
    results = analyse_model(model, prompts, tmp_path, 3, "cpu")
    two = {name: INTERVENTIONS[name] for name in ("mask_first", "mask_random")}
    monkeypatch.setattr(interventions, "INTERVENTIONS", two)
    found = intervene(model, prompts, encoder, results, tmp_path, 3, "cpu", seed=0)
    assert found["mask_first/loss_effect"] == pytest.approx(
        found["mask_first/next_token_loss"] - results["next_token_loss"], abs=1e-6
    )
    assert found["mask_first/sink_rate"] == 0
    monkeypatch.setattr(interventions, "measure_all", lambda *arguments: pytest.fail("measured again"))
    again = intervene(model, prompts, encoder, results, tmp_path, 3, "cpu", seed=0)
    assert again.keys() == found.keys()
    with pytest.raises(ConfigError, match="needs a decoder with its head"):
        intervene(model, prompts, encoder, {}, tmp_path, 3, "cpu", seed=0)
