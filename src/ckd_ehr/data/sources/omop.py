"""OMOP CDM 5.3 and 5.4 → MEDS.

In: visit_occurrence, person, condition_occurrence, procedure_occurrence, drug_exposure and, if
there, death, concept and concept_relationship: CSV or Parquet files, a DuckDB file, or PostgreSQL.
Out: a MEDS dataset whose events carry visit_occurrence_id as `visit_id`. Ignores: visits of other
kinds than `data.omop.visit_concepts`, measurements, observations, eras, visit details. Diagnoses
and procedures get the time of the visit's end, when the bill is known.
"""

from ckd_ehr.contracts.config import DataConfig
from ckd_ehr.contracts.records import DIAGNOSIS, DRUG_NAME, MEDICATION, PROCEDURE
from ckd_ehr.data.sources.dataset import open_events, write_dataset
from ckd_ehr.data.sources.extraction import Extraction, TableStatus
from ckd_ehr.data.sources.omop_codes import VOCABULARIES, Kind
from ckd_ehr.data.sources.omop_places import open_place
from ckd_ehr.data.sources.omop_rows import Cdm, time_of
from ckd_ehr.data.sources.omop_stays import insert_stays, load_deaths, load_people, load_stays
from ckd_ehr.data.sources.omop_tables import OmopTable, present_columns, statuses
from ckd_ehr.data.sources.omop_vocabulary import (
    VOCABULARY_TABLES,
    add_source_codes,
    add_standard_codes,
    load_concepts,
    say_systems,
    settle_versions,
    standard_is_needed,
)
from ckd_ehr.data.sources.tables import connect

# https://ohdsi.github.io/CommonDataModel: cdm53.html, cdm54.html
TABLES = {
    "visit_occurrence": OmopTable(
        "stays",
        ("visit_occurrence_id", "person_id", "visit_concept_id"),
        # 5.4: discharged_to, 5.3: discharge_to.
        (
            "visit_source_value",
            "discharged_to_concept_id",
            "discharged_to_source_value",
            "discharge_to_concept_id",
            "discharge_to_source_value",
        ),
        one_of=(
            ("visit_start_date", "visit_start_datetime"),
            ("visit_end_date", "visit_end_datetime"),
        ),
    ),
    "person": OmopTable(
        "sex, birth, ethnicity",
        ("person_id", "gender_concept_id"),
        (
            "gender_source_value",
            "month_of_birth",
            "day_of_birth",
            "race_concept_id",
            "race_source_value",
            "ethnicity_concept_id",
        ),
        one_of=(("year_of_birth", "birth_datetime"),),
    ),
    "condition_occurrence": OmopTable(
        "diagnoses",
        ("person_id", "visit_occurrence_id", "condition_concept_id", "condition_source_value"),
        (
            "condition_occurrence_id",
            "condition_source_concept_id",
            "condition_status_source_value",
        ),
        one_of=(("condition_start_date", "condition_start_datetime"),),
    ),
    "procedure_occurrence": OmopTable(
        "procedures",
        ("person_id", "visit_occurrence_id", "procedure_source_value"),
        ("procedure_occurrence_id", "procedure_source_concept_id"),
        one_of=(("procedure_date", "procedure_datetime"),),
    ),
    "drug_exposure": OmopTable(
        "drugs",
        ("person_id", "visit_occurrence_id", "drug_concept_id", "drug_source_value"),
        one_of=(("drug_exposure_start_date", "drug_exposure_start_datetime"),),
    ),
    "death": OmopTable(
        "deaths", ("person_id",), one_of=(("death_date", "death_datetime"),), needed=False
    ),
    "concept": OmopTable(
        "titles, code versions, drugs' names",
        ("concept_id", "concept_name", "vocabulary_id", "concept_code"),
        needed=False,
    ),
    "concept_relationship": OmopTable(
        "ICD codes of standard concepts",
        ("concept_id_1", "concept_id_2", "relationship_id"),
        ("invalid_reason",),
        needed=False,
    ),
}
DATASET = "OMOP"
# A code rather than a name: no letter, or one word with two digits and no five letters in a row.
DRUG_CODE = (
    r"NOT regexp_matches({0}, '\p{{L}}') OR (regexp_matches({0}, '\d.*\d') "
    r"AND NOT regexp_matches({0}, '\s|\p{{L}}{{5}}')) "
    r"OR regexp_matches({0}, '(?i)^(ndc|rxnorm|rxcui|atc|snomed|multum|cvx|gpi)\W*\w*\d')"
)


def tables(settings: DataConfig) -> list[TableStatus]:
    """Which tables are there."""
    with open_place(settings) as place:
        return statuses(place, wanted_tables(settings), settings.columns)


def digests(settings: DataConfig) -> dict[str, str]:
    """A digest of each file, or of each table of PostgreSQL; a missing one is an error."""
    with open_place(settings) as place:
        wanted = wanted_tables(settings)
        return place.digests(present_columns(place, wanted, settings.columns))


def extract(extraction: Extraction) -> None:
    """Write the tables of the place that the settings name as a MEDS dataset."""
    settings = extraction.settings
    with (
        open_place(settings) as place,
        connect(extraction.folder, extraction.memory_limit) as connection,
    ):
        # Times with an offset that come as times, not as text, are written in UTC.
        connection.execute("SET TimeZone = 'UTC'")
        open_events(connection)
        wanted = wanted_tables(settings)
        present_columns(place, wanted, settings.columns)
        cdm = Cdm(connection, extraction, place, wanted)
        load_stays(cdm)
        load_people(cdm)
        load_deaths(cdm)
        insert_stays(cdm)
        cdm.load_of_stays("condition_occurrence", "condition_start")
        cdm.load_of_stays("procedure_occurrence", "procedure")
        cdm.load_of_stays("drug_exposure", "drug_exposure_start")
        load_concepts(
            cdm,
            [
                ("condition_occurrence", "condition_source_concept_id"),
                ("procedure_occurrence", "procedure_source_concept_id"),
                ("drug_exposure", "drug_concept_id"),
            ],
            with_icd=settings.omop.codes != "source",
        )
        _insert_conditions(cdm)
        _insert_procedures(cdm)
        _insert_drugs(cdm)
        write_dataset(connection, extraction, name=DATASET)


def wanted_tables(settings: DataConfig) -> dict[str, OmopTable]:
    """The tables that these settings read, and which of them they need."""
    wanted = dict(TABLES)
    if settings.omop.codes == "source":
        del wanted["concept_relationship"]
    if settings.omop.codes == "standard":
        for name in VOCABULARY_TABLES:
            table = wanted[name]
            wanted[name] = OmopTable(table.purpose, table.required, table.optional)
    return wanted


def _insert_conditions(cdm: Cdm) -> None:
    name, settings = "condition_occurrence", cdm.extraction.settings.omop
    add_source_codes(cdm, name, "diagnosis", prefix="condition")
    if standard_is_needed(cdm, name, settings.codes):
        add_standard_codes(cdm, name)
    else:
        settle_versions(cdm, name, settings.icd_version)
        _leave_out_other_codes(cdm, name)
        cdm.rows.leave_out(
            name,
            "whose code may be ICD-9 or ICD-10 (see data.omop.icd_version)",
            unless="system IS NOT NULL",
        )
    # The status holds the rank on the bill, if it holds nothing but numbers.
    words = cdm.count(
        f"SELECT count(*) FROM {name} WHERE condition_status_source_value IS NOT NULL "
        "AND NOT regexp_full_match(condition_status_source_value, '[0-9]+([.]0*)?')"
    )
    ranks = cdm.count(f"SELECT count(condition_status_source_value) FROM {name}")
    position = "try_cast(condition_status_source_value AS FLOAT)"
    _insert_codes(
        cdm, name, "diagnosis",
        position=position if ranks and not words else _rank("condition_occurrence_id"),
    )  # fmt: skip


def _insert_procedures(cdm: Cdm) -> None:
    name = "procedure_occurrence"
    add_source_codes(cdm, name, "procedure", prefix="procedure")
    say_systems(cdm, name)
    _leave_out_other_codes(cdm, name)
    _insert_codes(cdm, name, "procedure", position=_rank("procedure_occurrence_id"))


def _leave_out_other_codes(cdm: Cdm, name: str) -> None:
    cdm.rows.leave_out(name, "without a code", unless="how <> 'none'")
    cdm.rows.leave_out(name, "whose code is of another kind than ICD", unless="code IS NOT NULL")


def _rank(number: str) -> str:
    """The rank among a stay's rows in SQL, by their numbers; null without numbers."""
    return (
        f"CASE WHEN {number} IS NOT NULL THEN row_number() OVER (PARTITION BY visit_occurrence_id "
        f"ORDER BY CAST({number} AS BIGINT)) END"
    )


def _insert_codes(cdm: Cdm, name: str, kind: Kind, *, position: str) -> None:
    role = DIAGNOSIS if kind == "diagnosis" else PROCEDURE
    cdm.connection.execute(f"""
        INSERT INTO events
        SELECT subject_id, discharge_time, concat_ws('//', '{role}', system, code),
            min(position), visit_id
        FROM (SELECT *, CAST({position} AS FLOAT) AS position FROM {name})
        JOIN stays ON visit_id = visit_occurrence_id GROUP BY ALL""")
    for vocabulary, system in VOCABULARIES[kind].items():
        cdm.connection.execute(
            f"INSERT INTO titles SELECT '{role}//{system}//' "
            "|| upper(regexp_replace(concept_code, '[\\s.]', '', 'g')), min(concept_name) "
            f"FROM concepts WHERE vocabulary_id = '{vocabulary}' AND concept_name IS NOT NULL "
            "GROUP BY ALL"
        )


def _insert_drugs(cdm: Cdm) -> None:
    name, is_code = "drug_exposure", DRUG_CODE.format("drug_source_value")
    cdm.connection.execute(f"""
        CREATE OR REPLACE TABLE {name} AS
        SELECT {name}.*, CASE WHEN drug_source_value IS NULL OR {is_code} THEN concept_name
            ELSE drug_source_value END AS drug
        FROM {name} LEFT JOIN concepts ON concept_id = drug_concept_id AND concept_id <> '0'""")
    cdm.rows.leave_out(name, "without a drug's name", unless="drug IS NOT NULL")
    cdm.rows.name_drugs(name, "drug")
    # A drug without a date was given by the end of the stay at the latest.
    cdm.connection.execute(f"""
        INSERT INTO events
        SELECT subject_id, min(coalesce({time_of("drug_exposure_start")}, discharge_time)),
            '{MEDICATION}//{DRUG_NAME}//' || name, NULL, visit_id
        FROM {name} JOIN drug_names USING (drug)
        JOIN stays ON visit_id = visit_occurrence_id GROUP BY ALL""")
