"""The audit against the events: what a history holds must have been known by its discharge."""

import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from audited import Rows, read_rows, write_cohort
from hospital import Stage, Tables, write_tables

from ckd_ehr.contracts.records import EVENTS
from ckd_ehr.data.audit.cohort import cohort_findings

DAY = datetime.timedelta(days=1)
NOT_KNOWN = "events after prediction_time"


def built(tables: Tables, folder: Path, make_events: Stage, make_cohort: Stage) -> tuple[Path, ...]:
    events = make_events(write_tables(tables, folder / "tables"))
    return events, make_cohort(events)


def counts(cohort: Path, events: Path) -> dict[str, int]:
    return {finding.check: finding.rows for finding in cohort_findings(cohort, events)}


def rewrite_events(events: Path, rows: Rows) -> None:
    [file] = (events / "data").rglob("*.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema=EVENTS), file)


def event_rows(events: Path) -> Rows:
    rows: Rows = pq.read_table(events / "data").select(EVENTS.names).to_pylist()
    return rows


def test_a_cohort_made_from_its_events_passes(
    tables: Tables, tmp_path: Path, make_events: Stage, make_cohort: Stage
) -> None:
    events, cohort = built(tables, tmp_path, make_events, make_cohort)
    assert counts(cohort, events) == {}


def test_a_code_recorded_after_discharge_is_found_in_a_history(
    tables: Tables, tmp_path: Path, make_events: Stage, make_cohort: Stage
) -> None:
    events, cohort = built(tables, tmp_path, make_events, make_cohort)
    rows = event_rows(events)
    moved = [row for row in rows if row["code"] == "MEDICATION//NAME//furosemide"][:3]
    for row in moved:
        row["time"] += 30 * DAY  # type: ignore[operator]
    rewrite_events(events, rows)
    used = {visit for pair in read_rows(cohort)[1] for visit in pair["history"]}  # type: ignore[attr-defined]
    expected = sum(row["visit_id"] in used for row in moved)
    assert expected
    assert counts(cohort, events) == {NOT_KNOWN: expected}


def test_a_code_of_no_event_is_found_in_a_history(
    tables: Tables, tmp_path: Path, make_events: Stage, make_cohort: Stage
) -> None:
    events, cohort = built(tables, tmp_path, make_events, make_cohort)
    visits, pairs, names = read_rows(cohort)
    [first, *_] = [visit for visit in visits if visit["visit_id"] in pairs[0]["history"]]  # type: ignore[operator]
    first["medications"] = [{"system": "NAME", "code": "warfarin", "title": None}]
    write_cohort(cohort, visits, pairs, names)
    assert counts(cohort, events) == {NOT_KNOWN: 1}


def test_a_discharge_put_off_to_let_later_codes_in_is_found(
    tables: Tables, tmp_path: Path, make_events: Stage, make_cohort: Stage
) -> None:
    events, cohort = built(tables, tmp_path, make_events, make_cohort)
    visits, pairs, names = read_rows(cohort)
    pair = next(pair for pair in pairs if len(pair["history"]) == 1)  # type: ignore[arg-type]
    [visit] = [visit for visit in visits if [visit["visit_id"]] == pair["history"]]
    for row, column in ((visit, "discharge_time"), (pair, "prediction_time")):
        row[column] += 3 * DAY  # type: ignore[operator]
    write_cohort(cohort, visits, pairs, names)
    assert counts(cohort, events) == {"discharges as recorded": 1}


def test_a_code_without_a_time_holds_for_its_stay(
    tables: Tables, tmp_path: Path, make_events: Stage, make_cohort: Stage
) -> None:
    events, cohort = built(tables, tmp_path, make_events, make_cohort)
    rows = event_rows(events)
    for row in rows:
        if str(row["code"]).startswith("MEDICATION//"):
            row["time"] = None
    rewrite_events(events, rows)
    assert counts(cohort, events) == {}
