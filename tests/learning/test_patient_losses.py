"""Patient-level losses against NumPy, and what they leave out."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist

from ckd_ehr.learning.patient_losses import correlation_loss, relation_loss


def test_correlation_is_that_of_numpy_over_the_labels_that_count() -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 8, 4))
    teacher[:, 3] = -2.0  # nearly constant: it ranks nobody
    counts = np.array([True, True, False, True])
    expected = np.mean([1 - np.corrcoef(student[:, k], teacher[:, k])[0, 1] for k in (0, 1)])
    found = correlation_loss(*(torch.tensor(x) for x in (student, teacher, counts)))
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_a_student_whose_log_odds_hardly_differ_has_no_steep_gradient() -> None:
    torch.manual_seed(0)
    teacher, counts = torch.randn(40, 2), torch.tensor([True, True])
    norms = []
    for size in (0.01, 0.1, 1.0):
        student = (torch.randn(40, 2) * size).requires_grad_()
        correlation_loss(student, teacher, counts).backward()
        norms.append(float(student.grad.norm()))  # type: ignore[union-attr]
    assert max(norms) < 3 * min(norms)
    gentle = correlation_loss(0.01 * teacher, teacher, counts)
    assert gentle.item() == pytest.approx(0.98, abs=0.01)  # 1 - 0.01 / 0.5: not there yet


def test_correlation_gradient_agrees_with_finite_differences() -> None:
    torch.manual_seed(0)
    student = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    teacher, counts = torch.randn(6, 2, dtype=torch.float64), torch.tensor([True, True])
    assert torch.autograd.gradcheck(lambda z: correlation_loss(z, teacher, counts), student)


@pytest.mark.parametrize("pairs", [0, 1, 2])
def test_too_few_pairs_have_no_correlation(pairs: int) -> None:
    student = torch.randn(pairs, 3, requires_grad=True)
    loss = correlation_loss(student, torch.randn(pairs, 3), torch.ones(3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0


def _relations_by_hand(student: np.ndarray, teacher: np.ndarray, folds: np.ndarray) -> float:
    gaps = []
    for fold in (0, 1):
        ours, theirs = (pdist(states[folds == fold]) for states in (student, teacher))
        gaps.append(np.abs(ours / ours.mean() - theirs / theirs.mean()))
    gap = np.concatenate(gaps)
    return float(np.where(gap < 1, gap**2 / 2, gap - 0.5).mean())


def test_relations_are_compared_within_a_folds_teacher_alone() -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(6, 3)), rng.normal(size=(6, 5))
    folds = np.array([0, 0, 1, 1, 0, -1])
    found = relation_loss(*(torch.tensor(x) for x in (student, teacher, folds)))
    assert found.item() == pytest.approx(_relations_by_hand(student, teacher, folds), rel=1e-6)
    teacher[[2, 3]] = 7 * teacher[[2, 3]] + 100.0  # another basis for the other fold's states
    moved = relation_loss(*(torch.tensor(x) for x in (student, teacher, folds)))
    assert moved.item() == pytest.approx(found.item(), rel=1e-9)


def test_equal_states_have_a_finite_gradient_and_single_pairs_no_relation() -> None:
    student = torch.zeros(3, 2, requires_grad=True)
    relation_loss(student, torch.randn(3, 4), torch.zeros(3).long()).backward()
    assert torch.isfinite(student.grad).all()  # type: ignore[arg-type]
    assert relation_loss(student, torch.randn(3, 4), torch.tensor([0, 1, -1])).item() == 0.0
