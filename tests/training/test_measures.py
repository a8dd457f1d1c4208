"""What a model shows, and what is measured of it, against the plain way."""

import pytest
import torch
from tiny import tiny

from benchmarks import plain
from src.tasks import TASKS
from src.training.loop import build_model, build_stack, stream
from src.training.measures import measures

CONFIGS = [tiny(task, attention_type=kind) for task in TASKS for kind in ("softmax", "value_gated", "gated_element")]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.task}-{c.attention_type}")
def test_a_model_shows_values_gates_and_states(config):
    """Of each block, beside the plain model: values, gates, and what follows the last block."""
    model = build_model(config).double()
    reference = plain.PlainTransformer(config).double()
    reference.load_state_dict({name: value[0] for name, value in model.state_dict().items()})
    inputs, _ = TASKS[config.task](config).sequences(9, stream(config, "test"))
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    seen = []

    def record(block, given, result):
        attention, x = block.attention, block.attention_norm(given[0])
        v = attention.value(x).unflatten(-1, (2, 8)).transpose(1, 2)
        gates = None
        if config.attention_type == "value_gated":
            along = (v * attention.value_gate["direction"].weight[:, None]).sum(-1)
            gates = torch.sigmoid(along + attention.value_gate["bias"].weight)
            v = v * gates[..., None]
        elif config.attention_type == "gated_element":
            gates = torch.sigmoid(attention.output_gate(x)).unflatten(-1, (2, 8)).mean(-1).transpose(1, 2)
        seen.append((v, gates, result[0]))

    for block in reference.blocks:
        block.register_forward_hook(record)
    reference(inputs)
    shown = []
    model(inputs[None], shown=shown)
    assert len(shown) == len(seen) == 2
    for block, (values, gates, states) in zip(shown, seen, strict=True):
        torch.testing.assert_close(block.values[0], values)
        torch.testing.assert_close(block.states[0], states)
        assert (block.gates is None) == (gates is None)
        if gates is not None:
            torch.testing.assert_close(block.gates[0], gates)


@pytest.mark.parametrize("task", TASKS)
def test_members_are_measured_as_they_are_alone(task):
    configs = [tiny(task, attention_type="value_gated", seed=seed) for seed in (0, 1)]
    own, stack = TASKS[task](*configs), build_stack(configs)
    inputs = torch.stack([own.sequences(8, stream(config, "test"))[0] for config in configs])
    with torch.no_grad():
        together = measures(stack, own, inputs)
        alone = [measures(build_model(c), own, inputs[i : i + 1])[0] for i, c in enumerate(configs)]
    for one, other in zip(together, alone, strict=True):
        assert one.keys() == other.keys()
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    assert all(0 <= together[0][f"{layer}_{head}_gate"] <= 1 for layer in (0, 1) for head in (0, 1))
    assert together[0]["1_0_value_drain"] > 0
    assert together[0]["1_residual_peak"] > 0
