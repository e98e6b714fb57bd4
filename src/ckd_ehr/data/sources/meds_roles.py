"""Codes of a MEDS dataset → what they are to us: role, vocabulary, value.

In: the distinct codes, with their parent codes, and rules by prefix; the built-in ones read this
project's own codes and those of MIMIC-IV-MEDS, eICU-MEDS and meds_etl's OMOP. Out: the table
`roles`, a row for each code. Ignores: events, and what no rule names.
"""

from collections.abc import Mapping

import duckdb
import pyarrow as pa

from ckd_ehr.contracts.config_data import MedsRule
from ckd_ehr.contracts.records import (
    ADMISSION,
    AGE,
    BIRTH,
    DEATH,
    DIAGNOSIS,
    DISCHARGE,
    DRUG_NAME,
    ETHNICITY,
    ICD9CM,
    ICD9PROC,
    ICD10CM,
    ICD10PCS,
    MEDICATION,
    PROCEDURE,
    SEX,
    UCI_ICD9,
)
from ckd_ehr.data.sources.drug_names import drug_name
from ckd_ehr.data.sources.stay_tables import ETHNICITY_GROUP

ICD_SYSTEMS = (ICD9CM, ICD10CM, ICD9PROC, ICD10PCS)
SNOMED = "SNOMED"
RXNORM = "RXNORM"
UNKNOWN = "UNK"  # what MEDS-Extract writes for a null part of a code
OWN_ROLES = {"diagnosis": DIAGNOSIS, "medication": MEDICATION, "procedure": PROCEDURE}
OWN_SYSTEMS = {
    "diagnosis": (ICD9CM, ICD10CM, UCI_ICD9, SNOMED, DRUG_NAME),
    "procedure": (ICD9PROC, ICD10PCS, SNOMED, DRUG_NAME),
    "medication": (DRUG_NAME, RXNORM),
}
# The event_txt of MIMIC-IV's emar after which the drug is in the patient.
GIVEN = (
    "Administered",
    "Administered Bolus from IV Drip",
    "Administered in Other Location",
    "Applied",
    "Applied in Other Location",
    "Bolus",
    "Delayed Administered",
    "Delayed Applied",
    "Delayed Started",
    "Partial Administered",
    "Restarted",
    "Started",
    "Started in Other Location",
)


def _coded(role: str, system: str, given: tuple[str, ...] | None = None) -> MedsRule:
    return MedsRule.model_validate({"role": role, "system": system, "given": given})


def _fact(role: str, value: str | None = None) -> MedsRule:
    return MedsRule.model_validate({"role": role, "value": value})


_OWN = {
    f"{OWN_ROLES[role]}//{system}//": _coded(role, system)
    for role, systems in OWN_SYSTEMS.items()
    for system in systems
}
_MIMIC_AND_EICU = {
    "DIAGNOSIS//ICD//9//": _coded("diagnosis", ICD9CM),
    "DIAGNOSIS//ICD//10//": _coded("diagnosis", ICD10CM),
    "PROCEDURE//ICD//9//": _coded("procedure", ICD9PROC),
    "PROCEDURE//ICD//10//": _coded("procedure", ICD10PCS),
    "MEDICATION//": _coded("medication", DRUG_NAME, GIVEN),
    "MEDICATION//START//": _coded("medication", DRUG_NAME),
    "MEDICATION//STARTED//": _coded("medication", DRUG_NAME),
    "MEDICATION//STOP//": _fact("none"),
    "MEDICATION//STOPPED//": _fact("none"),
    ADMISSION: _fact("admission"),
    DISCHARGE: _fact("discharge"),
    f"{DISCHARGE}//Expired": _fact("discharge", "DIED"),
    f"{DISCHARGE}//EXPIRED": _fact("discharge", "DIED"),
    f"{DISCHARGE}//DEAD/EXPIRED": _fact("discharge", "DIED"),
    BIRTH: _fact("birth"),
    DEATH: _fact("death"),
    SEX: _fact("sex"),
    ETHNICITY: _fact("ethnicity"),
    "RACE": _fact("ethnicity"),
    "RACE//Caucasian": _fact("ethnicity", "WHITE"),
    "RACE//African American": _fact("ethnicity", "BLACK"),
    AGE: _fact("age"),
}
# meds_etl writes VOCABULARY/CODE of OMOP's concepts. Its SNOMED codes come from every table, so
# that they say no role.
_OMOP = {
    "ICD9CM/": _coded("diagnosis", ICD9CM),
    "ICD10CM/": _coded("diagnosis", ICD10CM),
    "ICD9Proc/": _coded("procedure", ICD9PROC),
    "ICD10PCS/": _coded("procedure", ICD10PCS),
    "RxNorm/": _coded("medication", RXNORM),
    "RxNorm Extension/": _coded("medication", RXNORM),
    "Visit/IP": _fact("admission", "INPATIENT"),
    "Visit/ERIP": _fact("admission", "EMERGENCY"),
    "CMS Place of Service/21": _fact("admission", "INPATIENT"),
    "SNOMED/184099003": _fact("birth"),  # as in MEDS 0.2
    "SNOMED/419620001": _fact("death"),
    "Gender/": _fact("sex"),
    "Race/": _fact("ethnicity"),
    "Race/1": _fact("ethnicity", "OTHER"),
    "Race/2": _fact("ethnicity", "ASIAN"),
    "Race/3": _fact("ethnicity", "BLACK"),
    "Race/4": _fact("ethnicity", "OTHER"),
    "Race/5": _fact("ethnicity", "WHITE"),
    "Ethnicity/Hispanic": _fact("ethnicity", "HISPANIC"),
    "Ethnicity/Not Hispanic": _fact("none"),
}
BUILT_IN: Mapping[str, MedsRule] = _OWN | _MIMIC_AND_EICU | _OMOP

_RULES = pa.schema(
    [
        ("prefix", pa.string()),
        ("role", pa.string()),
        ("system", pa.string()),
        ("value", pa.string()),
        ("given", pa.list_(pa.string())),
        ("ranked", pa.bool_()),
    ]
)
# A prefix ends where a part of the code does: Visit/IP is not the beginning of Visit/IPX.
_BEGINS = (
    "starts_with({code}, prefix) AND (suffix(prefix, '/') OR {code} = prefix "
    "OR substr({code}, length(prefix) + 1, 1) = '/')"
)
_REST = "ltrim(substr({code}, length(prefix) + 1), '/')"
_FINEST = (
    "arg_max({{'prefix': prefix, 'role': role, 'system': system, 'given': given, "
    "'ranked': ranked, "
    "'value': coalesce(value, trim(split_part({rest}, '//', 1))), "
    "'next': trim(split_part({rest}, '//', 2))}}, length(prefix))"
)
_ICD = "upper(regexp_replace(value, '[\\s.]', '', 'g'))"


def add_roles(connection: duckdb.DuckDBPyConnection, rules: Mapping[str, MedsRule]) -> list[str]:
    """Make the table `roles` of the tables `codes` (id, code) and `parents` (code, parent).

    Its columns: id, code, role (null: not read), system, value (null: the code gives none),
    skipped (the prefix of the rule that says not to read it), ranked (`numeric_value` is the place
    on the bill), refused (of a drug that was not given), ours (the code of the events to write).
    `rules` come on top of the built-in ones, in place of those with the same prefix, with or
    without its last slashes. Returns the prefixes of those that read no code.
    """
    given = {prefix.rstrip("/") for prefix in rules}
    built_in = {p: rule for p, rule in BUILT_IN.items() if p.rstrip("/") not in given}
    connection.register("rule_rows", _rule_rows({**built_in, **rules}))
    connection.execute("CREATE TABLE rules AS SELECT * FROM rule_rows")
    connection.unregister("rule_rows")
    _match(connection)
    _name_drugs(connection)
    connection.execute(f"""
        CREATE TABLE roles AS
        SELECT id, code, role, system, skipped, ranked, refused, CASE
                WHEN system = '{DRUG_NAME}' AND role = 'medication' THEN drugs.name
                WHEN role IN ('admission', 'discharge') THEN upper(value)
                WHEN role = 'sex' THEN CASE upper(value)
                    WHEN 'MALE' THEN 'M' WHEN 'FEMALE' THEN 'F' ELSE upper(value) END
                WHEN role = 'ethnicity' THEN {ETHNICITY_GROUP}
                WHEN system IN {ICD_SYSTEMS} THEN nullif({_ICD}, '')
                ELSE value END AS value
        FROM (SELECT *, upper(value) AS ethnicity FROM matched)
        LEFT JOIN drugs ON value = drugs.written""")
    own = " ".join(f"WHEN '{role}' THEN '{ours}'" for role, ours in OWN_ROLES.items())
    connection.execute("ALTER TABLE roles ADD COLUMN ours VARCHAR")
    connection.execute(
        f"UPDATE roles SET ours = CASE role {own} END || '//' || system || '//' || value "
        "WHERE system IS NOT NULL"
    )
    used = {
        prefix for (prefix,) in connection.execute("SELECT DISTINCT prefix FROM matched").fetchall()
    }
    return [prefix for prefix in rules if prefix not in used]


def _rule_rows(rules: Mapping[str, MedsRule]) -> pa.Table:
    own = {prefix.rstrip("/") for prefix in _OWN}
    rows = [
        {"prefix": prefix, **rule.model_dump(), "ranked": prefix.rstrip("/") in own}
        for prefix, rule in rules.items()
    ]
    return pa.Table.from_pylist(rows, _RULES)


def _match(connection: duckdb.DuckDBPyConnection) -> None:
    """`matched`: each code with its longest rule, or with the one ICD code among its parents."""
    begins, finest = _BEGINS.format(code="code"), _FINEST.format(rest=_REST.format(code="code"))
    of_parent = _BEGINS.format(code="parent")
    finest_of_parent = _FINEST.format(rest=_REST.format(code="parent"))
    connection.execute(f"""
        CREATE TABLE matched AS
        WITH by_code AS (
            SELECT id, {finest} AS rule FROM codes JOIN rules ON {begins} GROUP BY id),
        by_parent AS (
            SELECT id, parent, {finest_of_parent} AS rule
            FROM codes JOIN parents USING (code) JOIN rules ON {of_parent}
            WHERE id NOT IN (SELECT id FROM by_code) GROUP BY id, parent),
        by_one_parent AS (
            SELECT id, min(rule) AS rule FROM by_parent
            WHERE rule.system IN {ICD_SYSTEMS} GROUP BY id HAVING count(DISTINCT rule) = 1),
        by_rule AS (SELECT * FROM by_code UNION ALL SELECT * FROM by_one_parent)
        SELECT id, code, rule.prefix AS prefix, rule.system AS system,
            nullif(rule.role, 'none') AS role,
            nullif(nullif(rule.value, ''), '{UNKNOWN}') AS value,
            if(rule.role = 'none', rtrim(rule.prefix, '/'), NULL) AS skipped,
            coalesce(rule.ranked, false) AS ranked,
            coalesce(NOT list_contains(rule.given, rule.next), false) AS refused
        FROM codes LEFT JOIN by_rule USING (id)""")


def _name_drugs(connection: duckdb.DuckDBPyConnection) -> None:
    written = connection.execute(
        "SELECT DISTINCT value FROM matched WHERE role = 'medication' "
        f"AND system = '{DRUG_NAME}' AND value IS NOT NULL ORDER BY 1"
    ).fetchall()
    names = pa.table(
        {
            "written": pa.array([drug for (drug,) in written], pa.string()),
            "name": pa.array([drug_name(drug) for (drug,) in written], pa.string()),
        }
    )
    connection.register("drug_rows", names)
    connection.execute("CREATE TABLE drugs AS SELECT * FROM drug_rows")
    connection.unregister("drug_rows")
