"""Visits → visit pairs: a history, what came next, its labels, its split.

In: the `visits` table. Out: the `pairs` table, step by step. Ignores: files and settings. Pure: a
table in, a table out, through DuckDB.
"""

from collections.abc import Mapping, Sequence

import duckdb
import pyarrow as pa

from ckd_ehr.data.phenotypes import CodeMatch

# Within a patient; ids decide only between stays of the same hours.
VISIT_ORDER = "admit_time, discharge_time, visit_id"
PAIR_ORDER = "subject_id, prediction_time, pair_id"


def pair_visits(
    visits: pa.Table,
    *,
    max_history_visits: int = 16,
    min_history_visits: int = 1,
    min_age_years: float = 0.0,
    synthetic_times: bool = False,
) -> pa.Table:
    """One pair per visit: the visits known at its discharge, and the next one, if any.

    The history holds the visits admitted no later and discharged by `prediction_time`, the
    discharge of the last; the next visit is the first one admitted from then on. Pairs of stays
    that ended in death without a next visit are left out. `gap_days` is null for synthetic times.

    Returns:
        pair_id, subject_id, history, prediction_time, next_visit_id, gap_days.
    """  # Longer than 40 lines: one query, which reads best whole.
    gap = "NULL" if synthetic_times else "epoch(next_admit - discharge_time) / 86400"
    with _connected(visits=visits) as connection:
        return connection.sql(f"""
            WITH ordered AS (
                SELECT visit_id, subject_id, admit_time, discharge_time, age_years, died,
                    row_number() OVER so_far AS place,
                    list({{'id': visit_id, 'known': discharge_time}}) OVER so_far AS earlier
                FROM visits WINDOW so_far AS (PARTITION BY subject_id ORDER BY {VISIT_ORDER}
                    ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)),
            followed AS (
                SELECT this.visit_id, min_by(later.visit_id, later.place) AS next_visit_id,
                    min_by(later.admit_time, later.place) AS next_admit
                FROM ordered AS this JOIN ordered AS later ON this.subject_id = later.subject_id
                    AND later.place > this.place AND later.admit_time >= this.discharge_time
                GROUP BY this.visit_id),
            known AS (
                SELECT *, list_transform(list_filter(earlier, lambda v: v.known <= discharge_time),
                    lambda v: v.id)[-{max_history_visits}:] AS history
                FROM ordered LEFT JOIN followed USING (visit_id))
            SELECT substr(sha256(subject_id || ':' || visit_id), 1, 16) AS pair_id, subject_id,
                history, discharge_time AS prediction_time, next_visit_id,
                CAST({gap} AS FLOAT) AS gap_days
            FROM known
            WHERE len(history) >= {min_history_visits} AND (next_visit_id IS NOT NULL OR NOT died)
                AND coalesce(age_years >= {min_age_years}, {min_age_years} = 0)
            ORDER BY {PAIR_ORDER}""").to_arrow_table()


def label_pairs(
    pairs: pa.Table, visits: pa.Table, matches: Sequence[CodeMatch], *, n_labels: int
) -> pa.Table:
    """Add `labels`: which phenotypes the next visit's diagnoses have.

    Null without a next visit, and where it has no diagnosis at all: it was not coded, which says
    nothing about diseases.
    """
    hits = [(match, label) for match in matches for label in match.labels]
    labels_of_codes = pa.table(
        {
            "system": pa.array([match.system for match, _ in hits], pa.string()),
            "code": pa.array([match.code for match, _ in hits], pa.string()),
            "label": pa.array([label for _, label in hits], pa.int64()),
        }
    )
    with _connected(pairs=pairs, visits=visits, labels_of_codes=labels_of_codes) as connection:
        return connection.sql(f"""
            WITH found AS (
                SELECT visit_id, list(DISTINCT label) AS present
                FROM (SELECT visit_id, unnest(diagnoses, recursive := true) FROM visits)
                JOIN labels_of_codes USING (system, code) GROUP BY visit_id)
            SELECT pairs.*, CASE WHEN len(coded.diagnoses) > 0 THEN list_transform(
                range({n_labels}), lambda k: coalesce(list_contains(present, k), false)) END
                AS labels
            FROM pairs LEFT JOIN found ON found.visit_id = next_visit_id
                LEFT JOIN visits AS coded ON coded.visit_id = next_visit_id
            ORDER BY {PAIR_ORDER}""").to_arrow_table()


def split_pairs(pairs: pa.Table, assigned: pa.Table) -> pa.Table:
    """Add `split`, `fold` (-1 outside train) and `sample_place` from a row per patient."""
    with _connected(pairs=pairs, assigned=assigned) as connection:
        return connection.sql(f"""
            SELECT pairs.*, split, CAST(if(split = 'train', fold, -1) AS TINYINT) AS fold,
                sample_place
            FROM pairs JOIN assigned USING (subject_id)
            ORDER BY {PAIR_ORDER}""").to_arrow_table()


def keep_labelled_and_train(pairs: pa.Table) -> pa.Table:
    """Leave out the unlabelled pairs of tuning and held_out: nothing can be scored on them."""
    with _connected(pairs=pairs) as connection:
        return connection.sql(
            f"SELECT * FROM pairs WHERE labels IS NOT NULL OR split = 'train' ORDER BY {PAIR_ORDER}"
        ).to_arrow_table()


def sample_pairs(pairs: pa.Table, limits: Mapping[str, int | None]) -> pa.Table:
    """Keep whole patients, in hash order, while their pairs fit under each limit.

    Args:
        limits: pairs at most of `train` (labelled), `unlabelled`, `tuning`, `held_out`; None for
            all.
    """
    bounds = pa.table(
        {
            "group_": pa.array(list(limits), pa.string()),
            "bound": pa.array(list(limits.values()), pa.int64()),
        }
    )
    with _connected(pairs=pairs, bounds=bounds) as connection:
        return connection.sql(f"""
            WITH grouped AS (
                SELECT *, if(labels IS NULL, 'unlabelled', split) AS group_ FROM pairs),
            filled AS (
                SELECT group_, subject_id, sum(count(*)) OVER (
                    PARTITION BY group_ ORDER BY min(sample_place), subject_id) AS pairs_so_far
                FROM grouped GROUP BY group_, subject_id)
            SELECT grouped.* EXCLUDE (group_)
            FROM grouped JOIN filled USING (group_, subject_id) JOIN bounds USING (group_)
            WHERE bound IS NULL OR pairs_so_far <= bound
            ORDER BY {PAIR_ORDER}""").to_arrow_table()


def _connected(**tables: pa.Table) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    for name, table in tables.items():
        connection.register(name, table)
    return connection
