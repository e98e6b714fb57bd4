"""The leak audit: a clean cohort passes, every planted leak is found."""

import datetime
from collections.abc import Callable

import pyarrow as pa
import pytest

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.records import NARRATIVES, PAIRS, VISITS
from ckd_ehr.data.audit import audit_cohort, audit_narratives

Rows = list[dict[str, object]]
DAY = datetime.timedelta(days=1)
START = datetime.datetime(2100, 1, 1)
HEART = {"system": "ICD9CM", "code": "4280", "title": "Congestive heart failure"}
SEPSIS = {"system": "ICD9CM", "code": "0389", "title": "Unspecified septicemia"}


def visits() -> Rows:
    """Patient 1 has visits 10001, 10002 and 10003; patient 2 has 20001 and 20002."""
    ids = [(1, "10001"), (1, "10002"), (1, "10003"), (2, "20001"), (2, "20002")]
    return [
        {
            "visit_id": visit_id,
            "subject_id": subject,
            "admit_time": START + int(visit_id[-1]) * 10 * DAY,
            "discharge_time": START + (int(visit_id[-1]) * 10 + 2) * DAY,
            "age_years": 60.0,
            "sex": "F",
            "ethnicity": None,
            "admission_type": None,
            "died": False,
            "diagnoses": [SEPSIS] if visit_id == "10003" else [HEART],
            "medications": [],
            "procedures": [],
        }
        for subject, visit_id in ids
    ]


def pairs() -> Rows:
    def pair(key: str, subject: int, history: list[str], next_id: str | None) -> dict[str, object]:
        return {
            "pair_id": key,
            "subject_id": subject,
            "history": history,
            "prediction_time": START + (int(history[-1][-1]) * 10 + 2) * DAY,
            "next_visit_id": next_id,
            "gap_days": None if next_id is None else 8.0,
            "labels": None if next_id is None else [True],
            "split": "train" if subject == 1 else "tuning",
            "fold": 0 if subject == 1 else -1,
        }

    return [
        pair("p1", 1, ["10001"], "10002"),
        pair("p2", 1, ["10001", "10002"], "10003"),
        pair("p3", 1, ["10001", "10002", "10003"], None),
        pair("p4", 2, ["20001"], "20002"),
    ]


def check_cohort(visit_rows: Rows, pair_rows: Rows) -> None:
    audit_cohort(
        pa.Table.from_pylist(visit_rows, schema=VISITS),
        pa.Table.from_pylist(pair_rows, schema=PAIRS),
    )


def test_a_clean_cohort_passes() -> None:
    check_cohort(visits(), pairs())


Change = Callable[[Rows, Rows], object]
COHORT_LEAKS: list[tuple[str, Change]] = [
    ("1 patients stand in two splits", lambda v, p: p[0].update(split="held_out", fold=-1)),
    ("1 patients stand in two folds", lambda v, p: p[0].update(fold=1)),
    ("1 train pairs have no fold", lambda v, p: p[3].update(fold=1)),
    ("1 pairs have the same pair_id", lambda v, p: p[0].update(pair_id="p2")),
    ("1 history or next visits are not among", lambda v, p: p[3].update(next_visit_id="20009")),
    (
        "1 history visits were discharged after prediction_time",
        lambda v, p: p[0].update(history=["10002", "10001"]),
    ),
    (
        "1 histories do not end with the discharge",
        lambda v, p: p[3].update(prediction_time=START + 13 * DAY),
    ),
    (
        "1 next visits were admitted before prediction_time",
        lambda v, p: v[4].update(admit_time=START + 11 * DAY),
    ),
    ("1 pairs have labels without a next visit", lambda v, p: p[2].update(labels=[True])),
    ("1 pairs have labels without a next visit", lambda v, p: p[3].update(labels=None)),
    ("1 pairs have labels without a next visit", lambda v, p: v[2].update(diagnoses=[])),
    ("1 pairs mix visits of several patients", lambda v, p: v[4].update(subject_id=3)),
    (
        "1 unlabelled pairs stand outside train or follow a death",
        lambda v, p: v[2].update(died=True),
    ),
    (
        "1 unlabelled pairs stand outside train or follow a death",
        lambda v, p: p[3].update(next_visit_id=None, labels=None),
    ),
]


@pytest.mark.parametrize(("message", "change"), COHORT_LEAKS)
def test_a_leak_planted_in_the_cohort_is_found(message: str, change: Change) -> None:
    visit_rows, pair_rows = visits(), pairs()
    change(visit_rows, pair_rows)
    with pytest.raises(CkdEhrError, match=f"leak audit of stage 'cohort': {message}"):
        check_cohort(visit_rows, pair_rows)


def test_a_next_visit_that_was_not_coded_has_no_labels() -> None:
    visit_rows, pair_rows = visits(), pairs()
    visit_rows[2]["diagnoses"] = []
    pair_rows[1]["labels"] = None
    check_cohort(visit_rows, pair_rows)
    visit_rows[4]["diagnoses"] = []
    pair_rows[3]["labels"] = None
    with pytest.raises(CkdEhrError, match="1 unlabelled pairs stand outside train"):
        check_cohort(visit_rows, pair_rows)


def test_a_next_visit_of_no_length_in_its_own_history_is_found() -> None:
    visit_rows, pair_rows = visits(), pairs()
    visit_rows[2]["admit_time"] = visit_rows[2]["discharge_time"]
    pair_rows[2] |= {"next_visit_id": "10003", "labels": [True]}
    with pytest.raises(CkdEhrError, match="1 histories hold their own next visit"):
        check_cohort(visit_rows, pair_rows)


def narratives() -> Rows:
    """Of each pair and reader: `A woman. Visit 1: heart trouble; Visit 2: …`."""
    rows: Rows = []
    for pair in pairs():
        history = pair["history"]
        assert isinstance(history, list)
        text, spans = "A woman.", [span(2, 7, kind="demographics", system="GENDER", code="F")]
        for index, visit_id in enumerate(history):
            code = SEPSIS if visit_id == "10003" else HEART
            text += f" Visit {index + 1}: "
            words = "blood poisoning, expired" if code is SEPSIS else "heart trouble"
            spans.append(span(len(text), len(text) + len(words), index=index, code=code["code"]))
            text += words + "."
        for reader in ("teacher", "student"):
            rows.append(
                {
                    "pair_id": pair["pair_id"],
                    "reader": reader,
                    "text": text,
                    "spans": [dict(part) for part in spans],
                    "concepts_cut": 0,
                }
            )
    return rows


def span(
    start: int,
    end: int,
    *,
    kind: str = "diagnosis",
    system: str = "ICD9CM",
    code: str,
    index: int = -1,
) -> dict[str, object]:
    return {
        "start": start,
        "end": end,
        "concept_id": f"{index}/{kind}/{system}/{code}/0",
        "kind": kind,
        "system": system,
        "code": code,
        "visit_index": index,
        "from_knowledge": False,
    }


def check_narratives(narrative_rows: Rows) -> None:
    audit_narratives(
        pa.Table.from_pylist(narrative_rows, schema=NARRATIVES),
        pa.Table.from_pylist(pairs(), schema=PAIRS),
        pa.Table.from_pylist(visits(), schema=VISITS),
    )


def spans_of(row: dict[str, object]) -> Rows:
    found = row["spans"]
    assert isinstance(found, list)
    return found


def add(words: str) -> Callable[[Rows], object]:
    """Append words to the text of the second pair, whose next visit is 10003, outside spans."""
    return lambda rows: rows[2].update(text=f"{rows[2]['text']} {words}")


def test_clean_narratives_pass_and_titles_may_speak_of_death() -> None:
    check_narratives(narratives())


def test_the_future_of_a_pair_may_stand_in_knowledge_spans() -> None:
    rows = narratives()
    spans_of(rows[2])[1].update(code=SEPSIS["code"], from_knowledge=True)
    check_narratives(rows)


def test_harmless_numbers_pass() -> None:
    rows = narratives()
    for words in ("She is 73.", "Visit 10004.", "Stay of 5 days.", "Deathly ill: dietary."):
        add(words)(rows)
    check_narratives(rows)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("1 narratives are missing, or belong to no pair", lambda rows: rows.pop()),
        ("2 narratives are missing", lambda rows: rows[0].update(pair_id="p9")),
        ("1 pairs have several narratives", lambda rows: rows.append(rows[0])),
        ("1 spans lie outside their text", lambda rows: spans_of(rows[0])[1].update(end=999)),
        ("1 spans lie outside their text", lambda rows: spans_of(rows[0])[0].update(start=7)),
        (
            "1 spans show a code of the next visit that no history visit has",
            lambda rows: spans_of(rows[2])[1].update(code=SEPSIS["code"]),
        ),
        (
            "1 spans show a code that their history visit does not have",
            lambda rows: spans_of(rows[0])[1].update(code="4019"),
        ),
        (
            "1 spans show a code that their history visit does not have",
            lambda rows: spans_of(rows[0])[1].update(visit_index=1),
        ),
        ("1 texts hold the id of the next visit", add("See 10003.")),
        ("1 texts tell a date", add("She was readmitted.")),
        ("1 texts tell a date", add("A re-admission.")),
        ("1 texts tell a date", add("She DIED.")),
        ("1 texts tell a date", add("Patient expired.")),
        ("1 texts tell a date", add("Back 8 days later.")),
        ("1 texts tell a date", add("Seen 2100-02-01.")),
        ("1 texts tell a date", add("Seen 2/1/2100.")),
        ("1 texts hold outside concepts the title", add("With unspecified septicemia.")),
    ],
)
def test_a_leak_planted_in_a_narrative_is_found(
    message: str, change: Callable[[Rows], object]
) -> None:
    rows = narratives()
    change(rows)
    with pytest.raises(CkdEhrError, match=f"leak audit of stage 'knowledge': {message}"):
        check_narratives(rows)
