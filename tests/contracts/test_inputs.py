"""visits.jsonl: what is read, and that what is refused is never repeated."""

import copy
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.inputs import SHOWN_PROBLEMS, read_histories
from ckd_ehr.contracts.records import Code

Line = dict[str, Any]
NOBODY = "Zebedee"

PATIENT: Line = {
    "subject_id": 7,
    "visits": [
        {
            "visit_id": "a",
            "admit_time": "2024-01-01T08:00:00",
            "discharge_time": "2024-01-03T09:30:00",
            "age_years": 70.5,
            "sex": "F",
            "diagnoses": [{"system": "ICD9CM", "code": "042"}],
        },
        {
            "visit_id": "b",
            "admit_time": "2024-03-01T08:00:00",
            "discharge_time": "2024-03-02T08:00:00",
            "diagnoses": [{"system": "ICD10CM", "code": "j18.9", "title": "Pneumonia"}],
            "medications": [{"system": "NAME", "code": "Warfarin 2.5 mg"}],
            "procedures": [{"system": "ICD9PROC", "code": "38.93"}],
        },
    ],
}


def patient(change: Callable[[Line], object] = lambda _: None, **fields: object) -> Line:
    line = copy.deepcopy({**PATIENT, **fields})
    change(line)
    return line


def write(folder: Path, *lines: Line | str) -> Path:
    path = folder / "visits.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CkdEhrError) as caught:
        read_histories(path)
    return str(caught.value)


def test_a_line_becomes_a_history_oldest_first(tmp_path: Path) -> None:
    [history] = read_histories(write(tmp_path, patient()))
    first, last = history
    assert (first.subject_id, first.visit_id, last.visit_id) == (7, "a", "b")
    assert first.discharge_time == datetime(2024, 1, 3, 9, 30)
    assert (first.age_years, first.sex, first.died, last.age_years) == (70.5, "F", False, None)


def test_codes_lose_their_dots_and_keep_their_zeros(tmp_path: Path) -> None:
    [(first, last)] = read_histories(write(tmp_path, patient()))
    assert first.diagnoses == (Code("ICD9CM", "042"),)
    assert last.diagnoses == (Code("ICD10CM", "J189", "Pneumonia"),)
    assert last.procedures == (Code("ICD9PROC", "3893"),)
    assert last.medications == (Code("NAME", "Warfarin 2.5 mg"),)


@pytest.mark.parametrize(
    ("system", "written", "code"),
    [
        ("UCI_ICD9", "8", "008"),
        ("UCI_ICD9", "250.83", "25083"),
        ("UCI_ICD9", "v27", "V27"),
        ("ICD9CM", "428 .0", "4280"),
        ("ICD10CM", "J18. 9", "J189"),
    ],
)
def test_codes_are_folded_as_in_training(
    tmp_path: Path, system: str, written: str, code: str
) -> None:
    line = patient(lambda p: p["visits"][0]["diagnoses"][0].update(system=system, code=written))
    [(first, _)] = read_histories(write(tmp_path, line))
    assert first.diagnoses == (Code(system, code),)


def test_a_drug_goes_by_its_name_and_never_by_a_title(tmp_path: Path) -> None:
    line = patient(lambda p: p["visits"][1]["medications"][0].update(title="Coumadin"))
    [(_, last)] = read_histories(write(tmp_path, line))
    assert last.medications == (Code("NAME", "Warfarin 2.5 mg"),)


def test_patients_keep_the_order_of_the_lines(tmp_path: Path) -> None:
    path = write(tmp_path, patient(subject_id=9), "", patient(subject_id=2), "")
    assert [history[0].subject_id for history in read_histories(path)] == [9, 2]


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeff" + json.dumps(patient()))
    assert len(read_histories(path)) == 1


REFUSED: list[tuple[Callable[[Line], object], str, str]] = [
    (lambda p: p.pop("visits"), "visits", "missing"),
    (lambda p: p.update(visits=[]), "visits", "at least one past visit"),
    (lambda p: p.update(subject_id=NOBODY), "subject_id", "valid integer"),
    (lambda p: p.update(subject_id=2**63), "subject_id", "less than"),
    (lambda p: p.update(visit=NOBODY), "unknown key 'visit'", "did you mean 'visits'"),
    (
        lambda p: p["visits"][1].update({f"{NOBODY} 12": 1}),
        "visits[1]: an unknown key; leave it out",
        "(known: visit_id, admit_time",
    ),
    (lambda p: p.update({NOBODY: 1}), "an unknown key; leave it out", "(known: subject_id, visits"),
    (
        lambda p: p["visits"][0]["diagnoses"][0].update(titel=NOBODY),
        "visits[0].diagnoses[0]: unknown key 'titel'",
        "did you mean 'title'",
    ),
    (
        lambda p: p["visits"][0]["diagnoses"][0].update(system="ICD9"),
        "visits[0].diagnoses[0].system",
        "did you mean 'ICD9CM'? (known: ICD9CM, ICD10CM",
    ),
    (
        lambda p: p["visits"][1]["procedures"][0].update(system="icd10pc"),
        "visits[1].procedures[0].system",
        "did you mean 'ICD10PCS'",
    ),
    (
        lambda p: p["visits"][0]["diagnoses"][0].update(code=42),
        "visits[0].diagnoses[0].code",
        "valid string",
    ),
    (
        lambda p: p["visits"][0]["diagnoses"][0].update(code=" "),
        "visits[0].diagnoses[0].code",
        "at least 1",
    ),
    (
        lambda p: p["visits"][0]["diagnoses"][0].update(code="."),
        "visits[0].diagnoses[0].code",
        "no letter or digit in the code; write the code",
    ),
    (
        lambda p: p["visits"][1]["procedures"][0].update(code=". ."),
        "visits[1].procedures[0].code",
        "no letter or digit in the code",
    ),
    (
        lambda p: p["visits"][1]["medications"][0].update(code="-"),
        "visits[1].medications[0].code",
        "no letter or digit in the code",
    ),
    (lambda p: p["visits"][0].update(admit_time=NOBODY), "visits[0].admit_time", "not a time"),
    (
        lambda p: p["visits"][0].update(admit_time="2024-01-01T08:00:00Z"),
        "visits[0].admit_time",
        "local time without zone",
    ),
    (lambda p: p["visits"][0].update(admit_time=1704096000), "visits[0].admit_time", "not a time"),
    (
        lambda p: p["visits"][0].update(discharge_time="2023-12-31T08:00:00"),
        "visits[0]",
        "discharge_time is before admit_time",
    ),
    (lambda p: p["visits"][0].update(diagnoses=[]), "visits[0]", "the visit is empty"),
    (lambda p: p["visits"][1].update(visit_id="a"), "visits[1]", "the visit_id of visits[0]"),
    (lambda p: p["visits"].reverse(), "visits[1]", "oldest first"),
    (
        lambda p: p["visits"][0].update(discharge_time="2024-03-05T08:00:00"),
        "visits[1].discharge_time",
        "before that of visits[0]",
    ),
    (lambda p: p["visits"][0].update(age_years=-1), "visits[0].age_years", "greater than"),
    (lambda p: p["visits"][0].update(age_years=float("nan")), "visits[0].age_years", "finite"),
    (lambda p: p["visits"][0].update(sex=NOBODY), "visits[0].sex", "'F' or 'M'"),
]


@pytest.mark.parametrize(("change", "field", "words"), REFUSED)
def test_a_bad_line_is_named_by_line_field_and_remedy(
    tmp_path: Path, change: Callable[[Line], object], field: str, words: str
) -> None:
    path = write(tmp_path, patient(subject_id=1), patient(change))
    message = refusal(path)
    problem, hint = message.rsplit("\n", 1)
    assert problem.startswith(f"{path}:2: {field}")
    assert words in problem
    assert "docs/visits.schema.json" in hint
    assert "\n" not in problem
    assert NOBODY not in message


@pytest.mark.parametrize("text", ["{", '{"subject_id": 7', NOBODY, '["Zebedee"]', "NaN", "3"])
def test_a_line_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    message = refusal(write(tmp_path, text))
    assert ":1: " in message
    assert NOBODY not in message


def test_a_patient_on_two_lines_is_refused(tmp_path: Path) -> None:
    assert ":2: subject_id: the patient of line 1 again" in refusal(
        write(tmp_path, patient(), patient())
    )


def test_all_bad_lines_are_named_up_to_a_limit(tmp_path: Path) -> None:
    bad = [patient(subject_id=n, visits=[]) for n in range(SHOWN_PROBLEMS + 5)]
    message = refusal(write(tmp_path, *bad))
    assert message.count("at least one past visit") == SHOWN_PROBLEMS
    assert "… and 5 more" in message


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "absent.jsonl")
    assert "this is a folder" in refusal(tmp_path)
    assert "no patient in this file" in refusal(write(tmp_path, "", " "))
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(b'{"subject_id": "caf\xe9"}')
    assert "not UTF-8 at byte 19" in refusal(latin)


@given(st.text(max_size=30), st.sampled_from(["admit_time", "sex", "visit_id", "nonsense"]))
def test_whatever_stands_in_a_field_never_reaches_the_message(value: str, key: str) -> None:
    import tempfile

    marked = f"\u2603{value}\u2603"
    line = patient(lambda p: p["visits"][0].update({key: {marked: marked}}))
    with tempfile.TemporaryDirectory() as folder:
        assert "\u2603" not in refusal(write(Path(folder), line))
