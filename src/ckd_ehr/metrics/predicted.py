"""What each model predicted, as predictions.parquet of a finished run holds it.

In: that file. Out: matrices (pairs, labels), one pair of them a model. Ignores: scores.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_table
from ckd_ehr.contracts.records import PREDICTIONS, Split, label_names
from ckd_ehr.learning.scoring import Bools, Floats, best_f1_thresholds, checked_probabilities
from ckd_ehr.metrics.labelled_pairs import matrix_of


@dataclass(frozen=True)
class Predicted:
    """One model's predictions for labelled pairs of tuning and held_out."""

    table: pa.Table  # pair_id, subject_id, prediction_time, split, …
    label_names: tuple[str, ...]
    probabilities: Floats  # (pairs, labels)
    labels: Bools  # (pairs, labels)

    def rows(self, split: Split) -> Bools:
        """A mask (pairs,) of one split."""
        return np.asarray(self.table["split"].to_numpy() == split)

    def thresholds(self) -> Floats:
        """Per label the threshold with the highest F1 on tuning pairs, as the evaluation's."""
        tuning = self.rows("tuning")
        return best_f1_thresholds(self.probabilities[tuning], self.labels[tuning])


def read_predicted(path: Path) -> dict[str, Predicted]:
    """Every model's predictions.

    Raises:
        CkdEhrError: rows are not as wide as there are labels, a pair stands there twice for a
            model, or a probability is none.
    """
    table = read_table(path, PREDICTIONS)
    names = label_names(table.schema)
    for column in ("probabilities", "labels"):
        if pc.any(pc.not_equal(pc.list_value_length(table[column]), len(names))).as_py():
            raise CkdEhrError(f"{path}: '{column}' is not {len(names)} wide; rerun its stage")
    models = {}
    for model in pc.unique(table["model"]).to_pylist():
        mine = table.filter(pc.equal(table["model"], model))
        twice = mine.num_rows - len(pc.unique(mine["pair_id"]))
        if twice:
            raise CkdEhrError(f"{path}: {twice} rows of {model} repeat a pair; rerun its stage")
        models[model] = Predicted(
            table=mine,
            label_names=names,
            probabilities=checked_probabilities(
                matrix_of(mine["probabilities"], len(names)), origin=f"{path} ({model})"
            ),
            labels=matrix_of(mine["labels"], len(names)).astype(bool),
        )
    return models
