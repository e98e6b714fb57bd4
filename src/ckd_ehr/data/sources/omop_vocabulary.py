"""ICD codes of OMOP rows: from source values and concepts, or back from standard concepts.

In: tables of events in DuckDB, CONCEPT and CONCEPT_RELATIONSHIP if there. Out: two more columns of
the tables, `system` and `code`, null where there is no ICD code. Ignores: where the tables come
from, and the vocabulary's hierarchy. A code that exists in ICD-9-CM and ICD-10-CM is what the other
codes of its stay are, since a bill is written in one version.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import pyarrow as pa

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.records import ICD9CM, ICD10CM
from ckd_ehr.data.ccs import CcsMatch, icd9_ccs_of, icd10_ccs_of
from ckd_ehr.data.sources.omop_codes import VOCABULARIES, Kind, read_code
from ckd_ehr.data.sources.omop_rows import Cdm
from ckd_ehr.data.sources.tables import quoted

VOCABULARY_TABLES = ("concept", "concept_relationship")
# From so many of the conditions on, `auto` takes ICD codes from the source columns.
ENOUGH_SOURCE_CODES = 0.5
UNDECIDED = "undecided"
# How a code's system was found → how that is said; in the order of saying it.
_SAID = {
    "concept": "by source concept",
    "form": "by their form",
    "stay": "(in ICD-9 and ICD-10 alike) by the other codes of the stay",
    "leaf": "(in ICD-9 and ICD-10 alike) by being a full code in one of them",
    "database": "(in ICD-9 and ICD-10 alike) by all other codes",
    "setting": "(in ICD-9 and ICD-10 alike) by data.omop.icd_version",
}
_STATED = {"auto": "NULL", 9: quoted(ICD9CM), 10: quoted(ICD10CM)}
_NO_ICD = "whose standard concept has no ICD code"
_SEVERAL = "whose standard concept has ICD codes of several CCS categories"


def load_concepts(cdm: Cdm, used: Sequence[tuple[str, str]], *, with_icd: bool) -> None:
    """Make the table `concepts` of those in use; empty without CONCEPT.

    Args:
        cdm: the tables.
        used: tables and their columns of concept ids.
        with_icd: keep all ICD diagnosis codes, too, for the way back from standard concepts.
    """
    ids = " UNION ALL ".join(f"SELECT {column} AS concept_id FROM {name}" for name, column in used)
    cdm.connection.execute(
        f"CREATE TABLE used_concepts AS SELECT DISTINCT concept_id FROM ({ids}) "
        "WHERE concept_id IS NOT NULL AND concept_id <> '0'"
    )
    kept = "concept_id IN (FROM used_concepts)"
    if with_icd:
        kept += f" OR vocabulary_id IN ({', '.join(map(quoted, VOCABULARIES['diagnosis']))})"
    columns = cdm.wanted["concept"].columns
    folded = ", ".join(f"CASE WHEN {kept} THEN {column} END AS {column}" for column in columns)
    if cdm.load("concept", f"SELECT {folded}, count(*) AS copies FROM plain GROUP BY ALL"):
        cdm.rows.leave_out("concept", "that no row in use has", unless="concept_id IS NOT NULL")
    else:
        empty = ", ".join(f"CAST(NULL AS VARCHAR) AS {column}" for column in columns)
        cdm.connection.execute(f"CREATE TABLE concept AS SELECT {empty} WHERE false")
    cdm.connection.execute(
        "CREATE TABLE concepts AS SELECT concept_id, min(concept_name) AS concept_name, "
        "min(vocabulary_id) AS vocabulary_id, min(concept_code) AS concept_code "
        "FROM concept GROUP BY concept_id"
    )


def add_source_codes(cdm: Cdm, name: str, kind: Kind, *, prefix: str) -> None:
    """Add `system`, `code` and `how` by the source's columns (`{prefix}_source_value`, …)."""
    value, concept = f"{prefix}_source_value", f"{prefix}_source_concept_id"
    pairs = cdm.connection.execute(
        f"SELECT DISTINCT {value}, {concept}, vocabulary_id, concept_code FROM {name} "
        f"LEFT JOIN concepts ON concepts.concept_id = {name}.{concept} ORDER BY ALL"
    ).fetchall()
    read = [
        read_code(written, kind, vocabulary=vocabulary, concept_code=code)
        for written, _, vocabulary, code in pairs
    ]
    columns = {
        "written": [written for written, _, _, _ in pairs],
        "source_concept": [number for _, number, _, _ in pairs],
        "system": [code.system for code in read],
        "code": [code.code for code in read],
        "how": [code.how for code in read],
        "leaf": [code.leaf for code in read],
    }
    same = f"written IS NOT DISTINCT FROM {value} AND source_concept IS NOT DISTINCT FROM {concept}"
    _join_codes(cdm, name, columns, on=same)


def settle_versions(cdm: Cdm, name: str, version: Literal["auto", 9, 10]) -> None:
    """Give codes of both versions their system, and say how systems were found.

    In this order: `version`, if it is 9 or 10; the version of the stay's other codes; that which
    has the code as a full code, if one has; that of all other codes of the table.
    """
    if cdm.count(f"SELECT count(*) FROM {name} WHERE how = 'either'"):
        stated = _STATED[version]
        one = "CASE WHEN min(system) = max(system) THEN min(system) END"
        cdm.connection.execute(f"""
            CREATE OR REPLACE TABLE {name} AS
            WITH of_stays AS (
                SELECT visit_occurrence_id, {one} AS of_stay FROM {name} GROUP BY ALL),
            decided AS (
                SELECT {name}.*, CASE WHEN how <> 'either' THEN how
                    WHEN {stated} IS NOT NULL THEN 'setting' WHEN of_stay IS NOT NULL THEN 'stay'
                    WHEN leaf IS NOT NULL THEN 'leaf'
                    WHEN of_all IS NOT NULL THEN 'database' ELSE '{UNDECIDED}' END AS found,
                    coalesce(system, CASE WHEN how = 'either'
                        THEN coalesce({stated}, of_stay, leaf, of_all) END) AS settled
                FROM {name} JOIN of_stays USING (visit_occurrence_id)
                CROSS JOIN (SELECT {one} AS of_all FROM {name}))
            SELECT * EXCLUDE (found, settled) REPLACE (found AS how, settled AS system)
            FROM decided""")
    say_systems(cdm, name)


def say_systems(cdm: Cdm, name: str) -> None:
    """Say how many codes got their system in which way."""
    rows = cdm.connection.execute(
        f"SELECT how, sum(copies) FROM {name} WHERE system IS NOT NULL GROUP BY how"
    ).fetchall()
    found = {how: int(number) for how, number in rows}
    told = [f"{found[how]:,} {said}" for how, said in _SAID.items() if how in found]
    if told:
        cdm.say(name, f"ICD version of codes: {'; '.join(told)}")


def standard_is_needed(cdm: Cdm, name: str, codes: str) -> bool:
    """Whether diagnoses come from standard concepts: as stated, or as `auto` finds.

    Raises:
        CkdEhrError: no row has an ICD code, and the vocabulary tables are absent.
    """
    if codes != "auto":
        return codes == "standard"
    total = cdm.count(f"SELECT sum(copies) FROM {name}")
    usable = cdm.count(f"SELECT sum(copies) FROM {name} WHERE code IS NOT NULL")
    if usable >= ENOUGH_SOURCE_CODES * total:
        return False
    told = f"{usable:,} of {total:,} rows have an ICD code in the source's columns"
    if all(cdm.place.find(table) for table in VOCABULARY_TABLES):
        cdm.say(name, f"{told}; diagnoses are taken from standard concepts")
        return True
    if not usable:
        raise CkdEhrError(
            f"{cdm.label(name)}: {told}, and there are no tables concept and concept_relationship "
            "to find it by the standard concepts; add them, or put ICD codes into "
            "condition_source_value"
        )
    cdm.say(name, f"only {told}; add concept and concept_relationship to use standard concepts")
    return False


def add_standard_codes(cdm: Cdm, name: str) -> None:
    """Replace `system` and `code` by those that the standard concept came from.

    Of the ICD codes which map to a concept, all that have a CCS category must have the same; the
    first of them in ICD-10-CM, or else ICD-9-CM, stands for the concept. Other rows are counted.
    """
    _load_relationships(cdm, name)
    rows = cdm.connection.execute(
        "SELECT DISTINCT standard_id, vocabulary_id, concept_code FROM concept_relationship "
        "JOIN concepts ON concepts.concept_id = icd_id ORDER BY ALL"
    ).fetchall()
    of_concept: dict[str, list[tuple[str, str]]] = {}
    for standard, vocabulary, code in rows:
        found = read_code(None, "diagnosis", vocabulary=vocabulary, concept_code=code)
        if found.system is not None and found.code is not None:
            of_concept.setdefault(standard, []).append((found.system, found.code))
    chosen = {standard: code_for_all(codes) for standard, codes in of_concept.items()}
    cdm.connection.execute(
        f"CREATE OR REPLACE TABLE {name} AS SELECT * EXCLUDE (system, code, how, leaf) FROM {name}"
    )
    columns: dict[str, list[str | None]] = {
        "standard": list(chosen),
        "system": [code and code[0] for code in chosen.values()],
        "code": [code and code[1] for code in chosen.values()],
    }
    _join_codes(cdm, name, columns, on="standard = condition_concept_id")
    known = "condition_concept_id IS NOT NULL AND condition_concept_id <> '0'"
    cdm.rows.leave_out(name, "without a standard concept", unless=known)
    cdm.rows.leave_out(name, _NO_ICD, unless="standard IS NOT NULL")
    cdm.rows.leave_out(name, _SEVERAL, unless="code IS NOT NULL")


def code_for_all(codes: Iterable[tuple[str, str]]) -> tuple[str, str] | None:
    """The (system, code) that stands for all, if they are of one CCS category; else None.

    >>> code_for_all([("ICD9CM", "4019"), ("ICD10CM", "I10"), ("ICD9CM", "4011")])
    ('ICD10CM', 'I10')
    >>> code_for_all([("ICD9CM", "4019"), ("ICD10CM", "N179")]) is None
    True
    """
    matches = [(code, _ccs_of(*code)) for code in codes]
    categories = {match.ccs for _, match in matches if match.how != "unmapped"}
    if len(categories) != 1 or None in categories:
        return None
    mapped = [code for code, match in matches if match.how != "unmapped"]
    return min(mapped, key=lambda code: (code[0] != ICD10CM, len(code[1]), code[1]))


def _ccs_of(system: str, code: str) -> CcsMatch:
    return icd9_ccs_of(code) if system == ICD9CM else icd10_ccs_of(code)


def _load_relationships(cdm: Cdm, name: str) -> None:
    used = f"(SELECT condition_concept_id FROM {name} WHERE condition_concept_id <> '0')"
    forth = f"relationship_id = 'Maps to' AND concept_id_2 IN {used}"
    back = f"relationship_id = 'Mapped from' AND concept_id_1 IN {used}"
    cdm.load(
        "concept_relationship",
        f"""SELECT
            CASE WHEN invalid_reason IS NOT NULL THEN NULL
                WHEN {forth} THEN concept_id_2 WHEN {back} THEN concept_id_1 END AS standard_id,
            CASE WHEN invalid_reason IS NOT NULL THEN NULL
                WHEN {forth} THEN concept_id_1 WHEN {back} THEN concept_id_2 END AS icd_id,
            count(*) AS copies FROM plain GROUP BY ALL""",
        check=False,
    )
    cdm.rows.leave_out(
        "concept_relationship", "that no condition needs", unless="standard_id IS NOT NULL"
    )


def _join_codes(
    cdm: Cdm, name: str, columns: Mapping[str, Sequence[str | None]], *, on: str
) -> None:
    table = pa.table({key: pa.array(column, pa.string()) for key, column in columns.items()})
    cdm.connection.register("read_codes", table)
    cdm.connection.execute(
        f"CREATE OR REPLACE TABLE {name} AS SELECT {name}.*, read_codes.* "
        f"FROM {name} LEFT JOIN read_codes ON {on}"
    )
    cdm.connection.unregister("read_codes")
