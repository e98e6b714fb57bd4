"""What was fitted on which pairs: `fitted.json` of a stage, for the audit.

Whatever a stage fits (weights, calibration, thresholds) it records under a name, with the pairs it
was given. The digest is over those pairs' ids, so that a record cannot claim other pairs than it
had. Ignores: which pairs are allowed; the audit says that.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import write_json
from ckd_ehr.contracts.records import Split

FITTED = "fitted.json"


class FittedOn(BaseModel):
    """One fitted thing: `folds` of train if only some, `pairs` the number of pairs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    splits: tuple[Split, ...]
    folds: tuple[int, ...] | None
    pairs: int
    digest: str


def fitted_on(
    name: str, pair_ids: Iterable[str], *, split: Split, folds: Iterable[int] | None = None
) -> FittedOn:
    """The record of a thing fitted on these pairs.

    >>> fitted_on("platt", ["b", "a"], split="tuning").pairs
    2
    """
    ids = list(pair_ids)
    return FittedOn(
        name=name,
        splits=(split,),
        folds=None if folds is None else tuple(folds),
        pairs=len(ids),
        digest=digest_of(ids),
    )


def digest_of(pair_ids: Iterable[str]) -> str:
    """SHA-256 over pair ids, whatever their order.

    >>> digest_of(["b", "a"]) == digest_of(["a", "b"])
    True
    """
    return hashlib.sha256("\n".join(sorted(pair_ids)).encode()).hexdigest()


def write_fitted(path: Path, records: Sequence[FittedOn]) -> None:
    """Write a stage's records."""
    write_json(path, [record.model_dump(mode="json") for record in records])


def read_fitted(path: Path) -> list[FittedOn]:
    """Read a stage's records.

    Raises:
        CkdEhrError: the file is missing or no list of records.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [FittedOn.model_validate(row) for row in rows]
    except FileNotFoundError:
        raise CkdEhrError(f"{path}: missing; delete this stage's folder and run again") from None
    except (UnicodeDecodeError, ValueError, TypeError, ValidationError):
        raise CkdEhrError(
            f"{path}: not a list of what was fitted; delete this stage's folder and run again"
        ) from None
