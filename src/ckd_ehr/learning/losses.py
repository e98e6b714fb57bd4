"""Distillation losses: pure functions of logits and attention.

Every function returns a scalar averaged over the rows (and labels) that count, and zero when none
does. Ignores: models, batching, schedules of training.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def hard_loss(logits: Tensor, labels: Tensor, labelled: Tensor) -> Tensor:
    """Binary cross-entropy on the labelled rows.

    Args:
        logits, labels: (batch, labels). labelled: (batch,) bool.

    >>> z = torch.zeros(2, 3); y = torch.ones(2, 3)
    >>> round(hard_loss(z, y, torch.tensor([True, False])).item(), 4)
    0.6931
    """
    rows = F.binary_cross_entropy_with_logits(
        logits, torch.where(labelled[:, None], labels, 0.0), reduction="none"
    ).mean(-1)
    return _mean_over(rows, labelled)


def soft_loss(
    student_logits: Tensor, teacher_logits: Tensor, taught: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Cross-entropy to the teacher's probabilities at a temperature, less the teacher's entropy.

    Scaled by temperature² so that its gradient keeps its size (Hinton et al. 2015); zero where the
    student says what the teacher says.

    Args:
        student_logits, teacher_logits: (batch, labels), calibrated teacher.
        taught: (batch,) bool, the rows that have a teacher.

    >>> z = torch.tensor([[0.3, -2.0]])
    >>> soft_loss(z, z, torch.tensor([True]), temperature=2.0).item() == 0
    True
    """
    target = torch.sigmoid(teacher_logits / temperature)
    cross = F.binary_cross_entropy_with_logits(
        student_logits / temperature, target, reduction="none"
    )
    entropy = F.binary_cross_entropy_with_logits(
        teacher_logits / temperature, target, reduction="none"
    )
    return _mean_over((cross - entropy).mean(-1), taught) * temperature**2


def concept_loss(student_scores: Tensor, teacher_attention: Tensor, shared: Tensor) -> Tensor:
    """KL(teacher ‖ student) of the labels' attention over the states that both models saw.

    Both distributions are renormalised over the shared states first.

    Args:
        student_scores: (batch, labels, states) before the softmax.
        teacher_attention: (batch, labels, states), 0 where not shared.
        shared: (batch, states) bool. Rows with fewer than two shared states do not count.

    >>> scores = torch.tensor([[[0.0, 1.0, 5.0]]])
    >>> shared = torch.tensor([[True, True, False]])
    >>> target = torch.softmax(torch.tensor([[[0.0, 1.0]]]), -1)
    >>> round(concept_loss(scores, F.pad(target, (0, 1)), shared).item(), 6)
    0.0
    """
    counts = shared.sum(-1) >= 2
    mask = shared.unsqueeze(1)
    student = student_scores.masked_fill(~mask, -1e4).log_softmax(-1)
    teacher = teacher_attention.masked_fill(~mask, 0.0)
    teacher = teacher / teacher.sum(-1, keepdim=True).clamp(min=1e-8)
    divergence = (torch.xlogy(teacher, teacher) - teacher * student).sum(-1).mean(-1)
    return _mean_over(divergence, counts)


def attention_decay(progress: float, until: float) -> float:
    """The share of the attention terms at this point of training: 1 falling linearly to 0.

    >>> [attention_decay(progress, until=0.6) for progress in (0.0, 0.3, 0.9)]
    [1.0, 0.5, 0.0]
    """
    return max(0.0, 1.0 - progress / until)


def _mean_over(rows: Tensor, counts: Tensor) -> Tensor:
    weights = counts.to(rows.dtype)
    return (rows * weights).sum() / weights.sum().clamp(min=1.0)
