"""Checks of the cohort's own tables: who stands where, and what was known when.

In: the tables of `tables.open_cohort`. Out: one result a check. Ignores: events, texts, models.
"""

import duckdb

from ckd_ehr.data.audit.findings import CheckResult, SqlCheck, run_checks

STAGE = "cohort"
_REPORT = "delete the stage's folder and run again; if it comes back, report it with the config"
_SPLIT = (
    "divide by patient: all visits of a person under one subject_id, one row a patient in an "
    "imported split; then delete the stage's folder and run again"
)
_TIMES = "check the admission and discharge times that the source's tables give, then " + _REPORT

CHECKS = (
    SqlCheck(
        "patient overlap across splits",
        "patients stand in two splits",
        _SPLIT,
        "SELECT subject_id FROM pairs GROUP BY subject_id HAVING count(DISTINCT split) > 1",
    ),
    SqlCheck(
        "patient overlap across folds",
        "patients stand in two folds",
        _SPLIT,
        "SELECT subject_id FROM pairs GROUP BY subject_id HAVING count(DISTINCT fold) > 1",
    ),
    SqlCheck(
        "folds of train only",
        "train pairs have no fold, or others have one",
        _REPORT,
        "SELECT 1 FROM pairs WHERE (split = 'train') <> (fold >= 0)",
    ),
    SqlCheck(
        "duplicate pairs",
        "pairs have the same pair_id",
        _REPORT,
        "SELECT pair_id FROM pairs GROUP BY pair_id HAVING count(*) > 1",
    ),
    SqlCheck(
        "duplicate visits",
        "visits have the same visit_id",
        "give every stay an id of its own in the source's tables",
        "SELECT visit_id FROM stays GROUP BY visit_id HAVING count(*) > 1",
    ),
    SqlCheck(
        "visits of pairs exist",
        "history or next visits are not among the visits",
        _REPORT,
        "SELECT 1 FROM (SELECT visit_id FROM histories UNION ALL SELECT next_visit_id FROM pairs "
        "WHERE next_visit_id IS NOT NULL) WHERE visit_id NOT IN (SELECT visit_id FROM stays)",
    ),
    SqlCheck(
        "visits of one patient",
        "pairs mix visits of several patients",
        "a stay belongs to one patient: correct the ids in the source's tables",
        "SELECT 1 FROM (SELECT subject_id, visit_id FROM histories UNION ALL "
        "SELECT subject_id, next_visit_id FROM pairs WHERE next_visit_id IS NOT NULL) AS used "
        "JOIN stays USING (visit_id) WHERE used.subject_id <> stays.subject_id",
    ),
    SqlCheck(
        "visits after prediction_time",
        "history visits were discharged after prediction_time",
        _TIMES,
        "SELECT 1 FROM histories JOIN stays USING (visit_id) "
        "WHERE stays.discharge_time > histories.prediction_time",
    ),
    SqlCheck(
        "prediction at discharge",
        "histories do not end with the discharge at prediction_time",
        _TIMES,
        "SELECT 1 FROM pairs JOIN stays ON stays.visit_id = history[-1] "
        "WHERE stays.discharge_time <> prediction_time",
    ),
    SqlCheck(
        "next visit after prediction_time",
        "next visits were admitted before prediction_time",
        _TIMES,
        "SELECT 1 FROM pairs JOIN stays ON stays.visit_id = next_visit_id "
        "WHERE stays.admit_time < prediction_time",
    ),
    SqlCheck(
        "next visit outside the history",
        "histories hold their own next visit",
        _REPORT,
        "SELECT 1 FROM pairs WHERE list_contains(history, next_visit_id)",
    ),
    SqlCheck(
        "labels from later visits",
        "pairs have labels without a next visit, or without a later one that was coded",
        _REPORT,
        "SELECT 1 FROM pairs WHERE labels IS NOT NULL AND (next_visit_id IS NULL OR NOT EXISTS ("
        "SELECT 1 FROM stays WHERE stays.subject_id = pairs.subject_id AND stays.coded > 0 "
        "AND stays.admit_time >= pairs.prediction_time AND stays.visit_id <> history[-1]))",
    ),
    SqlCheck(
        "unlabelled pairs in train",
        "unlabelled pairs stand outside train",
        _REPORT,
        "SELECT 1 FROM pairs WHERE labels IS NULL AND split <> 'train'",
    ),
    SqlCheck(
        "no prediction after death",
        "histories end with the patient's death",
        "who has died has no next visit: check what the source's tables give as died, delete the "
        "folders of the stages events and cohort, and run again",
        "SELECT 1 FROM pairs JOIN stays ON stays.visit_id = history[-1] WHERE died",
    ),
)


def structure_checks(connection: duckdb.DuckDBPyConnection) -> list[CheckResult]:
    """Patients within splits and folds, keys that are unique, histories that end in time."""
    return run_checks(connection, CHECKS, STAGE)
