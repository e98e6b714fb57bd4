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
        "pairs have labels without a next visit that was coded, or such a visit without labels",
        "SELECT 1 FROM pairs LEFT JOIN visits ON visits.visit_id = next_visit_id "
        "WHERE (labels IS NULL) <> (coalesce(len(diagnoses), 0) = 0)",
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
        "WHERE (labels IS NULL AND split <> 'train') OR (next_visit_id IS NULL AND died)",
    ),
)

# Words of the text outside concept spans: a disease's own title may speak of death.
_TOLD_LATER = "|".join(
    (
        r"\bre-?admi(?:t|ssion)\w*",
        r"\b(?:expired|died|dead|death|deceased)\b",
        r"\b(?:day|week|month|year)s? (?:later|after|until)\b",
        r"\b\d{4}-\d{2}-\d{2}\b",
        r"\b\d{1,2}/\d{1,2}/(?:\d{4}|\d{2})\b",
    )
)
# Shorter ids and titles may stand in a text by chance.
_SHORTEST_ID, _SHORTEST_TITLE = 5, 8

_NARRATIVE_CHECKS = (
    (
        "narratives are missing, or belong to no pair",
        "SELECT 1 FROM (SELECT DISTINCT reader FROM narratives) CROSS JOIN pairs "
        "FULL JOIN narratives USING (pair_id, reader) "
        "WHERE pairs.pair_id IS NULL OR narratives.text IS NULL",
    ),
    (
        "pairs have several narratives for one reader",
        "SELECT 1 FROM narratives GROUP BY pair_id, reader HAVING count(*) > 1",
    ),
    (
        "spans lie outside their text",
        "SELECT 1 FROM spans WHERE span_start < 0 OR span_end <= span_start OR span_end > size",
    ),
    (
        "spans show a code of the next visit that no history visit has",
        "SELECT 1 FROM spans JOIN future USING (pair_id, kind, system, code) "
        "WHERE NOT from_knowledge",
    ),
    (
        "spans show a code that their history visit does not have",
        "SELECT 1 FROM spans LEFT JOIN shown USING (pair_id, visit_index, kind, system, code) "
        "WHERE NOT from_knowledge AND spans.kind <> 'demographics' AND shown.visit_id IS NULL",
    ),
    (
        "texts hold the id of the next visit",
        f"SELECT 1 FROM narratives JOIN pairs USING (pair_id) WHERE "
        f"length(next_visit_id) >= {_SHORTEST_ID} AND contains(text, next_visit_id) "
        r"AND regexp_matches(text, '\b' || regexp_escape(next_visit_id) || '\b')",
    ),
    (
        "texts tell a date, a distance in time, a death or a readmission outside concepts",
        f"SELECT 1 FROM frames WHERE regexp_matches(frame, '{_TOLD_LATER}', 'i')",
    ),
    (
        "texts hold outside concepts the title of a code that only the next visit has",
        "SELECT 1 FROM frames JOIN future USING (pair_id) "
        f"WHERE length(title) >= {_SHORTEST_TITLE} AND contains(lower(frame), lower(title))",
    ),
)

# frames: each text without its concepts. future: what only the next visit has. shown: what each
# history visit has, by its position (the oldest is 0).
_NARRATIVE_VIEWS = """
    CREATE TABLE items AS
        SELECT visit_id, 'diagnosis' AS kind, unnest(diagnoses, recursive := true) FROM visits
        UNION SELECT visit_id, 'medication', unnest(medications, recursive := true) FROM visits
        UNION SELECT visit_id, 'procedure', unnest(procedures, recursive := true) FROM visits;
    CREATE TABLE shown AS
        SELECT pair_id, CAST(visit_index AS SMALLINT) AS visit_index, items.*
        FROM (SELECT pair_id, unnest(history) AS visit_id,
            unnest(range(len(history))) AS visit_index FROM pairs) JOIN items USING (visit_id);
    CREATE TABLE future AS
        SELECT pair_id, kind, system, code, title
        FROM pairs JOIN items ON items.visit_id = next_visit_id
        ANTI JOIN shown USING (pair_id, kind, system, code);
    CREATE VIEW spans AS
        SELECT pair_id, size, span.start AS span_start, span."end" AS span_end, span.kind,
            span.system, span.code, span.visit_index, span.from_knowledge
        FROM (SELECT pair_id, length(text) AS size, unnest(spans) AS span FROM narratives);
    CREATE VIEW frames AS
        WITH edges AS (
            SELECT pair_id, text,
                list_sort(list_transform(spans, lambda s: s.start)) || [length(text)] AS starts,
                [0] || list_sort(list_transform(spans, lambda s: s."end")) AS ends
            FROM narratives)
        SELECT pair_id, array_to_string(list_transform(range(1, len(starts) + 1), lambda i:
            substr(text, ends[i] + 1, greatest(starts[i] - ends[i], 0))), ' ') AS frame
        FROM edges;"""


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


def audit_narratives(narratives: pa.Table, pairs: pa.Table, visits: pa.Table) -> None:
    """Check that every pair has one text per reader, and that no text knows the next visit.

    A span of a diagnosis, drug or procedure must be a code of its history visit (`visit_index`,
    the oldest is 0). Dates, distances in time, deaths and readmissions must not stand outside the
    concepts, the next visit's id nowhere.

    Raises:
        CkdEhrError: says what is wrong and in how many rows.
    """
    with duckdb.connect() as connection:
        for name, table in (("narratives", narratives), ("pairs", pairs), ("visits", visits)):
            connection.register(name, table)
        connection.execute(_NARRATIVE_VIEWS)
        _run(connection, _NARRATIVE_CHECKS, "knowledge")


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
