"""The made-up hospital and the stages that read it, as fixtures."""

from pathlib import Path

import pytest
from hospital import Stage, Tables, hospital_tables

from ckd_ehr.contracts.config import build_config
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.data.cohort import write_cohort
from ckd_ehr.data.events import write_events


@pytest.fixture
def tables() -> Tables:
    return hospital_tables()


@pytest.fixture
def said() -> list[str]:
    """What the stages say to the user."""
    return []


@pytest.fixture
def make_events(tmp_path: Path, said: list[str]) -> Stage:
    """Run the stage `events` on a folder of tables; returns the dataset's folder."""

    def make(root: Path | None, *, source: str = "mimic3", **settings: object) -> Path:
        out = tmp_path / f"events{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        data = {"source": source, "root": root and str(root), **settings}
        config = build_config({"name": "test", "data": data})
        write_events(StageContext(config=config, folder=out, inputs={}, say=said.append))
        return out

    return make


@pytest.fixture
def make_cohort(tmp_path: Path, said: list[str]) -> Stage:
    """Run the stage `cohort` on a dataset; returns its folder."""

    def make(events: Path, **settings: object) -> Path:
        out = tmp_path / f"cohort{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        config = build_config({"name": "test", **settings})
        inputs = {"events": events}
        write_cohort(StageContext(config=config, folder=out, inputs=inputs, say=said.append))
        return out

    return make
