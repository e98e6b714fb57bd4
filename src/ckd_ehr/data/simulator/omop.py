"""The simulated hospital as an OMOP CDM 5.4 database: MIMIC-III tables in, OMOP tables out.

Seven tables with the official columns in their official order; what the simulator does not know
is empty. Diagnoses and procedures are the source's ICD codes, without a standard concept, as in
databases that were never mapped; `concept` has their titles. Ignores: eras, observation periods,
vocabularies other than the two, and drugs' ingredients. A row stays a row, broken ones too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ckd_ehr.data.simulator.catalogue import Coding
from ckd_ehr.data.simulator.layouts import (
    Column,
    Tables,
    death_times,
    least_of_patient,
    main_drugs,
    of_stay,
    with_dot,
)
from ckd_ehr.data.simulator.tables import CODE_COLUMNS
from ckd_ehr.data.simulator.titles import CodeKind

# https://ohdsi.github.io/CommonDataModel/cdm54.html
_COLUMNS = {
    "person": """person_id gender_concept_id year_of_birth month_of_birth day_of_birth
        birth_datetime race_concept_id ethnicity_concept_id location_id provider_id care_site_id
        person_source_value gender_source_value gender_source_concept_id race_source_value
        race_source_concept_id ethnicity_source_value ethnicity_source_concept_id""",
    "visit_occurrence": """visit_occurrence_id person_id visit_concept_id visit_start_date
        visit_start_datetime visit_end_date visit_end_datetime visit_type_concept_id provider_id
        care_site_id visit_source_value visit_source_concept_id admitted_from_concept_id
        admitted_from_source_value discharged_to_concept_id discharged_to_source_value
        preceding_visit_occurrence_id""",
    "condition_occurrence": """condition_occurrence_id person_id condition_concept_id
        condition_start_date condition_start_datetime condition_end_date condition_end_datetime
        condition_type_concept_id condition_status_concept_id stop_reason provider_id
        visit_occurrence_id visit_detail_id condition_source_value condition_source_concept_id
        condition_status_source_value""",
    "drug_exposure": """drug_exposure_id person_id drug_concept_id drug_exposure_start_date
        drug_exposure_start_datetime drug_exposure_end_date drug_exposure_end_datetime
        verbatim_end_date drug_type_concept_id stop_reason refills quantity days_supply sig
        route_concept_id lot_number provider_id visit_occurrence_id visit_detail_id
        drug_source_value drug_source_concept_id route_source_value dose_unit_source_value""",
    "procedure_occurrence": """procedure_occurrence_id person_id procedure_concept_id
        procedure_date procedure_datetime procedure_end_date procedure_end_datetime
        procedure_type_concept_id modifier_concept_id quantity provider_id visit_occurrence_id
        visit_detail_id procedure_source_value procedure_source_concept_id
        modifier_source_value""",
    "death": """person_id death_date death_datetime death_type_concept_id cause_concept_id
        cause_source_value cause_source_concept_id""",
    "concept": """concept_id concept_name domain_id vocabulary_id concept_class_id
        standard_concept concept_code valid_start_date valid_end_date invalid_reason""",
}
COLUMNS: dict[str, tuple[str, ...]] = {name: tuple(text.split()) for name, text in _COLUMNS.items()}

NO_CONCEPT = 0
MALE, FEMALE = 8507, 8532
RACES = {"WHITE": 8527, "BLACK/AFRICAN AMERICAN": 8516, "ASIAN": 8515}
HISPANIC = {"HISPANIC OR LATINO": 38003563}
INPATIENT, FROM_EMERGENCY_ROOM = 9201, 262
EHR, EHR_BILLING, EHR_PRESCRIPTION = 32817, 32821, 32838
DISCHARGED_TO = {"DEAD/EXPIRED": 4216643, "SNF": 8863}
# OMOP leaves the numbers above two billion to the site.
FIRST_DIAGNOSIS, FIRST_PROCEDURE = 2_000_000_001, 2_000_100_001
VALID_FROM, VALID_TO = "1970-01-01", "2099-12-31"


_VOCABULARIES: dict[tuple[Coding, CodeKind], str] = {
    ("icd9", "diagnosis"): "ICD9CM",
    ("icd9", "procedure"): "ICD9Proc",
    ("icd10", "diagnosis"): "ICD10CM",
    ("icd10", "procedure"): "ICD10PCS",
}


@dataclass(frozen=True)
class Omop:
    """Turns tables into OMOP's; `fixed` are the dictionaries of codes."""

    fixed: Tables
    coding: Coding

    def tables(self, tables: Tables) -> Iterator[tuple[str, pa.Table]]:
        """Name and rows of each OMOP table of some patients, one after another."""
        yield "person", _person(tables)
        yield "visit_occurrence", _visits(tables)
        yield "condition_occurrence", self._conditions(tables)
        yield "drug_exposure", _drugs(tables)
        yield "procedure_occurrence", self._procedures(tables)
        yield "death", _death(tables)

    def concepts(self) -> pa.Table:
        """The codes that have a title; outdated ones have neither title nor concept."""
        return pa.concat_tables([self._vocabulary("diagnosis"), self._vocabulary("procedure")])

    def _conditions(self, tables: Tables) -> pa.Table:
        """Billing diagnoses, at discharge; their rank in the bill is the status of the source."""
        rows = tables["DIAGNOSES_ICD"]
        coded = of_stay(rows, tables, "DISCHTIME")
        return _table(
            "condition_occurrence",
            rows.num_rows,
            {
                "condition_occurrence_id": rows["ROW_ID"],
                "person_id": rows["SUBJECT_ID"],
                "condition_concept_id": NO_CONCEPT,
                "condition_start_date": _date(coded),
                "condition_start_datetime": coded,
                "condition_type_concept_id": EHR_BILLING,
                "condition_status_concept_id": NO_CONCEPT,
                "visit_occurrence_id": rows["HADM_ID"],
                "condition_source_value": with_dot(self._codes(rows), self.coding, "diagnosis"),
                "condition_source_concept_id": self._source_concept(rows, "diagnosis"),
                "condition_status_source_value": rows["SEQ_NUM"].cast(pa.string()),
            },
        )

    def _procedures(self, tables: Tables) -> pa.Table:
        """Billed procedures, at discharge; their ids rise with their rank, which has no column."""
        rows = tables["PROCEDURES_ICD"]
        coded = of_stay(rows, tables, "DISCHTIME")
        return _table(
            "procedure_occurrence",
            rows.num_rows,
            {
                "procedure_occurrence_id": rows["ROW_ID"],
                "person_id": rows["SUBJECT_ID"],
                "procedure_concept_id": NO_CONCEPT,
                "procedure_date": _date(coded),
                "procedure_datetime": coded,
                "procedure_type_concept_id": EHR_BILLING,
                "visit_occurrence_id": rows["HADM_ID"],
                "procedure_source_value": with_dot(self._codes(rows), self.coding, "procedure"),
                "procedure_source_concept_id": self._source_concept(rows, "procedure"),
            },
        )

    def _codes(self, rows: pa.Table) -> Column:
        return rows[CODE_COLUMNS[self.coding]]

    def _dictionary(self, kind: CodeKind) -> tuple[pa.Table, int]:
        """A kind of code's titles, and the concept of the first of them."""
        if kind == "diagnosis":
            return self.fixed["D_ICD_DIAGNOSES"], FIRST_DIAGNOSIS
        return self.fixed["D_ICD_PROCEDURES"], FIRST_PROCEDURE

    def _source_concept(self, rows: pa.Table, kind: CodeKind) -> Column:
        known, first = self._dictionary(kind)
        place = pc.index_in(self._codes(rows), value_set=self._codes(known).combine_chunks())
        return pc.fill_null(pc.add(place.cast(pa.int64()), first), NO_CONCEPT)

    def _vocabulary(self, kind: CodeKind) -> pa.Table:
        known, first = self._dictionary(kind)
        codes = self._codes(known)
        digits = pc.utf8_length(codes).cast(pa.string())
        nine = self.coding == "icd9"
        letter = pc.if_else(pc.and_(pc.starts_with(codes, "V"), nine), "V code", "code")
        billing = "-dig billing " if nine else "-char billing "
        return _table(
            "concept",
            known.num_rows,
            {
                "concept_id": pa.array(np.arange(known.num_rows) + first),
                "concept_name": known["LONG_TITLE"],
                "domain_id": "Condition" if kind == "diagnosis" else "Procedure",
                "vocabulary_id": _VOCABULARIES[self.coding, kind],
                "concept_class_id": pc.binary_join_element_wise(digits, letter, billing),
                "concept_code": with_dot(codes, self.coding, kind),
                "valid_start_date": VALID_FROM,
                "valid_end_date": VALID_TO,
            },
        )


def _person(tables: Tables) -> pa.Table:
    patients = tables["PATIENTS"]
    birth = patients["DOB"]
    # MIMIC-III has one column for both, and says it at every stay.
    ethnicity = least_of_patient(tables, "ETHNICITY")
    male = pc.equal(patients["GENDER"], "M")
    return _table(
        "person",
        patients.num_rows,
        {
            "person_id": patients["SUBJECT_ID"],
            "gender_concept_id": pc.if_else(male, MALE, FEMALE),
            "year_of_birth": pc.year(birth),
            "month_of_birth": pc.month(birth),
            "day_of_birth": pc.day(birth),
            "birth_datetime": birth,
            "race_concept_id": _concept_of(ethnicity, RACES),
            "ethnicity_concept_id": _concept_of(ethnicity, HISPANIC),
            "person_source_value": patients["SUBJECT_ID"].cast(pa.string()),
            "gender_source_value": patients["GENDER"],
            "gender_source_concept_id": NO_CONCEPT,
            "race_source_value": ethnicity,
            "race_source_concept_id": NO_CONCEPT,
            "ethnicity_source_value": ethnicity,
            "ethnicity_source_concept_id": NO_CONCEPT,
        },
    )


def _visits(tables: Tables) -> pa.Table:
    stays = tables["ADMISSIONS"]
    came, left = stays["ADMITTIME"], stays["DISCHTIME"]
    emergency = pc.is_valid(stays["EDREGTIME"])
    return _table(
        "visit_occurrence",
        stays.num_rows,
        {
            "visit_occurrence_id": stays["HADM_ID"],
            "person_id": stays["SUBJECT_ID"],
            "visit_concept_id": pc.if_else(emergency, FROM_EMERGENCY_ROOM, INPATIENT),
            "visit_start_date": _date(came),
            "visit_start_datetime": came,
            "visit_end_date": _date(left),
            "visit_end_datetime": left,
            "visit_type_concept_id": EHR,
            "visit_source_value": stays["ADMISSION_TYPE"],
            "visit_source_concept_id": NO_CONCEPT,
            "admitted_from_concept_id": NO_CONCEPT,
            "admitted_from_source_value": stays["ADMISSION_LOCATION"],
            "discharged_to_concept_id": _concept_of(stays["DISCHARGE_LOCATION"], DISCHARGED_TO),
            "discharged_to_source_value": stays["DISCHARGE_LOCATION"],
        },
    )


def _drugs(tables: Tables) -> pa.Table:
    """The pharmacy's names as they are; only drugs, not what they are dissolved in."""
    rows = main_drugs(tables)
    start, end = rows["STARTDATE"], rows["ENDDATE"]
    return _table(
        "drug_exposure",
        rows.num_rows,
        {
            "drug_exposure_id": rows["ROW_ID"],
            "person_id": rows["SUBJECT_ID"],
            "drug_concept_id": NO_CONCEPT,
            "drug_exposure_start_date": _date(start),
            "drug_exposure_start_datetime": start,
            "drug_exposure_end_date": _date(end),
            "drug_exposure_end_datetime": end,
            "verbatim_end_date": _date(end),
            "drug_type_concept_id": EHR_PRESCRIPTION,
            "route_concept_id": NO_CONCEPT,
            "visit_occurrence_id": rows["HADM_ID"],
            "drug_source_value": rows["DRUG"],
            "drug_source_concept_id": NO_CONCEPT,
            "route_source_value": rows["ROUTE"],
        },
    )


def _death(tables: Tables) -> pa.Table:
    """To the second for who died in hospital; else midnight, as OMOP writes a mere date."""
    died = pa.table(
        {"SUBJECT_ID": tables["PATIENTS"]["SUBJECT_ID"], "TIME": death_times(tables)}
    ).drop_null()
    return _table(
        "death",
        died.num_rows,
        {
            "person_id": died["SUBJECT_ID"],
            "death_date": _date(died["TIME"]),
            "death_datetime": died["TIME"],
            "death_type_concept_id": EHR,
        },
    )


def _table(name: str, rows: int, columns: Mapping[str, Column | int | str]) -> pa.Table:
    """An OMOP table with all its columns: single values are repeated, the others are empty."""
    unknown = columns.keys() - set(COLUMNS[name])
    if unknown:
        raise KeyError(f"{name} has no column {sorted(unknown)}")
    return pa.table({column: _full(columns.get(column), rows) for column in COLUMNS[name]})


def _full(column: Column | int | str | None, rows: int) -> Column:
    if column is None:
        return pa.nulls(rows, pa.string())
    return pa.repeat(column, rows) if isinstance(column, int | str) else column


def _concept_of(texts: Column, concepts: Mapping[str, int]) -> Column:
    names, ids = pa.array(list(concepts)), pa.array(list(concepts.values()), pa.int64())
    return pc.fill_null(ids.take(pc.index_in(texts, value_set=names)), NO_CONCEPT)


def _date(times: Column) -> Column:
    return pc.floor_temporal(times, unit="day").cast(pa.date32())
