"""Tables of stays, whatever the source: time zones, far dates, file kinds, and no row lost."""

from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hospital import Stage, Tables, write_csv, write_tables

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json, sha256_of

Rows = dict[str, dict[str, object]]


def rows_of(events: Path) -> Rows:
    return cast(Rows, read_json(events / "rows.json"))


def stay_times(events: Path, subject: int = 1) -> list[str]:
    read = pq.read_table(events / "data" / "0000.parquet").to_pylist()
    return [
        str(row["time"])
        for row in read
        if row["subject_id"] == subject and row["code"].startswith("HOSPITAL_")
    ]


def with_offsets(tables: Tables, *offsets: str) -> Tables:
    for number, row in enumerate(tables["ADMISSIONS"]):
        for column in ("ADMITTIME", "DISCHTIME"):
            row[column] += offsets[number % len(offsets)]
    return tables


def test_one_offset_everywhere_is_dropped_and_the_wall_time_stays(
    tables: Tables, tmp_path: Path, make_events: Stage
) -> None:
    plain = stay_times(make_events(write_tables(tables, tmp_path / "plain")))
    marked = make_events(write_tables(with_offsets(tables, "+02:00"), tmp_path / "marked"))
    assert stay_times(marked) == plain == [
        "2050-01-01 10:00:00", "2050-01-05 12:00:00", "2050-03-01 10:00:00", "2050-03-05 12:00:00",
    ]  # fmt: skip


@pytest.mark.parametrize("offsets", [("+01:00", "+02:00"), ("Z", "")])
def test_mixed_time_zones_are_refused_with_the_setting_that_settles_them(
    tables: Tables, tmp_path: Path, make_events: Stage, offsets: tuple[str, ...]
) -> None:
    root = write_tables(with_offsets(tables, *offsets), tmp_path / "tables")
    with pytest.raises(CkdEhrError) as error:
        make_events(root)
    message = str(error.value)
    assert message.startswith("ADMISSIONS.csv: column 'admittime': times are of several time zones")
    assert message.endswith("data.timezone=Europe/Berlin")
    assert "2050" not in message


def test_the_hospitals_time_zone_moves_times_that_state_another(
    tables: Tables, tmp_path: Path, make_events: Stage
) -> None:
    root = write_tables(with_offsets(tables, "+00:00", ""), tmp_path / "tables")
    moved = make_events(root, timezone="America/New_York")
    assert stay_times(moved) == [
        "2050-01-01 05:00:00", "2050-01-05 07:00:00", "2050-03-01 10:00:00", "2050-03-05 12:00:00",
    ]  # fmt: skip


def test_the_word_utc_is_an_offset(tables: Tables, tmp_path: Path, make_events: Stage) -> None:
    root = write_tables(with_offsets(tables, " UTC", "Z"), tmp_path / "tables")
    assert stay_times(make_events(root))[0] == "2050-01-01 10:00:00"
    moved = make_events(root, timezone="America/New_York")
    assert stay_times(moved)[0] == "2050-01-01 05:00:00"


@pytest.mark.parametrize("timezone", [None, "America/New_York"])
def test_dates_written_as_midnights_with_an_offset_stay_those_dates(
    tables: Tables, tmp_path: Path, make_events: Stage, timezone: str | None
) -> None:
    for row in tables["PRESCRIPTIONS"]:
        row["STARTDATE"] += "+00:00"
    for number, row in enumerate(tables["PATIENTS"]):  # winter and summer
        row["DOB"] += ("+01", "+02")[number % 2]
    events = make_events(write_tables(tables, tmp_path / "tables"), timezone=timezone)
    rows = pq.read_table(events / "data" / "0000.parquet").to_pylist()
    assert {str(row["time"]) for row in rows if row["code"].startswith("MEDICATION")} == {
        "2050-01-02 00:00:00", "2050-03-02 00:00:00",
    }  # fmt: skip
    assert {str(row["time"]) for row in rows if row["code"] == "MEDS_BIRTH"} == {
        "2000-01-01 00:00:00"
    }


def test_a_midnight_among_other_times_is_moved_and_hours_are_not_lost_by_folding(
    tables: Tables, tmp_path: Path, make_events: Stage
) -> None:
    given = tables["PRESCRIPTIONS"][0] | {"STARTDATE": "2050-01-02 00:00:00+00:00"}
    tables["PRESCRIPTIONS"] = [given, given | {"STARTDATE": "2050-01-02 08:00:00+00:00"}]
    root = write_tables(tables, tmp_path / "tables")
    events = make_events(root, timezone="America/New_York")
    rows = pq.read_table(events / "data" / "0000.parquet").to_pylist()
    drugs = [str(row["time"]) for row in rows if row["code"].startswith("MEDICATION")]
    assert drugs == ["2050-01-01 19:00:00"]


def test_a_time_moved_out_of_the_year_9999_is_refused(
    tables: Tables, tmp_path: Path, make_events: Stage
) -> None:
    tables["ADMISSIONS"][1]["DISCHTIME"] = "9999-12-31 23:30:00Z"
    root = write_tables(tables, tmp_path / "tables")
    with pytest.raises(CkdEhrError, match=r"column 'dischtime': 1 values .* are no time"):
        make_events(root, timezone="Europe/Berlin")


def test_two_tables_of_two_time_zones_are_refused(
    tables: Tables, tmp_path: Path, make_events: Stage
) -> None:
    for row in tables["PRESCRIPTIONS"]:
        row["STARTDATE"] = row["STARTDATE"].replace("00:00:00", "08:00:00Z")
    with pytest.raises(CkdEhrError, match=r"PRESCRIPTIONS\.csv: column 'startdate': .*ADMISSIONS"):
        make_events(write_tables(tables, tmp_path / "tables"))


def test_an_unknown_time_zone_is_refused(make_events: Stage, tmp_path: Path) -> None:
    with pytest.raises(CkdEhrError, match=r"data\.timezone = 'CEST': no known time zone"):
        make_events(tmp_path, timezone="CEST")


def test_dates_far_from_today_survive(
    tables: Tables, tmp_path: Path, make_events: Stage, make_cohort: Stage
) -> None:
    for row in tables["ADMISSIONS"]:
        for column in ("ADMITTIME", "DISCHTIME"):
            row[column] = row[column].replace("2050", "2300")
    for row in tables["PRESCRIPTIONS"]:
        row["STARTDATE"] = row["STARTDATE"].replace("2050", "2300")
    tables["PATIENTS"][0]["DOB"] = "1753-01-01 00:00:00"
    tables["PATIENTS"][1]["DOB"] = "2250-01-01 00:00:00"
    events = make_events(write_tables(tables, tmp_path / "tables"))
    assert stay_times(events)[0] == "2300-01-01 10:00:00"
    cohort = make_cohort(events, labels={"only_ccs": [108, 98]})
    visits = pq.read_table(cohort / "visits.parquet").to_pylist()
    ages = {row["visit_id"]: row["age_years"] for row in visits}
    assert (ages["9011"], ages["9021"]) == (90, pytest.approx(50, abs=0.01))


def test_parquet_and_csv_of_the_same_tables_give_the_same_bytes(
    tables: Tables, tmp_path: Path, make_events: Stage
) -> None:
    from_csv = make_events(write_tables(tables, tmp_path / "csv"))
    folder = tmp_path / "parquet"
    folder.mkdir()
    for name, rows in tables.items():
        table = pa.Table.from_pylist(rows)
        if "HADM_ID" in table.column_names:  # as numbers, as an export would have them
            place = table.schema.get_field_index("HADM_ID")
            table = table.set_column(place, "HADM_ID", table["HADM_ID"].cast(pa.int64()))
        pq.write_table(table, folder / f"{name.lower()}.parquet")
    from_parquet = make_events(folder)
    assert sha256_of(from_parquet / "data" / "0000.parquet") == sha256_of(
        from_csv / "data" / "0000.parquet"
    )
    counts = {name.partition(".")[0].upper(): rows for name, rows in rows_of(from_parquet).items()}
    assert counts == {name.partition(".")[0]: rows for name, rows in rows_of(from_csv).items()}


def test_a_parquet_file_cut_off_is_named(
    tables: Tables, tmp_path: Path, make_events: Stage
) -> None:
    root = write_tables(tables, tmp_path / "tables")
    (root / "PATIENTS.csv").unlink()
    pq.write_table(pa.Table.from_pylist(tables["PATIENTS"]), root / "PATIENTS.parquet")
    whole = (root / "PATIENTS.parquet").read_bytes()
    (root / "PATIENTS.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CkdEhrError, match=r"PATIENTS\.parquet: not a whole Parquet file"):
        make_events(root)


def test_overlapping_stays_are_both_kept(
    tables: Tables, tmp_path: Path, make_events: Stage, make_cohort: Stage
) -> None:
    tables["ADMISSIONS"][1] |= {"ADMITTIME": "2050-01-02 00:00:00"}
    tables["PRESCRIPTIONS"][1] |= {"STARTDATE": "2050-01-03 00:00:00"}
    events = make_events(write_tables(tables, tmp_path / "tables"))
    cohort = make_cohort(events, labels={"only_ccs": [108, 98]})
    assert pq.read_metadata(cohort / "visits.parquet").num_rows == 80
    # Neither is the next visit of the other: one patient of 40 has none.
    counts = cast(dict[str, int], read_json(cohort / "flow.json")["counts"])
    assert (counts["visits_kept"], counts["pairs_with_next_visit"]) == (80, 39)


@pytest.mark.parametrize(
    ("folder", "source"), [("mimic3-demo-1.4", "mimic3"), ("uci-diabetes130", "uci_diabetes")]
)
def test_every_row_of_the_real_sets_is_read_and_accounted_for(
    real_data: Path, make_events: Stage, folder: str, source: str
) -> None:
    rows = rows_of(make_events(real_data / folder, source=source))
    for counts in rows.values():
        left_out = cast(dict[str, int], counts["left_out"])
        assert counts["read"] == cast(int, counts["used"]) + sum(left_out.values())
    read = {name.partition(".")[0]: counts["read"] for name, counts in rows.items()}
    if source == "uci_diabetes":
        assert read == {"diabetic_data": 101_766}
    else:
        assert read == {
            "ADMISSIONS": 129, "PATIENTS": 100, "DIAGNOSES_ICD": 1_761, "PROCEDURES_ICD": 506,
            "PRESCRIPTIONS": 10_398, "D_ICD_DIAGNOSES": 14_567, "D_ICD_PROCEDURES": 3_882,
        }  # fmt: skip


def test_the_full_release_s_layout_is_read_like_the_demo_s(
    tables: Tables, tmp_path: Path, make_events: Stage
) -> None:
    plain = make_events(write_tables(tables, tmp_path / "plain"))
    folder = tmp_path / "release"
    folder.mkdir()
    for name, rows in tables.items():
        numbered = [{"ROW_ID": str(n)} | row for n, row in enumerate(rows, start=1)]
        write_csv(numbered, folder / f"{name}.csv.gz")
    assert sha256_of(make_events(folder) / "data" / "0000.parquet") == sha256_of(
        plain / "data" / "0000.parquet"
    )
