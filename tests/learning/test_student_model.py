"""The student as a Hugging Face model: any BERT-family encoder, saved and read again."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PretrainedConfig,
    RobertaConfig,
)

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.learning.heads import LabelAttentionModel
from ckd_ehr.learning.student_model import StudentModel, StudentModelConfig, load_student

LABELS = ("Shock", "Pneumonia", "Diabetes")
SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
FAMILIES = {
    "bert": BertConfig(**SIZES),
    "roberta": RobertaConfig(**SIZES),
    "electra": ElectraConfig(embedding_size=16, **SIZES),
    "mpnet": MPNetConfig(**SIZES),
    "modernbert": ModernBertConfig(**SIZES, pad_token_id=0, cls_token_id=1, sep_token_id=2),
    "distilbert": DistilBertConfig(
        vocab_size=60, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=40
    ),
}


def _student(config: PretrainedConfig = FAMILIES["bert"]) -> StudentModel:
    torch.manual_seed(0)
    own = type(config)(**config.to_dict())
    encoder = AutoModel.from_config(own, attn_implementation="eager")
    student = StudentModel.of(encoder, LABELS)
    student.head.start_at(torch.tensor([0.1, 0.2, 0.7]))
    return student.eval()


def _inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(1))
    index = torch.tensor([[0, 1, 1, 3, 0, 2, 0], [0, 1, 2, 0, 0, 0, 0]])
    mask = torch.tensor([[1] * 7, [1, 1, 1, 1, 0, 0, 0]])
    return {"input_ids": ids, "attention_mask": mask, "concept_index": index}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_student_is_read_again_bit_for_bit(family: str, tmp_path: Path) -> None:
    student = _student(FAMILIES[family])
    student.save_pretrained(tmp_path)
    loaded = load_student(tmp_path, device="cpu", labels=LABELS)
    assert loaded.config.label_names == LABELS
    assert loaded.config.label2id == {"Shock": 0, "Pneumonia": 1, "Diabetes": 2}
    states = student.state_dict(), loaded.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    by_auto = AutoModel.from_pretrained(tmp_path).eval()
    assert isinstance(by_auto, StudentModel)
    with torch.no_grad():
        wanted = student(**_inputs())
        for model in (loaded, by_auto):
            found = model(**_inputs())
            for one, other in zip(found, wanted, strict=True):
                torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_a_student_says_what_the_same_parts_say_in_the_other_model() -> None:
    student, inputs = _student(), _inputs()
    other = LabelAttentionModel(student.backbone, student.head, pooling="mean").eval()
    further = {
        "concept_mask": torch.tensor([[True, True, True], [True, True, False]]),
        "reading_index": torch.tensor([0, 0]),
    }
    with torch.no_grad():
        given, alone = student(**inputs, **further), student(**inputs)
        for one, wanted in zip(given, other(**inputs, **further), strict=True):
            torch.testing.assert_close(one, wanted)
        torch.testing.assert_close(alone.logits, given.logits)
        torch.testing.assert_close(alone.evidence[..., :4], given.evidence)
        read_elsewhere = student(**inputs, reading_index=torch.tensor([3, 2]))
    assert (alone.evidence[..., 4:] == 0).all()
    assert not torch.allclose(read_elsewhere.state, alone.state)


def test_one_graph_serves_any_batch_and_length() -> None:
    student, inputs = _student(), _inputs()
    batch, tokens = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("tokens", max=40)
    graph = torch.export.export(
        student,
        (),
        kwargs=inputs,
        dynamic_shapes={name: {0: batch, 1: tokens} for name in inputs},
    ).module()
    other = {name: torch.cat([value, value])[:3, :5] for name, value in inputs.items()}
    with torch.no_grad():
        for one, wanted in zip(graph(**other), student(**other), strict=True):
            torch.testing.assert_close(one, wanted)


def test_concepts_beyond_the_tokens_need_a_mask() -> None:
    inputs = _inputs()
    inputs["concept_index"][0, 1] = 8
    with pytest.raises(ValueError, match="give a concept_mask"):
        _student()(**inputs)


def test_a_student_of_other_labels_or_of_another_order_is_refused(tmp_path: Path) -> None:
    _student().save_pretrained(tmp_path)
    with pytest.raises(CkdEhrError, match=r"label 1 is 'Shock', the wanted one 'Pneumonia'"):
        load_student(tmp_path, device="cpu", labels=("Pneumonia", "Shock", "Diabetes"))
    with pytest.raises(
        CkdEhrError, match=r"predicts 3 labels, wanted are 2; its label 3 is 'Diabetes', .* none"
    ):
        load_student(tmp_path, device="cpu", labels=LABELS[:2])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("left", [None, 0, 100])
def test_a_missing_or_truncated_file_is_refused(
    name: str, left: int | None, tmp_path: Path
) -> None:
    _student().save_pretrained(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink() if left is None else (tmp_path / name).write_bytes(content[:left])
    with pytest.raises(CkdEhrError, match=r"config\.json or model\.safetensors is missing or dam"):
        load_student(tmp_path, device="cpu")


def test_a_configuration_of_another_encoder_is_refused(tmp_path: Path) -> None:
    _student().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["backbone_config"]["hidden_size"] = 16
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CkdEhrError, match="is missing or damaged"):
        load_student(tmp_path, device="cpu")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CkdEhrError, match="no student's"):
        load_student(tmp_path, device="cpu")


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    _student().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("head.queries")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CkdEhrError, match="1 of its weights have no counterpart"):
        load_student(tmp_path, device="cpu")


def test_a_configuration_without_an_encoder_is_a_bert() -> None:
    assert StudentModelConfig(labels=["a"]).backbone_config.model_type == "bert"
