"""One cohort, two engines: DuckDB and Spark give the same bytes."""

import datetime
import hashlib
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hospital import Stage, Tables, write_tables

from ckd_ehr.contracts.config import EngineConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json, sha256_of
from ckd_ehr.data.engine import open_engine
from small_hospital import FREQUENT

needs_java = pytest.mark.skipif(
    shutil.which("java") is None and "JAVA_HOME" not in os.environ, reason="no Java"
)
NINETEEN = [2, 49, 50, 53, 55, 98, 99, 100, 101, 105, 106, 108, 109, 122, 127, 130, 157, 158, 238]


def digest(path: Path) -> str:
    """Of a table's rows, sorted by all that they hold: what "the same" means between engines."""
    rows = sorted(map(str, pq.read_table(path).to_pylist()))
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def same_on_both(make_cohort: Stage, events: Path, **settings: object) -> None:
    here = make_cohort(events, **settings)
    there = make_cohort(events, engine={"backend": "spark"}, **settings)
    for name in ("visits.parquet", "pairs.parquet", "subject_splits.parquet"):
        assert pq.read_schema(here / name).equals(pq.read_schema(there / name))
        assert digest(here / name) == digest(there / name)
        # Stronger than asked for: both engines sort by the same keys.
        assert sha256_of(here / name) == sha256_of(there / name)
    assert read_json(here / "flow.json") == read_json(there / "flow.json")


@needs_java
def test_duckdb_and_spark_agree_on_the_simulated_hospital(
    make_events: Stage, make_cohort: Stage
) -> None:
    events = make_events(None, source="simulated", simulator={"patients": 300, **FREQUENT})
    rules = {"min_gap_days": 2, "label_window_days": 400, "sample": {"unlabelled": 20}}
    same_on_both(make_cohort, events, cohort=rules, splits={"method": "temporal"})


@needs_java
def test_duckdb_and_spark_agree_on_a_death_at_the_minute_of_admission(
    tables: Tables, tmp_path: Path, make_events: Stage, make_cohort: Stage
) -> None:
    for row in tables["ADMISSIONS"][1:20:2]:
        row |= {"DISCHTIME": row["ADMITTIME"], "HOSPITAL_EXPIRE_FLAG": "1"}
    events = make_events(write_tables(tables, tmp_path / "tables"))
    same_on_both(make_cohort, events, labels={"only_ccs": [108, 98]})
    counts = read_json(make_cohort(events, labels={"only_ccs": [108, 98]}) / "flow.json")["counts"]
    assert counts["visits_admitted_after_death"] == 0
    assert counts["visits_ended_in_death"] == 10


@needs_java
@pytest.mark.slow
def test_duckdb_and_spark_agree_on_the_mimic3_demo(
    real_data: Path, make_events: Stage, make_cohort: Stage
) -> None:
    same_on_both(make_cohort, make_events(real_data / "mimic3-demo-1.4"))


@needs_java
@pytest.mark.slow
def test_duckdb_and_spark_agree_on_uci(
    real_data: Path, make_events: Stage, make_cohort: Stage
) -> None:
    events = make_events(real_data / "uci-diabetes130", source="uci_diabetes")
    same_on_both(make_cohort, events, labels={"only_ccs": NINETEEN})


def test_spark_without_java_is_one_clear_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with (
        pytest.raises(CkdEhrError, match=r"no Java was found; install Java 17 or 21"),
        open_engine(EngineConfig(backend="spark"), tmp_path),
    ):
        pass


def test_scratch_is_gone_when_an_engine_closes(tmp_path: Path) -> None:
    far = pa.table({"time": pa.array([datetime.datetime(2300, 1, 1)], pa.timestamp("us"))})
    with open_engine(EngineConfig(memory_limit="64MB"), tmp_path) as engine:
        kept = engine.keep(engine.upload(far))
        assert engine.fetch(kept).equals(far)
    assert list(tmp_path.iterdir()) == []
