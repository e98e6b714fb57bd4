"""OMOP tables in folders and DuckDB files: what is found, and errors with their remedy."""

import gzip
from pathlib import Path

import duckdb
import pytest
from hospital import Stage, Tables, write_csv
from omop_hospital import (
    KIDNEY_FAILURE,
    OmopHospital,
    omop_tables,
    write_csvs,
    write_duckdb,
    write_parquet,
)
from test_mimic3 import events_of, read_events

from ckd_ehr.contracts.config import DataConfig, build_config
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.data.sources import omop


@pytest.fixture
def tables() -> Tables:
    return omop_tables()


@pytest.fixture
def hospital(tmp_path: Path, make_events: Stage) -> OmopHospital:
    return OmopHospital(tmp_path, make_events)


def settings_of(root: Path) -> DataConfig:
    return build_config({"name": "t", "data": {"source": "omop", "root": str(root)}}).data


def test_headers_match_in_any_case_and_renamed_columns_are_mapped(
    tables: Tables, tmp_path: Path, make_events: Stage, hospital: OmopHospital
) -> None:
    expected = read_events(hospital.dataset(tables))
    root = tmp_path / "upper"
    root.mkdir()
    for name, rows in tables.items():
        upper = [{key.upper(): value for key, value in row.items()} for row in rows]
        if name == "drug_exposure":
            upper = [{("DRUG" if k == "DRUG_SOURCE_VALUE" else k): v for k, v in row.items()}
                     for row in upper]  # fmt: skip
        write_csv(upper, root / f"{name.upper()}.csv")
    with pytest.raises(CkdEhrError) as error:
        make_events(root, source="omop")
    assert str(error.value).startswith(
        "DRUG_EXPOSURE.csv: column 'drug_source_value' is missing (found: DRUG_EXPOSURE_ID, "
    )
    assert str(error.value).endswith(
        "map it with data.columns.drug_exposure.drug_source_value=NAME"
    )
    columns = {"drug_exposure": {"drug_source_value": "drug"}}
    assert read_events(make_events(root, source="omop", columns=columns)) == expected


def test_one_of_date_and_datetime_is_needed(tables: Tables, hospital: OmopHospital) -> None:
    for row in tables["visit_occurrence"]:
        del row["visit_end_date"]
    assert hospital.dataset(tables)
    for row in tables["visit_occurrence"]:
        del row["visit_end_datetime"]
    message = hospital.refusal(tables)
    assert message.startswith("visit_occurrence.csv.gz: column 'visit_end_date' is missing")


def test_the_tables_found_are_told_without_refusing_any(tables: Tables, tmp_path: Path) -> None:
    del tables["drug_exposure"]
    for row in tables["person"]:
        del row["gender_concept_id"]
    settings = settings_of(write_csvs(tables, tmp_path / "tables"))
    found = {status.name: status for status in omop.tables(settings)}
    assert found["drug_exposure"].found is None
    assert found["drug_exposure"].required
    assert found["person"].lacking == ("gender_concept_id",)
    assert not found["concept_relationship"].required
    with pytest.raises(CkdEhrError, match="column 'gender_concept_id' is missing"):
        omop.digests(settings)


def test_digests_are_of_every_file_that_is_read(tables: Tables, tmp_path: Path) -> None:
    root = write_parquet(tables, tmp_path / "tables")
    (root / "notes.csv").write_text("note\n")
    names = set(omop.digests(settings_of(root)))
    assert {"drug_exposure/part-00000.snappy.parquet", "drug_exposure/part-00001.snappy.parquet",
            "PERSON.parquet", "concept.parquet"} <= names  # fmt: skip
    assert "notes.csv" not in names
    path = write_duckdb(tables, tmp_path / "cdm.duckdb")
    assert set(omop.digests(settings_of(path))) == {"cdm.duckdb"}


@pytest.mark.parametrize("name", ["person", "condition_occurrence", "drug_exposure"])
def test_a_missing_table_is_named_in_a_folder_and_in_a_database(
    tables: Tables, tmp_path: Path, name: str
) -> None:
    rows = tables.pop(name)
    root = write_csvs(tables, tmp_path / "tables")
    write_csv(rows, root / f"{name}s.csv")
    with pytest.raises(CkdEhrError) as error:
        omop.digests(settings_of(root))
    assert f"table {name} is missing: no {name}.csv" in str(error.value)
    assert f"(nearest: {name}s.csv)" in str(error.value)
    with pytest.raises(CkdEhrError, match=rf"cdm\.duckdb \(schema main\): table {name} is missing"):
        omop.digests(settings_of(write_duckdb(tables, tmp_path / "cdm.duckdb")))


def test_bad_files_are_named_with_the_remedy(tables: Tables, tmp_path: Path) -> None:
    root = write_csvs(tables, tmp_path / "tables")
    path = root / "person.csv.gz"
    intact = path.read_bytes()
    for content, message in (
        (b"", "person.csv.gz: the gzip file is cut off|the file is empty"),
        (gzip.compress(b""), "person.csv.gz: the file is empty"),
        (gzip.compress(b"1,F,1990\n2,M,1991\n"), "the first line does not look like a header"),
        (gzip.compress("person_id,gender_concept_id\xe9\n".encode("latin-1")), "not UTF-8"),
        (gzip.compress(b"person_id,PERSON_ID,gender_concept_id,year_of_birth\n"), "stands twice"),
    ):
        path.write_bytes(content)
        with pytest.raises(CkdEhrError, match=message):
            omop.digests(settings_of(root))
    path.write_bytes(intact)
    assert omop.digests(settings_of(root))


def test_a_file_cut_off_is_said_when_it_is_read(
    tables: Tables, tmp_path: Path, make_events: Stage
) -> None:
    root = write_csvs(omop_tables(400), tmp_path / "tables")
    path = root / "drug_exposure.csv.gz"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(CkdEhrError, match=r"drug_exposure\.csv\.gz: the gzip file is cut off"):
        make_events(root, source="omop")


def test_a_table_with_a_header_alone_is_empty(
    tables: Tables, tmp_path: Path, make_events: Stage
) -> None:
    root = write_csvs(tables, tmp_path / "tables")
    for name in ("procedure_occurrence", "death"):
        write_csv([], root / f"{name}.csv.gz", header=list(tables[name][0]))
    codes = {event[0].split("//")[0] for event in events_of(make_events(root, source="omop"), 1)}
    assert codes == {"GENDER", "MEDS_BIRTH", "ETHNICITY", "HOSPITAL_ADMISSION", "DIAGNOSIS",
                     "MEDICATION", "HOSPITAL_DISCHARGE"}  # fmt: skip
    write_csv([], root / "visit_occurrence.csv.gz", header=list(tables["visit_occurrence"][0]))
    with pytest.raises(CkdEhrError, match=r"^visit_occurrence\.csv\.gz: no rows"):
        make_events(root, source="omop")


def test_part_files_must_have_the_same_columns(tables: Tables, tmp_path: Path) -> None:
    root = write_parquet(tables, tmp_path / "tables")
    part = root / "drug_exposure" / "part-00001.snappy.parquet"
    duckdb.sql("SELECT 1 AS person_id").write_parquet(str(part))
    with pytest.raises(CkdEhrError, match="drug_exposure: its files have different columns"):
        omop.digests(settings_of(root))
    for path in (root / "drug_exposure").iterdir():
        path.unlink()
    with pytest.raises(CkdEhrError, match=r"drug_exposure: the folder has no \.csv"):
        omop.digests(settings_of(root))


def test_a_table_in_two_files_is_refused(tables: Tables, tmp_path: Path) -> None:
    root = write_csvs(tables, tmp_path / "tables")
    write_csv(tables["death"], root / "DEATH.csv")
    with pytest.raises(CkdEhrError, match=r"table death stands in several files \(DEATH\.csv, dea"):
        omop.digests(settings_of(root))


def test_what_is_no_duckdb_file_is_told(tables: Tables, tmp_path: Path) -> None:
    path = tmp_path / "person.csv"
    write_csv(tables["person"], path)
    with pytest.raises(CkdEhrError, match=r"person\.csv: no DuckDB file; give a folder"):
        omop.digests(settings_of(path))
    database = write_duckdb(tables, tmp_path / "cdm.duckdb")
    database.write_bytes(database.read_bytes()[:4096])
    with pytest.raises(CkdEhrError, match=r"cdm\.duckdb: cannot be read as a DuckDB database"):
        omop.digests(settings_of(database))
    with pytest.raises(CkdEhrError, match="no such file or folder"):
        omop.digests(settings_of(tmp_path / "nowhere"))


def test_tables_in_two_schemas_ask_for_one(tables: Tables, tmp_path: Path) -> None:
    path = write_duckdb(tables, tmp_path / "cdm.duckdb", schema="first")
    write_duckdb(tables, path, schema="second")
    with pytest.raises(CkdEhrError, match=r"several schemas \(first, second\); name the schema"):
        omop.digests(settings_of(path))


def test_one_place_must_be_given(
    hospital: OmopHospital, tables: Tables, make_events: Stage
) -> None:
    asked = "source omop: give either data.root=PATH"
    assert hospital.refusal(tables, url="postgresql://jo@localhost/cdm").startswith(asked)
    with pytest.raises(CkdEhrError, match=f"^{asked}"):
        make_events(None, source="omop")


@pytest.mark.parametrize(
    ("view", "canary"),
    [
        # Its file is gone.
        ("SELECT * FROM '{folder}/death.parquet'", "death.parquet"),
        # A cell that DuckDB's own message quotes.
        ("SELECT * REPLACE (CAST('John Smith' || person_id AS BIGINT) AS person_id) FROM was",
         "Smith"),
    ],
)  # fmt: skip
def test_a_view_that_fails_is_named_and_no_cell_is_shown(
    tables: Tables, tmp_path: Path, make_events: Stage, view: str, canary: str
) -> None:
    path = write_duckdb(tables, tmp_path / "cdm.duckdb")
    gone = tmp_path / "death.parquet"
    with duckdb.connect(path) as connection:
        connection.execute(f"COPY death TO '{gone}'")
        connection.execute("ALTER TABLE death RENAME TO was")
        connection.execute(f"CREATE VIEW death AS {view.format(folder=tmp_path)}")
    gone.unlink()
    with pytest.raises(CkdEhrError) as error:
        make_events(path, source="omop")
    message = str(error.value)
    assert message.startswith("cdm.duckdb:death: the table or view cannot be read")
    assert canary not in message


def test_signs_of_patterns_in_the_path_are_taken_as_they_are(
    tables: Tables, tmp_path: Path, make_events: Stage
) -> None:
    expected = read_events(make_events(write_csvs(tables, tmp_path / "tables"), source="omop"))
    roots = (
        write_csvs(tables, tmp_path / "csv[1]*?"),
        write_parquet(tables, tmp_path / "parquet[1]*?"),
        write_duckdb(tables, tmp_path / "cdm[1]*.duckdb"),
    )
    for root in roots:
        assert read_events(make_events(root, source="omop")) == expected


@pytest.mark.parametrize("packed", [False, True])
def test_vocabulary_files_of_tabs_keep_quotes_and_commas_in_titles(
    tables: Tables, tmp_path: Path, make_events: Stage, packed: bool
) -> None:
    titles = ('"Blue" baby, unspecified', 'Says "stop', '"open')
    for row, title in zip(tables["concept"], titles, strict=False):
        row["concept_name"] = title
    tables["condition_occurrence"][1]["condition_source_concept_id"] = KIDNEY_FAILURE
    concepts = tables.pop("concept")
    lines = ["\t".join(concepts[0]), *("\t".join(row.values()) for row in concepts)]
    content = "\n".join(lines).encode() + b"\n"
    root = write_csvs(tables, tmp_path / "tables")
    name = "CONCEPT.csv.gz" if packed else "CONCEPT.csv"
    (root / name).write_bytes(gzip.compress(content) if packed else content)
    dataset = make_events(root, source="omop")
    codes = duckdb.sql(f"FROM '{dataset}/metadata/codes.parquet'").fetchall()
    # Person 1's conditions name two of the three concepts, others' the third.
    described = {code: title for code, title, _ in codes if code.startswith("DIAGNOSIS")}
    assert set(described.values()) == set(titles)
    assert described["DIAGNOSIS//ICD10CM//N179"] == '"open'


def test_rows_of_unequal_length_between_tabs_are_refused(
    tables: Tables, tmp_path: Path, make_events: Stage
) -> None:
    root = write_csvs(tables, tmp_path / "tables")
    (root / "concept.csv.gz").unlink()
    header = "\t".join(tables["concept"][0])
    (root / "CONCEPT.csv").write_text(f"{header}\n9\tSmith\n")
    with pytest.raises(CkdEhrError, match=r"^CONCEPT\.csv: rows of unequal length") as error:
        make_events(root, source="omop")
    assert "Smith" not in str(error.value)
