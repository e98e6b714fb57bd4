"""A smaller encoder from some layers of a larger one."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    PretrainedConfig,
    RobertaConfig,
)

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.learning.layers import blocks_of, evenly_spaced, select_layers
from ckd_ehr.learning.student_model import StudentModel, load_student

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
SIX = {"num_hidden_layers": 6, **SIZES}
FAMILIES = {
    "bert": BertConfig(**SIX),
    "roberta": RobertaConfig(**SIX),
    "electra": ElectraConfig(embedding_size=16, **SIX),
    "distilbert": DistilBertConfig(
        vocab_size=60, dim=32, n_layers=6, n_heads=2, hidden_dim=64, max_position_embeddings=40
    ),
}


def _encoder(config: PretrainedConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModel.from_config(type(config)(**config.to_dict()), attn_implementation="eager")


def test_layers_are_distinct_and_the_last_is_kept() -> None:
    for depth in range(1, 25):
        for layers in range(1, depth + 1):
            kept = evenly_spaced(depth, layers)
            assert kept == sorted(set(kept))
            assert len(kept) == layers
            assert kept[0] >= 0
            assert kept[-1] == depth - 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("layers", "kept"), [(4, [1, 2, 3, 5]), (2, [2, 5])])
def test_a_smaller_encoder_runs_just_the_layers_that_are_kept(
    family: str, layers: int, kept: list[int], tmp_path: Path
) -> None:
    whole, encoder = _encoder(FAMILIES[family]).eval(), _encoder(FAMILIES[family]).eval()
    select_layers(encoder, layers)
    ids = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        hidden = whole.embeddings(ids)
        if family == "electra":
            hidden = whole.embeddings_project(hidden)
        for number in kept:
            output = blocks_of(whole)[1][number](hidden, attention_mask=None)
            hidden = output[0] if isinstance(output, tuple) else output
        torch.testing.assert_close(encoder(**inputs).last_hidden_state, hidden)
    assert encoder.config.num_hidden_layers == layers
    StudentModel.of(encoder, ["a", "b"]).save_pretrained(tmp_path)
    loaded = load_student(tmp_path, device="cpu").backbone
    assert len(blocks_of(loaded)[1]) == layers
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).last_hidden_state, hidden)


def test_all_layers_are_kept_if_none_are_to_be_dropped() -> None:
    for layers in (None, 6):
        encoder = _encoder(FAMILIES["bert"])
        select_layers(encoder, layers)
        for name, value in _encoder(FAMILIES["bert"]).state_dict().items():
            assert torch.equal(encoder.state_dict()[name], value)


def test_more_layers_than_there_are_are_refused() -> None:
    with pytest.raises(CkdEhrError, match=r"student\.layers=7: the model has 6 layers"):
        select_layers(_encoder(FAMILIES["bert"]), 7)


def test_layers_that_cannot_stand_in_for_each_other_are_refused() -> None:
    """ModernBERT's first layer has no norm before its attention."""
    encoder = _encoder(ModernBertConfig(**SIX, pad_token_id=0, cls_token_id=1, sep_token_id=2))
    with pytest.raises(CkdEhrError, match="layer 3 of ModernBertModel cannot stand in place of"):
        select_layers(encoder, 2)
