"""MEDS datasets as other ETLs write them, and what is left of them after the stage `events`."""

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ckd_ehr.contracts.files import read_json

Cell = int | float | str | datetime.datetime | None
Event = dict[str, Cell]
# Code, time, numeric value and visit of an event as the stage wrote it.
Read = tuple[str, str | None, float | None, str | None]
Types = Mapping[str, pa.DataType]
Files = Mapping[str, Sequence[Event] | pa.Table]
TYPES: Types = {
    "subject_id": pa.int64(),
    "time": pa.timestamp("us"),
    "code": pa.string(),
    "numeric_value": pa.float32(),
    "text_value": pa.large_string(),
    "hadm_id": pa.int64(),
    "visit_id": pa.int64(),
    "seq_num": pa.int64(),
    "race": pa.string(),
    "end": pa.timestamp("us"),
}


def event(subject: int, time: str | None, code: str, **more: Cell) -> Event:
    moment = None if time is None else datetime.datetime.fromisoformat(time)
    return {"subject_id": subject, "time": moment, "code": code, **more}


def stay(subject: int, month: int, **more: Cell) -> list[Event]:
    """A stay from the 1st, 10:00, to the 5th, 12:00, as MIMIC-IV-MEDS writes it."""
    first, last = f"2150-{month:02}-01T10:00", f"2150-{month:02}-05T12:00"
    return [
        event(subject, first, "HOSPITAL_ADMISSION//URGENT//CLINIC REFERRAL", **more),
        event(subject, last, "HOSPITAL_DISCHARGE//HOME", **more),
        event(subject, last, "DIAGNOSIS//ICD//10//I509", **more),
    ]


def table_of(events: Sequence[Event], types: Types | None = None) -> pa.Table:
    """Events as a table, with columns of other types where `types` says so."""
    names = list(dict.fromkeys(["subject_id", "time", "code", *(n for e in events for n in e)]))
    kinds = {**TYPES, **(types or {})}
    columns = {n: pa.array([e.get(n) for e in events], TYPES[n]).cast(kinds[n]) for n in names}
    return pa.table(columns)


def write_meds(
    folder: Path,
    events: Sequence[Event] | pa.Table | Files,
    *,
    codes: Sequence[dict[str, object]] = (),
    splits: pa.Table | None = None,
    facts: Mapping[str, object] | None = None,
) -> Path:
    """Write events, as one file or as several by name, and perhaps metadata; returns the root."""
    root = folder / f"meds{len(list(folder.iterdir()))}"
    files = events if isinstance(events, Mapping) else {"train/0": events}
    for name, rows in files.items():
        path = root / "data" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows if isinstance(rows, pa.Table) else table_of(rows), path)
    metadata = root / "metadata"
    metadata.mkdir()
    if codes:
        pq.write_table(pa.Table.from_pylist(list(codes)), metadata / "codes.parquet")
    if splits is not None:
        pq.write_table(splits, metadata / "subject_splits.parquet")
    if facts is not None:
        (metadata / "dataset.json").write_text(json.dumps(facts))
    return root


def read_events(dataset: Path) -> pa.Table:
    return pq.read_table(sorted((dataset / "data").iterdir()))


def events_of(dataset: Path, subject: int = 1) -> list[Read]:
    return [
        (row["code"], row["time"] and str(row["time"]), row["numeric_value"], row["visit_id"])
        for row in read_events(dataset).to_pylist()
        if row["subject_id"] == subject
    ]


def of_kind(dataset: Path, kind: str, subject: int = 1) -> list[Read]:
    return [read for read in events_of(dataset, subject) if read[0].startswith(kind)]


def titles_of(dataset: Path) -> dict[str, str]:
    rows = pq.read_table(dataset / "metadata" / "codes.parquet").to_pylist()
    return {row["code"]: row["description"] for row in rows if row["description"]}


def left_out(dataset: Path) -> dict[str, int]:
    """Events left out by reason; every event is either used or left out."""
    rows = read_json(dataset / "rows.json")["data"]
    assert isinstance(rows, dict)
    assert rows["read"] == rows["used"] + sum(rows["left_out"].values())
    return dict(rows["left_out"])
