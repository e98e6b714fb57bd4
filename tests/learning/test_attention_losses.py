"""The divergence of attention against SciPy, split at visits by the chain rule."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.learning.attention_losses import (
    has_choice,
    has_visits,
    layer_weights,
    mix_layers,
    split_divergence,
)

GROUPS = np.array([[0, 1, 3, 3, 4, -1], [0, 3, 3, -1, -1, -1]])


def _case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Student scores, teacher masses (2, 3, 6), and what both saw."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(2, 3, 6)) * 2
    teacher = rng.dirichlet(np.ones(6), size=(2, 3))
    shared = (rng.uniform(size=(2, 6)) < 0.7) & (GROUPS >= 0)
    shared[:, 0] = True
    return scores, teacher, shared


def _split_by_hand(
    scores: np.ndarray, teacher: np.ndarray, groups: np.ndarray
) -> tuple[float, float]:
    """One row over its shared states: KL of the groups, and Σ P_g KL within each."""
    p, q = teacher / teacher.sum(), softmax(scores)
    members = [groups == group for group in np.unique(groups)]
    masses_p, masses_q = ([one[m].sum() for m in members] for one in (p, q))
    visit = rel_entr(masses_p, masses_q).sum()
    concept = sum(
        mass * rel_entr(p[m] / p[m].sum(), q[m] / q[m].sum()).sum()
        for mass, m in zip(masses_p, members, strict=True)
    )
    return visit, concept


@given(st.integers(0, 10_000))
def test_both_parts_agree_with_their_definitions_and_sum_to_the_whole(seed: int) -> None:
    scores, teacher, shared = _case(seed)
    found = split_divergence(*(torch.tensor(x) for x in (scores, teacher, shared, GROUPS)))
    for row in range(2):
        kept = shared[row]
        for label in range(3):
            p, z = teacher[row, label, kept], scores[row, label, kept]
            visit, concept = _split_by_hand(z, p, GROUPS[row, kept])
            assert found.visit[row, label].item() == pytest.approx(visit, abs=1e-6)
            assert found.concept[row, label].item() == pytest.approx(concept, abs=1e-6)
            whole = rel_entr(p / p.sum(), softmax(z)).sum()
            both = (found.visit + found.concept)[row, label].item()
            assert both == pytest.approx(whole, abs=1e-6)


@given(st.integers(0, 1000))
def test_a_pairs_divergence_does_not_depend_on_batch_and_padding(seed: int) -> None:
    scores, teacher, shared = _case(seed)
    both = split_divergence(*(torch.tensor(x) for x in (scores, teacher, shared, GROUPS)))
    short = slice(1, 2), slice(0, 3)
    alone = split_divergence(
        torch.tensor(scores[1:2, :, :3]),
        torch.tensor(teacher[1:2, :, :3]),
        torch.tensor(shared[short]),
        torch.tensor(GROUPS[short]),
    )
    torch.testing.assert_close(alone.visit[0], both.visit[1])
    torch.testing.assert_close(alone.concept[0], both.concept[1])


@pytest.mark.parametrize("part", ["visit", "concept"])
def test_gradients_agree_with_finite_differences(part: str) -> None:
    scores, teacher, shared = (torch.tensor(x) for x in _case(3))

    def value(z: torch.Tensor) -> torch.Tensor:
        split = split_divergence(z, teacher, shared, torch.tensor(GROUPS))
        return getattr(split, part).sum()  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(value, scores.requires_grad_())


def test_pairs_with_one_concept_or_one_visit_have_no_choice() -> None:
    groups = torch.tensor([[0, 3, 3, 4], [0, 3, 3, -1], [0, -1, -1, -1]])
    shared = groups >= 0
    assert has_choice(shared).tolist() == [True, True, False]
    assert has_visits(shared, groups).tolist() == [True, False, False]
    shared[0, 3] = False  # its second visit is cut from one of the models
    assert has_visits(shared, groups).tolist() == [False, False, False]


def test_a_row_on_whose_states_the_teacher_has_no_mass_costs_nothing() -> None:
    scores = torch.randn(1, 1, 3, requires_grad=True)
    split = split_divergence(
        scores, torch.zeros(1, 1, 3), torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3).long()
    )
    (split.visit + split.concept).sum().backward()
    assert split.visit.abs().item() + split.concept.abs().item() < 1e-6
    assert torch.isfinite(scores.grad).all()  # type: ignore[arg-type]


def test_layers_are_mapped_by_depth_and_controls_use_the_same_layers() -> None:
    fixed = layer_weights(6, 30, kind="fixed")
    assert fixed.argmax(-1).tolist() == [4, 9, 14, 19, 24, 29]
    assert layer_weights(6, 30, kind="reverse").argmax(-1).tolist() == [29, 24, 19, 14, 9, 4]
    for seed in range(20):
        order = layer_weights(3, 6, kind="random", seed=seed).argmax(-1).tolist()
        assert order not in ([1, 3, 5], [5, 3, 1])
        assert sorted(order) == [1, 3, 5]
    with pytest.raises(CkdEhrError, match="a student of 2 layers has no other order"):
        layer_weights(2, 6, kind="random")
    assert layer_weights(6, 4, kind="fixed").argmax(-1).tolist() == [0, 0, 1, 2, 2, 3]


def test_a_mix_of_layers_is_their_weighted_sum_and_retained_mass() -> None:
    rng = np.random.default_rng(0)
    weights, readout = rng.dirichlet(np.ones(4), size=2), rng.dirichlet(np.ones(5), size=(3, 4))
    retained = rng.uniform(size=(3, 4))
    mixed, mass = mix_layers(*(torch.tensor(x) for x in (weights, readout, retained)))
    np.testing.assert_allclose(mixed, np.einsum("ml,blc->bmc", weights, readout))
    np.testing.assert_allclose(mass, retained @ weights.T)
