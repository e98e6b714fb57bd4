"""Do the splits differ in their labels more than chance lets patients differ?

In: pairs.parquet. Out: one result. Ignores: unlabelled pairs, and labels and splits that too few
patients have.

Under a division by patient, which split a patient is in says nothing about the patient. So the
patients are dealt to splits of the same sizes again and again, whole, and the largest standardised
difference over all labels and splits is compared with the largest of each deal (max-T, Westfall
and Young 1993). That holds at any size, keeps a patient's pairs together, and corrects for the
number of labels and splits, however they hang together: an honest cohort fails once in 1,000.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ckd_ehr.contracts.records import label_names
from ckd_ehr.data.audit.findings import CheckResult, result_of
from ckd_ehr.data.audit.structure import STAGE
from ckd_ehr.data.splits import SPLIT_NAMES

CHECK = "label prevalence across splits"
FAMILY_ALPHA = 1e-3
DEALS = 1999  # so that 1 in 1,000 is the second largest
FEWEST_PATIENTS = 20  # with labelled pairs, in a split
FEWEST_POSITIVE = 10  # patients with the label, in all splits
SHOWN = 3
DEALS_AT_ONCE = 64

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PatientCounts:
    """Labelled pairs by patient: their number (patients,), their positives (patients, labels)."""

    split: NDArray[np.intp]  # (patients,): place in SPLIT_NAMES
    pairs: Floats
    positives: Floats
    label_names: tuple[str, ...]


def prevalence_shift(cohort: Path, *, shift_expected: bool) -> CheckResult:
    """Labels whose prevalence in a split is not that of the other patients."""
    if shift_expected:
        note = "the splits are by time or differ on purpose, so a shift is expected"
        return CheckResult(CHECK, STAGE, note=note, tested=False)
    return compare_splits(read_counts(cohort))


def compare_splits(
    patients: PatientCounts, *, alpha: float = FAMILY_ALPHA, deals: int = DEALS
) -> CheckResult:
    """Compare each split with all patients, label by label.

    Args:
        alpha: the probability that an honest cohort gives a finding.
        deals: how often patients are dealt again; `alpha · (deals + 1)` must be 1 or more.
    """
    splits = np.bincount(patients.split, minlength=len(SPLIT_NAMES)) >= FEWEST_PATIENTS
    labels = (patients.positives > 0).sum(axis=0) >= FEWEST_POSITIVE
    note = _untested(splits, labels)
    if splits.sum() < 2 or not labels.any():
        return CheckResult(CHECK, STAGE, note=note, tested=False)
    here = splits[patients.split]
    split, pairs = patients.split[here], patients.pairs[here]
    positives = patients.positives[np.ix_(here, labels)]
    residuals = positives - pairs[:, None] * (positives.sum(axis=0) / pairs.sum())
    observed = _standardised(split, residuals)
    largest = np.sort(_largest_by_chance(split, residuals, deals))
    beyond = observed > largest[-max(int(alpha * (deals + 1) + 1e-9), 1)]
    names = np.array(patients.label_names)[labels]
    return result_of(
        CHECK,
        STAGE,
        rows=int(beyond.sum()),
        problem=f"prevalences of a label in a split differ from those of all patients beyond "
        f"chance ({_shown(beyond, split, positives, pairs, names)})",
        remedy="the split is not by chance: divide with splits.method=random; if it is meant to "
        "differ, by time with splits.method=temporal, in a file with splits.shift_expected=true",
        note=note,
    )


def read_counts(cohort: Path) -> PatientCounts:
    """Count the labelled pairs and their positives for each patient."""
    file = pq.ParquetFile(cohort / "pairs.parquet")
    table = file.read(columns=["subject_id", "split", "labels"])
    table = table.filter(pc.is_valid(table["labels"]))
    names = label_names(file.schema_arrow)
    flat = table["labels"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    labels = flat.astype(np.float64).reshape(table.num_rows, len(names))
    _, first, patient = np.unique(
        table["subject_id"].to_numpy(), return_index=True, return_inverse=True
    )
    positives = np.zeros((len(first), len(names)))
    np.add.at(positives, patient, labels)
    places = pc.index_in(table["split"], value_set=pa.array(SPLIT_NAMES)).to_numpy()
    pairs = np.bincount(patient, minlength=len(first)).astype(np.float64)
    return PatientCounts(places[first].astype(np.intp), pairs, positives, names)


def _standardised(split: NDArray[np.intp], residuals: Floats) -> Floats:
    """|sum of a split's residuals| over its deviation by chance: (splits, labels)."""
    indicator = (split == np.arange(len(SPLIT_NAMES))[:, None]).astype(np.float64)
    return np.asarray(np.abs(indicator @ residuals) / _deviation(split, residuals))


def _deviation(split: NDArray[np.intp], residuals: Floats) -> Floats:
    """Deviation of a sum over as many patients as a split has, drawn without replacement."""
    count = len(residuals)
    size = np.bincount(split, minlength=len(SPLIT_NAMES))[:, None]
    variance = size * (count - size) / (count * (count - 1)) * (residuals**2).sum(axis=0)
    return np.asarray(np.sqrt(np.where(variance > 0, variance, np.inf)))


def _largest_by_chance(split: NDArray[np.intp], residuals: Floats, deals: int) -> Floats:
    """The largest standardised difference of each deal (deals,)."""
    rng = np.random.default_rng(0)
    deviation = _deviation(split, residuals)
    values = residuals.astype(np.float32)
    largest = []
    for start in range(0, deals, DEALS_AT_ONCE):
        rows = min(DEALS_AT_ONCE, deals - start)
        dealt = rng.permuted(np.tile(split.astype(np.int8), (rows, 1)), axis=1)
        differences = np.stack(
            [(dealt == place).astype(np.float32) @ values for place in range(len(SPLIT_NAMES))],
            axis=1,
        )
        largest.append((np.abs(differences) / deviation).max(axis=(1, 2)))
    return np.concatenate(largest).astype(np.float64)


def _untested(splits: NDArray[np.bool_], labels: NDArray[np.bool_]) -> str:
    few = [name for name, enough in zip(SPLIT_NAMES, splits, strict=True) if not enough]
    parts = [f"fewer than {FEWEST_PATIENTS} patients in {' and '.join(few)}"] if few else []
    if not labels.all():
        parts.append(
            f"{int((~labels).sum())} labels in fewer than {FEWEST_POSITIVE} patients not tested"
        )
    return "; ".join(parts)


def _shown(
    beyond: NDArray[np.bool_],
    split: NDArray[np.intp],
    positives: Floats,
    pairs: Floats,
    names: NDArray[np.str_],
) -> str:
    """The first few differences in words."""
    parts = []
    for place, label in np.argwhere(beyond)[:SHOWN]:
        mine = split == place
        here = positives[mine, label].sum() / pairs[mine].sum()
        everywhere = positives[:, label].sum() / pairs.sum()
        parts.append(f"{names[label]}: {here:.1%} in {SPLIT_NAMES[place]}, {everywhere:.1%} in all")
    return "; ".join([*parts, "…"] if beyond.sum() > SHOWN else parts)
