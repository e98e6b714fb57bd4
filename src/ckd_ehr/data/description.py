"""What a cohort holds, in counts: Table 1 by split, visits per patient, each label's frequency.

In: the cohort's `visits.parquet` and `pairs.parquet`, and which codes set which label. Out: a
JSON-ready description of aggregates. Ignores: dates, codes, text. A summary or a split of fewer
than five patients is null, and a category that small in any column is pooled with others. That
does not keep anybody from subtracting one count from another.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from ckd_ehr.data.sources.tables import MEMORY_LIMIT, connect, file_literal
from ckd_ehr.data.splits import SPLIT_NAMES

FEWEST = 5
SHOWN_CATEGORIES = 6
OTHER = "other"
UNLABELLED = "train_unlabelled"
ALL = "all"
COLUMNS = (*SPLIT_NAMES, ALL, UNLABELLED)
# Facts of the last visit of the history, but for the number of visits and the gap to the next one.
NUMBERS = (
    "age_years",
    "stay_days",
    "history_visits",
    "diagnoses",
    "medications",
    "procedures",
    "gap_days",
)
TIMES = ("stay_days", "gap_days")
CATEGORIES = ("ethnicity", "admission_type")
VISITS_PER_PATIENT = ("1", "2", "3", "4", "5", "6-10", "11+")

# One row a pair and column of Table 1: the labelled ones stand under their split and under "all".
_DESCRIBED = f"""
    CREATE TABLE described AS
    WITH last_visits AS (
        SELECT visit_id, age_years::DOUBLE AS age_years, sex, ethnicity, admission_type,
            epoch(discharge_time - admit_time) / 86400 AS stay_days,
            len(diagnoses)::DOUBLE AS diagnoses, len(medications)::DOUBLE AS medications,
            len(procedures)::DOUBLE AS procedures
        FROM visits),
    facts AS (
        SELECT pairs.subject_id, if(labels IS NULL, '{UNLABELLED}', split) AS column_,
            len(history)::DOUBLE AS history_visits, gap_days::DOUBLE AS gap_days,
            last_visits.* EXCLUDE (visit_id)
        FROM pairs JOIN last_visits ON last_visits.visit_id = history[-1]
        WHERE labels IS NOT NULL OR split = 'train')
    SELECT * FROM facts
    UNION ALL
    SELECT * REPLACE ('{ALL}' AS column_) FROM facts WHERE column_ <> '{UNLABELLED}'"""

# One row a labelled pair and label that occurs in its history or at its next visit.
_FLAGS = """
    CREATE TABLE flags AS
    WITH labelled AS (SELECT * FROM pairs WHERE labels IS NOT NULL),
    present AS (
        SELECT DISTINCT visit_id, label
        FROM (SELECT visit_id, unnest(diagnoses, recursive := true) FROM visits)
        JOIN labels_of_codes USING (system, code)),
    visited AS (
        SELECT pair_id, split, unnest(history) AS visit_id,
            generate_subscripts(history, 1) = len(history) AS is_last
        FROM labelled),
    listed AS (
        SELECT pair_id, split, unnest(labels) AS is_next,
            generate_subscripts(labels, 1) - 1 AS label
        FROM labelled)
    SELECT pair_id, split, label, bool_or(is_now) AS is_now, bool_or(is_before) AS is_before,
        bool_or(is_next) AS is_next
    FROM (
        SELECT pair_id, split, label, is_last AS is_now, true AS is_before, false AS is_next
        FROM visited JOIN present USING (visit_id)
        UNION ALL
        SELECT pair_id, split, label, false, false, true FROM listed WHERE is_next)
    GROUP BY ALL"""


def describe_cohort(
    cohort: Path,
    labels_of_codes: pa.Table,
    *,
    label_names: Sequence[str],
    synthetic_times: bool,
    memory_limit: str = MEMORY_LIMIT,
) -> dict[str, object]:
    """The content of `dataset.json`.

    Args:
        cohort: the folder with visits.parquet and pairs.parquet; DuckDB spills into its `work`.
        labels_of_codes: system, code, label: the position in `label_names` that a code sets.
        label_names: of the K labels.
        synthetic_times: lengths of stay and gaps say nothing and are left null.
        memory_limit: DuckDB's.

    Returns:
        `table_one` by column of `COLUMNS`, `visits_per_patient`, `phenotypes` by name.
    """
    with connect(cohort, memory_limit) as connection:
        for name in ("visits", "pairs"):
            file = file_literal(cohort / f"{name}.parquet")
            connection.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet({file})")
        connection.register("labels_of_codes", labels_of_codes)
        connection.execute(_DESCRIBED)
        connection.execute(_FLAGS)
        return {
            "table_one": _table_one(connection, synthetic_times=synthetic_times),
            "visits_per_patient": _visits_per_patient(connection),
            "phenotypes": _phenotypes(connection, label_names),
        }


def _table_one(
    connection: duckdb.DuckDBPyConnection, *, synthetic_times: bool
) -> dict[str, dict[str, object]]:
    sizes = {
        column: {"patients": patients, "pairs": pairs}
        for column, patients, pairs in connection.execute(
            "SELECT column_, count(DISTINCT subject_id), count(*) FROM described GROUP BY column_"
        ).fetchall()
    }
    numbers = _numbers(connection, synthetic_times=synthetic_times)
    sexes = _sexes(connection)
    categories = {name: _categories(connection, name) for name in CATEGORIES}
    return {
        column: {
            **sizes.get(column, {"patients": 0, "pairs": 0}),
            "numbers": {name: numbers.get((column, name)) for name in NUMBERS},
            **sexes.get(column, {"women": None, "sex_missing": 0}),
            **{name: counts[column] for name, counts in categories.items()},
        }
        for column in COLUMNS
    }


def _numbers(
    connection: duckdb.DuckDBPyConnection, *, synthetic_times: bool
) -> dict[tuple[str, str], dict[str, float | None]]:
    """Mean, deviation and quartiles by column and fact; without what has no meaning there."""
    rows = connection.execute(f"""
        SELECT column_, fact, count(*) - count(value), avg(value), stddev_samp(value),
            quantile_cont(value, [0.25, 0.5, 0.75]),
            count(DISTINCT subject_id) FILTER (value IS NOT NULL)
        FROM described UNPIVOT INCLUDE NULLS (value FOR fact IN ({", ".join(NUMBERS)}))
        GROUP BY column_, fact""").fetchall()
    found = {}
    for column, fact, missing, mean, deviation, quartiles, patients in rows:
        if (synthetic_times and fact in TIMES) or (column, fact) == (UNLABELLED, "gap_days"):
            continue
        known = patients >= FEWEST
        shown = (mean, deviation, *quartiles) if known else (None,) * 5
        names = ("mean", "sd", "q1", "median", "q3")
        values = {name: _rounded(value) for name, value in zip(names, shown, strict=True)}
        found[column, fact] = {**values, "missing": missing}
    return found


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _sexes(connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, object]]:
    rows = connection.execute("""
        SELECT column_, count(*) FILTER (sex = 'F'), count(sex), count(*) - count(sex),
            count(DISTINCT subject_id) FILTER (sex IS NOT NULL)
        FROM described GROUP BY column_""").fetchall()
    return {
        column: {
            "women": _rate(women, known) if patients >= FEWEST else None,
            "sex_missing": missing,
        }
        for column, women, known, missing, patients in rows
    }


def _rate(count: int, of: int) -> dict[str, float | None]:
    return {"count": count, "of": of, "share": round(count / of, 6) if of else None}


def _categories(connection: duckdb.DuckDBPyConnection, fact: str) -> dict[str, dict[str, object]]:
    """Pairs by column and category: the most frequent ones, the others pooled."""
    rows = connection.execute(
        f"SELECT column_, {fact}, count(*), count(DISTINCT subject_id) FROM described GROUP BY ALL"
    ).fetchall()
    pairs: dict[str, dict[str, int]] = {column: {} for column in COLUMNS}
    missing = dict.fromkeys(COLUMNS, 0)
    small = set()
    for column, category, number, patients in rows:
        if category is None:
            missing[column] = number
            continue
        pairs[column][category] = number
        if patients < FEWEST:
            small.add(category)
    shown = _shown_categories(pairs[ALL], small)
    return {
        column: {"counts": _pooled(pairs[column], shown), "missing": missing[column]}
        for column in COLUMNS
    }


def _shown_categories(pairs: Mapping[str, int], small: Collection[str]) -> list[str]:
    """The most frequent categories, most frequent first, without those small in any column.

    Pooled in one column alone, a small number would come back by subtracting the others.

    >>> _shown_categories({"A": 70, "B": 20, "OTHER": 9, "C": 9}, small={"B"})
    ['A', 'C']
    """
    large = [name for name in pairs if name.lower() != OTHER and name not in small]
    return sorted(large, key=lambda name: (-pairs[name], name))[:SHOWN_CATEGORIES]


def _pooled(counts: Mapping[str, int], shown: Sequence[str]) -> dict[str, int]:
    """The shown categories, and "other" for the rest.

    >>> _pooled({"A": 7, "B": 2, "OTHER": 1}, ["A"])
    {'A': 7, 'other': 3}
    """
    kept = {category: counts.get(category, 0) for category in shown}
    return {**kept, OTHER: sum(counts.values()) - sum(kept.values())}


def _visits_per_patient(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """How many patients have so many kept visits."""
    rows = connection.execute("""
        SELECT CASE WHEN visits > 10 THEN '11+' WHEN visits > 5 THEN '6-10'
            ELSE visits::VARCHAR END, count(*)
        FROM (SELECT count(*) AS visits FROM visits GROUP BY subject_id) GROUP BY 1""").fetchall()
    return {**dict.fromkeys(VISITS_PER_PATIENT, 0), **dict(rows)}


def _phenotypes(
    connection: duckdb.DuckDBPyConnection, label_names: Sequence[str]
) -> dict[str, dict[str, object]]:
    """How often each label is set, over the labelled pairs."""
    pairs: dict[str, int] = dict.fromkeys(SPLIT_NAMES, 0)
    pairs |= dict(
        connection.execute(
            "SELECT split, count(*) FROM pairs WHERE labels IS NOT NULL GROUP BY split"
        ).fetchall()
    )
    by_label: dict[int, dict[str, tuple[int, ...]]] = {}
    for label, split, *counts in connection.execute("""
        SELECT label, split, count(*) FILTER (is_now), count(*) FILTER (is_next),
            count(*) FILTER (is_now AND is_next), count(*) FILTER (is_before),
            count(*) FILTER (is_next AND NOT is_before)
        FROM flags GROUP BY label, split""").fetchall():
        by_label.setdefault(label, {})[split] = tuple(counts)
    patients = dict(
        connection.execute(
            "SELECT split, count(DISTINCT subject_id) FROM pairs WHERE labels IS NOT NULL "
            "GROUP BY split"
        ).fetchall()
    )
    shown = {split for split in SPLIT_NAMES if patients.get(split, 0) >= FEWEST}
    return {
        name: _phenotype(by_label.get(label, {}), pairs, shown)
        for label, name in enumerate(label_names)
    }


def _phenotype(
    counts: Mapping[str, tuple[int, ...]], pairs: Mapping[str, int], shown: Collection[str]
) -> dict[str, object]:
    """One label's rates.

    Args:
        counts: by split the pairs that have it now (at the last visit of the history), next, both
            now and next, at any visit of the history, and next for the first time.
        pairs: the labelled pairs of each split.
        shown: the splits that are not too small to be shown.
    """
    none = (0, 0, 0, 0, 0)
    now, later, both, before, new = map(sum, zip(none, *counts.values(), strict=True))
    total = sum(pairs.values())
    return {
        "now": _rate(now, total),
        "next": _rate(later, total),
        "new_onset": _rate(new, total - before),
        "persistence": _rate(both, now),
        "next_by_split": {
            split: _rate(counts.get(split, none)[1], pairs[split]) if split in shown else None
            for split in SPLIT_NAMES
        },
    }
