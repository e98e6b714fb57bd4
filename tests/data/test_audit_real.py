"""Honest records of real patients pass the audit."""

from pathlib import Path

import pytest
from audited import run_data_stages

from ckd_ehr.contracts.config import load_config
from ckd_ehr.data.audit.cohort import cohort_checks

CONFIGS = Path(__file__).parents[2] / "configs"
ALL_PAIRS = [
    f"cohort.sample.{group}=null" for group in ("train", "unlabelled", "tuning", "held_out")
]


def statuses(
    folder: Path, config_file: str, root: Path, *, synthetic_times: bool, shifted_times: bool
) -> dict[str, str]:
    overrides = [f"data.root={root}", *(ALL_PAIRS if config_file.startswith("uci") else [])]
    config = load_config(CONFIGS / config_file, overrides)
    events, cohort = run_data_stages(folder, config.model_dump(mode="json"))
    results = cohort_checks(
        cohort,
        events,
        shift_expected=False,
        synthetic_times=synthetic_times,
        shifted_times=shifted_times,
        phenotypes=config.labels.selected,
    )
    return {result.check: result.status for result in results}


@pytest.mark.parametrize("shifted_times", [True, False])
def test_the_mimic_demo_passes(real_data: Path, tmp_path: Path, shifted_times: bool) -> None:
    root = real_data / "mimic3-demo-1.4"
    found = statuses(
        tmp_path, "mimic3.yaml", root, synthetic_times=False, shifted_times=shifted_times
    )
    too_few = {"label prevalence across splits", "one feature tells a label"}
    assert {check for check, status in found.items() if status != "passed"} == too_few
    assert {found[check] for check in too_few} == {"not tested"}


@pytest.mark.slow
def test_uci_passes_with_three_diagnoses_a_stay_and_no_dates(
    real_data: Path, tmp_path: Path
) -> None:
    root = next((real_data / "uci-diabetes130").glob("*.zip"))
    found = statuses(tmp_path, "uci-diabetes.yaml", root, synthetic_times=True, shifted_times=False)
    assert set(found.values()) == {"passed"}
