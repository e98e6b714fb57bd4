"""One hospital, three layouts: MIMIC-III tables, OMOP tables and a foreign MEDS dataset."""

from pathlib import Path

import pytest
from hospital import Stage

from ckd_ehr.contracts.config import SimulatorConfig
from ckd_ehr.contracts.files import sha256_of
from ckd_ehr.data.simulator.hospital import simulate
from small_hospital import FREQUENT

PATIENTS = 400


@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_patients_give_the_same_visits_and_pairs_in_every_layout(
    tmp_path: Path, make_events: Stage, make_cohort: Stage, seed: int
) -> None:
    settings = SimulatorConfig(patients=PATIENTS, seed=seed, broken_rows=True, **FREQUENT)
    found = {}
    for layout in ("mimic3", "omop", "meds"):
        simulate(settings, tmp_path / layout, layout=layout)
        cohort = make_cohort(make_events(tmp_path / layout, source=layout))
        found[layout] = [sha256_of(cohort / name) for name in ("visits.parquet", "pairs.parquet")]
    assert found["omop"] == found["mimic3"]
    assert found["meds"] == found["mimic3"]
