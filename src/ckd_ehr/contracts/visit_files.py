"""Files of many patients, read a few at a time: Parquet with a visit a row, or `visits.jsonl`.

In: a file's path. Out: one history after the other. Ignores: what is predicted. Parquet has the
columns of a line's visits (docs/visits.schema.json) and `subject_id`; the visits of a patient stand
together, oldest first.
"""

import difflib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.inputs import SCHEMA_HINT, PatientInput, VisitInput, explain_all
from ckd_ehr.contracts.records import VISITS, Visit

ROWS_AT_ONCE = 1024
SUBJECT = "subject_id"
PARQUET = ".parquet"
CODED = ("diagnoses", "medications", "procedures")


def iter_histories(path: Path) -> Iterator[tuple[Visit, ...]]:
    """Each patient's history, oldest visit first.

    Raises:
        CkdEhrError: the file is absent or of another form, or a patient breaks the schema; with the
            row or line.
    """
    seen: set[int] = set()
    for place, patient in _patients(path):
        if patient.subject_id in seen:
            raise CkdEhrError(
                f"{place}: {SUBJECT}: this patient stands further up, too; put all visits of a "
                "patient together, oldest first"
            )
        seen.add(patient.subject_id)
        yield patient.history()
    if not seen:
        raise CkdEhrError(f"{path}: no patient in this file ({SCHEMA_HINT})")


def _patients(path: Path) -> Iterator[tuple[str, PatientInput]]:
    """Where each patient stands, and what stands there."""
    if not path.is_file():
        raise CkdEhrError(f"{path}: no such file")
    raw = _from_parquet(path) if path.suffix == PARQUET else _from_lines(path)
    for place, content in raw:
        try:
            if isinstance(content, bytes):
                yield place, PatientInput.model_validate_json(content)
            else:  # the columns' types have been checked; a list stands for a tuple
                yield place, PatientInput.model_validate(content, strict=False)
        except ValidationError as error:
            problem = explain_all(error)[0]
            raise CkdEhrError(f"{place}: {problem}\n{SCHEMA_HINT}") from None


def _from_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path}:{number}", line


def _from_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = enumerate(_rows(path))
    for subject, group in groupby(rows, key=lambda row: row[1][SUBJECT]):
        numbered = list(group)
        visits = [{k: v for k, v in row.items() if k != SUBJECT} for _, row in numbered]
        yield f"{path}: row {numbered[0][0]}", {SUBJECT: subject, "visits": visits}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            schema = _checked(path, file.schema_arrow)
            for batch in file.iter_batches(ROWS_AT_ONCE):
                for row in pa.Table.from_batches([batch]).cast(schema).to_pylist():
                    yield row | {name: row[name] or [] for name in CODED if name in row}
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise CkdEhrError(
            f"{path}: not a whole Parquet file, or a column of another type than the schema says "
            f"({type(error).__name__}); {SCHEMA_HINT}"
        ) from None


def _checked(path: Path, found: pa.Schema) -> pa.Schema:
    """The types the file's columns are to have, if it has the right columns."""
    known = [SUBJECT, *VisitInput.model_fields]
    needed = [SUBJECT, *(n for n, f in VisitInput.model_fields.items() if f.is_required())]
    if missing := [name for name in needed if name not in found.names]:
        raise CkdEhrError(
            f"{path}: column '{missing[0]}' is missing (found: {', '.join(found.names)}); add it"
        )
    if further := [name for name in found.names if name not in known]:
        near = difflib.get_close_matches(further[0], known, n=1)
        meant = f"did you mean '{near[0]}'? " if near else ""
        raise CkdEhrError(
            f"{path}: unknown column '{further[0]}'; {meant}Leave out what the schema does not "
            f"name (known: {', '.join(known)})"
        )
    return pa.schema([VISITS.field(name).with_nullable(True) for name in found.names])
