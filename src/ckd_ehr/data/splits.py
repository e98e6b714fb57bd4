"""Patients into train, tuning and held_out, and into folds.

In: a row per patient and the settings. Out: split, fold and sample key per patient, in Ibis. By
hash (the default) a patient's split never changes when others come or go; `temporal` holds out
those first admitted last; or a file says. Salts differ for split and fold, so that the two are
independent. Ignores: diseases.
"""

import math
from pathlib import Path

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from ckd_ehr.contracts.config import SplitsConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import sha256_of

SPLIT_NAMES = ("train", "tuning", "held_out")
HASH_DIGITS = 8


def hash_key(subject_id: ir.IntegerValue, *, seed: int, salt: str) -> ir.StringValue:
    """A patient's place: the first 8 hex digits of SHA-256(`seed:salt:subject_id`)."""
    text = ibis.literal(f"{seed}:{salt}:") + subject_id.cast("string")
    return text.hexdigest("sha256").left(HASH_DIGITS)


def hash_edge(share: float) -> str:
    """The first hash key at or above a share of all: keys are compared as text.

    >>> hash_edge(0.5), hash_edge(0.7)
    ('80000000', 'b3333334')
    """
    top = 16**HASH_DIGITS
    return f"{min(math.ceil(share * top), top - 1):0{HASH_DIGITS}x}"


def assign_splits(
    patients: ir.Table, splits: SplitsConfig, listed: ir.Table | None = None
) -> ir.Table:
    """A row per patient: subject_id, split, fold, and `sample_key`, the order of sampling.

    Args:
        patients: subject_id and first_admit_time, a row each.
        splits: the settings.
        listed: subject_id and split, for the methods `file` and `source`; patients not in it
            have a null split.

    Every patient has a fold, whatever the split; pairs outside train are given fold -1 later.
    """
    if listed is not None:
        divided = patients.left_join(listed, "subject_id").select("subject_id", "split")
    elif splits.method == "temporal":
        divided = _by_first_admission(patients, splits)
    else:
        divided = patients.select("subject_id", split=_by_hash(patients.subject_id, splits))
    fold_key = hash_key(divided.subject_id, seed=splits.seed, salt="fold")
    folds = [(fold_key < hash_edge((k + 1) / splits.folds), k) for k in range(splits.folds - 1)]
    return divided.mutate(
        fold=ibis.cases(*folds, else_=splits.folds - 1).cast("int8"),
        sample_key=hash_key(divided.subject_id, seed=splits.seed, salt="sample"),
    )


def _by_hash(subject_id: ir.IntegerColumn, splits: SplitsConfig) -> ir.StringValue:
    key = hash_key(subject_id, seed=splits.seed, salt="split")
    return ibis.cases(
        (key < hash_edge(1 - splits.tuning - splits.held_out), "train"),
        (key < hash_edge(1 - splits.held_out), "tuning"),
        else_="held_out",
    )


def _by_first_admission(patients: ir.Table, splits: SplitsConfig) -> ir.Table:
    """The earliest share into train, then tuning, then held_out; a tie is broken by hash."""
    key = hash_key(patients.subject_id, seed=splits.seed, salt="split")
    keyed = patients.mutate(tie=key)
    order = ibis.window(order_by=["first_admit_time", "tie"])
    ranked = keyed.mutate(
        rank=ibis.row_number().over(order).cast("float64"),
        patients=keyed.count().over(ibis.window()).cast("float64"),
    )
    share = ranked.rank / ranked.patients
    split = ibis.cases(
        (share < 1 - splits.tuning - splits.held_out, "train"),
        (share < 1 - splits.held_out, "tuning"),
        else_="held_out",
    )
    return ranked.select("subject_id", split=split)


def splits_digest(splits: SplitsConfig) -> dict[str, str]:
    """SHA-256 of the file of splits, if there is one; an absent one is an error."""
    if splits.file is None:
        return {}
    if not splits.file.is_file():
        raise CkdEhrError(f"splits.file: {splits.file}: no such file")
    return {"splits.file": sha256_of(splits.file)}


def read_splits(path: Path) -> pa.Table:
    """subject_id and split from a CSV or Parquet file, as MEDS' `subject_splits.parquet`.

    Raises:
        CkdEhrError: names the file and what is wrong with it.
    """
    try:
        is_parquet = path.suffix.casefold() == ".parquet"
        table = pq.read_table(path) if is_parquet else pa_csv.read_csv(path)
    except FileNotFoundError:
        raise CkdEhrError(f"splits.file: {path}: no such file") from None
    except (pa.ArrowInvalid, OSError):
        raise CkdEhrError(f"splits.file: {path}: neither a CSV nor a whole Parquet file") from None
    missing = [name for name in ("subject_id", "split") if name not in table.column_names]
    if missing:
        raise CkdEhrError(
            f"splits.file: {path.name}: column '{missing[0]}' is missing (found: "
            f"{', '.join(table.column_names)}); it needs subject_id and split"
        )
    try:
        listed = table.select(["subject_id", "split"]).cast(
            pa.schema([("subject_id", pa.int64()), ("split", pa.string())])
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise CkdEhrError(f"splits.file: {path.name}: subject_id must be whole numbers") from None
    return _checked(listed, path)


def _checked(listed: pa.Table, path: Path) -> pa.Table:
    strange = sorted(set(listed["split"].to_pylist()) - set(SPLIT_NAMES), key=str)
    if strange:
        raise CkdEhrError(
            f"splits.file: {path.name}: {len(strange)} values of column 'split' are none of "
            f"{', '.join(SPLIT_NAMES)}; rename them (validation is tuning, test is held_out)"
        )
    doubled = listed.num_rows - len(listed["subject_id"].unique())
    if doubled:
        raise CkdEhrError(
            f"splits.file: {path.name}: {doubled} patients stand in it more than once; a patient "
            "has one split"
        )
    return listed
