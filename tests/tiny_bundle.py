"""A finished run of a tiny random student, as far as a bundle is made of it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from scipy.special import expit
from transformers import AutoModel, AutoTokenizer

from ckd_ehr.contracts.config import RunConfig, build_config
from ckd_ehr.contracts.files import read_table, sha256_of, write_json, write_table
from ckd_ehr.contracts.records import PAIRS, PREDICTIONS, VISITS, Visit, with_label_names
from ckd_ehr.knowledge.sources import read_narratives
from ckd_ehr.learning.inference import StudentPredictor
from ckd_ehr.learning.reading import predict_logits
from ckd_ehr.learning.scoring import Floats
from ckd_ehr.learning.student_model import StudentModel
from ckd_ehr.release.manifest import Precision
from ckd_ehr.serving.engine import Predictor
from tiny import LABELS, tiny_bert, write_cohort

MAX_TOKENS = 48
INTERVAL = {"value": 0.5, "low": 0.4, "high": 0.6}
SCORES = dict.fromkeys(
    ("macro_auprc", "macro_auroc", "micro_auprc", "micro_auroc", "brier"), INTERVAL
)
LABEL = {"auroc": INTERVAL, "auprc": INTERVAL, "f1": 0.5, "brier": 0.1, "ece": 0.1}


def tiny_config() -> RunConfig:
    """Of the run."""
    return build_config({"name": "tiny", "knowledge": {"student": {"max_tokens": MAX_TOKENS}}})


def write_finished_run(root: Path) -> dict[str, Path]:
    """The folders of the stages that a bundle is made of."""
    folders = {name: root / name for name in ("cohort", "knowledge", "student", "evaluation")}
    write_cohort(folders["cohort"], folders["knowledge"], patients=100)
    _write_codes_in_upper_case(folders["cohort"] / "visits.parquet")
    _write_student(folders["student"] / "distilled", tiny_bert(root / "bert"))
    _write_predictions(folders)
    counts = {"patients": 60, "labelled_pairs": 60, "unlabelled_pairs": 60}
    metrics = {
        "data_set": "tiny",
        "simulated": True,
        "scored_split": "held_out",
        "counts": dict.fromkeys(("train", "tuning", "held_out"), counts),
        "prevalence": {},
        "seed": 0,
        "models": {
            "student_distilled": {
                **dict.fromkeys(("overall", "new_onset", "persistent"), SCORES),
                "labels": dict.fromkeys(LABELS, LABEL),
            }
        },
    }
    write_json(folders["evaluation"] / "metrics.json", metrics)
    return folders


def _write_codes_in_upper_case(visits: Path) -> None:
    """As the input of a prediction is read."""
    rows = read_table(visits, VISITS).to_pylist()
    for row in rows:
        for code in row["diagnoses"]:
            code["code"] = code["code"].upper()
    write_table(pa.Table.from_pylist(rows, VISITS), visits, with_label_names(VISITS, LABELS))


def _write_student(folder: Path, bert: str) -> None:
    torch.manual_seed(0)
    student = StudentModel.of(AutoModel.from_pretrained(bert, attn_implementation="eager"), LABELS)
    student.head.start_at(torch.tensor([0.3, 0.5, 0.4]))
    with torch.no_grad():
        student.head.weights.mul_(20)  # so that histories differ in their risks
    student.save_pretrained(folder)
    AutoTokenizer.from_pretrained(bert).save_pretrained(folder)
    config = tiny_config()
    facts = {
        "variant": "distilled",
        "data_source": "simulated",
        "labels": list(LABELS),
        "prevalence": [0.3, 0.5, 0.4],
        "train_pairs": 60,
        "slope": [0.5, 1.0, 1.5],
        "intercept": [-0.5, 0.0, 0.5],
        "calibration_pairs": 40,
        "max_tokens": MAX_TOKENS,
        "knowledge": config.knowledge.model_dump(mode="json"),
        "phenotypes": [p.model_dump(mode="json") for p in config.labels.selected],
        "max_history_visits": config.cohort.max_history_visits,
        "seed": 0,
        "tokenizer_sha256": sha256_of(folder / "tokenizer.json"),
    }
    write_json(folder / "predictor.json", facts)


def _write_predictions(folders: dict[str, Path]) -> None:
    student = StudentPredictor(folders["student"] / "distilled")
    texts = read_narratives(folders["knowledge"], "student")
    pairs = read_table(folders["cohort"] / "pairs.parquet", PAIRS).to_pylist()
    scored = [pair for pair in pairs if pair["split"] != "train"]
    examples = [student.reader.example("", texts[pair["pair_id"]]) for pair in scored]
    logits = predict_logits(
        student.model, examples, pad_token=student.reader.pad_token, device="cpu"
    )
    risks = expit(student.scaling.apply(logits))
    rows = [
        {
            **{name: pair[name] for name in ("pair_id", "subject_id", "prediction_time", "split")},
            "model": "student_distilled",
            "seed": 0,
            "probabilities": risk.tolist(),
            "labels": pair["labels"],
        }
        for pair, risk in zip(scored, risks, strict=True)
    ]
    schema = with_label_names(PREDICTIONS, LABELS)
    table = pa.Table.from_pylist(rows, PREDICTIONS)
    write_table(table, folders["student"] / "predictions.parquet", schema)


def answer(folder: Path, precision: Precision, histories: Sequence[Sequence[Visit]]) -> Floats:
    """What the bundle in a folder says: probabilities (histories, labels)."""
    found = Predictor(folder, precision=precision).predict(histories)
    return np.array([one.probabilities for one in found])
