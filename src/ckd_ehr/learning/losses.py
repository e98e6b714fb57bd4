"""Losses of logits: hard labels, soft labels, and how the attention terms fade.

Every function returns one scalar. Ignores: models, batching, attention (`attention_losses.py`),
what a patient's place among others says (`patient_losses.py`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def hard_loss(logits: Tensor, labels: Tensor, labelled: Tensor) -> Tensor:
    """Binary cross-entropy, the mean over the labelled rows; zero where there are none.

    Args:
        logits, labels: (batch, labels). labelled: (batch,) bool.

    >>> z = torch.zeros(2, 3); y = torch.ones(2, 3)
    >>> round(hard_loss(z, y, torch.tensor([True, False])).item(), 4)
    0.6931
    """
    rows = _cross_entropy(logits, torch.where(labelled[:, None], labels, 0.0)).mean(-1)
    return mean_over(rows, labelled)


def weighted_hard_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy times weights (batch, labels), divided by all rows and labels.

    >>> z = torch.zeros(2, 1); y = torch.ones(2, 1)
    >>> round(weighted_hard_loss(z, y, torch.tensor([[1.0], [0.0]])).item(), 4)
    0.3466
    """
    return (_cross_entropy(logits, labels) * weights).mean()


def soft_loss(
    student_logits: Tensor, teacher_logits: Tensor, weights: Tensor, *, temperature: Tensor
) -> Tensor:
    """Cross-entropy to the teacher's probabilities at a temperature, less the teacher's entropy.

    Scaled by temperature² so that its gradient keeps its size (Hinton et al. 2015); zero where the
    student says what the teacher says. Divided by all rows and labels.

    Args:
        student_logits, teacher_logits: (batch, labels), calibrated teacher.
        weights: (batch, labels), 0 where there is no teacher, or none to be trusted.
        temperature: (labels,).

    >>> z = torch.tensor([[0.3, -2.0]])
    >>> soft_loss(z, z, torch.ones(1, 2), temperature=torch.tensor([1.0, 2.0])).item() == 0
    True
    """
    target = torch.sigmoid(teacher_logits / temperature)
    cross = _cross_entropy(student_logits / temperature, target)
    entropy = _cross_entropy(teacher_logits / temperature, target)
    return ((cross - entropy) * temperature**2 * weights).mean()


def confidence(spread: Tensor, gate: Tensor, *, scale: float) -> Tensor:
    """How far soft labels are trusted: g_k / (1 + spread / τ), (batch, labels).

    Args:
        spread: (batch, labels) of log-odds, NaN where there is one opinion, which costs nothing.
        gate: (labels,), 0 where the teacher has not been better than hard labels.
        scale: τ, the spread that halves the weight; infinite to leave it out.

    >>> spread = torch.tensor([[0.0, 1.0, float("nan")]])
    >>> confidence(spread, torch.tensor([1.0, 1.0, 0.0]), scale=1.0).tolist()
    [[1.0, 0.5, 0.0]]
    """
    return gate / (1 + spread.nan_to_num(0.0) / scale)


def attention_decay(progress: float, until: float) -> float:
    """The share of the attention terms at this point of training: 1 falling linearly to 0.

    >>> [attention_decay(progress, until=0.6) for progress in (0.0, 0.3, 0.9)]
    [1.0, 0.5, 0.0]
    """
    return max(0.0, 1.0 - progress / until)


def mean_over(rows: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of rows (batch,); zero where no row counts."""
    weights = weights.to(rows.dtype)
    return (rows * weights).sum() / weights.sum().clamp(min=1e-8)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
