"""What MEDS codes mean, by prefix, by parent and by the config."""

import datetime
from pathlib import Path

import pytest
from foreign_meds import event, events_of, left_out, of_kind, stay, titles_of, write_meds
from hospital import Stage

from ckd_ehr.contracts.config import build_config
from ckd_ehr.contracts.errors import CkdEhrError


def test_codes_lose_dots_blanks_and_case_and_keep_the_first_place_on_the_bill(
    tmp_path: Path, make_events: Stage
) -> None:
    events = stay(1, 1, hadm_id=7)
    for place, code in ((3, "E11.9"), (2, " e119 "), (1, "042")):
        events.append(
            event(1, "2150-01-05T12:00", f"DIAGNOSIS//ICD//10//{code}", hadm_id=7, seq_num=place)
        )
    dataset = make_events(write_meds(tmp_path, events), source="meds")
    assert [read[::2] for read in of_kind(dataset, "DIAGNOSIS")] == [
        ("DIAGNOSIS//ICD10CM//042", 1.0),
        ("DIAGNOSIS//ICD10CM//E119", 2.0),
        ("DIAGNOSIS//ICD10CM//I509", None),
    ]  # fmt: skip


def test_a_drug_counts_from_when_it_is_first_given(tmp_path: Path, make_events: Stage) -> None:
    ids = {"hadm_id": 7}
    root = write_meds(
        tmp_path,
        [
            *stay(1, 1, **ids),
            event(1, "2150-01-02T08:00", "MEDICATION//Aspirin//Not Given//0001", **ids),
            event(1, "2150-01-03T09:00", "MEDICATION//Aspirin//Administered//0001", **ids),
            event(1, "2150-01-03T08:00", "MEDICATION//ASPIRIN 81 mg Tab//Administered", **ids),
            event(1, "2150-01-04T08:00", "MEDICATION//START//Aspirin//UNK"),
            event(1, "2150-01-02T07:00", "MEDICATION//STOP//Aspirin"),
            event(1, "2150-01-02T07:00", "MEDICATION//START//UNK"),
            event(1, None, "MEDICATION//START//Heparin", **ids),
        ],
    )
    dataset = make_events(root, source="meds")
    assert of_kind(dataset, "MEDICATION") == [
        ("MEDICATION//NAME//aspirin", "2150-01-03 08:00:00", None, "7"),
        # Without a time, known at discharge at the latest.
        ("MEDICATION//NAME//heparin", "2150-01-05 12:00:00", None, "7"),
    ]
    assert left_out(dataset) == {
        "of codes MEDICATION//STOP, which are not read,": 1,
        "of drugs that were not given": 1,
        "without a code after the prefix": 1,
    }


def test_the_events_of_an_omop_etl_become_ours(tmp_path: Path, make_events: Stage) -> None:
    ids = {"visit_id": 7}
    root = write_meds(
        tmp_path,
        [
            event(1, "2100-01-01", "MEDS_BIRTH"),
            event(1, "2100-01-01", "Gender/F"),
            event(1, "2100-01-01", "Race/5"),
            event(1, "2100-01-01", "Ethnicity/Not Hispanic"),
            event(1, "2150-01-01", "Visit/IP", end=datetime.datetime(2150, 1, 5), **ids),
            event(1, "2150-01-02", "ICD10CM/I50.9", **ids),
            event(1, "2150-01-02", "ICD9Proc/37.22", **ids),
            event(1, "2150-01-02", "RxNorm/4603", **ids),
            event(1, "2150-02-01", "Visit/OP", visit_id=8),
        ],
        codes=[{"code": "RxNorm/4603", "description": "furosemide"}],
    )
    dataset = make_events(root, source="meds")
    assert events_of(dataset) == [
        ("GENDER//F", None, None, None),
        ("ETHNICITY//WHITE", "2100-01-01 00:00:00", None, None),
        ("MEDS_BIRTH", "2100-01-01 00:00:00", None, None),
        ("HOSPITAL_ADMISSION//INPATIENT", "2150-01-01 00:00:00", None, "7"),
        ("MEDICATION//RXNORM//4603", "2150-01-02 00:00:00", None, "7"),
        ("PROCEDURE//ICD9PROC//3722", "2150-01-02 00:00:00", None, "7"),
        ("DIAGNOSIS//ICD10CM//I509", "2150-01-05 00:00:00", None, "7"),
        ("HOSPITAL_DISCHARGE", "2150-01-05 00:00:00", None, "7"),
    ]
    assert titles_of(dataset) == {"MEDICATION//RXNORM//4603": "furosemide"}


def test_rules_of_the_config_add_to_the_table_and_override_it(
    tmp_path: Path, make_events: Stage
) -> None:
    root = write_meds(
        tmp_path,
        [
            event(1, "2150-01-01", "ADMIT"),
            event(1, "2150-01-04", "DX//icd10//I50.9//PRIMARY"),
            event(1, "2150-01-04", "DIAGNOSIS//ICD//9//4280"),
            event(1, "2150-01-05", "LEAVE//HOSPICE"),
        ],
    )
    roles = {
        "ADMIT": {"role": "admission", "value": "day case"},
        "LEAVE": {"role": "discharge"},
        "DX//icd10": {"role": "diagnosis", "system": "ICD10CM"},
        "DIAGNOSIS//ICD//9//": {"role": "none"},
    }
    dataset = make_events(root, source="meds", meds={"roles": roles})
    assert [read[0] for read in events_of(dataset)] == [
        "HOSPITAL_ADMISSION//DAY CASE",
        "DIAGNOSIS//ICD10CM//I509",
        "HOSPITAL_DISCHARGE//HOSPICE",
    ]
    assert left_out(dataset) == {"of codes DIAGNOSIS//ICD//9, which are not read,": 1}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"role": "diagnosis"}, "names a system"),
        ({"role": "death", "system": "ICD10CM"}, "any other none"),
        ({"role": "diagnosis", "system": "ICD-10"}, "match pattern"),
        ({"role": "disease"}, "Input should be 'diagnosis'"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(rule: dict[str, str], message: str) -> None:
    with pytest.raises(CkdEhrError, match=message):
        build_config({"name": "x", "data": {"meds": {"roles": {"DX//": rule}}}})


def test_a_code_without_a_rule_is_what_its_one_icd_parent_says(
    tmp_path: Path, make_events: Stage
) -> None:
    codes: list[dict[str, object]] = [
        {
            "code": "LOCAL/HF",
            "description": "Heart failure\nCHF",
            "parent_codes": ["ICD10CM/I50.9"],
        },
        {"code": "LOCAL/MIX", "description": "", "parent_codes": ["ICD10CM/I10", "ICD10CM/I11.9"]},
        {"code": "INFUSION_START//1", "description": "", "parent_codes": ["RxNorm/4603"]},
    ]
    root = write_meds(
        tmp_path,
        [*stay(1, 1), *(event(1, "2150-01-05T12:00", str(row["code"])) for row in codes)],
        codes=codes,
    )
    dataset = make_events(root, source="meds")
    assert [read[0] for read in of_kind(dataset, "DIAGNOSIS")] == ["DIAGNOSIS//ICD10CM//I509"]
    assert titles_of(dataset) == {"DIAGNOSIS//ICD10CM//I509": "Heart failure; CHF"}
    assert sum(left_out(dataset).values()) == 2


def test_codes_of_another_dialect_are_shown_by_their_beginnings_alone(
    tmp_path: Path, make_events: Stage
) -> None:
    codes = ["SNOMED/84114007", "SNOMED/38341003", "ADMISSION//CARDIAC", "DISCHARGE",
             "Mrs. Smith/fell at home", "the patient is unwell, she says"]  # fmt: skip
    root = write_meds(
        tmp_path, [event(s, "2150-01-01", code) for s in range(1, 6) for code in codes]
    )
    with pytest.raises(CkdEhrError) as error:
        make_events(root, source="meds")
    assert "codes that are not read: SNOMED × 10, ADMISSION × 5, DISCHARGE × 5)" in str(error.value)
    assert "data.meds.roles" in str(error.value)
    assert not any(word in str(error.value) for word in ("Smith", "patient is", "84114007"))


CANARIES = (
    "77712345", "77712345/LAB//a", "77712345/LAB//b", "MRN_CANARY123", "CANARY, John note/1",
    "CANARY, John note/2", "CANARY1/x", "Canary\nnote/x", " CANARY/x",
)  # fmt: skip


def test_identifiers_and_free_text_in_codes_are_counted_but_never_shown(
    tmp_path: Path, make_events: Stage, said: list[str]
) -> None:
    # However many patients have them; a name, which is a word, only where few have it.
    events = [event(s, "2150-01-02", code) for s in range(1, 8) for code in CANARIES]
    events += [event(s, "2150-01-02", "John Canary/x") for s in range(1, 5) for _ in range(9)]
    events += [event(s, "2150-01-02", f"Vital Sign/{s}") for s in range(1, 6)]
    dataset = make_events(write_meds(tmp_path, [*stay(1, 1), *events]), source="meds")
    assert left_out(dataset) == {
        "of codes Vital Sign, which are not read,": 5,
        "of other codes, which are not read,": 7 * len(CANARIES) + 36,
    }
    with pytest.raises(CkdEhrError) as error:
        make_events(write_meds(tmp_path, events), source="meds")
    assert "codes that are not read: Vital Sign × 5)" in str(error.value)
    shown = "\n".join([*said, (dataset / "rows.json").read_text(), str(error.value)])
    assert "canary" not in shown.lower()
    assert "77712345" not in shown


@pytest.mark.parametrize(
    ("roles", "diagnoses", "drugs"),
    [
        ({"MEDICATION//START": {"role": "none"}}, ["DIAGNOSIS//ICD10CM//I509"], 0),
        (
            {"DIAGNOSIS//ICD//10": {"role": "diagnosis", "system": "ICD9CM"}},
            ["DIAGNOSIS//ICD9CM//I509"],
            1,
        ),
    ],
)
def test_a_rule_overrides_the_built_in_one_without_its_last_slashes_too(
    tmp_path: Path,
    make_events: Stage,
    said: list[str],
    roles: dict[str, object],
    diagnoses: list[str],
    drugs: int,
) -> None:
    root = write_meds(
        tmp_path, [*stay(1, 1), event(1, "2150-01-02", "MEDICATION//START//Furosemide")]
    )
    dataset = make_events(root, source="meds", meds={"roles": roles})
    assert [read[0] for read in of_kind(dataset, "DIAGNOSIS")] == diagnoses
    assert len(of_kind(dataset, "MEDICATION")) == drugs
    assert not any("of data.meds.roles reads no code" in line for line in said)


@pytest.mark.parametrize("prefix", ["DX//", "DIAGNOSIS//ICD"])
def test_a_rule_that_reads_no_code_is_said(
    tmp_path: Path, make_events: Stage, said: list[str], prefix: str
) -> None:
    roles = {prefix: {"role": "none"}, "HOSPITAL_DISCHARGE//HOME": {"role": "discharge"}}
    make_events(write_meds(tmp_path, stay(1, 1)), source="meds", meds={"roles": roles})
    assert [line for line in said if "data.meds.roles" in line] == [
        f"note: the rule {prefix} of data.meds.roles reads no code: none begins so, or a longer "
        "rule reads it"
    ]
