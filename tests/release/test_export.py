"""Graphs of a tiny random student: what they say, and what ONNX Runtime makes of them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from scipy.special import expit
from transformers import AutoModel, BertConfig

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.learning.alignment import Encoded
from ckd_ehr.learning.scoring import PlattScaling
from ckd_ehr.learning.student_model import StudentModel
from ckd_ehr.release import export
from ckd_ehr.release.export import export_student
from ckd_ehr.release.packing import write_graphs
from ckd_ehr.release.quantise import quantise
from ckd_ehr.release.session import FUSED, INT8, Output, Session, runtime_operators
from tiny import encoded_of

SCALING = PlattScaling(np.array([0.5, 1.0, 2.0]), np.array([-1.0, 0.0, 0.5]))
LAYERS, TOKENS = 2, 40


def _student() -> StudentModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=TOKENS,
    )
    encoder = AutoModel.from_config(config, attn_implementation="eager")
    student = StudentModel.of(encoder, ("Shock", "Pneumonia", "Diabetes")).eval()
    student.head.start_at(torch.tensor([0.1, 0.2, 0.7]))
    return student


def _texts(count: int) -> list[Encoded]:
    rng = np.random.default_rng(1)
    texts = []
    for number in range(count):
        length = 6 + number % 30
        concepts = 1 + number % 4
        index = [0, *(1 + place % concepts for place in range(length - 2)), 0]
        ids = rng.integers(3, 60, length).tolist()
        texts.append(encoded_of(ids, index, [str(c) for c in range(concepts)]))
    return texts


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    return export_student(_student(), SCALING, most_tokens=TOKENS)


@pytest.fixture(scope="module")
def folder(graph: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("graphs")
    write_graphs({"fp32": graph, "int8": quantise(graph, _texts(40))}, out)
    return out


def _outputs(folder: Path, name: str, texts: list[Encoded]) -> list[Output]:
    session = Session(folder / f"{name}.onnx", pad_token=0, most_tokens=TOKENS, threads=1)
    return session.run(texts)


def _by_pytorch(text: Encoded) -> Output:
    student = _student()
    ids = torch.tensor(text.input_ids[None], dtype=torch.int64)
    index = torch.tensor(text.concept_index[None], dtype=torch.int64)
    with torch.no_grad():
        found = student(ids, torch.ones_like(ids), index)
    logits = SCALING.apply(found.logits[0].numpy())
    evidence = SCALING.slope[:, None] * found.evidence[0].numpy()
    return Output(expit(logits), evidence[:, : 1 + len(text.concept_ids)])


def test_the_graph_says_what_the_student_says_calibrated(folder: Path) -> None:
    texts = _texts(12)
    for found, text in zip(_outputs(folder, "fp32", texts), texts, strict=True):
        wanted = _by_pytorch(text)
        # Weights are kept in fp16.
        np.testing.assert_allclose(found.probabilities, wanted.probabilities, atol=1e-3)
        np.testing.assert_allclose(found.evidence, wanted.evidence, atol=5e-3)


def test_evidence_and_bias_add_up_to_the_calibrated_log_odds(folder: Path) -> None:
    base = SCALING.apply(_student().head.bias.detach().numpy())
    for output in _outputs(folder, "int8", _texts(5)):
        log_odds = output.evidence.sum(1) + base
        np.testing.assert_allclose(expit(log_odds), output.probabilities, atol=1e-5)


def test_every_layer_has_fused_attention_and_int8_products(graph: onnx.ModelProto) -> None:
    assert runtime_operators(graph)[FUSED] == LAYERS
    assert [entry.version for entry in graph.opset_import if not entry.domain] == [23]
    # Query, key, value, output, the widening half of the feed-forward layer; a tiny model's head
    # widens, too.
    assert runtime_operators(quantise(graph, _texts(8)))[INT8] == 5 * LAYERS + 1


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_nobodys_risk_depends_on_who_shares_the_batch(folder: Path, name: str) -> None:
    texts = _texts(30)
    together = _outputs(folder, name, texts)
    for text, output in zip(texts, together, strict=True):
        [alone] = _outputs(folder, name, [text])
        np.testing.assert_allclose(alone.probabilities, output.probabilities, atol=1e-5)


def test_int8_stays_near_fp32(folder: Path) -> None:
    texts = _texts(30)
    pairs = zip(_outputs(folder, "fp32", texts), _outputs(folder, "int8", texts), strict=True)
    shifts = [np.abs(one.probabilities - other.probabilities).max() for one, other in pairs]
    assert 0 < max(shifts) < 0.01


def test_equal_weights_are_kept_once(folder: Path, graph: onnx.ModelProto, tmp_path: Path) -> None:
    write_graphs({"fp32": graph}, tmp_path)
    once = (tmp_path / "weights.bin").stat().st_size
    write_graphs({"fp32": graph, "int8": graph}, tmp_path)
    assert (tmp_path / "weights.bin").stat().st_size == once
    assert str(tmp_path) not in (tmp_path / "fp32.onnx").read_bytes().decode("latin-1")


def test_unfused_attention_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "FUSED", "NoSuchOperator")
    with pytest.raises(CkdEhrError, match="of 2 layers 0 have fused attention"):
        export_student(_student(), SCALING, most_tokens=TOKENS)


def test_a_damaged_graph_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "fp32.onnx").write_bytes(b"no graph")
    with pytest.raises(CkdEhrError, match=r"fp32\.onnx: no graph that this ONNX Runtime can load"):
        Session(tmp_path / "fp32.onnx", pad_token=0, most_tokens=TOKENS)
