"""One patient registered under two ids, who stands in two splits or folds.

In: the tables of `tables.open_cohort`. Out: one result. Ignores: twins within one split and fold,
who leak nothing, and patients whom chance alone could make equal.

Two patients are the same if they share stays with equal codes (and, where times are real, equal
admissions and discharges; where they are shifted, equal lengths) of which a cohort of this size
would hold fewer than 1 in 1,000 by chance:

    pairs of patients × P(equal times) × P(equal codes)

P(equal times) is the share of stays of different patients that are at the same times, squared for
two shared stays or more, since those who come on fixed days share many. Dates without a time of
day are equal too easily: there two shared stays are asked for, and count as one, since appointments
follow a scheme.

P(equal codes) is the larger of two. One is the product of the shares of patients that have each
distinct code, to the power of ½: codes come together (order sets, diseases and their drugs), so a
product over all of them claims too much. The other is counted: the share of the other pairs of
patients that have the same stay at whatever time, as those of one treatment protocol do.
"""

from dataclasses import dataclass

import duckdb

from ckd_ehr.data.audit.findings import CheckResult, result_of
from ckd_ehr.data.audit.structure import STAGE

CHECK = "one patient under two ids"
EXPECTED_BY_CHANCE = 1e-3
DEPENDENCE = 0.5
# What more patients share is common, and proves nothing about any two of them.
MOST_EQUAL = 32
_IS_DATE = "CAST({} AS TIME) IN ('00:00:00', '23:59:59')"

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
    CREATE TABLE usual AS
        SELECT codes, print, count(DISTINCT subject_id) AS patients FROM prints GROUP BY ALL;
    CREATE TABLE alike AS
        SELECT start, stop, codes, print FROM prints GROUP BY ALL
        HAVING count(DISTINCT place) > 1 AND count(DISTINCT subject_id) <= {most};
    CREATE TABLE shared AS
        WITH members AS (SELECT * FROM prints SEMI JOIN alike USING (start, stop, codes, print))
        SELECT a.subject_id AS one, b.subject_id AS other, a.visit_no,
            b.visit_no AS other_no, usual.patients
        FROM members AS a JOIN members AS b USING (start, stop, codes, print)
            JOIN usual USING (codes, print)
        WHERE a.subject_id < b.subject_id AND a.place <> b.place;"""


@dataclass(frozen=True)
class _Times:
    """What of a stay's times must be equal, and what that proves.

    `bits` (at most 0) of each of the first `most_counted` shared stays; `fewest` are asked for.
    """

    start: str
    stop: str
    bits: float = 0.0
    most_counted: int = 2
    fewest: int = 1


# chance: log2 of how many pairs of patients a cohort of this size has that are alike so far.
_TWINS = """
    CREATE TABLE twins AS
        WITH content AS (
            SELECT one, other, sum(bits) AS bits FROM (
                SELECT DISTINCT one, other, item FROM shared JOIN items USING (visit_no))
            JOIN bits USING (item) GROUP BY ALL),
        stays_shared AS (
            SELECT one, other, min(patients) AS patients,
                least(count(DISTINCT visit_no), count(DISTINCT other_no)) AS n
            FROM shared GROUP BY ALL),
        people AS (SELECT count(*) AS n FROM places)
        SELECT one, other, {bits_of_time} * least(stays_shared.n, {most_counted}) + greatest(
                log2(greatest(people.n * (people.n - 1) / 2, 1)) - {dependence} * bits,
                CASE WHEN patients > 2 THEN log2(patients * (patients - 1) / 2 - 1)
                    ELSE '-inf'::DOUBLE END) AS chance
        FROM content JOIN stays_shared USING (one, other) CROSS JOIN people
        WHERE stays_shared.n >= {fewest};"""


def duplicate_patients(
    connection: duckdb.DuckDBPyConnection, *, synthetic_times: bool, shifted_times: bool = False
) -> CheckResult:
    """Patients whose stays another patient of another split or fold has too.

    Args:
        synthetic_times: equal times prove nothing.
        shifted_times: only lengths of stay can be equal.
    """
    times = _times_of(connection, synthetic_times=synthetic_times, shifted_times=shifted_times)
    bounds = f"{times.start} AS start, {times.stop} AS stop"
    connection.execute(_PRINTS.format(times=bounds, most=MOST_EQUAL))
    connection.execute(
        _TWINS.format(
            bits_of_time=times.bits,
            most_counted=times.most_counted,
            fewest=times.fewest,
            dependence=DEPENDENCE,
        )
    )
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


def _times_of(
    connection: duckdb.DuckDBPyConnection, *, synthetic_times: bool, shifted_times: bool
) -> _Times:
    if synthetic_times:
        return _Times("0", "0")
    if shifted_times:
        length = "epoch(discharge_time - admit_time)"
        return _Times("0", length, _bits_of_equal_times(connection, "0", length))
    start, stop = "admit_time", "discharge_time"
    bits = _bits_of_equal_times(connection, start, stop)
    [(only_dates,)] = connection.execute(
        f"SELECT bool_and({_IS_DATE.format(start)} AND {_IS_DATE.format(stop)}) FROM stays"
    ).fetchall()
    if only_dates:
        return _Times(start, stop, bits, most_counted=1, fewest=2)
    return _Times(start, stop, bits)


def _bits_of_equal_times(connection: duckdb.DuckDBPyConnection, start: str, stop: str) -> float:
    """log2 of the share of pairs of stays of different patients at the same times (at most 0)."""
    [(bits,)] = connection.execute(f"""
        WITH counted AS (
            SELECT {start} AS start, {stop} AS stop, subject_id, count(*) AS n
            FROM stays GROUP BY ALL),
        same AS (
            SELECT sum(n) * sum(n) - sum(n * n) AS pairs FROM counted GROUP BY start, stop),
        patients AS (SELECT count(*) AS n FROM stays GROUP BY subject_id)
        SELECT log2(least(greatest((SELECT sum(pairs) FROM same), 2)
            / greatest((SELECT sum(n) * sum(n) - sum(n * n) FROM patients), 2), 1))""").fetchall()
    return float(bits)
