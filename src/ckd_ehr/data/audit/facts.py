"""The audit of what narratives tell besides the record: nothing in it is of the patient's future.

In: the spans of knowledge in narratives, the knowledge stage's tables, the cohort. Out: checks for
`narratives.py` to run. Ignores: whether the knowledge is right. A piece of knowledge may depend on
the codes of the last visit and on the pair's fold alone: a guideline's statement stands so in its
digest, a treatment in the counts made without the pair's fold, a category belongs to a code that
the last visit has.
"""

from pathlib import Path

from ckd_ehr.data.audit.findings import SqlCheck
from ckd_ehr.data.audit.tables import scan

_AGAIN = "delete the stage's folder and run again; if it comes back, report it with the config"
TABLES = ("efficacy", "guidelines", "titles")

FACT_CHECKS = (
    SqlCheck(
        "kinds of knowledge",
        "pieces of knowledge are of no kind that is known",
        _AGAIN,
        "SELECT 1 FROM facts WHERE kind NOT IN ('category', 'efficacy', 'guideline')",
    ),
    SqlCheck(
        "guidelines in their own words",
        "pieces of knowledge are no statement of a guideline digest of this run",
        _AGAIN,
        "SELECT 1 FROM facts ANTI JOIN known_guidelines "
        "ON snippet_id = code AND text = words WHERE kind = 'guideline'",
    ),
    SqlCheck(
        "treatments by fold",
        "treatments are told that were not found to help without the fold of their pair",
        _AGAIN,
        "SELECT 1 FROM facts JOIN pairs USING (pair_no) ANTI JOIN helpful ON "
        "helpful.fold = pairs.fold AND helpful.system = facts.system AND key = facts.code "
        "AND words IN (said || ' (given at the last visit)', said || ' (not at the last visit)') "
        "WHERE facts.kind = 'efficacy'",
    ),
    SqlCheck(
        "treatments as given",
        "treatments are told as given, or as not given, otherwise than at the last visit",
        _AGAIN,
        "SELECT 1 FROM facts JOIN pairs USING (pair_no) JOIN helpful ON "
        "helpful.fold = pairs.fold AND helpful.system = facts.system AND key = facts.code "
        "LEFT JOIN last_items ON last_items.pair_no = facts.pair_no "
        "AND last_items.item = helpful.item WHERE facts.kind = 'efficacy' "
        "AND ends_with(words, ' (given at the last visit)') <> (last_items.item IS NOT NULL)",
    ),
    SqlCheck(
        "categories of the last visit",
        "categories are told that no code of the last visit belongs to",
        _AGAIN,
        "SELECT 1 FROM facts ANTI JOIN last_categories ON last_categories.pair_no = facts.pair_no "
        "AND category = words WHERE kind = 'category'",
    ),
)

FACT_TABLES = """
    CREATE TABLE facts (
        pair_no BIGINT, kind VARCHAR, system VARCHAR, code VARCHAR, words VARCHAR);
    CREATE VIEW helpful AS
        SELECT fold, system, label || '/' || code AS key, treatment || ', ' || label AS said,
            hash(kind, system, code) AS item
        FROM known_efficacy WHERE low > 0;
    CREATE VIEW last_visits AS
        SELECT pair_no, visit_id FROM histories WHERE visit_index = visits - 1;
    CREATE VIEW last_items AS
        SELECT pair_no, item
        FROM last_visits JOIN stays USING (visit_id) JOIN items USING (visit_no);
    CREATE VIEW last_categories AS
        SELECT DISTINCT pair_no, category
        FROM last_items JOIN codes USING (item) JOIN (
            SELECT DISTINCT system, code, unnest(categories) AS category FROM known_titles
        ) USING (system, code) WHERE codes.kind = 'diagnosis';"""
ADD_FACTS = """
    INSERT INTO facts SELECT pair_no, kind, system, code, words
    FROM batch_spans JOIN keys USING (pair_id) WHERE from_knowledge"""


def views_of(knowledge: Path) -> str:
    """The knowledge stage's tables as views, `known_` before their names."""
    return "".join(
        f"CREATE VIEW known_{name} AS {scan([knowledge / f'{name}.parquet'])};" for name in TABLES
    )
