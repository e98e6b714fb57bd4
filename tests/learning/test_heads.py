"""The label attention head against NumPy, and its promises."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model

from ckd_ehr.learning.heads import LabelAttentionHead, LabelAttentionModel, pool_concepts
from ckd_ehr.learning.readout import READOUT, recording


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


@pytest.mark.parametrize(
    ("config_class", "model_class"), [(LlamaConfig, LlamaModel), (Qwen2Config, Qwen2Model)]
)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_pair_is_read_alike_alone_and_padded_in_a_batch(
    config_class: type, model_class: type, side: str, bidirectional: bool
) -> None:
    torch.manual_seed(0)
    config = config_class(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
    )
    config.is_causal = not bidirectional
    config._attn_implementation = READOUT
    model = LabelAttentionModel(
        model_class(config), LabelAttentionHead(32, 3), pooling="last"
    ).eval()
    lengths, tokens, concepts = (5, 9, 12), 12, 3
    batch = {
        "input_ids": torch.zeros(3, tokens, dtype=torch.long),
        "attention_mask": torch.zeros(3, tokens, dtype=torch.long),
        "concept_index": torch.zeros(3, tokens, dtype=torch.long),
        "concept_mask": torch.zeros(3, concepts, dtype=torch.bool),
        "reading_index": torch.zeros(3, dtype=torch.long),
    }
    alone = []
    for row, length in enumerate(lengths):
        ids = torch.randint(1, 60, (length,))
        index = torch.tensor([0, 1, 1, 2, *[3] * length])[:length]
        index[-1] = 0
        start = tokens - length if side == "left" else 0
        batch["input_ids"][row, start : start + length] = ids
        batch["attention_mask"][row, start : start + length] = 1
        batch["concept_index"][row, start : start + length] = index
        batch["reading_index"][row] = start + length - 1
        seen = torch.isin(torch.arange(1, concepts + 1), index)
        batch["concept_mask"][row] = seen
        alone.append(
            {
                "input_ids": ids[None],
                "attention_mask": torch.ones(1, length, dtype=torch.long),
                "concept_index": index[None],
                "concept_mask": seen[None],
                "reading_index": torch.tensor([length - 1]),
            }
        )
    with torch.no_grad():
        with recording(batch["concept_index"], batch["reading_index"], concepts=3) as together:
            padded = model(**batch)
        for row, item in enumerate(alone):
            with recording(item["concept_index"], item["reading_index"], concepts=3) as by_itself:
                single = model(**item)
            torch.testing.assert_close(
                padded.attention[row], single.attention[0], atol=1e-5, rtol=0
            )
            torch.testing.assert_close(padded.logits[row], single.logits[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(
                together.shares()[row], by_itself.shares()[0], atol=1e-5, rtol=0
            )
