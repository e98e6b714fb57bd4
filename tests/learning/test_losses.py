"""Losses of logits against SciPy, and where they must be zero."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, rel_entr

from ckd_ehr.learning.losses import (
    attention_decay,
    confidence,
    hard_loss,
    soft_loss,
    weighted_hard_loss,
)


@given(st.integers(0, 10_000))
def test_soft_loss_is_the_weighted_kl_of_bernoullis_at_each_labels_temperature(seed: int) -> None:
    rng = np.random.default_rng(seed)
    student, teacher = rng.normal(size=(2, 4, 3))
    temperature, weights = rng.uniform(0.5, 4, size=3), rng.uniform(size=(4, 3))
    p, q = expit(teacher / temperature), expit(student / temperature)
    divergence = rel_entr(p, q) + rel_entr(1 - p, 1 - q)
    expected = (divergence * temperature**2 * weights).mean()
    found = soft_loss(
        torch.tensor(student),
        torch.tensor(teacher),
        torch.tensor(weights),
        temperature=torch.tensor(temperature),
    )
    np.testing.assert_allclose(found.item(), expected, rtol=1e-9)


def test_rows_without_a_teacher_have_no_soft_loss_but_count_as_rows() -> None:
    student, teacher = torch.tensor([[1.0], [9.0]]), torch.tensor([[0.0], [0.0]])
    one = torch.ones(1)
    alone = soft_loss(student[:1], teacher[:1], torch.ones(1, 1), temperature=one)
    both = soft_loss(student, teacher, torch.tensor([[1.0], [0.0]]), temperature=one)
    assert both.item() == pytest.approx(alone.item() / 2)


def test_hard_losses_agree_with_the_log_likelihood() -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(3, 2)), rng.integers(0, 2, size=(3, 2)).astype(float)
    cross = -(labels * np.log(expit(logits)) + (1 - labels) * np.log(expit(-logits)))
    found = hard_loss(torch.tensor(logits), torch.tensor(labels), torch.tensor([True, False, True]))
    np.testing.assert_allclose(found.item(), cross[[0, 2]].mean(), rtol=1e-10)
    weights = rng.uniform(size=(3, 2))
    found = weighted_hard_loss(*(torch.tensor(x) for x in (logits, labels, weights)))
    np.testing.assert_allclose(found.item(), (weights * cross).mean(), rtol=1e-10)


def test_an_unlabelled_row_has_no_hard_loss_and_no_gradient() -> None:
    logits = torch.tensor([[0.3], [5.0]], requires_grad=True)
    hard_loss(logits, torch.zeros(2, 1), torch.tensor([False, False])).backward()
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_all_negative_labels_of_a_batch_have_a_finite_loss() -> None:
    logits = torch.zeros(4, 3, requires_grad=True)
    loss = hard_loss(logits, torch.zeros(4, 3), torch.ones(4, dtype=torch.bool))
    loss.backward()
    assert loss.item() == pytest.approx(np.log(2))
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]


def test_confidence_falls_with_the_spread_and_is_none_behind_a_closed_gate() -> None:
    spread = torch.tensor([[0.0, 2.0, 1.0], [float("nan")] * 3])
    found = confidence(spread, torch.tensor([1.0, 1.0, 0.0]), scale=2.0)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.5, 0.0], [1.0, 1.0, 0.0]]))
    without = confidence(spread, torch.tensor([1.0, 1.0, 0.0]), scale=float("inf"))
    torch.testing.assert_close(without, torch.tensor([[1.0, 1.0, 0.0]] * 2))


def test_attention_fades_to_nothing() -> None:
    assert [attention_decay(at, until=0.5) for at in (0.0, 0.25, 0.5, 1.0)] == [1.0, 0.5, 0.0, 0.0]
