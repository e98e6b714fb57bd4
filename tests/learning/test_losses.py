"""Losses against SciPy, and where they must be zero."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, rel_entr

from ckd_ehr.learning.losses import concept_loss, hard_loss, soft_loss


def test_soft_loss_is_the_mean_kl_of_bernoullis_scaled_by_temperature() -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 4, 3))
    for temperature in (1.0, 2.5):
        p, q = expit(teacher / temperature), expit(student / temperature)
        expected = (rel_entr(p, q) + rel_entr(1 - p, 1 - q)).mean() * temperature**2
        found = soft_loss(
            torch.tensor(np.vstack([student, student + 9])),
            torch.tensor(np.vstack([teacher, teacher])),
            torch.arange(8) < 4,  # the other rows have no teacher
            temperature=temperature,
        ).item()
        np.testing.assert_allclose(found, expected, rtol=1e-10)


@given(st.integers(0, 10_000))
def test_concept_loss_is_the_kl_over_shared_states(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(2, 3, 5))
    teacher = rng.dirichlet(np.ones(5), size=(2, 3))
    shared = np.array([[True, True, True, False, True], [True, False, False, False, False]])
    p = teacher[0][:, shared[0]]
    p = p / p.sum(-1, keepdims=True)
    q = np.exp(scores[0][:, shared[0]])
    q = q / q.sum(-1, keepdims=True)
    expected = rel_entr(p, q).sum(-1).mean()  # the second row shares one state: it does not count
    found = concept_loss(torch.tensor(scores), torch.tensor(teacher), torch.tensor(shared)).item()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_losses_are_zero_with_finite_gradients_when_no_row_counts() -> None:
    logits = torch.zeros(2, 3, requires_grad=True)
    hard_loss(logits, torch.zeros(2, 3), torch.zeros(2, dtype=torch.bool)).backward()
    assert logits.grad is not None
    assert (logits.grad == 0).all()
    scores = torch.full((1, 3, 2), -torch.inf)
    scores[..., 0] = 0.0
    scores.requires_grad_()
    loss = concept_loss(scores, torch.zeros(1, 3, 2), torch.tensor([[True, False]]))
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()


def test_unlabelled_rows_have_no_hard_loss() -> None:
    logits = torch.tensor([[0.3], [5.0]])
    labels = torch.tensor([[1.0], [0.0]])
    only_first = hard_loss(logits, labels, torch.tensor([True, False]))
    torch.testing.assert_close(only_first, torch.log1p(torch.exp(torch.tensor(-0.3))))
