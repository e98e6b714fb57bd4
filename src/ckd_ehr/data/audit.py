"""Leak checks over the stages' tables: each passes in silence or ends the run.

In: the tables of cohort and knowledge. Out: nothing, or a `CkdEhrError` that counts the offending
rows, never naming them. Ignores: how the tables were made; it trusts no earlier stage.
"""

import duckdb
import pyarrow as pa

from ckd_ehr.contracts.errors import CkdEhrError

_COHORT_CHECKS = (
    (
        "patients stand in two splits",
        "SELECT subject_id FROM pairs GROUP BY subject_id HAVING count(DISTINCT split) > 1",
    ),
    (
        "patients stand in two folds",
        "SELECT subject_id FROM pairs GROUP BY subject_id HAVING count(DISTINCT fold) > 1",
    ),
    (
        "train pairs have no fold, or others have one",
        "SELECT 1 FROM pairs WHERE (split = 'train') <> (fold >= 0)",
    ),
    (
        "pairs have the same pair_id",
        "SELECT pair_id FROM pairs GROUP BY pair_id HAVING count(*) > 1",
    ),
    (
        "history or next visits are not among the visits",
        "SELECT 1 FROM (SELECT visit_id FROM histories UNION ALL SELECT next_visit_id FROM pairs "
        "WHERE next_visit_id IS NOT NULL) WHERE visit_id NOT IN (SELECT visit_id FROM visits)",
    ),
    (
        "history visits were discharged after prediction_time",
        "SELECT 1 FROM histories JOIN visits USING (visit_id) "
        "WHERE visits.discharge_time > histories.prediction_time",
    ),
    (
        "histories do not end with the discharge at prediction_time",
        "SELECT 1 FROM pairs JOIN visits ON visits.visit_id = history[-1] "
        "WHERE visits.discharge_time <> prediction_time",
    ),
    (
        "next visits were admitted before prediction_time",
        "SELECT 1 FROM pairs JOIN visits ON visits.visit_id = next_visit_id "
        "WHERE visits.admit_time < prediction_time",
    ),
    (
        "histories hold their own next visit",
        "SELECT 1 FROM pairs WHERE list_contains(history, next_visit_id)",
    ),
    (
        "pairs have labels without a next visit, or a next visit without labels",
        "SELECT 1 FROM pairs WHERE (labels IS NULL) <> (next_visit_id IS NULL)",
    ),
    (
        "pairs mix visits of several patients",
        "SELECT 1 FROM (SELECT subject_id, visit_id FROM histories UNION ALL "
        "SELECT subject_id, next_visit_id FROM pairs WHERE next_visit_id IS NOT NULL) AS used "
        "JOIN visits USING (visit_id) WHERE used.subject_id <> visits.subject_id",
    ),
    (
        "unlabelled pairs stand outside train or follow a death",
        "SELECT 1 FROM pairs JOIN visits ON visits.visit_id = history[-1] "
        "WHERE next_visit_id IS NULL AND (split <> 'train' OR died)",
    ),
)


def audit_cohort(visits: pa.Table, pairs: pa.Table) -> None:
    """Check that no patient crosses splits or folds, and that no history knows its future.

    Raises:
        CkdEhrError: says what is wrong and in how many rows.
    """
    with duckdb.connect() as connection:
        connection.register("visits", visits)
        connection.register("pairs", pairs)
        connection.execute(
            "CREATE VIEW histories AS SELECT pair_id, subject_id, prediction_time, "
            "unnest(history) AS visit_id FROM pairs"
        )
        _run(connection, _COHORT_CHECKS, "cohort")


def _run(
    connection: duckdb.DuckDBPyConnection, checks: tuple[tuple[str, str], ...], stage: str
) -> None:
    for problem, query in checks:
        [(wrong,)] = connection.execute(f"SELECT count(*) FROM ({query})").fetchall()
        if wrong:
            raise CkdEhrError(
                f"leak audit of stage '{stage}': {wrong} {problem}; this run must not be used: "
                "report it with the config"
            )
