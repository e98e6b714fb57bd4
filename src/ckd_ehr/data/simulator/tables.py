"""The simulated hospital's paperwork: stays in, MIMIC-III 1.4 tables out, some patients at a time.

Five tables of records and two of titles, with the full release's upper-case headers and all their
columns; what the simulator does not know is empty. With ICD-10 the column ICD9_CODE is called
ICD10_CODE. Drug names come in several spellings. Ignores: how the stays came about.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ckd_ehr.data.simulator.catalogue import (
    CodeChoice,
    Coding,
    Drug,
    HospitalName,
    Ints,
    Texts,
)
from ckd_ehr.data.simulator.coding import write_bills
from ckd_ehr.data.simulator.course import DAY, URGENT_SHARE, Stays
from ckd_ehr.data.simulator.titles import CodeKind, titles
from ckd_ehr.data.simulator.world import FIRST_STAY, World

PATIENTS_TOGETHER = 4_096
ORDERS = 1.4  # further prescriptions of a drug in a stay
BASE_GIVEN = 0.8  # chance that a stay's drugs came in a solution, listed as BASE
BASE_DRUGS = ("D5W", "NS", "0.9% Sodium Chloride", "Iso-Osmotic Dextrose", "SW")
SPELLINGS = (0.7, 0.1, 0.1, 0.1)
BROKEN_SHARE = 0.002
HIDDEN_AGE_YEARS = 89  # MIMIC-III moves the birth of older patients 300 years back
YEAR = 365.25 * DAY

ETHNICITIES: Mapping[str, float] = {
    "WHITE": 0.7,
    "BLACK/AFRICAN AMERICAN": 0.11,
    "HISPANIC OR LATINO": 0.05,
    "ASIAN": 0.04,
    "OTHER": 0.03,
    "UNKNOWN/NOT SPECIFIED": 0.07,
}
INSURANCES = ("Medicare", "Private", "Medicaid", "Government")
MARITAL_STATUSES = ("MARRIED", "SINGLE", "WIDOWED", "DIVORCED")
CODE_COLUMNS: Mapping[Coding, str] = {"icd9": "ICD9_CODE", "icd10": "ICD10_CODE"}

Tables = dict[str, pa.Table]


@dataclass(frozen=True)
class Habits:
    """How a hospital writes things down."""

    choices: Sequence[CodeChoice]
    coding: Coding
    hospital: HospitalName
    broken_rows: bool
    detail: float


def dictionaries(habits: Habits) -> Tables:
    """D_ICD_DIAGNOSES and D_ICD_PROCEDURES: every code that has a title."""
    return {
        "D_ICD_DIAGNOSES": _dictionary(habits.coding, "diagnosis"),
        "D_ICD_PROCEDURES": _dictionary(habits.coding, "procedure"),
    }


def paperwork(seed: np.random.SeedSequence, habits: Habits, world: World) -> Iterator[Tables]:
    """The five tables of records of some patients after others; ROW_ID runs on."""
    written: dict[str, int] = {}
    count, stays_before = len(world.subject_ids), 0
    for number, block in enumerate(seed.spawn(-(-count // PATIENTS_TOGETHER))):
        first, end = (min((number + n) * PATIENTS_TOGETHER, count) for n in (0, 1))
        some, patients = world.patients(first, end), np.arange(first, end)
        tables = _tables_of(np.random.default_rng(block), habits, some, patients)
        if habits.broken_rows:
            # As many ids are free as there are stays.
            free_hadm_id = FIRST_STAY + len(world.hadm_ids) + stays_before
            rng = np.random.default_rng(block.spawn(1)[0])
            tables = _broken(rng, tables, CODE_COLUMNS[habits.coding], free_hadm_id)
        stays_before += len(some.hadm_ids)
        for name, table in tables.items():
            before = written.get(name, 0)
            written[name] = before + table.num_rows
            ids = pa.array(np.arange(before, written[name]) + 1)
            tables[name] = table.add_column(0, "ROW_ID", ids)
        yield tables


def _tables_of(rng: np.random.Generator, habits: Habits, world: World, patients: Ints) -> Tables:
    stays, coding = world.stays, habits.coding
    who = pa.table({"SUBJECT_ID": world.subject_ids[stays.patient], "HADM_ID": world.hadm_ids})
    bill = write_bills(rng, habits.choices, world.coded, patient=stays.patient, coding=coding)
    treated, procedure = np.nonzero(stays.procedures)
    reasons = bill.code[np.unique(bill.stay, return_index=True)[1]]
    column, codes = CODE_COLUMNS[coding], world.medicine.procedures[coding]
    return {
        "ADMISSIONS": _admissions(rng, stays, who, reasons=_short_titles(reasons, coding)),
        "PATIENTS": _patients(world, patients),
        "DIAGNOSES_ICD": _coded(who, bill.stay, bill.code, column),
        "PROCEDURES_ICD": _coded(who, treated, codes[procedure], column),
        "PRESCRIPTIONS": _prescriptions(rng, habits, world, who),
    }


def _admissions(
    rng: np.random.Generator, stays: Stays, who: pa.Table, *, reasons: Sequence[str | None]
) -> pa.Table:
    count = len(stays.patient)
    urgent = ~stays.elective & (rng.random(count) < URGENT_SHARE)
    emergency = ~stays.elective & ~urgent
    waited = stays.admit_seconds - rng.integers(1, 10, size=count) * 3600
    _, person = np.unique(stays.patient, return_inverse=True)
    persons = int(person.max(initial=-1)) + 1
    ethnicity = rng.choice(list(ETHNICITIES), size=persons, p=list(ETHNICITIES.values()))
    insurance = _draw(rng, INSURANCES, persons)
    married = _draw(rng, MARITAL_STATUSES, persons)
    home = _draw(rng, ("HOME", "HOME HEALTH CARE", "SNF", "REHAB/DISTINCT PART HOSP"), count)
    planned = np.where(urgent, "URGENT", "ELECTIVE")
    columns = {
        "ADMITTIME": _time(stays.admit_seconds),
        "DISCHTIME": _time(stays.discharge_seconds),
        "DEATHTIME": _time(stays.discharge_seconds, where=stays.died),
        "ADMISSION_TYPE": np.where(emergency, "EMERGENCY", planned),
        "ADMISSION_LOCATION": np.where(
            emergency, "EMERGENCY ROOM ADMIT", "PHYS REFERRAL/NORMAL DELI"
        ),
        "DISCHARGE_LOCATION": np.where(stays.died, "DEAD/EXPIRED", home),
        "INSURANCE": insurance[person],
        "LANGUAGE": _empty(count),
        "RELIGION": _empty(count),
        "MARITAL_STATUS": married[person],
        "ETHNICITY": ethnicity[person],
        "EDREGTIME": _time(waited, where=emergency),
        "EDOUTTIME": _time(stays.admit_seconds, where=emergency),
        "DIAGNOSIS": pa.array(reasons, pa.string()),
        "HOSPITAL_EXPIRE_FLAG": stays.died.astype(np.int64),
        "HAS_CHARTEVENTS_DATA": np.ones(count, dtype=np.int64),
    }
    return _beside(who, columns)


def _patients(world: World, patients: Ints) -> pa.Table:
    people, stays, subject_ids = world.people, world.stays, world.subject_ids
    first = np.searchsorted(stays.patient, patients)
    last = np.searchsorted(stays.patient, patients, side="right") - 1
    age_years = people.age_years[patients]
    shown_years = np.where(age_years > HIDDEN_AGE_YEARS, 300.0, age_years)
    birth = stays.admit_seconds[first] - (shown_years * YEAR).astype(np.int64)
    in_hospital = stays.died[last]
    at_home = np.isfinite(stays.death_days[last])
    days_left = np.where(at_home, stays.death_days[last], 0)
    death = _midnight(stays.discharge_seconds[last] + (days_left * DAY).astype(np.int64))
    dead = in_hospital | at_home
    return pa.table(
        {
            "SUBJECT_ID": subject_ids[patients],
            "GENDER": np.where(people.male[patients], "M", "F"),
            "DOB": _time(_midnight(birth)),
            "DOD": _time(death, where=dead),
            "DOD_HOSP": _time(death, where=in_hospital),
            "DOD_SSN": _time(death, where=at_home),
            "EXPIRE_FLAG": dead.astype(np.int64),
        }
    ).sort_by("SUBJECT_ID")


def _coded(who: pa.Table, stay: Ints, codes: Texts, column: str) -> pa.Table:
    first = np.searchsorted(stay, stay)
    number = np.arange(len(stay)) - first + 1
    return _beside(who.take(stay), {"SEQ_NUM": number, column: codes})


def _prescriptions(
    rng: np.random.Generator, habits: Habits, world: World, who: pa.Table
) -> pa.Table:
    """Each drug once or several times, from a day of the stay on; solutions besides."""
    stays, drugs = world.stays, world.medicine.drugs
    stay, drug = np.nonzero(stays.drugs)
    orders = 1 + rng.poisson(ORDERS * habits.detail, size=len(stay))
    stay, drug = np.repeat(stay, orders), np.repeat(drug, orders)
    in_solution = np.flatnonzero(rng.random(len(stays.patient)) < BASE_GIVEN * habits.detail)
    base = rng.integers(len(drugs), len(drugs) + len(BASE_DRUGS), size=len(in_solution))
    stay, drug = np.concatenate([stay, in_solution]), np.concatenate([drug, base])
    days = stays.stay_days[stay]
    start = _midnight(
        stays.admit_seconds[stay] + (rng.random(len(stay)) ** 2 * days * DAY).astype(np.int64)
    )
    # A solution stands beside the drug that began with it.
    order = np.lexsort((rng.random(len(stay)), start, stay))
    stay, drug, start, days = stay[order], drug[order], start[order], days[order]
    lasts = (rng.random(len(stay)) * np.minimum(days, 7) * DAY).astype(np.int64)
    end = np.minimum(_midnight(start + lasts), _midnight(stays.discharge_seconds[stay]))
    spelling = rng.choice(len(SPELLINGS), size=len(drug), p=SPELLINGS)
    columns: dict[str, object] = {
        "ICUSTAY_ID": _empty(len(stay)),
        "STARTDATE": _time(start),
        "ENDDATE": _time(end),
    }
    names = _names(drugs, habits.hospital)
    for name, values in _formulary(drugs, names).items():
        columns[name] = pa.array(values, pa.string()).take(pa.array(drug))
    spelt = [spelling for pair in zip(names, drugs, strict=False) for spelling in _spellings(*pair)]
    spelt += [name for name in BASE_DRUGS for _ in SPELLINGS]
    columns["DRUG"] = pa.array(spelt).take(pa.array(drug * len(SPELLINGS) + spelling))
    return _beside(who.take(stay), columns)


def _names(drugs: Sequence[Drug], hospital: HospitalName) -> list[str]:
    """What the hospital calls each drug, and the solutions."""
    return [drug.other_name if hospital == "b" else drug.name for drug in drugs] + list(BASE_DRUGS)


def _spellings(name: str, drug: Drug) -> tuple[str, str, str, str]:
    """As a pharmacy enters a name now and then."""
    return name, name.lower(), name.upper(), f"{name} {drug.strength}".strip()


def _formulary(drugs: Sequence[Drug], names: Sequence[str]) -> Mapping[str, Sequence[str | None]]:
    """Columns of PRESCRIPTIONS, in its order, an entry for each drug and each solution."""
    count, solutions = len(names), len(BASE_DRUGS)
    return {
        "DRUG_TYPE": ["MAIN"] * len(drugs) + ["BASE"] * solutions,
        "DRUG": [None] * count,
        "DRUG_NAME_POE": list(names),
        "DRUG_NAME_GENERIC": list(names),
        "FORMULARY_DRUG_CD": [f"{name[:4].upper().strip()}{n}" for n, name in enumerate(names)],
        "GSN": [f"{n * 37 + 1000:06d}" for n in range(count)],
        "NDC": [f"{n * 7_919 + 5_000_000:011d}" for n in range(count)],
        "PROD_STRENGTH": [drug.strength or None for drug in drugs] + ["250mL Bag"] * solutions,
        "DOSE_VAL_RX": ["1"] * count,
        "DOSE_UNIT_RX": ["DOSE"] * count,
        "FORM_VAL_DISP": ["1"] * count,
        "FORM_UNIT_DISP": ["UNIT"] * count,
        "ROUTE": [drug.route for drug in drugs] + ["IV"] * solutions,
    }


def _broken(rng: np.random.Generator, tables: Tables, code: str, free_hadm_id: int) -> Tables:
    """Stays that end before they start, empty codes, rows entered twice."""
    admissions, diagnoses = tables["ADMISSIONS"], tables["DIAGNOSES_ICD"]
    prescriptions = tables["PRESCRIPTIONS"]
    left_alive = np.flatnonzero(admissions["HOSPITAL_EXPIRE_FLAG"].to_numpy() == 0)
    backward = admissions.take(_some(rng, left_alive))
    ids = pa.array(np.arange(backward.num_rows) + free_hadm_id)
    came, left = backward["ADMITTIME"], backward["DISCHTIME"]
    backward = _replace(backward, {"HADM_ID": ids, "ADMITTIME": left, "DISCHTIME": came})
    emptied = diagnoses.take(_some(rng, np.arange(diagnoses.num_rows)))
    emptied = _replace(emptied, {code: _empty(emptied.num_rows)})
    doubled = diagnoses.take(_some(rng, np.arange(diagnoses.num_rows)))
    again = prescriptions.take(_some(rng, np.arange(prescriptions.num_rows)))
    return {
        **tables,
        "ADMISSIONS": pa.concat_tables([admissions, backward]),
        "DIAGNOSES_ICD": pa.concat_tables([diagnoses, emptied, doubled]),
        "PRESCRIPTIONS": pa.concat_tables([prescriptions, again]),
    }


def _replace(table: pa.Table, columns: dict[str, object]) -> pa.Table:
    for name, column in columns.items():
        values = column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
        table = table.set_column(table.schema.get_field_index(name), name, values)
    return table


def _some(rng: np.random.Generator, rows: Ints) -> Ints:
    return rng.choice(rows, size=min(len(rows), 1 + int(len(rows) * BROKEN_SHARE)), replace=False)


def _dictionary(coding: Coding, kind: CodeKind) -> pa.Table:
    rows = sorted((code, *both) for code, both in titles(coding, kind).items())
    code, short, long = zip(*rows, strict=True)
    table = pa.table({CODE_COLUMNS[coding]: code, "SHORT_TITLE": short, "LONG_TITLE": long})
    return table.add_column(0, "ROW_ID", pa.array(np.arange(1, table.num_rows + 1)))


def _short_titles(codes: Texts, coding: Coding) -> list[str | None]:
    """In capitals, as an admitting diagnosis; outdated codes have none."""
    known = titles(coding, "diagnosis")
    return [known[code][0].upper() if code in known else None for code in codes.tolist()]


def _draw(rng: np.random.Generator, choices: Sequence[str], count: int) -> Texts:
    return np.array(choices)[rng.integers(0, len(choices), size=count)]


def _midnight(seconds: Ints) -> Ints:
    return seconds // DAY * DAY


def _time(seconds: Ints, where: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    return pa.array(seconds, mask=None if where is None else ~where).cast(pa.timestamp("s"))


def _empty(count: int) -> pa.Array:
    return pa.nulls(count, pa.string())


def _beside(table: pa.Table, columns: dict[str, object]) -> pa.Table:
    for name, column in columns.items():
        table = table.append_column(name, pa.chunked_array([pa.array(column)]))
    return table
