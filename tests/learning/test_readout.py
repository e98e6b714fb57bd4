"""The reading position's attention, layer by layer, is what the model itself would say."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    LlamaConfig,
    LlamaModel,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
)

from ckd_ehr.learning.readout import READOUT, recording, why_unreadable

ARCHITECTURES = [(LlamaConfig, LlamaModel), (Qwen2Config, Qwen2Model), (Qwen3Config, Qwen3Model)]
TOKENS = 10
INDEX = torch.tensor([[0, 0, 1, 1, 0, 2, 0, 0, 0, 0], [0, 1, 1, 0, 3, 2, 0, 0, 0, 0]])


def small_model(config_class: type, model_class: type, *, causal: bool = True) -> torch.nn.Module:
    torch.manual_seed(0)
    config = config_class(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
    )
    config.is_causal = causal
    return model_class(config).eval()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("config_class", "model_class"), ARCHITECTURES)
def test_rows_equal_those_of_the_whole_attention(
    config_class: type, model_class: type, causal: bool
) -> None:
    model = small_model(config_class, model_class, causal=causal)
    ids = torch.randint(1, 50, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    reading_index = torch.tensor([9, 6])
    with torch.no_grad():
        model.set_attn_implementation("eager")
        whole = model(input_ids=ids, attention_mask=mask, output_attentions=True)
        model.set_attn_implementation(READOUT)
        with recording(INDEX, reading_index, concepts=3) as readout:
            fused = model(input_ids=ids, attention_mask=mask)
    seen = mask.bool()
    torch.testing.assert_close(
        fused.last_hidden_state[seen], whole.last_hidden_state[seen], atol=1e-5, rtol=0
    )
    rows = torch.stack([layer.mean(1)[[0, 1], reading_index] for layer in whole.attentions], 1)
    expected = torch.stack(
        [(rows * (concept == INDEX)[:, None]).sum(-1) for concept in (1, 2, 3)], dim=-1
    )
    torch.testing.assert_close(readout.retained(), expected.sum(-1), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        readout.shares(), expected / expected.sum(-1, keepdim=True), atol=1e-5, rtol=0
    )


def test_nothing_is_recorded_outside_and_a_text_without_concepts_retains_nothing() -> None:
    model = small_model(Qwen2Config, Qwen2Model)
    model.set_attn_implementation(READOUT)
    ids = torch.randint(1, 50, (1, TOKENS))
    none = torch.zeros(1, TOKENS, dtype=torch.long)
    with torch.no_grad():
        with recording(none, torch.tensor([9]), concepts=2) as readout:
            model(input_ids=ids)
        model(input_ids=ids)
    assert len(readout.rows) == 3
    assert not readout.shares().any()
    assert not readout.retained().any()


@pytest.mark.parametrize(("config_class", "model_class"), ARCHITECTURES)
def test_without_the_causal_mask_the_first_token_sees_the_last(
    config_class: type, model_class: type
) -> None:
    ids = torch.randint(1, 50, (1, TOKENS), generator=torch.Generator().manual_seed(2))
    other = ids.clone()
    other[0, -1] = 1 + other[0, -1] % 48
    for causal in (True, False):
        model = small_model(config_class, model_class, causal=causal)
        for kernel in ("eager", "sdpa", READOUT):
            model.set_attn_implementation(kernel)
            with torch.no_grad():
                first, second = (
                    model(input_ids=text).last_hidden_state[0, 0] for text in (ids, other)
                )
            assert torch.allclose(first, second, atol=1e-6) == causal


SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 3,
}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("llama", None),
        ("qwen2", None),
        ("qwen3", None),
        ("mistral", None),
        ("gpt2", None),
        ("gemma2", "its attention is capped"),
        ("falcon", "its attention cannot be recorded (KeyError)"),
        ("bloom", "not taken from Transformers' own"),
    ],
)
def test_a_model_that_cannot_be_read_out_is_known_before_training(
    kind: str, said: str | None
) -> None:
    config = AutoConfig.for_model(kind, **SMALL)
    reason = why_unreadable(config)
    assert (reason is None) if said is None else (reason is not None and said in reason)
    assert config.num_hidden_layers == 3
