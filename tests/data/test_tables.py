"""Bad source files: each gives one message with file, what is wrong and the remedy."""

import gzip
from pathlib import Path
from random import Random

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.data.sources.tables import (
    check_renames,
    connect,
    describe_table,
    find_table,
    load,
    readable,
    require_table,
    require_times,
    require_whole_numbers,
)

DRUGS = "SUBJECT_ID,DRUG,STARTDATE\n1,Aspirin,2150-01-01\n2,,\n"


def read(path: Path, *, renames: dict[str, dict[str, str]] | None = None) -> list[tuple[str, ...]]:
    table = describe_table(
        path, "PRESCRIPTIONS", required=("subject_id", "drug"), renames=renames or {}
    )
    with connect(path.parent) as connection:
        load(connection, table, into="drugs")
        return connection.execute("SELECT * FROM drugs ORDER BY subject_id").fetchall()


def test_names_extensions_and_headers_match_without_regard_to_case(tmp_path: Path) -> None:
    path = tmp_path / "prescriptions.CSV.GZ"
    path.write_bytes(gzip.compress(DRUGS.replace("DRUG", "Drug").encode()))
    assert find_table(tmp_path, "PRESCRIPTIONS") == path
    assert read(path) == [("1", "Aspirin"), ("2", None)]


def test_values_stay_text_and_are_trimmed(tmp_path: Path) -> None:
    path = tmp_path / "PRESCRIPTIONS.csv"
    path.write_text('subject_id,drug\n1," 042 "\n2,"a, ""b""\nc"\n')
    assert read(path) == [("1", "042"), ("2", 'a, "b"\nc')]


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    path = tmp_path / "PRESCRIPTIONS.csv"
    path.write_bytes(b"\xef\xbb\xbf" + DRUGS.encode())
    assert read(path)[0] == ("1", "Aspirin")


def test_missing_table_names_the_nearest_file(tmp_path: Path) -> None:
    (tmp_path / "PRESCRIPTION.csv").write_text(DRUGS)
    with pytest.raises(CkdEhrError) as error:
        require_table(tmp_path, "PRESCRIPTIONS")
    message = str(error.value)
    assert "table PRESCRIPTIONS is missing" in message
    assert "nearest file: PRESCRIPTION.csv" in message
    assert "data.root" in message


def test_missing_folder_names_data_root(tmp_path: Path) -> None:
    with pytest.raises(CkdEhrError, match=r"no such folder; .*data\.root=PATH"):
        require_table(tmp_path / "nowhere", "ADMISSIONS")


def test_a_file_in_place_of_the_folder_is_said(tmp_path: Path) -> None:
    path = tmp_path / "ADMISSIONS.csv"
    path.write_text(DRUGS)
    with pytest.raises(CkdEhrError, match=r"ADMISSIONS\.csv: is a file; give its folder as data"):
        require_table(path, "ADMISSIONS")


def test_a_column_that_stands_twice_is_refused_if_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "PRESCRIPTIONS.csv"
    path.write_text("subject_id,drug,SUBJECT_ID \n1,Aspirin,2\n")
    with pytest.raises(CkdEhrError, match=r"column 'subject_id' stands twice .*; keep one"):
        read(path)
    path.write_text("subject_id,drug,note,note\n1,Aspirin,a,b\n")
    assert read(path) == [("1", "Aspirin")]


def test_a_table_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("PRESCRIPTIONS.csv", "prescriptions.csv.gz"):
        (tmp_path / name).write_text(DRUGS)
    with pytest.raises(CkdEhrError, match=r"several files .*keep one"):
        find_table(tmp_path, "PRESCRIPTIONS")


def test_missing_column_says_what_was_found_and_how_to_map_it(tmp_path: Path) -> None:
    path = tmp_path / "PRESCRIPTIONS.csv"
    path.write_text("SUBJECT_ID,DRUGNAME\n1,Aspirin\n")
    with pytest.raises(CkdEhrError) as error:
        read(path)
    assert str(error.value) == (
        "PRESCRIPTIONS.csv: column 'drug' is missing (found: SUBJECT_ID, DRUGNAME); "
        "map it with data.columns.PRESCRIPTIONS.drug=NAME"
    )
    assert read(path, renames={"prescriptions": {"DRUG": "drugname"}}) == [("1", "Aspirin")]


@pytest.mark.parametrize(
    "row",
    [
        "77123,Aspirin,2150-01-01",
        "77123,Smith,Jane,F,WHITE",
        "Smith,77123.0,M",
        "Smith-Jones,R\u00e9a",
    ],
)
def test_a_first_line_that_is_a_patients_row_is_never_shown(tmp_path: Path, row: str) -> None:
    path = tmp_path / "PRESCRIPTIONS.csv"
    path.write_text(f"{row}\n77124,Heparin,2150-01-02\n", encoding="utf-8")
    with pytest.raises(CkdEhrError) as error:
        read(path)
    assert str(error.value) == (
        "PRESCRIPTIONS.csv: column 'subject_id' is missing: the first line does not look like a "
        "header; export the table with its header row"
    )


@pytest.mark.parametrize(
    ("renames", "message"),
    [
        ({"PRESCRIPTION": {"drug": "x"}}, "no such table; did you mean 'PRESCRIPTIONS'"),
        ({"PRESCRIPTIONS": {"drugs": "x"}}, "no column in use; did you mean 'drug'"),
    ],
)
def test_renames_of_nothing_are_refused(renames: dict[str, dict[str, str]], message: str) -> None:
    with pytest.raises(CkdEhrError, match=message):
        check_renames(renames, {"PRESCRIPTIONS": ("subject_id", "drug"), "PATIENTS": ("gender",)})


def test_a_file_that_is_not_utf8_names_the_byte_and_no_patient(tmp_path: Path) -> None:
    path = tmp_path / "PRESCRIPTIONS.csv"
    path.write_bytes("SUBJECT_ID,DRUG\n77123,Caf\u00e9ine\n".encode("latin-1"))
    with pytest.raises(CkdEhrError) as error:
        read(path)
    assert "PRESCRIPTIONS.csv: not UTF-8 (byte 0xe9)" in str(error.value)
    assert "iconv" in str(error.value)
    assert "77123" not in str(error.value)


@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_a_truncated_gzip_is_refused(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "PRESCRIPTIONS.csv.gz"
    rows = "".join(f"{number},drug {number * 7919}\n" for number in range(20_000))
    whole = gzip.compress(f"SUBJECT_ID,DRUG\n{rows}".encode())
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(CkdEhrError, match=r"PRESCRIPTIONS\.csv\.gz: the gzip file is cut off"):
        read(path)


def test_a_gzip_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "PRESCRIPTIONS.csv.gz"
    path.write_text(DRUGS)
    with pytest.raises(CkdEhrError, match="not an intact gzip file"):
        read(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "PRESCRIPTIONS.csv"
    path.touch()
    with pytest.raises(CkdEhrError, match=r"PRESCRIPTIONS\.csv: the file is empty"):
        read(path)


def test_ragged_rows_are_refused_without_quoting_them(tmp_path: Path) -> None:
    path = tmp_path / "PRESCRIPTIONS.csv"
    path.write_text("SUBJECT_ID,DRUG\n77123,Aspirin\n77124\n")
    with pytest.raises(CkdEhrError, match="rows of unequal length") as error:
        read(path)
    assert "7712" not in str(error.value)


def test_values_that_do_not_parse_are_shown_by_their_shape_only(tmp_path: Path) -> None:
    path = tmp_path / "PRESCRIPTIONS.csv"
    with connect(tmp_path) as connection:
        connection.execute("CREATE TABLE t AS SELECT 'P0017' AS id, '23/10/2164' AS time")
        with pytest.raises(CkdEhrError, match=r"column 'id': 1 values of the form 'a9999'"):
            require_whole_numbers(connection, "t", "id", path)
        with pytest.raises(CkdEhrError, match=r"'99/99/9999' are no time"):
            require_times(connection, "t", "time", path)


def test_values_outside_ascii_are_masked_too(tmp_path: Path) -> None:
    with connect(tmp_path) as connection:
        connection.execute("CREATE TABLE t AS SELECT 'Zo\u00eb \u0141\u00f3\u017a \u0663' AS id")
        with pytest.raises(CkdEhrError, match=r"1 values of the form 'aaa aaa 9'"):
            require_whole_numbers(connection, "t", "id", tmp_path / "PATIENTS.csv")


def test_a_disk_that_is_full_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "PRESCRIPTIONS.csv"
    path.write_text(DRUGS)
    with pytest.raises(duckdb.IOException, match="No space left"), readable(path):
        raise duckdb.IOException("Could not write file: No space left on device")
    with pytest.raises(CkdEhrError, match="broken quotes"), readable(path):
        raise duckdb.IOException("Could not read file")


def times_after(path: Path, *written: str) -> list[str]:
    """What `require_times` makes of a column with these values."""
    with connect(path.parent) as connection:
        connection.execute("CREATE TABLE t AS SELECT unnest(?) AS time", [list(written)])
        require_times(connection, "t", "time", path)
        return [time for (time,) in connection.execute("SELECT time FROM t ORDER BY 1").fetchall()]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2164-10-23", "2164-10-23"),
        ("0001-01-01 10:00", "0001-01-01 10:00"),
        ("9999-12-31T23:59:59.999999", "9999-12-31T23:59:59.999999"),
        ("2164-10-23 21:09:00Z", "2164-10-23 21:09:00Z"),
        ("2164-10-23 21:09:00z", "2164-10-23 21:09:00Z"),
        ("2164-10-23 21:09:00 UTC", "2164-10-23 21:09:00Z"),
        ("2164-10-23 21:09:00GMT", "2164-10-23 21:09:00Z"),
        ("2164-10-23T21:09:00.5 -05", "2164-10-23T21:09:00.5-05"),
        ("2164-10-23 21:09:00+0530", "2164-10-23 21:09:00+0530"),
        ("2164-10-23 21:09 +05:30", "2164-10-23 21:09+05:30"),
    ],
)
def test_times_with_and_without_an_offset_are_read(tmp_path: Path, written: str, read: str) -> None:
    assert times_after(tmp_path / "ADMISSIONS.csv", written) == [read]


@pytest.mark.parametrize(
    ("written", "shape"),
    [
        ("2164-10-23 10:00:00 Europe/Berlin", "9999-99-99 99:99:99 aaaa"),
        ("2164-10-23 10:00:00 EST", "9999-99-99 99:99:99 aaa"),
        ("2164-10-23 10:00:00 CANARY", "9999-99-99 99:99:99 aaaa"),
        ("2164-10-23 10:00:00+25:00", "9999-99-99 99:99:99+99:9"),
        ("2164-10-23 10:00:00+05:30:15", "9999-99-99 99:99:99+99:9"),
        ("2164-10-23 (BC)", "9999-99-99 (aa)"),
        ("infinity", "aaaaaaaa"),
        ("-infinity", "-aaaaaaaa"),
        ("epoch", "aaaaa"),
        ("12164-10-23 10:00:00", "99999-99-99 99:99:99"),
        ("0000-10-23", "9999-99-99"),
        ("9999-12-31 24:00:00", "9999-99-99 99:99:99"),
        ("2164-02-30 10:00:00", "9999-99-99 99:99:99"),
        ("2164-10-23 10:00:61Z", "9999-99-99 99:99:99a"),
        ("2164-10-23Z", "9999-99-99a"),
    ],
)
def test_what_is_no_time_as_a_whole_is_refused_by_its_shape(
    tmp_path: Path, written: str, shape: str
) -> None:
    with pytest.raises(CkdEhrError) as error:
        times_after(tmp_path / "ADMISSIONS.csv", "2164-10-23 21:09:00", written)
    assert str(error.value) == (
        f"ADMISSIONS.csv: column 'time': 1 values of the form '{shape}' are no time; write times "
        "as 2164-10-23 21:09:00"
    )


@pytest.mark.parametrize("end", ["csv", "csv.gz", "parquet"])
def test_a_folder_whose_name_is_a_pattern_is_read_and_no_other(tmp_path: Path, end: str) -> None:
    for folder, drug in (("gl1", "Heparin"), ("gl[1]", "Aspirin")):
        path = tmp_path / folder / f"PRESCRIPTIONS.{end}"
        path.parent.mkdir()
        text = f"subject_id,drug\n1,{drug}\n"
        if end == "parquet":
            pq.write_table(pa.table({"subject_id": ["1"], "drug": [drug]}), path)
        else:
            path.write_bytes(gzip.compress(text.encode()) if end == "csv.gz" else text.encode())
    assert read(path) == [("1", "Aspirin")]


def test_damaged_parquet_is_named_and_never_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "PRESCRIPTIONS.parquet"
    drugs = {
        "subject_id": [str(n) for n in range(3000)],
        "drug": [f"drug {n}" for n in range(3000)],
    }
    pq.write_table(pa.table(drugs), path)
    whole, refused = path.read_bytes(), 0
    for seed in range(25):
        random, damaged = Random(seed), bytearray(whole)
        for _ in range(20):
            damaged[random.randrange(len(whole) // 2, len(whole))] ^= random.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            read(path)
        except CkdEhrError as error:
            refused += str(error).startswith("PRESCRIPTIONS.parquet: not a whole Parquet file")
    assert refused >= 20


def test_a_parquet_header_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "PRESCRIPTIONS.parquet"
    pq.write_table(pa.table({"subject_id": ["1"], "drug": ["Aspirin"]}), path)
    path.write_bytes(path.read_bytes().replace(b"drug", b"dr\xffg"))
    with pytest.raises(CkdEhrError, match=r"^PRESCRIPTIONS\.parquet: not a whole Parquet file"):
        read(path)


@pytest.mark.parametrize("kind", [duckdb.Error, duckdb.SerializationException, RuntimeError])
def test_any_error_of_a_read_names_the_file(tmp_path: Path, kind: type[Exception]) -> None:
    with (
        pytest.raises(CkdEhrError, match=r"^PATIENTS\.parquet: not a whole Parquet file"),
        readable(tmp_path / "PATIENTS.parquet"),
    ):
        raise kind("Could not read")


def test_a_lack_of_memory_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    with pytest.raises(duckdb.OutOfMemoryException), readable(tmp_path / "PATIENTS.parquet"):
        raise duckdb.OutOfMemoryException("could not allocate block")
