"""What MIMIC-IV tables may have wrong with them: refused with a remedy, or counted row by row."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from hospital import Stage, Tables, hospital_tables, write_csv, write_tables
from hospital_mimic4 import mimic4_tables, read_events, renamed, rows_of, write_release

from ckd_ehr.contracts.config import DataConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.data.sources import mimic4

# Extract tables in the layout of a release, and return the dataset's folder.
Extract = Callable[..., Path]


@pytest.fixture
def extract(tmp_path: Path, make_events: Stage) -> Extract:
    def run(tables: Tables, **settings: object) -> Path:
        root = tmp_path / f"release{len(list(tmp_path.iterdir()))}"
        return make_events(write_release(tables, root), source="mimic4", **settings)

    return run


def test_no_row_disappears_uncounted(extract: Extract) -> None:
    tables = mimic4_tables()
    bill, given, stay = (
        tables[name][0] for name in ("diagnoses_icd", "prescriptions", "admissions")
    )
    tables["diagnoses_icd"] += [
        bill | {"icd_version": "11"},
        bill | {"icd_version": ""},
        bill | {"icd_version": "ICD9"},
        bill | {"icd_code": ""},
        bill | {"icd_code": " . "},
        bill | {"subject_id": ""},
        bill | {"hadm_id": "777"},
        dict(bill),
    ]
    tables["procedures_icd"].append(tables["procedures_icd"][0] | {"icd_version": "8"})
    tables["prescriptions"] += [
        given | {"drug_type": "ADDITIVE"},
        given | {"drug_type": ""},
        given | {"drug": ""},
        given | {"hadm_id": ""},
        given | {"hadm_id": "777"},
        dict(given),
    ]
    tables["admissions"] += [
        stay | {"hadm_id": "8001", "dischtime": ""},
        stay | {"hadm_id": ""},
        dict(stay),
    ]
    tables["patients"] += [tables["patients"][0] | {"subject_id": ""}, tables["patients"][0]]
    tables["d_icd_diagnoses"].append(tables["d_icd_diagnoses"][0] | {"icd_version": "0"})
    tables["d_icd_procedures"].append(tables["d_icd_procedures"][0] | {"long_title": ""})
    version, no_code = "of an icd_version other than 9 and 10", "without patient, stay or code"
    no_stay = "without a stay in admissions"
    assert rows_of(extract(tables)) == {
        "admissions.csv": {
            "read": 83, "used": 81, "left_out": {"without patient, stay or time": 2},
        },
        "patients.csv": {"read": 42, "used": 41, "left_out": {"without patient": 1}},
        "diagnoses_icd.csv": {
            "read": 88, "used": 81, "left_out": {version: 3, no_code: 3, no_stay: 1},
        },
        "d_icd_diagnoses.csv": {"read": 3, "used": 2, "left_out": {version: 1}},
        "procedures_icd.csv": {"read": 81, "used": 80, "left_out": {version: 1}},
        "d_icd_procedures.csv": {"read": 2, "used": 1, "left_out": {"without code or title": 1}},
        "prescriptions.csv": {
            "read": 86, "used": 81,
            "left_out": {
                "of no MAIN drug": 2, "without patient, stay or drug": 2, no_stay: 1,
            },
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("table", "column", "value", "message"),
    [
        ("admissions", "admittime", "1.2.50", "'9.9.99' are no time"),
        ("patients", "dod", "unknown", "'aaaaaaa' are no time"),
        ("patients", "anchor_age", "> 89", "'> 99' are no whole number; write the age"),
        ("patients", "anchor_year", "2011 - 2013", "'9999 - 9999' are no whole number; write the"),
        ("admissions", "hospital_expire_flag", "Y", "'a' are no whole number; write 0 or 1"),
        ("prescriptions", "starttime", "soon", "'aaaa' are no time"),
        ("diagnoses_icd", "subject_id", "P01", "'a99' are no whole number; MEDS needs 64-bit"),
        ("prescriptions", "hadm_id", "H-1", "'a-9' are no whole number; MEDS needs 64-bit"),
    ],
)
def test_values_that_do_not_parse_are_refused_by_their_shape(
    extract: Extract, table: str, column: str, value: str, message: str
) -> None:
    tables = mimic4_tables()
    tables[table][0] |= {column: value}
    with pytest.raises(CkdEhrError) as error:
        extract(tables)
    expected = f"{table}.csv: column '{column}': 1 values of the form {message}"
    assert str(error.value).startswith(expected)


def test_a_time_that_is_none_is_refused_beside_a_readable_one_of_the_same_drug(
    extract: Extract,
) -> None:
    tables = mimic4_tables()
    tables["prescriptions"].append(
        tables["prescriptions"][0] | {"starttime": "2050-13-45 00:00:00"}
    )
    with pytest.raises(CkdEhrError, match=r"form '9999-99-99 99:99:99' are no time"):
        extract(tables)


def test_mixed_time_zones_are_refused_until_the_hospital_s_is_named(extract: Extract) -> None:
    tables = mimic4_tables()
    given = tables["prescriptions"][0]
    tables["prescriptions"].append(given | {"starttime": "2050-01-01 23:00:00-05:00"})
    with pytest.raises(CkdEhrError, match=r"prescriptions.csv: column 'starttime': times are of"):
        extract(tables)
    dataset = extract(tables, timezone="Europe/Berlin")
    events = read_events(dataset).to_pylist()
    drugs = [e for e in events if e["visit_id"] == "9011" and e["code"].startswith("MEDICATION")]
    assert [str(drug["time"]) for drug in drugs] == ["2050-01-02 05:00:00"]


@pytest.mark.parametrize("table", ["diagnoses_icd", "procedures_icd"])
def test_a_table_of_other_versions_only_is_refused(extract: Extract, table: str) -> None:
    tables = mimic4_tables()
    for row in tables[table]:
        row["icd_version"] = "ICD-10"
    with pytest.raises(CkdEhrError, match=rf"{table}\.csv: column 'icd_version': none of its 80"):
        extract(tables)


@pytest.mark.parametrize("hadm_id", ["777", ""])
@pytest.mark.parametrize("table", ["diagnoses_icd", "procedures_icd", "prescriptions"])
def test_a_table_without_a_row_of_any_stay_is_refused(
    extract: Extract, table: str, hadm_id: str
) -> None:
    tables = mimic4_tables()
    for row in tables[table]:
        row["hadm_id"] = hadm_id
    with pytest.raises(CkdEhrError, match=rf"^{table}\.csv: none of its 80 rows belongs to one"):
        extract(tables)


@pytest.mark.parametrize("table", ["admissions", "diagnoses_icd", "prescriptions"])
def test_a_stay_under_two_patients_is_refused(extract: Extract, table: str) -> None:
    tables = mimic4_tables()
    tables[table].append(tables[table][0] | {"subject_id": "2"})
    with pytest.raises(CkdEhrError, match=rf"^{table}\.csv: 1 stays \(column 'hadm_id'\)") as error:
        extract(tables)
    assert "9011" not in str(error.value)


@pytest.mark.parametrize(
    ("table", "column"),
    [("patients", "anchor_year"), ("diagnoses_icd", "icd_version"), ("prescriptions", "starttime")],
)
def test_a_missing_column_is_refused_before_any_work(
    tmp_path: Path, table: str, column: str
) -> None:
    tables = mimic4_tables()
    tables[table] = renamed(tables[table], column, "other")
    root = write_release(tables, tmp_path / "release")
    message = (
        rf"^{table}\.csv: column '{column}' is missing .*data\.columns\.{table}\.{column}=NAME"
    )
    with pytest.raises(CkdEhrError, match=message):
        mimic4.digests(DataConfig(source="mimic4", root=root))


def test_a_missing_table_is_refused_before_any_work(tmp_path: Path) -> None:
    tables = mimic4_tables()
    del tables["prescriptions"]
    root = write_release(tables, tmp_path / "release")
    with pytest.raises(CkdEhrError, match=r"hosp: table prescriptions is missing"):
        mimic4.digests(DataConfig(source="mimic4", root=root))


def break_gzip(path: Path) -> None:
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes())[:-20])
    path.unlink()


def break_text(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"Furosemide", b"Furos\xe9mide"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (break_gzip, r"prescriptions\.csv\.gz: the gzip file is cut off"),
        (break_text, r"prescriptions\.csv: not UTF-8 \(byte 0xe9\)"),
        (lambda path: path.write_text(""), r"prescriptions\.csv: the file is empty"),
    ],
)
def test_spoilt_files_are_refused(
    tmp_path: Path, make_events: Stage, spoil: Callable[[Path], object], message: str
) -> None:
    root = write_release(mimic4_tables(), tmp_path / "release")
    spoil(root / "hosp" / "prescriptions.csv")
    with pytest.raises(CkdEhrError, match=message):
        make_events(root, source="mimic4")


def test_admissions_without_rows_are_refused(tmp_path: Path, make_events: Stage) -> None:
    tables = mimic4_tables()
    root = write_release(tables, tmp_path / "release")
    write_csv([], root / "hosp" / "admissions.csv", header=list(tables["admissions"][0]))
    with pytest.raises(CkdEhrError, match=r"^admissions\.csv: no rows with a patient"):
        make_events(root, source="mimic4")


@pytest.mark.parametrize("table", ["patients", "diagnoses_icd", "prescriptions"])
def test_another_table_without_rows_is_said(
    tmp_path: Path, make_events: Stage, said: list[str], table: str
) -> None:
    tables = mimic4_tables()
    root = write_release(tables, tmp_path / "release")
    write_csv([], root / "hosp" / f"{table}.csv", header=list(tables[table][0]))
    dataset = make_events(root, source="mimic4")
    assert f"{table}.csv: has no rows" in said
    assert rows_of(dataset)[f"{table}.csv"] == {"read": 0, "used": 0, "left_out": {}}


def test_another_database_is_refused_with_the_source_that_reads_it(tmp_path: Path) -> None:
    old = write_tables(hospital_tables(), tmp_path / "mimic3")
    omop = tmp_path / "omop"
    omop.mkdir()
    (omop / "visit_occurrence.csv").write_text("visit_occurrence_id,person_id\n")
    meds = tmp_path / "meds"
    (meds / "metadata").mkdir(parents=True)
    (meds / "metadata" / "dataset.json").write_text("{}")
    for root, source in ((old, "mimic3"), (omop, "omop"), (meds, "meds")):
        with pytest.raises(CkdEhrError, match=rf"with data\.source={source}$"):
            mimic4.digests(DataConfig(source="mimic4", root=root))


def test_without_data_root_the_error_names_it() -> None:
    with pytest.raises(
        CkdEhrError, match=r"data\.root is not set; give the folder of the MIMIC-IV"
    ):
        mimic4.tables(DataConfig(source="mimic4"))
