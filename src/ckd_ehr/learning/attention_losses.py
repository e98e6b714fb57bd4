"""Attention losses: where the teacher looks, as a divergence split into visits and concepts.

In: the teacher's and the student's attention over the same states, and which visit each state
belongs to. Out: the two parts of the KL divergence, which sum to the whole. Ignores: how the
attention was made and how the parts are weighted.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ckd_ehr.contracts.errors import CkdEhrError

LayerMap = Literal["fixed", "learned", "reverse", "random"]
FIRST_VISIT = 3  # groups: 0 reading state, 1 demographics, 2 knowledge, 3 + v visit v
HIDDEN = -1e4


class Divergence(NamedTuple):
    """KL(teacher ‖ student) of each row, by the chain rule: visit + concept is the whole."""

    visit: Tensor  # of the groups' masses
    concept: Tensor  # within groups, each weighted by the teacher's mass on it


def split_divergence(
    student_scores: Tensor, teacher_attention: Tensor, shared: Tensor, groups: Tensor
) -> Divergence:
    """KL of two distributions over the shared states, split at the groups.

    Both are first renormalised over the shared states:
    KL(p‖q) = KL(P‖Q) + Σ_g P_g KL(p_{·|g} ‖ q_{·|g}), P and Q the masses of the groups.

    Args:
        student_scores: (batch, rows, states), log-masses up to a constant.
        teacher_attention: (batch, rows, states), masses; what is not shared does not count.
        shared: (batch, states) bool.
        groups: (batch, states), the group of each state, -1 for none.

    Returns:
        Two tensors (batch, rows); zero where the teacher has no mass on shared states.

    >>> shared, groups = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[3, 3, 4]])
    >>> p, q = torch.tensor([[[0.2, 0.3, 0.5]]]), torch.tensor([[[0.1, 0.6, 0.3]]])
    >>> visit, concept = split_divergence(q.log(), p, shared, groups)
    >>> torch.allclose(visit + concept, (p * (p / q).log()).sum(-1))
    True
    """
    mask = shared.unsqueeze(1)
    log_q = student_scores.masked_fill(~mask, HIDDEN).log_softmax(-1)
    p = teacher_attention.masked_fill(~mask, 0.0)
    p = p / p.sum(-1, keepdim=True).clamp(min=1e-8)
    member = groups.unsqueeze(-1) == torch.arange(int(groups.max()) + 1, device=groups.device)
    member = member & shared.unsqueeze(-1)  # (batch, states, groups)
    mass_p = p @ member.to(p.dtype)
    inside = log_q.unsqueeze(-1).masked_fill(~member.unsqueeze(1), HIDDEN)
    log_mass_q = inside.logsumexp(-2)  # (batch, rows, groups)
    visit = (mass_p * (_log(mass_p) - log_mass_q)).sum(-1)
    whole = (p * (_log(p) - log_q)).sum(-1)
    return Divergence(visit=visit, concept=whole - visit)


def _log(masses: Tensor) -> Tensor:
    """With a finite gradient at zero, for masses that are learnt."""
    return masses.clamp(min=1e-12).log()


def has_choice(shared: Tensor) -> Tensor:
    """Rows (batch,) with two shared states or more: fewer leave nothing to look at."""
    return shared.sum(-1) >= 2


def has_visits(shared: Tensor, groups: Tensor) -> Tensor:
    """Rows (batch,) that share concepts of two visits or more.

    >>> has_visits(torch.tensor([[True, True, False]] * 2), torch.tensor([[3, 4, 4], [3, 3, 4]]))
    tensor([ True, False])
    """
    visits = torch.where(shared & (groups >= FIRST_VISIT), groups, -1)
    some = torch.where(visits >= 0, visits, int(groups.max()) + 1)
    return visits.amax(-1) > some.amin(-1)


def layer_weights(
    student_layers: int, teacher_layers: int, *, kind: LayerMap, seed: int = 0
) -> Tensor:
    """Which teacher layers each student layer looks at: (student layers, teacher layers).

    `fixed`: layer m looks at layer L_T·m/L_S; `reverse` and `random` are controls: the same
    layers the other way round, or in any order. `learned` starts at `fixed`.

    >>> layer_weights(2, 4, kind="fixed").argmax(-1).tolist()
    [1, 3]
    >>> layer_weights(2, 4, kind="reverse").argmax(-1).tolist()
    [3, 1]
    """
    steps = torch.arange(1, student_layers + 1)
    chosen = (steps * teacher_layers / student_layers).round().long() - 1
    chosen = chosen.clamp(0, teacher_layers - 1)
    if kind == "reverse":
        chosen = chosen.flip(0)
    if kind == "random":
        chosen = chosen[_any_other_order(student_layers, seed=seed)]
    return torch.nn.functional.one_hot(chosen, teacher_layers).float()


def _any_other_order(layers: int, *, seed: int) -> Tensor:
    """An order that is neither this one nor its reverse.

    Raises:
        CkdEhrError: two layers or one have no other.
    """
    if layers < 3:
        raise CkdEhrError(
            f"student.terms.layer_map=random: a student of {layers} layers has no other order than "
            "fixed and reverse; take 3 layers or more"
        )
    generator, plain = torch.Generator().manual_seed(seed), torch.arange(layers)
    while True:
        order = torch.randperm(layers, generator=generator)
        if not (torch.equal(order, plain) or torch.equal(order, plain.flip(0))):
            return order


def mix_layers(weights: Tensor, readout: Tensor, retained: Tensor) -> tuple[Tensor, Tensor]:
    """What a student layer shall look at, and how much of it counts.

    Args:
        weights: (student layers, teacher layers), rows sum to 1.
        readout: (batch, teacher layers, concepts), the layers' attention on concepts.
        retained: (batch, teacher layers), the share of attention that falls on concepts at all.

    Returns:
        (batch, student layers, concepts) and (batch, student layers).
    """
    mixed = torch.einsum("ml,blc->bmc", weights, readout)
    return mixed, retained @ weights.T
