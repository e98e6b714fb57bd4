"""One patient registered under two ids, who stands in two splits or folds.

In: the tables of `tables.open_cohort`. Out: one result. Ignores: twins within one split and fold,
who leak nothing, and patients whom chance alone could make equal.

Two patients are the same if they share stays with equal codes (and, where times are real, equal
admissions and discharges) of which a cohort of this size would hold fewer than 1 in 1,000 by
chance:

    pairs of patients × P(equal times) × P(equal codes)

P(equal times) is the share of stays of different patients that are at the same times, squared for
two shared stays or more, since those who come on fixed days share many. P(equal codes) is the
product of the shares of patients that have each distinct code, to the power of ½: codes come
together (order sets, diseases and their drugs), so a product over all of them claims too much.
"""

import duckdb

from ckd_ehr.data.audit.findings import CheckResult, result_of
from ckd_ehr.data.audit.structure import STAGE

CHECK = "one patient under two ids"
EXPECTED_BY_CHANCE = 1e-3
DEPENDENCE = 0.5
# What more patients share is common, and proves nothing about any two of them.
MOST_EQUAL = 32

_PRINTS = """
    CREATE TABLE places AS
        SELECT subject_id, min(split || fold) AS place FROM pairs GROUP BY subject_id;
    CREATE TABLE bits AS
        SELECT item, log2((SELECT count(DISTINCT subject_id) FROM stays) / patients) AS bits
        FROM (SELECT item, count(*) AS patients FROM (
            SELECT DISTINCT item, subject_id FROM items JOIN stays USING (visit_no)) GROUP BY item);
    CREATE TABLE prints AS
        SELECT visit_no, subject_id, place, {times},
            count(*) AS codes, bit_xor(hash(item)) AS print
        FROM items JOIN stays USING (visit_no) JOIN places USING (subject_id) GROUP BY ALL;
    CREATE TABLE alike AS
        SELECT start, stop, codes, print FROM prints GROUP BY ALL
        HAVING count(DISTINCT place) > 1 AND count(DISTINCT subject_id) <= {most};
    CREATE TABLE shared AS
        WITH members AS (SELECT * FROM prints SEMI JOIN alike USING (start, stop, codes, print))
        SELECT a.subject_id AS one, b.subject_id AS other, a.visit_no
        FROM members AS a JOIN members AS b USING (start, stop, codes, print)
        WHERE a.subject_id < b.subject_id AND a.place <> b.place;"""
_REAL_TIMES = "admit_time AS start, discharge_time AS stop"
_NO_TIMES = "0 AS start, 0 AS stop"

# chance: how many pairs of patients a cohort of this size has that are alike so far.
_TWINS = """
    CREATE TABLE twins AS
        WITH content AS (
            SELECT one, other, sum(bits) AS bits FROM (
                SELECT DISTINCT one, other, item FROM shared JOIN items USING (visit_no))
            JOIN bits USING (item) GROUP BY ALL),
        stays_shared AS (SELECT one, other, count(DISTINCT visit_no) AS n FROM shared GROUP BY ALL),
        people AS (SELECT count(*) AS n FROM places)
        SELECT one, other, log2(greatest(people.n * (people.n - 1) / 2, 1))
            + {bits_of_time} * least(stays_shared.n, 2) - {dependence} * bits AS chance
        FROM content JOIN stays_shared USING (one, other) CROSS JOIN people;"""


def duplicate_patients(
    connection: duckdb.DuckDBPyConnection, *, synthetic_times: bool
) -> CheckResult:
    """Patients whose stays another patient of another split or fold has too."""
    times = _NO_TIMES if synthetic_times else _REAL_TIMES
    connection.execute(_PRINTS.format(times=times, most=MOST_EQUAL))
    bits_of_time = 0.0 if synthetic_times else _bits_of_equal_times(connection)
    connection.execute(_TWINS.format(bits_of_time=bits_of_time, dependence=DEPENDENCE))
    [(rows,)] = connection.execute(
        "SELECT count(DISTINCT subject_id) FROM (SELECT one AS subject_id, chance FROM twins "
        f"UNION ALL SELECT other, chance FROM twins) WHERE chance < log2({EXPECTED_BY_CHANCE})"
    ).fetchall()
    return result_of(
        CHECK,
        STAGE,
        rows=int(rows),
        problem="patients have the same stays as a patient of another split or fold",
        remedy="merge their records under one subject_id in the source's tables (a hospital's "
        "master patient index lists such merges) and run again",
    )


def _bits_of_equal_times(connection: duckdb.DuckDBPyConnection) -> float:
    """log2 of the share of stays of different patients at the same times (at most 0)."""
    [(bits,)] = connection.execute("""
        WITH same AS (
            SELECT count(DISTINCT subject_id) AS n FROM stays GROUP BY admit_time, discharge_time)
        SELECT least(log2(greatest(sum(n * (n - 1) / 2), 1)
            / ((SELECT count(*) FROM stays) * (count(*) + sum(n) - 1) / 2)), 0)
        FROM same""").fetchall()
    return float(bits)
