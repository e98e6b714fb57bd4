"""Invented patients and what a bundle says of them: does it say so here, too?

In: the codes that training knew. Out: histories drawn code by code, which are nobody's, and how far
answers are from the expected ones. Ignores: who answers.
"""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ckd_ehr.contracts.files import read_json, write_bytes, write_json
from ckd_ehr.contracts.inputs import PatientInput, read_histories
from ckd_ehr.contracts.records import Visit
from ckd_ehr.learning.scoring import Floats
from ckd_ehr.release.known_codes import Codes

VISITS, EXPECTED = Path("golden", "visits.jsonl"), Path("golden", "expected.json")
PATIENTS = 16
TOLERANCE = {"fp32": 1e-4, "int8": 2e-3}
FIELDS = {"ICD9PROC": "procedures", "ICD10PCS": "procedures", "NAME": "medications"}
ODD: tuple[tuple[str, dict[str, str]], ...] = (  # in every golden set
    ("medications", {"system": "NAME", "code": "acétaminophène 500 mg"}),
    ("diagnoses", {"system": "ICD10CM", "code": "ZZZ9", "title": "A code of nowhere"}),
)


class Golden(NamedTuple):
    """Histories, and by precision the expected probabilities (histories, labels)."""

    histories: list[tuple[Visit, ...]]
    probabilities: dict[str, Floats]


def invent_patients(known: Codes, *, seed: int, patients: int = PATIENTS) -> list[PatientInput]:
    """Patients of 1 to 6 visits with codes drawn at random; the first has odd codes alone."""
    rng, pool = np.random.default_rng(seed), sorted(known)
    invented = []
    for number in range(patients):
        visits = [_visit(rng, pool if number else [], place) for place in range(1 + number % 6)]
        line = {"subject_id": number + 1, "visits": visits}
        invented.append(PatientInput.model_validate(line, strict=False))
    return invented


def _visit(rng: np.random.Generator, pool: Sequence[tuple[str, str]], place: int) -> dict[str, Any]:
    day = datetime.datetime(2000, 1, 1) + datetime.timedelta(days=30 * place)
    visit: dict[str, Any] = {
        "visit_id": f"invented-{place}",
        "admit_time": day,
        "discharge_time": day + datetime.timedelta(days=2),
        "age_years": float(rng.integers(20, 90)),
        "sex": str(rng.choice(["F", "M"])),
        "diagnoses": [],
        "medications": [],
        "procedures": [],
    }
    count = min(len(pool), int(rng.integers(1, 13)))
    for row in rng.choice(len(pool), count, replace=False) if count else ():
        system, code = pool[row]
        visit[FIELDS.get(system, "diagnoses")].append({"system": system, "code": code})
    if not count:
        for field, code in ODD:
            visit[field].append(code)
    return visit


def write_patients(folder: Path, patients: Sequence[PatientInput]) -> None:
    """Write golden/visits.jsonl."""
    lines = "".join(f"{patient.model_dump_json()}\n" for patient in patients)
    write_bytes(folder / VISITS, lines.encode())


def write_expected(folder: Path, probabilities: dict[str, Floats]) -> None:
    """Write golden/expected.json."""
    rounded = {name: np.round(values, 7).tolist() for name, values in probabilities.items()}
    write_json(folder / EXPECTED, rounded)


def read_golden(folder: Path) -> Golden:
    """A bundle's golden set; nothing is expected while the bundle is being made."""
    path = folder / EXPECTED
    expected = read_json(path) if path.is_file() else {}
    return Golden(
        histories=read_histories(folder / VISITS),
        probabilities={name: np.array(values) for name, values in expected.items()},
    )


def difference(
    found: Floats, expected: Floats, *, thresholds: Floats, precision: str
) -> str | None:
    """What is wrong with the answers (histories, labels), in words; None where nothing is.

    >>> p = np.array([[0.5]])
    >>> difference(p + 0.01, p, thresholds=np.array([0.9]), precision="int8")
    'is up to 0.01 off its golden set (at most 0.002)'
    >>> difference(p + 0.001, p, thresholds=np.array([0.9]), precision="int8") is None
    True
    """
    largest = float(np.abs(found - expected).max())
    if not largest <= TOLERANCE[precision]:
        return f"is up to {largest:.2g} off its golden set (at most {TOLERANCE[precision]:g})"
    if flips := int(((found >= thresholds) != (expected >= thresholds)).sum()):
        return f"decides {flips} times otherwise on its golden set"
    return None
