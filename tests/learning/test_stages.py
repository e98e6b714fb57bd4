"""Teacher, signals and student as stages, on tiny random models of the real architectures."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.special import expit
from transformers import AutoConfig, AutoTokenizer

from ckd_ehr.contracts.config import RunConfig, StudentConfig, build_config
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_table, write_table
from ckd_ehr.contracts.fitted import FITTED, digest_of, read_fitted
from ckd_ehr.contracts.records import PAIRS, PREDICTIONS, SOFT_LABELS, with_label_names
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.data.audit.fitted import fitted_findings
from ckd_ehr.knowledge.sources import read_narratives
from ckd_ehr.knowledge.vocabulary import STUDENT_TOKENIZER
from ckd_ehr.learning import labelling, student
from ckd_ehr.learning.batches import MODEL_INPUTS, Example, PairDataset, make_batch
from ckd_ehr.learning.committee_stage import write_committee
from ckd_ehr.learning.concept_tokens import write_extended
from ckd_ehr.learning.distillation import without
from ckd_ehr.learning.evidence import EVIDENCE
from ckd_ehr.learning.examples import TextReader, read_pairs
from ckd_ehr.learning.explain import explain_by_teacher
from ckd_ehr.learning.inference import StudentPredictor, explain_by_student
from ckd_ehr.learning.losses import hard_loss
from ckd_ehr.learning.reading import predict_logits
from ckd_ehr.learning.readout import why_unrecorded
from ckd_ehr.learning.scoring import fit_platt, label_ranking, macro
from ckd_ehr.learning.signal_loader import SignalFacts, verify_signals
from ckd_ehr.learning.signal_store import read_evidence, read_opinions
from ckd_ehr.learning.signals import write_signals
from ckd_ehr.learning.soft_labels import read_soft_labels
from ckd_ehr.learning.student import write_students
from ckd_ehr.learning.teacher import load_teacher, new_teacher, trained_in, write_teacher
from ckd_ehr.learning.training import (
    CHECKPOINT_FILES,
    EpochSampler,
    LossTrainer,
    usable_checkpoint,
)
from ckd_ehr.learning.warm_up import MaskedModel
from ckd_ehr.learning.weights import load_tokenizer
from tiny import LABELS, encoded_of, tiny_bert, tiny_qwen2, write_cohort

STAGES_BEFORE = ("cohort", "knowledge", "teacher", "signals", "committee")


@dataclass
class Run:
    root: Path
    config: RunConfig

    def context(self, stage: str, **changes: object) -> StageContext:
        folders = {name: self.root / name for name in STAGES_BEFORE}
        folder = self.root / stage
        folder.mkdir(exist_ok=True)
        return StageContext(config=self.config, folder=folder, inputs=folders, say=lambda _: None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("run")
    write_cohort(root / "cohort", root / "knowledge")
    common = {"precision": "fp32", "batch_size": 8, "learning_rate": 3e-3}
    config = build_config(
        {
            "name": "tiny",
            "device": "cpu",
            "teacher": {
                "model": tiny_qwen2(root / "qwen2"),
                "epochs": 10,
                "head_learning_rate": 0.02,
                **common,
            },
            "student": {
                "model": tiny_bert(root / "bert"),
                "epochs": 12,
                "head_learning_rate": 0.02,
                **common,
            },
        }
    )
    run = Run(root, config)
    write_teacher(run.context("teacher"))
    write_signals(run.context("signals"))
    write_committee(run.context("committee"))
    write_students(run.context("student"))
    return run


def test_every_pair_has_soft_labels_from_a_teacher_that_has_not_seen_its_patient(run: Run) -> None:
    pairs = read_pairs(run.root / "cohort")
    table = read_table(run.root / "committee" / "soft_labels.parquet", SOFT_LABELS).to_pylist()
    rows = [row for row in table if row["source"] == "teacher"]
    fold_of = {row["pair_id"]: row["fold"] for row in rows}
    assert set(fold_of) == set(pairs.pair_ids)
    for pair_id, split, fold in zip(pairs.pair_ids, pairs.split, pairs.fold, strict=True):
        assert fold_of[pair_id] == (fold if split == "train" else -1)
    spreads = {row["pair_id"]: row["spread"] for row in rows}
    assert None not in spreads.values()
    members = {"teacher", "logistic_regression", "lightgbm"}
    without = {f"committee_without_{member}" for member in members}
    assert {row["source"] for row in table} == members | without | {"committee"}
    assert len(table) == 7 * len(rows)


def test_each_stage_records_what_it_was_fitted_on(run: Run) -> None:
    paths = {stage: run.root / stage / FITTED for stage in ("teacher", "committee", "student")}
    assert fitted_findings(run.root / "cohort", paths) == []
    pairs = read_pairs(run.root / "cohort")
    seen = {record.name: record.pairs for record in read_fitted(paths["student"])}
    assert seen["hard/weights"] == len(pairs.rows(split="train", labelled=True))
    assert seen["distilled/weights"] == len(pairs.rows(split="train"))
    assert seen["distilled/weights"] > seen["hard/weights"]


def test_the_teacher_learns_the_pattern_out_of_fold(run: Run) -> None:
    pairs = read_pairs(run.root / "cohort")
    train = pairs.rows(split="train", labelled=True)
    for source in ("teacher", "committee"):
        soft = read_soft_labels(run.root / "committee", source, pairs)
        assert macro(label_ranking(soft.logits[train], pairs.labels[train]).auprc)[0] > 0.9


def test_signals_are_made_and_keyed_in_the_arithmetic_that_the_teacher_was_trained_in(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto`, on a machine that would take bf16, with teachers from one that took fp32."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    inputs = run.context("signals").inputs
    config = with_settings(run.config, "teacher", precision="auto")
    write_signals(StageContext(config, tmp_path, inputs, say=lambda _: None))
    made, before = (
        pq.read_table(root / "index.parquet")["key"] for root in (tmp_path, run.root / "signals")
    )
    assert made.equals(before)
    assert_same_opinions(tmp_path, run, atol=0)


def assert_same_opinions(folder: Path, run: Run, *, atol: float) -> None:
    pairs = read_pairs(run.root / "cohort")
    for fold in (0, 1):
        made, before = (read_opinions(root, fold, pairs) for root in (folder, run.root / "signals"))
        np.testing.assert_allclose(made.logits, before.logits, atol=atol)
        evidence = [dict(read_evidence(root, fold)) for root in (folder, run.root / "signals")]
        assert evidence[0].keys() == evidence[1].keys()
        for pair_id, values in evidence[0].items():
            np.testing.assert_allclose(values, evidence[1][pair_id], atol=max(atol, 2e-3))


@pytest.mark.parametrize(("has_units", "expected"), [(True, "bf16"), (False, "fp32")])
def test_a_training_history_says_what_auto_was(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_units: bool, expected: str
) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: has_units, raising=False)
    inputs = run.context("teacher").inputs
    config = with_settings(run.config, "teacher", precision="auto", epochs=0.1)
    write_teacher(StageContext(config, tmp_path, inputs, say=lambda _: None))
    history = json.loads((tmp_path / "training.json").read_text())
    assert [history[fold]["precision"] for fold in ("fold_0", "fold_1")] == [expected] * 2
    assert trained_in(tmp_path / "fold_0") == expected
    student = json.loads((run.root / "student" / "hard" / "training.json").read_text())
    assert student["precision"] == "fp32"


def test_both_students_predict_tuning_and_held_out_and_learn(run: Run) -> None:
    pairs = read_pairs(run.root / "cohort")
    table = read_table(run.root / "student" / "predictions.parquet", PREDICTIONS).to_pylist()
    expected = {pairs.pair_ids[row] for row in range(len(pairs.pair_ids))
                if pairs.split[row] != "train"}  # fmt: skip
    for model in ("student_hard", "student_distilled"):
        rows = [row for row in table if row["model"] == model]
        assert {row["pair_id"] for row in rows} == expected
        held_out = [row for row in rows if row["split"] == "held_out"]
        scores = [row["probabilities"] for row in held_out]
        truth = [row["labels"] for row in held_out]
        assert macro(label_ranking(scores, truth).auprc)[0] > 0.9


def test_a_loaded_student_says_what_it_predicted_in_its_stage(run: Run) -> None:
    predictor = StudentPredictor(run.root / "student" / "distilled")
    table = pq.read_table(run.root / "student" / "predictions.parquet").to_pylist()
    row = next(row for row in table if row["model"] == "student_distilled")
    narrative = read_narratives(run.root / "knowledge", "student")[row["pair_id"]]
    explanation = predictor.explain(row["pair_id"], narrative)
    assert [label.label for label in explanation.labels] == list(LABELS)
    np.testing.assert_allclose(
        [label.probability for label in explanation.labels], row["probabilities"], atol=1e-4
    )


def test_a_run_refuses_a_student_of_other_labels_and_a_damaged_one(
    run: Run, tmp_path: Path
) -> None:
    shutil.copytree(run.root / "student" / "distilled", tmp_path / "07_student" / "distilled")
    shutil.copytree(run.root / "cohort", tmp_path / "02_cohort")
    pairs = tmp_path / "02_cohort" / "pairs.parquet"
    table = read_table(pairs, PAIRS)
    write_table(table, pairs, with_label_names(PAIRS, ("Shock", "Gout", "Diabetes")))
    inputs = {
        "cohort": tmp_path / "02_cohort",
        "knowledge": run.root / "knowledge",
        "student": tmp_path / "07_student",
    }
    for read in (
        lambda: StudentPredictor.load(tmp_path),
        lambda: explain_by_student(inputs, table["pair_id"][0].as_py(), run.config),
    ):
        with pytest.raises(CkdEhrError, match="its label 2 is 'Pneumonia', the wanted one 'Gout'"):
            read()
    write_table(table, pairs, with_label_names(PAIRS, LABELS))
    weights = tmp_path / "07_student" / "distilled" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    with pytest.raises(CkdEhrError, match=r"07_student/distilled: its .* missing or damaged"):
        explain_by_student(inputs, table["pair_id"][0].as_py(), run.config)


def test_a_student_of_whole_concepts_says_when_loaded_what_it_said_in_its_stage(
    run: Run, tmp_path: Path
) -> None:
    model = run.config.student.model
    config = with_settings(run.config, "student", concept_vocabulary={"enabled": True}, epochs=0.2)
    folders = dict(run.context("student").inputs)
    folders["knowledge"] = Path(shutil.copytree(folders["knowledge"], tmp_path / "knowledge"))
    (tmp_path / "student").mkdir()
    context = StageContext(config, tmp_path / "student", folders, say=lambda _: None)
    with pytest.raises(CkdEhrError, match=r"student_tokenizer\.json: missing"):
        write_students(context)
    marker = "woman. visit:"  # stands in every narrative
    write_extended(model, [marker, "shock"], folders["knowledge"] / STUDENT_TOKENIZER)
    write_students(context)
    folder = tmp_path / "student" / "distilled"
    predictor = StudentPredictor(folder)
    words = len(load_tokenizer(model).get_vocab())
    assert predictor.model.backbone.get_input_embeddings().weight.shape == (words + 1, 32)
    table = pq.read_table(tmp_path / "student" / "predictions.parquet").to_pylist()
    row = next(row for row in table if row["model"] == "student_distilled")
    narrative = read_narratives(folders["knowledge"], "student")[row["pair_id"]]
    ids = list(predictor.reader.example(row["pair_id"], narrative).encoded.input_ids)
    assert ids[1] == words
    assert AutoTokenizer.from_pretrained(folder)(narrative.text)["input_ids"] == ids
    said = predictor.explain(row["pair_id"], narrative).labels
    np.testing.assert_allclose([x.probability for x in said], row["probabilities"], atol=1e-4)
    write_extended(model, ["aspirin;"], folder / "tokenizer.json")
    with pytest.raises(CkdEhrError, match=r"tokenizer\.json: .*not what this student was trained"):
        StudentPredictor(folder)


def test_evidence_sums_to_the_log_odds(run: Run) -> None:
    predictor = StudentPredictor(run.root / "student" / "distilled")
    narratives = read_narratives(run.root / "knowledge", "student")
    pair_id = next(iter(narratives))
    for label in predictor.explain(pair_id, narratives[pair_id]).labels:
        total = label.base_log_odds + label.reading_state_log_odds
        total += sum(concept.log_odds for concept in label.concepts)
        assert 1 / (1 + np.exp(-total)) == pytest.approx(label.probability, abs=1e-6)


def test_the_teachers_explanation_adds_up_to_its_soft_label(run: Run, tmp_path: Path) -> None:
    folders = dict(run.context("signals").inputs)
    config = with_settings(run.config, "signals", orders=1)
    for stage, write in (("signals", write_signals), ("committee", write_committee)):
        (tmp_path / stage).mkdir()
        write(StageContext(config, tmp_path / stage, folders, say=lambda _: None))
        folders[stage] = tmp_path / stage
    pairs = read_pairs(run.root / "cohort")
    soft = read_soft_labels(tmp_path / "committee", "teacher", pairs).logits
    evidence = read_table(tmp_path / "committee" / "evidence.parquet", EVIDENCE).to_pylist()
    for split in ("train", "held_out"):
        place = int(pairs.rows(split=split)[0])
        pair_id = pairs.pair_ids[place]
        explanation = explain_by_teacher(folders, pair_id, config)
        table = {row["label"]: row for row in evidence if row["pair_id"] == pair_id}
        for label, log_odds in zip(explanation.labels, soft[place], strict=True):
            total = label.base_log_odds + label.reading_state_log_odds
            total += sum(concept.log_odds for concept in label.concepts)
            assert total == pytest.approx(log_odds, abs=1e-4)
            assert expit(total) == pytest.approx(label.probability)
            assert (label.spread is None) == (split == "train")
            told = {concept.concept_id: concept.log_odds for concept in label.concepts}
            for concept in table[label.label]["concepts"]:
                assert concept["log_odds"] == pytest.approx(told[concept["concept_id"]], abs=5e-3)


def test_a_teacher_of_other_labels_explains_nothing(run: Run, tmp_path: Path) -> None:
    folders = dict(run.context("signals").inputs)
    shutil.copytree(folders["cohort"], tmp_path / "cohort")
    folders["cohort"] = tmp_path / "cohort"
    pairs = read_table(tmp_path / "cohort" / "pairs.parquet", PAIRS)
    schema = with_label_names(PAIRS, LABELS[::-1])
    write_table(pairs, tmp_path / "cohort" / "pairs.parquet", schema)
    with pytest.raises(CkdEhrError, match="its labels, or their order, are not the cohort's"):
        explain_by_teacher(folders, pairs["pair_id"][0].as_py(), run.config)


def test_a_killed_teacher_resumes_to_the_same_weights(run: Run, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def kill_at_second_evaluation(line: str) -> None:
        if "fold 1" in line and "epoch" in line and next(countdown) == 0:
            raise KilledError

    countdown = iter((2, 1, 0, *[9] * 99))
    killed = StageContext(
        config=run.config,
        folder=tmp_path,
        inputs=run.context("teacher").inputs,
        say=kill_at_second_evaluation,
    )
    with pytest.raises(KilledError):
        write_teacher(killed)
    assert (tmp_path / "work" / "fold_0" / "head.json").is_file()
    said: list[str] = []
    resumed = StageContext(
        config=run.config, folder=tmp_path, inputs=killed.inputs, say=said.append
    )
    write_teacher(resumed)
    assert any("resuming from checkpoint-" in line for line in said)
    once = json.loads((run.root / "teacher" / "training.json").read_text())
    twice = json.loads((tmp_path / "training.json").read_text())
    for fold in ("fold_0", "fold_1"):
        assert once[fold]["tuning_macro_auprc"] == twice[fold]["tuning_macro_auprc"]
        assert once[fold]["best_step"] == twice[fold]["best_step"]


def test_a_decoder_is_refused_as_student_and_an_encoder_as_teacher(
    run: Run, tmp_path: Path
) -> None:
    inputs = run.context("student").inputs
    for section, model, write, message in (
        ("teacher", run.config.student.model, write_teacher, "a decoder is needed"),
        ("student", run.config.teacher.model, write_students, "a BERT-family encoder is needed"),
    ):
        config = with_settings(run.config, section, model=model)
        with pytest.raises(CkdEhrError, match=message):
            write(StageContext(config, tmp_path, inputs, say=lambda _: None))


def test_a_budget_beyond_the_models_positions_is_refused(run: Run, tmp_path: Path) -> None:
    settings = run.config.model_dump(mode="json")
    settings["knowledge"]["teacher"]["max_tokens"] = 513
    context = StageContext(
        config=build_config(settings),
        folder=tmp_path,
        inputs=run.context("teacher").inputs,
        say=lambda _: None,
    )
    with pytest.raises(CkdEhrError, match=r"knowledge\.teacher\.max_tokens=513.*at most 512"):
        write_teacher(context)
    settings["knowledge"]["student"]["max_tokens"] = 513
    settings["student"]["domain_epochs"] = 1
    inputs = run.context("student").inputs
    context = StageContext(build_config(settings), tmp_path, inputs, say=lambda _: None)
    with pytest.raises(CkdEhrError, match=r"knowledge\.student\.max_tokens=513.*at most 512"):
        write_students(context)


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone() -> None:
    rng = np.random.default_rng(0)
    examples = [
        Example(str(n), encoded_of(range(length), [0] * length, ()))
        for n, length in enumerate(rng.integers(3, 50, 200).tolist())
    ]
    orders = []
    for number, epoch in enumerate((0, 1, 1)):
        torch.manual_seed(number)
        dataset = PairDataset(examples)
        lengths = [len(example.encoded.input_ids) for example in examples]
        sampler = EpochSampler(dataset, lengths=lengths, batch_size=8, seed=3)
        dataset.epoch = epoch
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(200))
    assert orders[0] != orders[1] == orders[2]


def test_a_teacher_killed_within_an_epoch_resumes_to_the_same_weights(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    compute, steps = LossTrainer.compute_loss, iter(range(10**6))

    def killed(self: LossTrainer, *args: object, **kwargs: object) -> object:
        if next(steps) == 8:  # of 5 steps an epoch
            raise KilledError
        return compute(self, *args, **kwargs)  # type: ignore[arg-type]

    config = with_settings(run.config, "teacher", epochs=4, checkpoint_steps=1)
    inputs = run.context("teacher").inputs
    for name in ("once", "twice"):
        (tmp_path / name).mkdir()
    write_teacher(StageContext(config, tmp_path / "once", inputs, say=lambda _: None))
    monkeypatch.setattr(LossTrainer, "compute_loss", killed)
    twice = StageContext(config, tmp_path / "twice", inputs, say=lambda _: None)
    with pytest.raises(KilledError):
        write_teacher(twice)
    assert usable_checkpoint(tmp_path / "twice" / "work" / "checkpoints_0") is not None
    write_teacher(twice)
    for file in ("head.safetensors", "adapter_model.safetensors"):
        one, two = (load_file(tmp_path / n / "fold_0" / file) for n in ("once", "twice"))
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, atol=1e-6, rtol=1e-5)


def test_a_student_killed_after_it_stopped_early_does_not_train_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    def killed(*_: object) -> None:
        raise KilledError

    config, inputs = with_settings(run.config, "student", patience=1), run.context("student").inputs
    for name in ("once", "twice"):
        (tmp_path / name).mkdir()
    write_students(StageContext(config, tmp_path / "once", inputs, say=lambda _: None))
    twice = StageContext(config, tmp_path / "twice", inputs, say=lambda _: None)
    with monkeypatch.context() as patch:
        patch.setattr(student, "_finish", killed)
        with pytest.raises(KilledError):
            write_students(twice)
    write_students(twice)
    for variant in ("hard", "distilled"):
        one, two = (
            json.loads((tmp_path / name / variant / "training.json").read_text())
            for name in ("once", "twice")
        )
        assert one["steps"] < 12 * one["pairs"] // 8  # it stopped early
        assert (two["steps"], two["best_step"]) == (one["steps"], one["best_step"])
        weights = [
            load_file(tmp_path / name / variant / "model.safetensors") for name in ("once", "twice")
        ]
        for key, value in weights[0].items():
            torch.testing.assert_close(weights[1][key], value, atol=1e-6, rtol=1e-5)


def test_an_encoder_whose_attention_cannot_be_recorded_loses_the_layers_term_alone() -> None:
    assert (
        why_unrecorded(AutoConfig.for_model("bert", num_attention_heads=2, hidden_size=8)) is None
    )
    mpnet = AutoConfig.for_model("mpnet", num_attention_heads=2, hidden_size=8)
    why = why_unrecorded(mpnet)
    assert why is not None
    missing = without(StudentConfig(), pooling="label_attention", has_signals=True, unrecorded=why)
    assert set(missing) == {"layers"}


def test_students_killed_within_an_epoch_resume_to_the_same_weights(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed twice: while the encoder reads narratives, and in the distilled student's training."""

    class KilledError(Exception):
        pass

    def killing(trained: Callable[..., object], at: int) -> Callable[..., object]:
        steps = iter(range(10**6))

        @wraps(trained)  # Trainer looks at the signature of what it trains
        def step(self: object, *args: object, **kwargs: object) -> object:
            if getattr(self, "training", True) and next(steps) == at:
                raise KilledError
            return trained(self, *args, **kwargs)

        return step

    reading = {"model": tiny_bert(tmp_path / "bert", masks=True), "domain_epochs": 1}
    config = with_settings(
        run.config, "student", **reading, epochs=2, checkpoint_steps=2, dropout=0.2, layers=1
    )
    inputs = run.context("student").inputs
    for name in ("once", "twice"):
        (tmp_path / name).mkdir()
    write_students(StageContext(config, tmp_path / "once", inputs, say=lambda _: None))
    said: list[str] = []
    twice = StageContext(config, tmp_path / "twice", inputs, say=said.append)
    with monkeypatch.context() as patch:
        patch.setattr(MaskedModel, "forward", killing(MaskedModel.forward, 5))
        with pytest.raises(KilledError):
            write_students(twice)
    with monkeypatch.context() as patch:
        hard_steps = 2 * 5
        patch.setattr(
            LossTrainer, "compute_loss", killing(LossTrainer.compute_loss, hard_steps + 11)
        )
        with pytest.raises(KilledError):
            write_students(twice)
    assert usable_checkpoint(tmp_path / "twice" / "work" / "checkpoints_distilled") is not None
    write_students(twice)
    assert sum("student (hard): 10 steps" in line for line in said) == 1
    for variant in ("hard", "distilled"):
        one, two = (
            load_file(tmp_path / n / variant / "model.safetensors") for n in ("once", "twice")
        )
        assert one.keys() == two.keys()
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, atol=1e-6, rtol=1e-5)
    assert not any("layer.1." in name for name in one)
    check_what_reading_leaves_behind(run, tmp_path / "once")


def check_what_reading_leaves_behind(run: Run, folder: Path) -> None:
    """The narratives of train pairs alone were read, once for both students."""
    pairs = read_pairs(run.root / "cohort")
    train = [pairs.pair_ids[row] for row in pairs.rows(split="train")]
    assert fitted_findings(run.root / "cohort", {"student": folder / FITTED}) == []
    record = next(one for one in read_fitted(folder / FITTED) if one.name == "domain")
    assert (record.pairs, record.digest) == (len(train), digest_of(train))
    histories = [
        json.loads((folder / variant / "training.json").read_text())
        for variant in ("hard", "distilled")
    ]
    assert histories[0]["domain"] == histories[1]["domain"]
    assert histories[0]["domain"]["texts"] == len(train)
    before, after = histories[0]["domain"]["tuning_loss"]
    assert after < before


def test_tuning_and_held_out_narratives_are_not_read(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoppedError(Exception):
        pass

    def stopped(_settings: object, **given: object) -> object:
        seen.update(given)
        raise StoppedError

    seen: dict[str, object] = {}
    monkeypatch.setattr(student, "warm_up", stopped)
    config = with_settings(run.config, "student", domain_epochs=1)
    with pytest.raises(StoppedError):
        write_students(
            StageContext(config, tmp_path, run.context("student").inputs, say=lambda _: None)
        )
    pairs = read_pairs(run.root / "cohort")
    narratives = read_narratives(run.root / "knowledge", "student")
    reader = TextReader(run.config.student.model, "first")
    for split in ("train", "tuning"):
        examples = reader.examples(pairs, narratives, pairs.rows(split=split).tolist())
        assert seen[split] == [tuple(one.encoded.input_ids.tolist()) for one in examples]


def test_training_says_what_it_took(run: Run) -> None:
    for variant in ("hard", "distilled"):
        history = json.loads((run.root / "student" / variant / "training.json").read_text())
        assert history["precision"] == "fp32"
        assert 10**8 < history["peak_memory_bytes"] < 10**11
        pairs = history["steps"] * run.config.student.batch_size
        expected = pairs / history["seconds"]
        assert history["pairs_per_second"] == pytest.approx(expected, rel=0.2)
        assert "domain" not in history


def test_an_adapter_that_lacks_weights_is_refused(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "fold_0"
    shutil.copytree(run.root / "teacher" / "fold_0", folder)
    weights = load_file(folder / "adapter_model.safetensors")
    weights.pop(next(iter(weights)))
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(CkdEhrError, match="1 of its weights have no counterpart"):
        load_teacher(run.config.teacher, folder, device="cpu")


def test_half_written_checkpoints_are_passed_over(tmp_path: Path) -> None:
    for step, state in ((1, '{"global_step": 1}'), (2, '{"global_st')):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(state)
        for name in CHECKPOINT_FILES:
            (folder / name).touch()
    (tmp_path / "checkpoint-3" / "inner").mkdir(parents=True)
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text('{"global_step": 4}')
    assert usable_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")
    assert usable_checkpoint(tmp_path / "absent") is None


def with_settings(config: RunConfig, section: str, **changes: object) -> RunConfig:
    settings = config.model_dump(mode="json")
    settings[section] |= changes
    return build_config(settings)


def verified(
    run: Run, signals: Path, *, config: RunConfig | None = None, teacher: Path | None = None
) -> SignalFacts:
    return verify_signals(
        signals,
        teacher=teacher or run.root / "teacher",
        knowledge=run.root / "knowledge",
        config=config or run.config,
    )


def test_evidence_says_what_the_soft_labels_rest_on(run: Run) -> None:
    pairs = read_pairs(run.root / "cohort")
    rows = read_table(run.root / "committee" / "evidence.parquet", EVIDENCE).to_pylist()
    assert len(rows) == len(pairs.pair_ids) * len(LABELS)
    by_key = {(row["pair_id"], row["label"]): row for row in rows}
    narratives = read_narratives(run.root / "knowledge", "teacher")
    strongest = Counter()
    for place in pairs.rows(split="held_out"):
        pair_id = pairs.pair_ids[place]
        texts = {
            span.concept_id: narratives[pair_id].text[span.start : span.end]
            for span in narratives[pair_id].spans
        }
        row = by_key[pair_id, "Shock"]
        assert 0 <= row["reading_share"] <= 1
        assert row["knowledge_share"] == 0
        assert len(row["visits"]) == 1
        if pairs.labels[place, 0]:
            strongest[texts[row["concepts"][0]["concept_id"]]] += 1
    assert strongest.most_common(1)[0][0] == "shock"


def test_whole_signals_are_verified_and_damaged_ones_refused(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "signals"
    shutil.copytree(run.root / "signals", folder)
    facts = verified(run, folder)
    pairs = read_pairs(run.root / "cohort")
    assert facts.pairs == len(pairs.rows(split="train"))
    assert 0 < facts.bytes_per_pair < 3000
    others = [
        with_settings(run.config, "signals", orders=run.config.signals.orders + 1),
        with_settings(run.config, "teacher", bidirectional=True),
        run.config.model_copy(update={"seed": run.config.seed + 1}),
    ]
    for other in others:
        with pytest.raises(CkdEhrError, match="another text or teacher"):
            verified(run, folder, config=other)
    shutil.copytree(run.root / "teacher", tmp_path / "teacher")
    for path, old, new in (
        ("fold_0/adapter_config.json", '"lora_alpha": 16', '"lora_alpha": 128'),
        ("fold_0/head.json", LABELS[0], "Gout"),
    ):
        text = (tmp_path / "teacher" / path).read_text()
        assert old in text
        (tmp_path / "teacher" / path).write_text(text.replace(old, new))
        with pytest.raises(CkdEhrError, match="another text or teacher"):
            verified(run, folder, teacher=tmp_path / "teacher")
        (tmp_path / "teacher" / path).write_text(text)
    shard = next(folder.glob("signals-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-64])
    with pytest.raises(CkdEhrError, match=r"signals-.*damaged.*rerun stage signals"):
        verified(run, folder)


def test_a_student_learns_of_pairs_without_signals_and_names_a_shard_that_is_gone(
    run: Run, tmp_path: Path
) -> None:
    folders = dict(run.context("student").inputs)
    shutil.copytree(folders["signals"], tmp_path / "signals")
    folders["signals"] = tmp_path / "signals"
    index = pq.read_table(tmp_path / "signals" / "index.parquet")
    write_table(index.slice(5), tmp_path / "signals" / "index.parquet", index.schema)
    config, said = with_settings(run.config, "student", epochs=0.2), list[str]()
    context = StageContext(config, tmp_path / "student", folders, say=said.append)
    context.folder.mkdir()
    write_students(context)
    [line] = [line for line in said if "pairs without signals" in line]
    assert f"5 of {len(index)} pairs without signals" in line
    fitted = {record.name: record.pairs for record in read_fitted(context.folder / FITTED)}
    assert fitted["distilled/weights"] == len(index)
    shutil.rmtree(context.folder)
    context.folder.mkdir()
    for shard in (tmp_path / "signals").glob("signals-*"):
        shard.unlink()
    with pytest.raises(CkdEhrError, match=r"signals-.*missing.*rerun stage signals"):
        write_students(context)


def test_no_student_is_trained_where_signals_are_of_another_teacher(
    run: Run, tmp_path: Path
) -> None:
    config = with_settings(run.config, "signals", orders=1)
    with pytest.raises(CkdEhrError, match="another text or teacher; rerun stage signals"):
        write_students(
            StageContext(config, tmp_path, run.context("student").inputs, say=lambda _: None)
        )
    assert not list(tmp_path.rglob("checkpoint*"))


def test_a_killed_labelling_loses_one_chunk(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelling, "CHUNK", 16)

    class KilledError(Exception):
        pass

    def kill(line: str) -> None:
        if "32/" in line:
            raise KilledError

    inputs = run.context("signals").inputs
    with pytest.raises(KilledError):
        write_signals(StageContext(run.config, tmp_path, inputs, say=kill))
    files = sorted((tmp_path / "work").glob("opinions-*"))
    done = {path.name: path.stat().st_mtime_ns for path in files}
    assert len(done) == 2
    cut_short = files[1]
    cut_short.write_bytes(b"")
    write_signals(StageContext(run.config, tmp_path, inputs, say=lambda _: None))
    assert (tmp_path / files[0].name).stat().st_mtime_ns == done[files[0].name]
    assert (tmp_path / cut_short.name).stat().st_size > 0
    assert_same_opinions(tmp_path, run, atol=1e-4)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_other_poolings_have_no_attention_to_distil(run: Run, tmp_path: Path, pooling: str) -> None:
    config = with_settings(run.config, "teacher", pooling=pooling, epochs=0.5, shuffle=False)
    config = with_settings(config, "signals", orders=1)
    config = with_settings(config, "student", epochs=0.2)
    said: list[str] = []
    folders = dict(run.context("signals").inputs)
    for stage, write in (
        ("teacher", write_teacher),
        ("signals", write_signals),
        ("committee", write_committee),
        ("student", write_students),
    ):
        (tmp_path / stage).mkdir()
        write(StageContext(config, tmp_path / stage, folders, say=said.append))
        folders[stage] = tmp_path / stage
    for term in ("concept", "visit", "layers"):
        assert f"    {term} term off: the teacher's pooling is '{pooling}'" in said
    with safe_open(next((tmp_path / "signals").glob("signals-*")), framework="pt") as shard:
        name = next(name for name in shard.keys() if name.endswith("/attention"))  # noqa: SIM118
        attention = shard.get_tensor(name).float().numpy()
    expected = np.full(attention.shape, 1 / attention.shape[1])
    if pooling == "last":
        expected = np.zeros(attention.shape)
        expected[:, 0] = 1
    np.testing.assert_allclose(attention, expected, atol=1e-3)


def test_quantised_weights_are_refused_where_there_is_no_gpu(run: Run, tmp_path: Path) -> None:
    config = with_settings(run.config, "teacher", quantize="nf4")
    context = StageContext(config, tmp_path, run.context("teacher").inputs, say=lambda _: None)
    with pytest.raises(CkdEhrError, match=r"teacher\.quantize=nf4: needs a CUDA GPU"):
        write_teacher(context)


def test_a_loss_that_is_not_finite_stops_with_its_step(run: Run, tmp_path: Path) -> None:
    config = with_settings(run.config, "teacher", head_learning_rate=1e30, learning_rate=1e30)
    context = StageContext(config, tmp_path, run.context("teacher").inputs, say=lambda _: None)
    with pytest.raises(CkdEhrError, match=r"without fold 0: the loss is not finite at step \d+"):
        write_teacher(context)


def test_in_fold_soft_labels_collapse_and_out_of_fold_ones_do_not(run: Run) -> None:
    """What cross-fitting is for: a teacher memorises what it was trained on, here pure chance."""
    rng = np.random.default_rng(0)
    examples = [
        Example(
            pair_id=str(number),
            encoded=encoded_of(rng.integers(5, 60, 12).tolist(), [0, 1] * 6, ("c",)),
            labels=(rng.random(3) < 0.5).astype(np.float32),
        )
        for number in range(48)
    ]
    model = new_teacher(run.config.teacher, labels=3, device="cpu")
    seen = make_batch(examples[:24], pad_token=0, labels=3)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        output = model(**{name: seen[name] for name in MODEL_INPUTS})
        hard_loss(output.logits, seen["labels"], seen["labelled"]).backward()
        optimizer.step()
    entropy = []
    for fold in (examples[:24], examples[24:]):
        logits = predict_logits(model.eval(), fold, pad_token=0, device="cpu")
        labels = np.array([example.labels for example in fold]) > 0.5
        p = expit(fit_platt(logits, labels).apply(logits))
        entropy.append(-(p * np.log(p) + (1 - p) * np.log1p(-p)).mean() / np.log(2))
    assert entropy[0] < 0.1
    assert entropy[1] > 0.8


def test_out_of_memory_makes_batches_smaller_then_stops(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, sizes = labelling.FoldLabeller._forward, []

    def cramped(self: object, model: object, examples: list[object]) -> object:
        sizes.append(len(examples))
        if len(examples) > limit:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: 9 bytes")
        return forward(self, model, examples)  # type: ignore[arg-type]

    monkeypatch.setattr(labelling.FoldLabeller, "_forward", cramped)
    limit, inputs, said = 5, run.context("signals").inputs, list[str]()
    write_signals(StageContext(run.config, tmp_path, inputs, say=said.append))
    assert max(sizes) > 5
    assert any("out of memory: batches of" in line for line in said)
    budgets = [int(line.split()[5].replace(",", "")) for line in said if "out of memory" in line]
    assert budgets == sorted(set(budgets), reverse=True)
    assert_same_opinions(tmp_path, run, atol=1e-4)
    limit = 0
    with pytest.raises(CkdEhrError, match="out of memory on one text of"):
        write_signals(StageContext(run.config, tmp_path, inputs, say=said.append))


def test_a_truncated_adapter_is_refused_with_its_folder(run: Run, tmp_path: Path) -> None:
    folders = dict(run.context("signals").inputs)
    shutil.copytree(folders["teacher"], tmp_path / "teacher")
    folders["teacher"] = tmp_path / "teacher"
    adapter = tmp_path / "teacher" / "fold_0" / "adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:100])
    (tmp_path / "signals").mkdir()
    with pytest.raises(CkdEhrError, match=r"fold_0: its adapter is missing or damaged"):
        write_signals(StageContext(run.config, tmp_path / "signals", folders, say=lambda _: None))


def test_a_label_of_one_class_in_a_fold_is_labelled_all_the_same(run: Run, tmp_path: Path) -> None:
    folders = dict(run.context("signals").inputs)
    shutil.copytree(folders["cohort"], tmp_path / "cohort")
    table = read_table(tmp_path / "cohort" / "pairs.parquet", PAIRS)
    rows = table.to_pylist()
    for row in rows:
        if row["labels"] is not None and row["split"] == "train" and row["fold"] == 0:
            row["labels"][0] = False
    write_table(
        pa.Table.from_pylist(rows, PAIRS),
        tmp_path / "cohort" / "pairs.parquet",
        with_label_names(PAIRS, LABELS),
    )
    folders["cohort"] = tmp_path / "cohort"
    (tmp_path / "committee").mkdir()
    write_committee(StageContext(run.config, tmp_path / "committee", folders, say=lambda _: None))
    facts = json.loads((tmp_path / "committee" / "committee.json").read_text())
    assert facts["teacher"]["one_class"] == 1
    assert facts["teacher"]["platt"][0]["slope"][0] != 1
    soft = pq.read_table(tmp_path / "committee" / "soft_labels.parquet")
    assert np.isfinite(np.concatenate(soft["logits"].to_numpy())).all()


def test_a_site_s_own_model_is_a_member_and_has_no_spread(run: Run, tmp_path: Path) -> None:
    pairs = read_pairs(run.root / "cohort")
    columns = {label: np.linspace(0.1, 0.9, len(pairs.pair_ids)) for label in LABELS}
    path = tmp_path / "site.parquet"
    pq.write_table(pa.table({"pair_id": list(pairs.pair_ids), **columns}), path)
    config = with_settings(run.config, "committee", external={"site": str(path)})
    folder = tmp_path / "committee"
    folder.mkdir()
    write_committee(
        StageContext(config, folder, run.context("committee").inputs, say=lambda _: None)
    )
    table = pq.read_table(folder / "soft_labels.parquet").to_pylist()
    assert all(row["spread"] is None for row in table if row["source"] == "site")
    assert {"site", "committee_without_site"} <= {row["source"] for row in table}
    assert fitted_findings(run.root / "cohort", {"committee": folder / FITTED}) == []
