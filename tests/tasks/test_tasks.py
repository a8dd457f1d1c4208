import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny

from src.tasks import Classification, Induction
from src.tasks.sequences import sample_distinct
from src.training.loop import stream

sizes = st.integers(3, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(n, 30)))


@given(sizes=sizes, seed=st.integers(0, 99))
def test_sampled_items_are_distinct_and_in_range(sizes, seed):
    size, num_items = sizes
    items = sample_distinct(50, num_items, size, torch.Generator().manual_seed(seed))
    assert items.shape == (50, size)
    assert items.min() >= 0
    assert items.max() < num_items
    assert all(len(set(row)) == size for row in items.tolist())


def test_samples_are_uniform_in_every_place():
    items = sample_distinct(60_000, 5, 3, torch.Generator().manual_seed(0))
    for place in items.T:
        counts = torch.bincount(place, minlength=5)
        assert ((counts - 12_000).abs() < 5 * math.sqrt(60_000 * 0.2 * 0.8)).all()
    triples = (items @ torch.tensor([25, 5, 1])).bincount()
    assert (triples[triples > 0] - 1000).abs().max() < 5 * math.sqrt(1000)
    assert (triples > 0).sum() == 60


@given(sizes=sizes, shift=st.booleans(), seed=st.integers(0, 99))
def test_induction_sequences(sizes, shift, seed):
    n, vocab = sizes[0], sizes[1] + 1
    config = tiny(vocab_size=vocab, seq_length=n + 3, shift_query_token=shift, seed=seed)
    task = Induction(config)
    inputs, targets = task.sequences(40, stream(config, "test"))
    assert inputs.shape == targets.shape == (40, n + 2)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert task.num_tokens == task.num_classes == (2 * vocab if shift else vocab)
    for ids, z in zip(inputs.tolist(), targets[:, -1].tolist(), strict=True):
        bos, *x, y = ids
        assert bos == 0
        assert len(set(x)) == n
        assert all(1 <= token < vocab for token in x)
        r = x.index(y - vocab if shift else y)
        assert z == [*x, y][r + 1]  # for the last x the query itself, shifted if it is


def test_the_query_is_uniform_and_the_last_place_answers_with_the_query():
    config = tiny(vocab_size=50, seq_length=13)
    inputs, targets = Induction(config).sequences(20_000, stream(config, "test"))
    r = (inputs[:, 1:11] == inputs[:, -1:] - 50).int().argmax(1)
    counts = r.bincount(minlength=10)
    assert ((counts - 2000).abs() < 5 * math.sqrt(20_000 * 0.09)).all()
    last = r == 9
    assert torch.equal(targets[last, -1], inputs[last, -1])
    assert (targets[last, -1] > 50).all()
    assert (targets[~last, -1] < 50).all()


@given(labels=st.integers(2, 6), group=st.integers(2, 12), context=st.integers(2, 12), seed=st.integers(0, 99))
def test_classification_sequences(labels, group, context, seed):
    context = min(context, group)
    config = tiny("classification", vocab_size=1 + labels * group, num_labels=labels, seq_length=context + 1, seed=seed)
    inputs, targets = Classification(config).sequences(40, stream(config, "test"))
    assert inputs.shape == (40, context + 1)
    for ids, label in zip(inputs.tolist(), targets.tolist(), strict=True):
        *content, cls = ids
        assert cls == 0
        assert len(set(content)) == context
        assert {(token - 1) // group for token in content} == {label}


def test_induction_loss_and_accuracies_by_hand():
    config = tiny(vocab_size=4, seq_length=5, shift_query_token=False, aux_loss_weight=0.5)
    task = Induction(config)
    targets = torch.tensor([[[1, 2, 1, 2]]])  # one member, one sequence
    right = torch.full((1, 1, 4, 4), -50.0).scatter(3, targets[..., None], 50.0)
    logits = torch.zeros(1, 1, 4, 4)  # every id equally likely: a loss of log 4 at each position
    logits[:, :, :2] = right[:, :, :2]
    assert task.loss(logits, targets).item() == pytest.approx(math.log(4) * (1 + 0.5 / 3))
    assert task.accuracies(logits, targets) == {"acc_all": 0.5, "acc_induction": 0.0}
    alone = Induction(tiny(vocab_size=4, seq_length=5, shift_query_token=False, aux_loss_weight=0.0))
    assert alone.read == slice(-1, None)
    assert alone.loss(logits[:, :, -1:], targets).item() == pytest.approx(math.log(4))
    assert alone.loss(logits, targets).item() == pytest.approx(math.log(4))


def test_classification_loss_and_accuracy_by_hand():
    task = Classification(tiny("classification"))
    logits = torch.tensor([[[[0.0, 0, 0, 0]], [[0, 100, 0, 0]]]])
    labels = torch.tensor([[2, 1]])
    assert task.loss(logits, labels).item() == pytest.approx(math.log(4) / 2)
    assert task.accuracies(logits, labels) == {"acc": 0.5}
