"""The label attention head against NumPy, and its promises."""

import numpy as np
import torch

from ckd_ehr.learning.heads import LabelAttentionHead, pool_concepts


def _head_and_states() -> tuple[LabelAttentionHead, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    head = LabelAttentionHead(hidden_size=8, labels=3, attention_size=5)
    head.start_at(torch.tensor([0.1, 0.5, 0.9]))
    mask = torch.tensor([[True, True, False, True], [True, False, False, False]])
    return head, torch.randn(2, 4, 8), mask


def test_head_follows_its_formula() -> None:
    head, states, mask = _head_and_states()
    with torch.no_grad():
        output = head(states, mask)
    h = states.numpy().astype(np.float64)
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
    w = {name: value.detach().numpy().astype(np.float64) for name, value in head.named_parameters()}
    hidden = np.tanh(h @ w["project.weight"].T + w["project.bias"])
    scores = np.einsum("ka,bca->bkc", w["queries"], hidden)
    weights = np.exp(scores) * mask.numpy()[:, None]
    alpha = weights / weights.sum(-1, keepdims=True)
    z = np.einsum("bkc,kd,bcd->bk", alpha, w["weights"], h) + w["bias"]
    np.testing.assert_allclose(output.logits.numpy(), z, rtol=1e-4)
    np.testing.assert_allclose(output.attention.numpy(), alpha, rtol=1e-4, atol=1e-7)


def test_evidence_sums_to_logit_less_bias_and_masked_states_have_none() -> None:
    head, states, mask = _head_and_states()
    output = head(states, mask)
    torch.testing.assert_close(output.evidence.sum(-1), output.logits - head.bias)
    assert (output.evidence[0, :, 2] == 0).all()
    assert (output.attention[1, :, 0] == 1).all()  # no concepts: all rests on the reading state


def test_masked_states_cannot_change_the_logit() -> None:
    head, states, mask = _head_and_states()
    changed = states.clone()
    changed[0, 2] = 100.0
    torch.testing.assert_close(head(states, mask).logits, head(changed, mask).logits)


def test_gradients_stay_finite_with_masked_states() -> None:
    head, states, mask = _head_and_states()
    head(states, mask).logits.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


def test_pooling_a_concept_without_tokens_gives_zeros() -> None:
    hidden = torch.randn(1, 3, 4)
    index = torch.tensor([[0, 2, 2]])
    for pooling in ("mean", "last"):
        pooled = pool_concepts(hidden, index, 2, pooling)
        assert (pooled[0, 0] == 0).all()
    torch.testing.assert_close(pool_concepts(hidden, index, 2, "mean")[0, 1], hidden[0, 1:].mean(0))
    torch.testing.assert_close(pool_concepts(hidden, index, 2, "last")[0, 1], hidden[0, 2])
