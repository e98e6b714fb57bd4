"""MEDS files of other versions, writers and types, and those that cannot be read."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from foreign_meds import (
    event,
    events_of,
    of_kind,
    read_events,
    stay,
    table_of,
    titles_of,
    write_meds,
)
from hospital import Stage

from ckd_ehr.contracts.config import build_config
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.data.events import source_lines
from ckd_ehr.data.sources import meds as source


@pytest.mark.parametrize("kind", [pa.int32(), pa.float64(), pa.string(), pa.large_string()])
def test_visit_ids_of_any_type_are_plain_numbers(
    tmp_path: Path, make_events: Stage, kind: pa.DataType
) -> None:
    root = write_meds(
        tmp_path,
        table_of([*stay(1, 1, hadm_id=142345), event(2, None, "GENDER//M")], {"hadm_id": kind}),
    )
    assert {read[3] for read in events_of(make_events(root, source="meds"))} == {"142345"}
    texts = table_of(stay(1, 1)).append_column("hadm_id", pa.array([" 142345.0 "] * 3))
    assert {
        read[3] for read in events_of(make_events(write_meds(tmp_path, texts), source="meds"))
    } == {"142345"}


def test_meds_0_3_0_and_column_types_of_other_writers_are_read(
    tmp_path: Path, make_events: Stage
) -> None:
    events = [*stay(1, 1, hadm_id=7, text_value="free text"), event(1, None, "GENDER//F")]
    expected = read_events(make_events(write_meds(tmp_path, events), source="meds"))
    old = table_of(events).rename_columns({"subject_id": "patient_id"})
    assert read_events(make_events(write_meds(tmp_path, old), source="meds")) == expected
    for unit in ("s", "ms", "ns"):
        kinds = {"time": pa.timestamp(unit), "code": pa.large_string(), "subject_id": pa.int32()}
        root = write_meds(
            tmp_path, {"a": table_of(events[:2], kinds), "b/c/0": table_of(events[2:])}
        )
        assert read_events(make_events(root, source="meds")) == expected
    dictionary = table_of(events, {"code": pa.dictionary(pa.int32(), pa.string())})
    assert read_events(make_events(write_meds(tmp_path, dictionary), source="meds")) == expected


def test_the_wall_time_of_a_zone_is_kept_and_said(
    tmp_path: Path, make_events: Stage, said: list[str]
) -> None:
    zoned = write_meds(tmp_path, table_of(stay(1, 1), {"time": pa.timestamp("us", "UTC")}))
    assert (
        of_kind(make_events(zoned, source="meds"), "HOSPITAL_ADMISSION")[0][1]
        == "2150-01-01 10:00:00"
    )
    assert said[1].startswith("times state the time zone UTC; their wall time is kept in UTC")
    moved = make_events(zoned, source="meds", timezone="Europe/Berlin")
    assert of_kind(moved, "HOSPITAL_ADMISSION")[0][1] == "2150-01-01 11:00:00"
    offset = write_meds(tmp_path, table_of(stay(1, 1), {"time": pa.timestamp("us", "-05:00")}))
    assert (
        of_kind(make_events(offset, source="meds"), "HOSPITAL_ADMISSION")[0][1]
        == "2150-01-01 05:00:00"
    )


def test_mixed_time_zones_are_refused_until_the_hospitals_is_named(
    tmp_path: Path, make_events: Stage
) -> None:
    root = write_meds(
        tmp_path, {"a": stay(1, 1), "b": table_of(stay(2, 1), {"time": pa.timestamp("us", "UTC")})}
    )
    with pytest.raises(CkdEhrError, match=r"'time': times are of several time zones \(none, UTC\)"):
        make_events(root, source="meds")
    dataset = make_events(root, source="meds", timezone="Europe/Berlin")
    times = [of_kind(dataset, "HOSPITAL_ADMISSION", subject)[0][1] for subject in (1, 2)]
    assert times == ["2150-01-01 10:00:00", "2150-01-01 11:00:00"]


def test_order_and_files_make_no_difference_but_are_noted(
    tmp_path: Path, make_events: Stage, said: list[str]
) -> None:
    events = [*stay(1, 1), *stay(1, 3), *stay(2, 1)]
    ordered = make_events(write_meds(tmp_path, events), source="meds")
    assert not [line for line in said if line.startswith("note")]
    mixed = make_events(
        write_meds(tmp_path, {"a": events[4:1:-1], "b": events[5:], "c": events[:2]}), source="meds"
    )
    for name in ("data/0000.parquet", "metadata/codes.parquet", "metadata/dataset.json"):
        assert (mixed / name).read_bytes() == (ordered / name).read_bytes()
    assert "note: 1 files are not in order of patient and time; sorted" in said
    assert "note: 1 patients stand in several files; put together" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns("code"), r"train/0\.parquet: column 'code' is missing \(found: "),
        (lambda t: t.rename_columns({"time": "when"}), r"map it with data\.columns\.data\.time"),
        (lambda t: pa.table({"patient_id": [1], "events": [[{"code": "x"}]]}), r"as in MEDS 0\.2"),
        (lambda t: t.set_column(0, "subject_id", t["subject_id"].cast(pa.string())), "int64: "),
        (lambda t: t.set_column(1, "time", t["time"].cast(pa.string())), r"has timestamp\[us\]"),
        (lambda t: t.set_column(2, "code", pa.array(range(3))), "has string: write codes as text"),
        (lambda t: t.append_column("numeric_value", t["code"]), "has float32"),
        (lambda t: t.slice(0, 0), "the dataset has no events"),
        (lambda t: t.slice(0, 2), r"no event is a diagnosis \(all codes are read\)"),
        (lambda t: t.slice(1, 2), r"no admission has a discharge \(no column of visit ids"),
    ],
)  # fmt: skip
def test_what_is_no_usable_meds_is_refused_with_a_remedy(
    tmp_path: Path,
    make_events: Stage,
    change: Callable[[pa.Table], pa.Table],
    message: str,
) -> None:
    with pytest.raises(CkdEhrError, match=message):
        make_events(write_meds(tmp_path, change(table_of(stay(1, 1)))), source="meds")


def test_a_file_that_is_cut_off_is_named(tmp_path: Path, make_events: Stage) -> None:
    root = write_meds(tmp_path, {"a": stay(1, 1), "b": stay(2, 1)})
    path = root / "data" / "b.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CkdEhrError, match=r"^b\.parquet: not a whole Parquet file"):
        make_events(root, source="meds")


def test_a_file_that_is_damaged_inside_is_named(tmp_path: Path, make_events: Stage) -> None:
    root = write_meds(tmp_path, {"a": stay(1, 1), "b": stay(2, 1, hadm_id=7)})
    path = root / "data" / "b.parquet"
    content = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(0).column(2).dictionary_page_offset
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    with pytest.raises(CkdEhrError, match=r"^b\.parquet: not a whole Parquet file"):
        make_events(root, source="meds")


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path, make_events: Stage) -> None:
    with pytest.raises(CkdEhrError, match=r"data\.root is not set"):
        make_events(None, source="meds")
    with pytest.raises(CkdEhrError, match="no such folder"):
        make_events(tmp_path / "nowhere", source="meds")
    with pytest.raises(CkdEhrError, match=r"no \.parquet file under data/"):
        make_events(tmp_path, source="meds")


def test_a_visit_column_that_is_not_there_is_refused_with_the_nearest(
    tmp_path: Path, make_events: Stage
) -> None:
    with pytest.raises(
        CkdEhrError, match=r"no file has a column 'hadm' .*did you mean 'hadm_id'\?"
    ):
        make_events(
            write_meds(tmp_path, stay(1, 1, hadm_id=7)), source="meds", meds={"visit_id": "hadm"}
        )


def test_a_renamed_column_is_mapped(tmp_path: Path, make_events: Stage) -> None:
    events = table_of(stay(1, 1, seq_num=4)).rename_columns({"seq_num": "rank"})
    dataset = make_events(
        write_meds(tmp_path, events), source="meds", columns={"data": {"seq_num": "rank"}}
    )
    assert of_kind(dataset, "DIAGNOSIS")[0][2] == 4.0


@pytest.mark.parametrize("name", ["mg[1]", "mg?", "mg*"])
def test_a_path_with_marks_of_a_pattern_is_that_path(
    tmp_path: Path, make_events: Stage, name: str
) -> None:
    title = {"code": "DIAGNOSIS//ICD//10//I509", "description": "ours"}
    own = write_meds(tmp_path, {"0": stay(1, 1)}, codes=[title])
    other = write_meds(
        tmp_path, {"0": [*stay(2, 1), *stay(2, 3)]}, codes=[title | {"description": "the sibling"}]
    )
    other.rename(tmp_path / "mg1")
    dataset = make_events(own.rename(tmp_path / name), source="meds")
    assert set(read_events(dataset)["subject_id"].to_pylist()) == {1}
    assert titles_of(dataset) == {"DIAGNOSIS//ICD10CM//I509": "ours"}


def test_the_datasets_splits_are_carried_over(tmp_path: Path, make_events: Stage) -> None:
    splits = pa.table(
        {"subject_id": [2, 1], "split": pa.array(["held_out", "train"], pa.large_string())}
    )
    dataset = make_events(write_meds(tmp_path, stay(1, 1), splits=splits), source="meds")
    written = pq.read_table(dataset / "metadata" / "subject_splits.parquet")
    assert written.to_pydict() == {"subject_id": [1, 2], "split": ["train", "held_out"]}
    assert written.schema.field("split").type == pa.string()
    plain = make_events(write_meds(tmp_path, stay(1, 1)), source="meds")
    assert not (plain / "metadata" / "subject_splits.parquet").exists()


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"subject_id": [1, 1], "split": ["train", "tuning"]}, "a patient stands in it twice"),
        ({"subject_id": ["a"], "split": ["train"]}, "no table of subject_id"),
        ({"subject_id": [1]}, "no table of subject_id"),
    ],
)
def test_splits_that_cannot_be_used_are_refused(
    tmp_path: Path, make_events: Stage, splits: dict[str, object], message: str
) -> None:
    with pytest.raises(CkdEhrError, match=message):
        make_events(write_meds(tmp_path, stay(1, 1), splits=pa.table(splits)), source="meds")


def test_what_is_found_is_listed_and_digested(tmp_path: Path) -> None:
    root = write_meds(
        tmp_path, {"train/0": stay(1, 1), "tuning/0": stay(2, 1)}, facts={"dataset_name": "x"}
    )
    settings = build_config({"name": "x", "data": {"source": "meds", "root": str(root)}}).data
    assert source_lines(settings)[1].startswith("data            data/ (2 files)")
    assert list(source.digests(settings)) == [
        "data/train/0.parquet", "data/tuning/0.parquet", "metadata/dataset.json"
    ]  # fmt: skip
