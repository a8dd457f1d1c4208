"""The bigram with triggers: its chain, its sequences, what is measured."""

import math

import pytest
import torch
from tiny import tiny

from src.tasks import Backcopy
from src.tasks.backcopy import chain, character_ids, is_trigger


def test_characters_are_numbered_by_how_common_they_are():
    assert character_ids("abcbcc").tolist() == [3, 2, 1, 2, 1, 1]
    assert character_ids("ba").tolist() == [2, 1]  # as common: in the alphabet's order
    many = "".join(chr(200 + i) * (100 - i) for i in range(70))
    assert character_ids(many).unique().tolist() == list(range(1, 65))
    assert len(character_ids(many)) == sum(100 - i for i in range(64))


def test_the_chain_is_a_chain():
    p = chain()
    assert p.shape == (65, 65)
    torch.testing.assert_close(p.sum(1), torch.ones(65, dtype=torch.float64))
    assert (p >= 0).all()
    assert (p[:, 0] == 0).all()  # BOS never comes again
    assert (p[0, :4] == 0).all()  # and no sequence begins with a trigger
    assert (p[0, 4:].diff() <= 0).all()  # the commonest first


def test_after_a_trigger_comes_what_stood_before_it():
    inputs, targets = Backcopy(tiny("backcopy", seq_length=40)).sequences(500, torch.Generator().manual_seed(0))
    assert inputs.shape == targets.shape == (500, 39)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert (inputs[:, 0] == 0).all()
    assert (targets > 0).all()
    triggers = is_trigger(inputs)
    assert triggers.float().mean() > 0.1
    for row, place in triggers.nonzero().tolist():
        assert targets[row, place] == inputs[row, place - 1]


def test_other_characters_come_as_the_bigrams_say():
    inputs, targets = Backcopy(tiny("backcopy", seq_length=60)).sequences(4000, torch.Generator().manual_seed(0))
    for character in (0, 4, 10):  # BOS, and two others
        after = targets[inputs == character]
        shares = after.bincount(minlength=65) / len(after)
        torch.testing.assert_close(shares, chain()[character].float(), atol=5 * 0.5 / len(after) ** 0.5, rtol=0)


def test_loss_and_what_exceeds_the_bigrams_by_hand():
    task = Backcopy(tiny("backcopy", seq_length=5))
    targets = torch.tensor([[[9, 1, 9, 12]]])  # inputs: BOS, 9, the trigger 1, 9
    uniform = torch.zeros(1, 1, 4, 65)
    assert task.loss(uniform, targets).item() == pytest.approx(math.log(65), rel=1e-6)
    known = [chain()[0, 9], chain()[9, 1], chain()[9, 12]]
    excess = sum(math.log(65) + math.log(p) for p in known) / 3
    measured = task.accuracies(uniform, targets)
    assert measured["excess_loss"].item() == pytest.approx(excess, rel=1e-5)
    assert measured["acc"].item() == 0
    right = uniform.clone()
    right[0, 0, 2, 9] = 1.0
    assert task.accuracies(right, targets)["acc"].item() == 1


def test_who_knows_the_bigrams_exceeds_them_by_nothing():
    task = Backcopy(tiny("backcopy", seq_length=12))
    inputs, targets = (x[None] for x in task.sequences(50, torch.Generator().manual_seed(0)))
    logits = chain()[inputs].log().clamp(min=-1e4).float()
    assert task.accuracies(logits, targets)["excess_loss"].item() == pytest.approx(0, abs=1e-5)


def test_rows_that_have_to_do_nothing_are_of_no_trigger():
    task = Backcopy(tiny("backcopy"))
    assert task.counted(torch.tensor([[[0, 9, 1, 9, 3, 4]]])).tolist() == [[[False, True, False, True, False, True]]]
