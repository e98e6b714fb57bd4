"""Patient-level losses: which patients the teacher holds to be more at risk, and which alike.

In: logits and reading states of a batch. Out: one scalar each. Ignores: what was read; where the
earlier pairs of the queue come from.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NEAR_CONSTANT = 1e-3  # deviation of the teacher's log-odds below which its ranking says nothing
SMALLEST_DEVIATION = 0.5  # of the student's log-odds, by which a smaller one is taken


def correlation_loss(student_logits: Tensor, teacher_logits: Tensor, counts: Tensor) -> Tensor:
    """1 − the mean Pearson correlation of student and teacher over pairs, label by label.

    Cf. Huang et al. 2022 (DIST). A fresh student's log-odds hardly differ; divided by their own
    deviation they would have a gradient a hundred times that of later ones, so that deviation is
    taken as 0.5 at least. Labels on which the teacher is nearly constant do not count; zero where
    none does, or fewer than three pairs.

    Args:
        student_logits, teacher_logits: (pairs, labels), those of the batch and of the queue.
        counts: (labels,) bool, labels whose teacher is trusted.

    >>> z = torch.tensor([[0.0], [1.0], [3.0]])
    >>> [round(correlation_loss(z, t, torch.tensor([True])).item(), 4) for t in (2 * z + 1, -z)]
    [0.0, 2.0]
    """
    if len(student_logits) < 3:
        return student_logits.sum() * 0.0
    student = student_logits - student_logits.mean(0)
    teacher = teacher_logits - teacher_logits.mean(0)
    deviation = student.square().mean(0).clamp(min=1e-12).sqrt().clamp(min=SMALLEST_DEVIATION)
    others = teacher.square().mean(0).sqrt()
    varied = (others > NEAR_CONSTANT) & counts
    alike = (student * teacher).mean(0) / (deviation * others.clamp(min=NEAR_CONSTANT))
    return torch.where(varied, 1 - alike, 0.0).sum() / varied.sum().clamp(min=1)


def relation_loss(student_states: Tensor, teacher_states: Tensor, folds: Tensor) -> Tensor:
    """How differently the two models place patients to each other (Park et al. 2019, RKD).

    Distances between reading states, those of each model divided by their mean, compared by
    Huber's loss. States of different fold teachers live in different bases, so each fold's pairs
    are compared among themselves, with means of their own; zero where there are none.

    Args:
        student_states: (batch, size). teacher_states: (batch, other size).
        folds: (batch,), -1 where there is no teacher's state.

    >>> states = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
    >>> relation_loss(states, 7 * states, torch.tensor([0, 0, 0])).item()
    0.0
    """
    student, teacher = _distances(student_states), _distances(teacher_states)
    gaps = []
    for fold in torch.unique(folds[folds >= 0]):
        mine = folds == fold
        pairs = torch.triu(mine[:, None] & mine[None, :], diagonal=1)
        if pairs.any():
            ours, theirs = (
                of[pairs] / of[pairs].mean().clamp(min=1e-8) for of in (student, teacher)
            )
            gaps.append(F.smooth_l1_loss(ours, theirs, reduction="none"))
    return torch.cat(gaps).mean() if gaps else student_states.sum() * 0.0


def _distances(states: Tensor) -> Tensor:
    """Euclidean, (batch, batch), with a finite gradient at zero."""
    squares = (states[:, None] - states[None, :]).square().sum(-1)
    return squares.clamp(min=1e-12).sqrt()
