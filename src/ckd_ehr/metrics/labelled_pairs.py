"""The labelled pairs of a run, and what the stages say of them, joined by pair_id.

In: the cohort's tables, and tables keyed by pair. Out: matrices (pairs, labels) in one fixed order.
Ignores: what is scored, and how.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ckd_ehr.contracts.config import RunConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_table
from ckd_ehr.contracts.records import SOFT_LABELS, VISITS, label_names
from ckd_ehr.data.histories import index_histories, visit_phenotypes
from ckd_ehr.learning.scoring import Bools, Floats


@dataclass(frozen=True)
class LabelledPairs:
    """The labelled pairs of a run, in one fixed order."""

    visits: pa.Table
    table: pa.Table
    label_names: tuple[str, ...]
    labels: Bools  # (pairs, labels)
    present_at_last: Bools  # (pairs, labels): coded at the last history visit
    previously_present: Bools  # (pairs, labels): coded at any history visit

    def rows(self, split: str) -> Bools:
        """A mask (pairs,) of one split."""
        return np.asarray(self.table["split"].to_numpy() == split)

    @property
    def ids(self) -> pa.ChunkedArray:
        """The pair ids."""
        return self.table["pair_id"]


def read_labelled_pairs(cohort: Path, pairs: pa.Table, config: RunConfig) -> LabelledPairs:
    """The labelled pairs with what was coded before, joined by visit_id."""
    visits = read_table(cohort / "visits.parquet", VISITS)
    names = label_names(pairs.schema)
    table = pairs.filter(pc.is_valid(pairs["labels"]))
    labels = matrix_of(table["labels"], len(names)).astype(bool)
    histories = index_histories(visits, table)
    phenotypes = visit_phenotypes(visits, config.labels.selected)
    return LabelledPairs(
        visits=visits,
        table=table,
        label_names=names,
        labels=labels,
        present_at_last=histories.at_last(phenotypes),
        previously_present=histories.ever(phenotypes),
    )


def matrix_of(column: pa.ChunkedArray, width: int) -> NDArray[np.generic]:
    """A list column as (rows, width)."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat).reshape(len(column), width)


def read_soft_labels(committee: Path, pairs: LabelledPairs) -> dict[str, Floats]:
    """Calibrated log-odds (pairs, labels) by source, NaN for train pairs."""
    path = committee / "soft_labels.parquet"
    table = read_table(path, SOFT_LABELS)
    sources = pc.unique(table["source"]).to_pylist()
    return {
        source: joined(pairs, table.filter(pc.equal(table["source"], source)), "logits", str(path))
        for source in sources
    }


def joined(pairs: LabelledPairs, table: pa.Table, column: str, origin: str) -> Floats:
    """A list column (pairs, labels) joined by pair_id; NaN for train pairs."""
    if label_names(table.schema) != pairs.label_names:
        raise CkdEhrError(f"{origin}: its labels are not those of the cohort; rerun its stage")
    place = pc.index_in(pairs.ids, value_set=table["pair_id"].combine_chunks())
    wanted = ~pairs.rows("train")
    missing = int(np.sum(wanted & place.is_null().to_numpy()))
    if missing:
        raise CkdEhrError(
            f"{origin}: {missing} tuning or held_out pairs are missing; rerun its stage"
        )
    values = matrix_of(table[column], len(pairs.label_names)).astype(np.float64)
    joined = np.full(pairs.labels.shape, np.nan)
    joined[wanted] = values[place.to_numpy()[wanted].astype(np.intp)]
    return joined
