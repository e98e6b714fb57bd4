"""Cohorts to plant leaks in: two patients with their narratives, or a simulated hospital."""

import datetime
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ckd_ehr.contracts.config import build_config
from ckd_ehr.contracts.files import write_table
from ckd_ehr.contracts.records import (
    EFFICACY,
    GUIDELINES,
    NARRATIVES,
    PAIRS,
    TITLES,
    VISITS,
    label_names,
    with_label_names,
)
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.data.cohort import write_cohort as run_cohort
from ckd_ehr.data.events import write_events
from small_hospital import FREQUENT

Rows = list[dict[str, object]]
DAY = datetime.timedelta(days=1)
START = datetime.datetime(2100, 1, 1)
HEART = {"system": "ICD9CM", "code": "4280", "title": "Congestive heart failure"}
KNOWN = {"efficacy": EFFICACY, "guidelines": GUIDELINES, "titles": TITLES}
SEPSIS = {"system": "ICD9CM", "code": "0389", "title": "Unspecified septicemia"}


def visits() -> Rows:
    """Patient 1 has visits 10001, 10002 and 10003; patient 2 has 20001 and 20002."""
    ids = [(1, "10001"), (1, "10002"), (1, "10003"), (2, "20001"), (2, "20002")]
    return [
        {
            "visit_id": visit_id,
            "subject_id": subject,
            "admit_time": START + int(visit_id[-1]) * 10 * DAY,
            "discharge_time": START + (int(visit_id[-1]) * 10 + 2) * DAY,
            "age_years": 60.0,
            "sex": "F",
            "ethnicity": None,
            "admission_type": None,
            "died": False,
            "diagnoses": [SEPSIS] if visit_id == "10003" else [HEART],
            "medications": [],
            "procedures": [],
        }
        for subject, visit_id in ids
    ]


def pairs() -> Rows:
    """Every visit but the last of patient 2, patient 1 in train."""

    def pair(key: str, subject: int, history: list[str], next_id: str | None) -> dict[str, object]:
        return {
            "pair_id": key,
            "subject_id": subject,
            "history": history,
            "prediction_time": START + (int(history[-1][-1]) * 10 + 2) * DAY,
            "next_visit_id": next_id,
            "gap_days": None if next_id is None else 8.0,
            "labels": None if next_id is None else [True],
            "split": "train" if subject == 1 else "tuning",
            "fold": 0 if subject == 1 else -1,
        }

    return [
        pair("p1", 1, ["10001"], "10002"),
        pair("p2", 1, ["10001", "10002"], "10003"),
        pair("p3", 1, ["10001", "10002", "10003"], None),
        pair("p4", 2, ["20001"], "20002"),
    ]


def write_cohort(
    folder: Path, visit_rows: Rows, pair_rows: Rows, labels: tuple[str, ...] = ("Shock",)
) -> Path:
    """Write both tables as the stage `cohort` does."""
    write_table(
        pa.Table.from_pylist(visit_rows, schema=VISITS),
        folder / "visits.parquet",
        with_label_names(VISITS, labels),
    )
    write_table(
        pa.Table.from_pylist(pair_rows, schema=PAIRS),
        folder / "pairs.parquet",
        with_label_names(PAIRS, labels),
    )
    return folder


def narratives() -> Rows:
    """Of each pair and reader: `A woman. Visit 1: heart trouble; Visit 2: …`."""
    rows: Rows = []
    for pair in pairs():
        history = pair["history"]
        assert isinstance(history, list)
        text, spans = "A woman.", [span(2, 7, kind="demographics", system="GENDER", code="F")]
        for index, visit_id in enumerate(history):
            code = SEPSIS if visit_id == "10003" else HEART
            text += f" Visit {index + 1}: "
            words = "blood poisoning, expired" if code is SEPSIS else "heart trouble"
            spans.append(span(len(text), len(text) + len(words), index=index, code=code["code"]))
            text += words + "."
        for reader in ("teacher", "student"):
            rows.append(
                {
                    "pair_id": pair["pair_id"],
                    "reader": reader,
                    "text": text,
                    "spans": [dict(part) for part in spans],
                    "concepts_cut": 0,
                    "knowledge_cut": 0,
                }
            )
    return rows


def span(
    start: int,
    end: int,
    *,
    kind: str = "diagnosis",
    system: str = "ICD9CM",
    code: str,
    index: int = -1,
) -> dict[str, object]:
    """A row of a narrative's spans."""
    return {
        "start": start,
        "end": end,
        "concept_id": f"{index}/{kind}/{system}/{code}/0",
        "kind": kind,
        "system": system,
        "code": code,
        "visit_index": index,
        "from_knowledge": False,
    }


def write_narratives(folder: Path, told: Rows, known: Mapping[str, Rows] | None = None) -> Path:
    """Write one file a reader and the tables of what is known, as the stage `knowledge` does."""
    files = []
    for reader in ("teacher", "student"):
        mine = [row for row in told if row["reader"] == reader]
        files.append(folder / f"{reader}.parquet")
        write_table(pa.Table.from_pylist(mine, schema=NARRATIVES), files[-1], NARRATIVES)
    for name, rows in {"efficacy": [], "guidelines": [], "titles": [], **(known or {})}.items():
        table = pa.Table.from_pylist(rows, schema=KNOWN[name])
        write_table(table, folder / f"{name}.parquet", KNOWN[name])
    return folder


def simulated_cohort(folder: Path, *, patients: int, seed: int = 7) -> tuple[Path, Path]:
    """The stages `events` and `cohort` on a simulated hospital: both folders."""
    simulator = {"patients": patients, "seed": seed, **FREQUENT}
    settings = {"name": "audited", "data": {"source": "simulated", "simulator": simulator}}
    return run_data_stages(folder, settings)


def run_data_stages(folder: Path, settings: dict[str, object]) -> tuple[Path, Path]:
    """The stages `events` and `cohort`: both folders."""
    config = build_config(settings)
    events, cohort = folder / "events", folder / "cohort"
    for path in (events, cohort):
        path.mkdir(parents=True)
    write_events(StageContext(config, events, {}, say=lambda _: None))
    run_cohort(StageContext(config, cohort, {"events": events}, say=lambda _: None))
    return events, cohort


def read_rows(cohort: Path) -> tuple[Rows, Rows, tuple[str, ...]]:
    """The visits, the pairs and the names of the labels."""
    visit_table = pq.read_table(cohort / "visits.parquet")
    pair_table = pq.read_table(cohort / "pairs.parquet")
    return visit_table.to_pylist(), pair_table.to_pylist(), label_names(pair_table.schema)
