"""Which stay an event of MEDS belongs to, by id or by time."""

from pathlib import Path

import pytest
from foreign_meds import event, events_of, left_out, of_kind, stay, write_meds
from hospital import Stage

from ckd_ehr.contracts.errors import CkdEhrError


def test_without_visit_ids_time_tells_the_stays(tmp_path: Path, make_events: Stage) -> None:
    root = write_meds(
        tmp_path,
        [
            *stay(1, 1),
            *stay(1, 3),
            # A date alone belongs to the stays of that day.
            event(1, "2150-03-01", "MEDICATION//START//Aspirin"),
            event(1, "2150-01-05T12:00:00.000001", "MEDICATION//START//Heparin"),
            event(1, None, "MEDICATION//START//Heparin"),
            event(1, "2150-05-01", "HOSPITAL_ADMISSION//URGENT"),
            event(1, "2150-05-02", "HOSPITAL_ADMISSION//ELECTIVE"),
            event(1, "2150-05-03", "HOSPITAL_DISCHARGE//UNK"),
            event(1, "2150-05-04", "HOSPITAL_DISCHARGE//DIED"),
            event(2, None, "HOSPITAL_DISCHARGE//DIED"),
        ],
    )
    dataset = make_events(root, source="meds")
    first, second, third = "1@2150-01-01 10:00:00", "1@2150-03-01 10:00:00", "1@2150-05-02 00:00:00"
    assert [read[::3] for read in events_of(dataset)] == [
        ("HOSPITAL_ADMISSION//URGENT", first),
        ("DIAGNOSIS//ICD10CM//I509", first),
        ("HOSPITAL_DISCHARGE//HOME", first),
        ("MEDICATION//NAME//aspirin", second),
        ("HOSPITAL_ADMISSION//URGENT", second),
        ("DIAGNOSIS//ICD10CM//I509", second),
        ("HOSPITAL_DISCHARGE//HOME", second),
        ("HOSPITAL_ADMISSION//ELECTIVE", third),
        ("HOSPITAL_DISCHARGE", third),
    ]
    assert left_out(dataset) == {
        "of admissions without a discharge before the next one": 1,
        "of discharges without an admission": 1,
        "of admissions or discharges without stay and time": 1,
        "without a visit and outside every stay": 1,
        "without visit and time": 1,
    }


def test_a_diagnosis_at_a_change_of_stays_belongs_to_the_one_that_ends(
    tmp_path: Path, make_events: Stage
) -> None:
    root = write_meds(
        tmp_path,
        [
            *stay(1, 1),
            event(1, "2150-01-05T12:00", "HOSPITAL_ADMISSION//REHAB"),
            event(1, "2150-01-09", "HOSPITAL_DISCHARGE//HOME"),
        ],
    )
    [diagnosis] = of_kind(make_events(root, source="meds"), "DIAGNOSIS")
    assert diagnosis[3] == "1@2150-01-01 10:00:00"


def test_other_visits_and_their_codes_are_counted_and_left_out(
    tmp_path: Path, make_events: Stage
) -> None:
    root = write_meds(
        tmp_path,
        [
            *stay(1, 1, visit_id=7),
            event(1, "2150-01-02", "DIAGNOSIS//ICD//10//N179", visit_id=8),
            event(1, "2150-01-02", "RACE//WHITE", visit_id=8),
        ],
    )
    dataset = make_events(root, source="meds")
    assert {read[3] for read in events_of(dataset)} == {"7"}
    assert left_out(dataset) == {
        "of visits without an admission or a discharge": 1,
        "of ethnicities of visits without an admission or a discharge": 1,
    }


def test_a_column_that_names_no_stays_is_refused_and_can_be_set_aside(
    tmp_path: Path, make_events: Stage
) -> None:
    """eICU-MEDS has the hospital's id in hadm_id."""
    events = [*stay(1, 1, hadm_id=5), *stay(2, 1, hadm_id=5)]
    events[4]["code"] = "HOSPITAL_DISCHARGE//Expired//Death"
    root = write_meds(tmp_path, events)
    with pytest.raises(CkdEhrError, match=r"1 stays \(column 'hadm_id'\) stand under two .*none"):
        make_events(root, source="meds")
    dataset = make_events(root, source="meds", meds={"visit_id": "none"})
    assert of_kind(dataset, "HOSPITAL_DISCHARGE", 2) == [
        ("HOSPITAL_DISCHARGE//DIED", "2150-01-05 12:00:00", None, "2@2150-01-01 10:00:00")
    ]


def test_stays_without_any_discharge_are_refused(tmp_path: Path, make_events: Stage) -> None:
    events = [*stay(1, 1, hadm_id=7), event(1, "2150-01-05", "DISCHARGED//HOME", hadm_id=7)]
    del events[1]
    with pytest.raises(CkdEhrError, match=r"no admission has a discharge \(column 'hadm_id'; "):
        make_events(write_meds(tmp_path, events), source="meds")
