import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from src import metrics
from src.metrics import EPSILON


def test_how_far_the_order_of_the_end_is_there():
    """Three keys, of one sequence: all pairs as in the end, one of three, none."""
    rows = torch.tensor([[1.0, 2.0, 3.0], [2.0, 1.0, 0.0], [3.0, 1.0, 2.0], [0.1, 0.2, 0.3]])[:, None, None]
    assert metrics.order_kept(rows).tolist() == pytest.approx([1, 0, 1 / 3, 1])
    both = torch.cat([rows, rows[-1:].expand(4, -1, -1, -1)], dim=1)  # and one that never changes
    assert metrics.order_kept(both).tolist() == pytest.approx([1, 0.5, 2 / 3, 1])


def test_bos_attention_by_hand():
    """Four positions, so that only query row 1 counts; two sequences; signed weights in the second."""
    weights = torch.zeros(2, 1, 4, 4)
    weights[0, 0, 1, :2] = torch.tensor([0.6, 0.2])
    weights[1, 0, 1, :2] = torch.tensor([-0.5, 1.0])
    weights[:, :, 0] = weights[:, :, 2:] = 99.0  # rows that must not count
    results = {name: value.item() for name, value in metrics.bos_attention(weights).items()}
    assert results == pytest.approx(
        {
            "abs_attn_bos": 0.05,
            "abs_attn_all": 0.65,
            "rel_attn_bos": (0.75 - 1) / 2,
            "rel_attn_bos_global": (0.75 - 1) / 2,
            "mag_attn_bos_global": (0.75 + 1 / 3) / 2,
        }
    )


def test_the_sink_score_divides_sums_within_a_sequence():
    """Rows 1 and 2 of five: b = (1, 0), r = (1, 3). Mean of ratios is 1/2, ratio of sums 1/4."""
    weights = torch.zeros(1, 1, 5, 5)
    weights[0, 0, 1, 0] = 1
    weights[0, 0, 2, 2] = 3
    results = metrics.bos_attention(weights)
    assert results["rel_attn_bos"].item() == pytest.approx(0.5)
    assert results["rel_attn_bos_global"].item() == pytest.approx(0.25)


def test_empty_rows_have_no_share():
    results = metrics.bos_attention(torch.zeros(2, 3, 6, 6))
    assert all(value.tolist() == [0, 0, 0] for value in results.values())


def test_cls_attention_by_hand():
    row = torch.tensor([[[0.6, 0.3, 0.1]], [[2.0, 1.0, -1.0]]])  # (2 sequences, 1 head, 3 keys)
    results = {name: value.item() for name, value in metrics.cls_attention(row).items()}
    assert results == pytest.approx(
        {"abs_attn_max": 1.3, "abs_attn_sum": 1.5, "rel_attn_max": (0.6 + 1) / 2, "mag_attn_max": (0.6 + 0.5) / 2}
    )


@given(n=st.integers(2, 40), scale=st.sampled_from([1.0, -1.0, 7.0]))
def test_entropy_of_one_hot_and_uniform_rows(n, scale):
    one_hot, uniform = scale * torch.eye(n, dtype=torch.float64), scale * torch.ones(3, n, dtype=torch.float64)
    assert metrics.entropy(one_hot).abs().max() < 1e-7
    torch.testing.assert_close(metrics.entropy(uniform).exp(), torch.full((3,), float(n), dtype=torch.float64))
    assert metrics.row_entropy(uniform[:, None]).item() == pytest.approx(1)


def test_a_row_without_weight_has_no_entropy_and_a_faint_one_has():
    rows = torch.tensor([[0.0, 0.0], [1e-12, 1e-12], [1.0, 0.0]])
    torch.testing.assert_close(metrics.entropy(rows), torch.tensor([math.nan, math.log(2), 0.0]), equal_nan=True)
    assert metrics.row_entropy(rows[:, None]).item() == pytest.approx(1 / 2)
    assert math.isnan(metrics.row_entropy(rows[:1, None]).item())
    weights = torch.ones(1, 1, 3, 3).tril()
    weights[..., 1, :] = 0
    assert metrics.causal_entropy(weights).item() == pytest.approx(1)


def test_causal_entropy_counts_visible_keys_and_skips_the_first_row():
    weights = torch.ones(2, 1, 5, 5).tril()
    assert metrics.causal_entropy(weights).item() == pytest.approx(1)
    weights[:, :, 2:] = torch.eye(5)[2:]
    assert metrics.causal_entropy(weights).item() == pytest.approx(1 / 4)  # one of four rows is uniform


def test_results_are_named_by_layer_and_head():
    layers = [torch.rand(3, 4, 2, 6), torch.rand(3, 4, 2, 6)]  # three members
    named = metrics.collect(metrics.cls_attention, layers)
    assert [len(of_member) for of_member in named] == [2 * 2 * 4] * 3
    assert named[2]["1_0_abs_attn_max"] == pytest.approx(layers[1][2, :, 0].amax(-1).mean().item())


def test_pairs_have_different_labels_and_reach_every_sequence():
    labels = torch.tensor([5, 2, 2, 5, 9, 2])
    a, b = metrics.draw_pairs(labels, 4000, torch.Generator().manual_seed(0))
    assert (labels[a] != labels[b]).all()
    # labels first, each equally likely; then a sequence among those of the label
    for drawn in (a, b):
        shares = drawn.bincount(minlength=6) / 4000
        torch.testing.assert_close(shares, torch.tensor([1 / 6, 1 / 9, 1 / 9, 1 / 6, 1 / 3, 1 / 9]), atol=0.03, rtol=0)


@given(seed=st.integers(0, 99))
def test_mixed_sequences_have_one_token_of_the_other(seed):
    generator = torch.Generator().manual_seed(seed)
    other = torch.arange(20).view(4, 5) + 100
    top, other_top = torch.arange(4), torch.tensor([0, 4, 2, 2])
    mixed = metrics.mix(top, other, other_top, generator)
    for i, row in enumerate(mixed.tolist()):
        kept = [token for place, token in enumerate(other[i].tolist()) if place != other_top[i]]
        assert sorted(row) == sorted([i, *kept])


def test_mixed_sequences_are_shuffled():
    mixed = metrics.mix(
        torch.zeros(3000).long(), torch.tensor([[7, 1, 2]]).expand(3000, -1), torch.zeros(3000).long(),
        torch.Generator().manual_seed(0),
    )  # fmt: skip
    orders = (mixed @ torch.tensor([9, 3, 1])).bincount()
    assert (orders[orders > 0] - 500).abs().max() < 5 * math.sqrt(500)
    assert (orders > 0).sum() == 6


# Sequences of label L hold 10 L + 1 … 10 L + 4 and CLS. Head 0 attends to the smallest token, head 1 to the largest.
INPUTS = torch.tensor([[10 * label + token for token in (1, 2, 3, 4)] + [0] for label in (0, 1, 2) for _ in range(5)])
LABELS = torch.arange(3).repeat_interleave(5)
ROWS = [torch.tensor([[[4.0, 3, 2, 1, 99], [1, 2, 3, 4, 99]]]).expand(15, -1, -1)]  # CLS's own weight must not count


def mixing(predict, seed, num_pairs):
    """Label mixing of a single model, `predict` (N, K) → (N,)."""
    stacked = [x[None] for x in (*ROWS, INPUTS, LABELS)]
    generator = torch.Generator().manual_seed(seed)
    (results,) = metrics.label_mixing(
        lambda tokens: predict(tokens[0])[None], stacked[:1], *stacked[1:], [generator], num_pairs
    )
    return results


def test_a_model_that_follows_the_first_head_flips_with_its_token():
    """Label by the token whose last digit is 1, which head 0 puts on top: it comes with the mixed-in token."""

    def predict(tokens):
        ones = torch.where(tokens % 10 == 1, tokens, 0).amax(1)
        return ones // 10

    results = mixing(predict, 0, num_pairs=50)
    assert results["mixing/0_0/avg_top1_dominance_rate"] == 1
    assert results["mixing/0_1/avg_top1_dominance_rate"] == 0
    assert results["mixing/0_0/mixed_a_predicts_top1_label"] == 50
    assert results["mixing/0_0/total_pairs"] == 50


def test_a_model_that_takes_the_majority_never_flips():
    def predict(tokens):
        return (tokens[:, :-1] // 10).mode(1).values

    results = mixing(predict, 0, num_pairs=50)
    assert {k: v for k, v in results.items() if "rate" in k and v} == {}


def test_the_two_rates_are_those_of_a_and_of_b():
    """A model that always says label 0 is right about A exactly when A's label is 0."""
    results = mixing(lambda t: t.new_zeros(len(t)), 3, num_pairs=600)
    a, b = (results[f"mixing/0_0/top1_dominance_rate_{x}"] for x in "ab")
    assert a == pytest.approx(1 / 3, abs=0.07)
    assert b == pytest.approx(1 / 3, abs=0.07)
    assert results["mixing/0_0/avg_top1_dominance_rate"] == (a + b) / 2


def test_one_label_alone_has_no_pairs():
    labels = torch.stack([LABELS, torch.zeros(15).long(), LABELS])
    rows, inputs = [row.expand(3, -1, -1, -1) for row in ROWS], INPUTS.expand(3, -1, -1)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1, 0)]
    results = metrics.label_mixing(lambda t: t[..., 0] // 10, rows, inputs, labels, generators, num_pairs=50)
    assert results[1] == {}
    assert results[0] == results[2] == mixing(lambda t: t[:, 0] // 10, 0, num_pairs=50)


def test_epsilon_is_the_papers():
    assert EPSILON == 1e-9


def test_bos_attention_of_counted_rows_by_hand():
    """Two sequences; of the first, rows 1 and 3 count, of the second, row 2 alone."""
    weights = torch.full((2, 1, 4, 4), 99.0)
    counted = torch.tensor([[False, True, False, True], [False, False, True, False]])
    weights[0, 0, 1] = torch.tensor([0.5, 0.5, 0, 0])
    weights[0, 0, 3] = torch.tensor([0.1, 0, 0, 0.1])
    weights[1, 0, 2] = torch.tensor([-0.2, 0.8, 0, 0])
    results = {name: value.item() for name, value in metrics.bos_attention(weights, counted).items()}
    assert results == pytest.approx(
        {
            "abs_attn_bos": 0.4 / 3,
            "abs_attn_all": 1.8 / 3,
            "rel_attn_bos": (0.5 + 0.5 - 1 / 3) / 3,
            "rel_attn_bos_global": (0.5 - 1 / 3) / 2,
            "mag_attn_bos_global": (0.5 + 0.2) / 2,
        },
        rel=1e-6,
    )


def test_counting_the_rows_of_induction_gives_its_scores():
    weights = torch.rand(3, 5, 2, 7, 7, generator=torch.Generator().manual_seed(0)).tril()
    counted = torch.zeros(3, 5, 7, dtype=torch.bool)
    counted[..., 1:5] = True
    expected = metrics.bos_attention(weights)
    for name, value in metrics.bos_attention(weights, counted).items():
        torch.testing.assert_close(value, expected[name])


def test_a_sink_is_seen_where_it_is():
    """Head 0 puts 3/4 of what its rows have on key 2, head 1 is uniform with half of its weight in an outlet."""
    weights = torch.zeros(2, 2, 3, 4)  # (sequences, heads, rows, keys)
    weights[:, 0, :, 2], weights[:, 0, :, 1] = -1.5, 0.5
    weights[:, 1] = 0.125
    weights[:, :, 0] = 99.0  # a row that does not count
    found = metrics.sink_place(weights, torch.tensor([[False, True, True]] * 2))
    assert found["sink_place"][0] == 2
    torch.testing.assert_close(found["sink_share"], torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(found["row_sum"], torch.tensor([-1.0, 0.5]))


def test_value_drain_by_hand():
    values = torch.tensor([[[3.0, 4.0], [10.0, 0.0], [0.0, 15.0]]])[None]  # norms 5, 10, 15
    assert metrics.value_drain(values, 0).tolist() == pytest.approx([0.5])
    assert metrics.value_drain(values, -1).tolist() == pytest.approx([1.5])


def test_residual_peaks_by_hand():
    states = torch.tensor([[[8.0, 0.0], [0.0, 2.0], [-2.0, 0.0]]])  # norms 8, 2, 2; one sequence
    found = {name: value.item() for name, value in metrics.residual_peaks(states, 0).items()}
    numbers = [8, 0, 0, 2, -2, 0]
    mean = sum(numbers) / 6
    second, fourth = (sum((x - mean) ** power for x in numbers) / 6 for power in (2, 4))
    assert found["residual_peak"] == pytest.approx(2)
    assert found["residual_max_median"] == pytest.approx(8 / (0 + EPSILON))  # torch's median is the lower one
    assert found["residual_kurtosis"] == pytest.approx(fourth / second**2)


def test_residual_kurtosis_of_a_gaussian_is_three():
    states = torch.randn(4, 100, 64, generator=torch.Generator().manual_seed(0))
    assert metrics.residual_peaks(states, 0)["residual_kurtosis"].item() == pytest.approx(3, abs=0.1)
