"""The manifest of a finished stage: what it read, what it wrote, and whether that is still so.

In: a stage's folder. Out: its manifest, its files' records, one digest of them all. Ignores: when
a stage is run (runs.py).
"""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import sha256_of

MANIFEST = "manifest.json"
FINGERPRINT = ".fingerprint"
WORK = "work"


class FileRecord(BaseModel):
    """What a file was when its stage finished; rows only for Parquet."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    bytes: int
    rows: int | None = None


class StageManifest(BaseModel):
    """What a finished stage says of itself."""

    model_config = ConfigDict(frozen=True)

    stage: str
    version: int
    fingerprint: str
    inputs: dict[str, str]
    outputs: dict[str, FileRecord]
    packages: dict[str, str]
    seed: int
    device: str
    seconds: float
    peak_memory_bytes: int
    finished: str


def read_manifest(folder: Path) -> StageManifest | None:
    """The stage's manifest, or None where it is absent or unreadable."""
    try:
        return StageManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError):
        return None


def is_current(folder: Path, fingerprint: str) -> bool:
    """Whether the published outputs belong to this fingerprint and are intact."""
    manifest = read_manifest(folder)
    if manifest is None or manifest.fingerprint != fingerprint:
        return False
    return all(
        (folder / name).is_file()
        and (folder / name).stat().st_size == record.bytes
        and sha256_of(folder / name) == record.sha256
        for name, record in manifest.outputs.items()
    )


def manifest_digest(folder: Path, *, only: str | None = None) -> str:
    """One hash over a stage's outputs (or one of them): what later stages depend on."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise CkdEhrError(f"{folder}: this stage has not finished; run the whole pipeline")
    outputs = {
        name: record.sha256
        for name, record in manifest.outputs.items()
        if only is None or name == only
    }
    if only and not outputs:
        raise CkdEhrError(f"{folder}: holds no {only}; delete the folder and run again")
    return hashlib.sha256(json.dumps(outputs, sort_keys=True).encode()).hexdigest()


def describe_outputs(folder: Path) -> dict[str, FileRecord]:
    """Every file of a stage's folder but its scratch, by name."""
    records = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.parts[0] not in (WORK, FINGERPRINT):
            rows = _rows_of(path) if path.suffix == ".parquet" else None
            records[str(name)] = FileRecord(
                sha256=sha256_of(path), bytes=path.stat().st_size, rows=rows
            )
    return records


def _rows_of(path: Path) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except pa.ArrowInvalid as error:
        raise CkdEhrError(
            f"{path}: not a whole Parquet file ({error}); if it was copied from data.root, mend or "
            f"delete the original, then run again"
        ) from None
