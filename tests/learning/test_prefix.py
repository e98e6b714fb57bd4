"""A beginning read once: nothing that a model says of a prompt changes."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model

from ckd_ehr.learning.batches import MODEL_INPUTS, Example, make_batch
from ckd_ehr.learning.heads import HeadOutput, LabelAttentionHead, LabelAttentionModel
from ckd_ehr.learning.prefix import Prefix
from ckd_ehr.learning.readout import READOUT, Readout, recording
from tiny import encoded_of

BEGINNING = (3, 1, 4, 1, 5, 9, 2)
SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "attn_implementation": READOUT,
}


def prompts() -> list[Example]:
    """Of two lengths, so that one is padded; two concepts each."""
    examples = []
    for rest in ((10, 11, 12, 13, 14), (20, 21, 22)):
        ids = (*BEGINNING, *rest)
        index = (*[0] * len(BEGINNING), 1, 2, *[0] * (len(rest) - 2))
        examples.append(Example(str(rest[0]), encoded_of(ids, index, "ab")))
    return examples


def read(
    model: LabelAttentionModel, examples: list[Example], prefix: Prefix | None
) -> tuple[HeadOutput, Readout]:
    if prefix is not None:
        examples = [prefix.rest(example) for example in examples]
    batch = make_batch(examples, pad_token=0, labels=3)
    inputs: dict[str, Any] = {name: batch[name] for name in MODEL_INPUTS}
    if prefix is not None:
        inputs["attention_mask"] = prefix.mask(inputs["attention_mask"])
        inputs["past_key_values"] = prefix.cache(len(examples))
    where = (inputs["concept_index"], inputs["reading_index"])
    with torch.inference_mode(), recording(*where, concepts=2) as readout:
        output: HeadOutput = model(**inputs)
    return output, readout


@pytest.mark.parametrize(("config", "kind"), [(LlamaConfig, LlamaModel), (Qwen2Config, Qwen2Model)])
def test_states_evidence_and_readout_are_those_of_the_whole_prompt(config: Any, kind: Any) -> None:
    torch.manual_seed(0)
    model = LabelAttentionModel(kind(config(**SIZES)), LabelAttentionHead(32, 3), "last").eval()
    with torch.inference_mode():
        prefix = Prefix(model.backbone, BEGINNING, device="cpu")
    for _ in range(2):  # a batch leaves the cache as it was
        (whole, whole_rows), (cached, cached_rows) = (
            read(model, prompts(), which) for which in (None, prefix)
        )
        for one, other in zip(whole, cached, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(whole_rows.shares(), cached_rows.shares())
        torch.testing.assert_close(whole_rows.retained(), cached_rows.retained())
