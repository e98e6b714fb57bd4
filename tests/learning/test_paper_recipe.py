"""The paper's recipe: a chat prompt read at its last token, answers alone scored, a linear head."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, Qwen2ForCausalLM

from ckd_ehr.contracts.config import RunConfig, build_config
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json, read_table
from ckd_ehr.contracts.fitted import FITTED
from ckd_ehr.contracts.records import SOFT_LABELS, Narrative, Span
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.data.audit.fitted import fitted_findings
from ckd_ehr.learning.committee_stage import write_committee
from ckd_ehr.learning.examples import read_pairs
from ckd_ehr.learning.language import pad_scored
from ckd_ehr.learning.paper_recipe import AnswerModel, answered
from ckd_ehr.learning.prompts import PromptReader
from ckd_ehr.learning.scoring import label_ranking, macro
from ckd_ehr.learning.signals import write_signals
from ckd_ehr.learning.teacher import write_teacher
from tiny import LABELS, tiny_qwen2, write_cohort

SPANS = (
    Span(0, 5, "a", "diagnosis", "S", "a", 0),
    Span(7, 12, "b", "diagnosis", "S", "b", 0),
    Span(14, 19, "c", "diagnosis", "S", "c", 0),
)
NARRATIVE = Narrative("shock; fever; sugar.", SPANS, concepts_cut=0)
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<answer>"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_qwen2(tmp_path_factory.mktemp("model") / "qwen2", tied=True)


def test_a_prompt_is_read_at_its_last_token_and_keeps_its_concepts(model: str) -> None:
    reader = PromptReader(model, LABELS, max_tokens=400)
    encoded = reader.example("p", NARRATIVE).encoded
    assert encoded.reading_index == len(encoded.input_ids) - 1
    tokens = [reader.tokenizer.id_to_token(number) for number in encoded.input_ids]
    named = {c: tokens[i] for i, c in enumerate(encoded.concept_index) if c}
    assert named == {1: "shock", 2: "fever", 3: "sugar"}
    assert encoded.concept_ids == ("a", "b", "c")
    assert "shock" in tokens[: len(reader.before)]  # among the diseases of the instruction


def test_a_long_record_is_cut_from_its_beginning_never_the_reading_position(model: str) -> None:
    whole = PromptReader(model, LABELS, max_tokens=400)
    shorter = PromptReader(model, LABELS, max_tokens=len(whole.before) + len(whole.after) + 3)
    encoded = shorter.example("p", NARRATIVE).encoded
    ids = tuple(encoded.input_ids.tolist())
    assert ids[: len(whole.before)] == whole.before
    assert ids[-len(whole.after) :] == whole.after
    assert set(encoded.concept_index) == {0, 3}
    with pytest.raises(CkdEhrError, match=r"teacher\.paper\.max_tokens=40: the instruction"):
        PromptReader(model, LABELS, max_tokens=40)


def test_a_chat_template_is_used_where_there_is_one(tmp_path: Path) -> None:
    folder = tiny_qwen2(tmp_path / "chat", tied=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    reader = PromptReader(folder, LABELS, max_tokens=400)
    assert reader.tokenizer.decode(list(reader.after)).replace(" ", "").startswith("<answer>")


def test_the_loss_is_that_of_the_language_model_on_the_answer_alone(model: str) -> None:
    whole = Qwen2ForCausalLM.from_pretrained(model).eval()
    texts = [answered((5, 6, 7), (8, 9)), answered((10, 11), (12,))]
    batch = pad_scored(texts, pad_token=0)
    weights = whole.get_output_embeddings().weight.detach()
    with torch.no_grad():
        ours = AnswerModel(whole.get_decoder(), weights)(**batch)["loss"]
        logits = whole(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = F.cross_entropy(
        torch.stack([logits[0, 2], logits[0, 3], logits[1, 1]]), torch.tensor([8, 9, 12])
    )
    torch.testing.assert_close(ours, expected)


def config_of(model: str) -> RunConfig:
    paper = {"learning_rate": 3e-3, "epochs": 4, "head_learning_rate": 0.02, "head_epochs": 60}
    paper["max_tokens"] = 400
    teacher = {"model": model, "recipe": "paper", "paper": paper, "precision": "fp32"}
    once, alone = {"signals": {"orders": 1}}, {"committee": {"members": ["teacher"]}}
    return build_config({"name": "t", "device": "cpu", "teacher": teacher, **once, **alone})


def test_the_recipe_runs_through_its_stages_and_learns(model: str, tmp_path: Path) -> None:
    write_cohort(tmp_path / "cohort", tmp_path / "knowledge", patients=100)
    stages = {"teacher": write_teacher, "signals": write_signals, "committee": write_committee}
    folders = {name: tmp_path / name for name in ("cohort", "knowledge", *stages)}
    for name, write in stages.items():
        folders[name].mkdir()
        write(StageContext(config_of(model), folders[name], folders, say=lambda _: None))
    history = read_json(folders["teacher"] / "training.json")["fold_0"]
    assert isinstance(history, dict)
    assert (history["steps"], history["pairs"]) == (16, 30)
    pairs = read_pairs(folders["cohort"])
    table = read_table(folders["committee"] / "soft_labels.parquet", SOFT_LABELS).to_pylist()
    assert {row["source"] for row in table} == {"teacher", "committee"}
    logits = {row["pair_id"]: row["logits"] for row in table if row["source"] == "teacher"}
    rows = pairs.rows(split="held_out")
    scores = np.array([logits[pairs.pair_ids[row]] for row in rows])
    assert macro(label_ranking(scores, pairs.labels[rows]).auroc)[0] > 0.75


def test_a_decoder_that_cannot_write_is_refused(tmp_path: Path) -> None:
    write_cohort(tmp_path / "cohort", tmp_path / "knowledge", patients=20)
    folders = {name: tmp_path / name for name in ("cohort", "knowledge")}
    config = config_of(tiny_qwen2(tmp_path / "untied"))
    (tmp_path / "teacher").mkdir()
    with pytest.raises(CkdEhrError, match="has no language-model head"):
        write_teacher(StageContext(config, tmp_path / "teacher", folders, say=lambda _: None))


def test_narratives_can_be_read_before_the_labels_are_learnt(model: str, tmp_path: Path) -> None:
    write_cohort(tmp_path / "cohort", tmp_path / "knowledge", patients=40)
    folders = {name: tmp_path / name for name in ("cohort", "knowledge")}
    settings = {"model": model, "domain_epochs": 2, "epochs": 1, "precision": "fp32"}
    config = build_config({"name": "t", "device": "cpu", "teacher": settings})
    (tmp_path / "teacher").mkdir()
    write_teacher(StageContext(config, tmp_path / "teacher", folders, say=lambda _: None))
    assert (tmp_path / "teacher" / "fold_1" / "head.json").is_file()
    steps = [
        path.name for path in (tmp_path / "teacher" / "work" / "domain_0").glob("checkpoint-*")
    ]
    pairs = read_pairs(tmp_path / "cohort")
    records = {"teacher": tmp_path / "teacher" / FITTED}
    assert fitted_findings(tmp_path / "cohort", records) == []
    others = int(((pairs.split == "train") & (pairs.fold != 0)).sum())
    assert steps == [f"checkpoint-{2 * -(-others // config.teacher.batch_size)}"]


def test_what_sees_ahead_cannot_learn_to_write() -> None:
    for settings in ({"domain_epochs": 1}, {"recipe": "paper"}):
        with pytest.raises(CkdEhrError, match="bidirectional=true cannot learn to write"):
            build_config({"name": "t", "teacher": {"bidirectional": True, **settings}})


def test_generative_tuning_resumes_after_a_kill(model: str, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def kill(line: str) -> None:
        if "without fold 1: epoch" in line:
            raise KilledError

    write_cohort(tmp_path / "cohort", tmp_path / "knowledge", patients=40)
    folders = {name: tmp_path / name for name in ("cohort", "knowledge")}
    settings = {"model": model, "domain_epochs": 1, "epochs": 1, "precision": "fp32"}
    config = build_config({"name": "t", "device": "cpu", "teacher": settings})
    (tmp_path / "teacher").mkdir()
    with pytest.raises(KilledError):
        write_teacher(StageContext(config, tmp_path / "teacher", folders, say=kill))
    assert list((tmp_path / "teacher" / "work" / "domain_1").glob("checkpoint-*"))
    write_teacher(StageContext(config, tmp_path / "teacher", folders, say=lambda _: None))
    assert (tmp_path / "teacher" / "fold_1" / "head.json").is_file()
