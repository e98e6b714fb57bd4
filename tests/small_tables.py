"""Tables of visits and pairs written by hand."""

import datetime

import pyarrow as pa

from ckd_ehr.contracts.records import PAIRS, VISITS, pair_id_of


def visits_table(rows: list[tuple[str, int, list[str], list[str]]]) -> pa.Table:
    """Visits from (visit_id, subject_id, ICD-9 diagnoses, drugs), a year apart."""
    start = datetime.datetime(2100, 1, 1)
    days = [start + datetime.timedelta(days=365 * number) for number in range(len(rows))]
    code = {"system": "ICD9CM", "title": None}
    drug = {"system": "NAME", "title": None}
    records = [
        {
            "visit_id": visit_id,
            "subject_id": subject_id,
            "admit_time": day,
            "discharge_time": day + datetime.timedelta(days=2),
            "age_years": 50.0 + number,
            "sex": "F" if subject_id % 2 else None,
            "ethnicity": None,
            "admission_type": None,
            "died": False,
            "diagnoses": [{**code, "code": diagnosis} for diagnosis in diagnoses],
            "medications": [{**drug, "code": name} for name in drugs],
            "procedures": [],
        }
        for number, (day, (visit_id, subject_id, diagnoses, drugs)) in enumerate(
            zip(days, rows, strict=True)
        )
    ]
    return pa.Table.from_pylist(records, schema=VISITS)


def pairs_table(histories: list[list[str]], *, split: str = "train") -> pa.Table:
    records = [
        {
            "pair_id": pair_id_of(number, history[-1]),
            "subject_id": number,
            "history": history,
            "prediction_time": datetime.datetime(2101, 1, 1),
            "next_visit_id": "n",
            "gap_days": 3.0,
            "labels": [True],
            "split": split,
            "fold": 0,
        }
        for number, history in enumerate(histories)
    ]
    return pa.Table.from_pylist(records, schema=PAIRS)


VISIT_ROWS = [
    ("a", 1, ["042", "4280"], ["aspirin"]),
    ("b", 1, ["4280"], []),
    ("c", 2, ["42"], ["aspirin", "aspirin"]),
]
