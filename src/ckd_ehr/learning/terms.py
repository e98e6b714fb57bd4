"""A loss as a sum of weighted terms, each of which can be looked at.

In: terms. Out: their sum, and how hard each pulls. Ignores: what they mean.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Term(NamedTuple):
    """A part of a loss, and its weight in the whole."""

    value: Tensor
    weight: float


Terms = Mapping[str, Term]


def total_of(terms: Terms) -> Tensor:
    """The loss.

    >>> total_of({"a": Term(torch.tensor(2.0), 0.5), "b": Term(torch.tensor(3.0), 1.0)}).item()
    4.0
    """
    return torch.stack([term.value * term.weight for term in terms.values()]).sum()


def gradient_norms(values: Mapping[str, Tensor], model: nn.Module) -> dict[str, float]:
    """The Euclidean norm of each value's gradient over all trained parameters.

    The graph is kept and `.grad` is not touched.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return {name: _norm(value, trained) for name, value in values.items()}


def _norm(value: Tensor, trained: list[nn.Parameter]) -> float:
    if not value.requires_grad:
        return 0.0
    gradients = torch.autograd.grad(value, trained, retain_graph=True, allow_unused=True)
    squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0
