"""Predictions of a run as MEDS labels and predictions, which the tool meds-evaluation reads.

In: predictions.parquet. Out: a folder a disease with labels.parquet (meds.LabelSchema) and
predictions.parquet (the same with a decision and a probability), and export.json. Ignores: scores.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from meds import LabelSchema

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import write_json
from ckd_ehr.contracts.folders import whole_folder
from ckd_ehr.contracts.records import Split
from ckd_ehr.metrics.calibration import both_classes
from ckd_ehr.metrics.predicted import Predicted, read_predicted


@dataclass(frozen=True)
class Exported:
    """What was written: folders by disease, pairs in each, and diseases left out."""

    folders: dict[str, str]
    pairs: int
    one_class: list[str]


def export_predictions(
    predictions: Path, out: Path, *, model: str, split: Split = "held_out"
) -> Exported:
    """Write one model's predictions of a split, a folder a disease.

    A disease that all pairs have, or none, is left out: no score of ranks exists, and
    meds-evaluation fails on it. Decisions are at the thresholds of the evaluation, from tuning.

    Raises:
        CkdEhrError: the model or the split has no predictions, or `out` holds anything.
    """
    models = read_predicted(predictions)
    if model not in models:
        raise CkdEhrError(f"{predictions}: no model '{model}'; it has {', '.join(models)}")
    predicted = models[model]
    rows = predicted.rows(split)
    if not rows.any():
        raise CkdEhrError(f"{predictions}: no {split} pair of {model}; export another split")
    scored = both_classes(predicted.labels[rows])
    names = predicted.label_names
    folders = {name: folder_name(name, k) for k, name in enumerate(names) if scored[k]}
    one_class = [name for name in names if name not in folders]
    with whole_folder(out) as place:
        for name, folder in folders.items():
            _write_disease(predicted, names.index(name), split, place / folder)
        thresholds = dict(zip(names, predicted.thresholds().tolist(), strict=True))
        diseases = {f: {"disease": n, "threshold": thresholds[n]} for n, f in folders.items()}
        about = {"model": model, "split": split, "left_out_one_class": one_class}
        write_json(place / "export.json", {**about, "folders": diseases})
    return Exported(folders=folders, pairs=int(rows.sum()), one_class=one_class)


def folder_name(disease: str, number: int) -> str:
    """A folder's name of a disease's; the number keeps like ones apart.

    >>> folder_name("Congestive heart failure; nonhypertensive", 4)
    '05_congestive_heart_failure_nonhypertensive'
    """
    return f"{number + 1:02d}_" + re.sub(r"[^a-z0-9]+", "_", disease.lower()).strip("_")[:60]


def _write_disease(predicted: Predicted, k: int, split: Split, folder: Path) -> None:
    rows = pa.array(predicted.rows(split))
    probabilities = predicted.probabilities[:, k]
    decided = probabilities >= predicted.thresholds()[k]
    table = predicted.table.select(["subject_id", "prediction_time"])
    table = table.append_column("boolean_value", pa.array(predicted.labels[:, k])).filter(rows)
    labels = LabelSchema.align(table.replace_schema_metadata(None))
    folder.mkdir()
    pq.write_table(labels, folder / "labels.parquet")
    columns = {
        "predicted_boolean_value": pa.array(decided),
        "predicted_boolean_probability": pa.array(probabilities, pa.float32()),
    }
    for name, column in columns.items():
        labels = labels.append_column(name, column.filter(rows))
    pq.write_table(labels, folder / "predictions.parquet")
