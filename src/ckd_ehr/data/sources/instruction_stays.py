"""Pairs of one patient that have no dates → stays whose times make the cohort find those pairs.

In: per patient, pairs of a history and what came next, as codes. Out: events of stays at synthetic
times. Ignores: where the codes are from.

Which pair came first is not known, so no pair may enter another's history. The cohort takes stays
that overlap neither as history nor as next visit of each other, so the pairs of a patient overlap:

    pair 1   history ├──────────────────────┤next ├────┤
    pair 2        history ├───────────┤next ├──────────┤
                 first visit ├───────┤cover ├──────────┤   where a history has several visits

A `cover` is an empty stay that begins when all but the last visit of a history end: being the next
one and not coded, it keeps those visits from being labelled by what only the last one is.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from ckd_ehr.contracts.records import ADMISSION, DISCHARGE, MEDICATION
from ckd_ehr.data.sources.instruction_codes import Coded, PairCodes

Days = tuple[int, int]
FIRST_DAY = "2000-01-01"


@dataclass(frozen=True, slots=True)
class PairDays:
    """Admission and discharge, in days, of a pair's stays."""

    history: tuple[Days, ...]
    cover: Days | None
    following: Days


def lay_out(visits: Sequence[int]) -> list[PairDays]:
    """The days of a patient's pairs, from the number of visits in each pair's history.

    >>> lay_out([1])
    [PairDays(history=((0, 3),), cover=None, following=(3, 4))]
    >>> [pair.history for pair in lay_out([2, 1])]
    [((0, 6), (1, 7)), ((2, 5),)]
    """
    admitted, admissions = 0, sum(visits)
    last_day = admissions + 2 * len(visits) + 1
    pairs = []
    for number, count in enumerate(visits):
        known = admissions + 2 * (len(visits) - number)  # the prediction time of the pair
        earlier = [(admitted + visit, known - 1) for visit in range(count - 1)]
        pairs.append(
            PairDays(
                history=(*earlier, (admitted + count - 1, known)),
                cover=(known - 1, last_day) if earlier else None,
                following=(known, last_day),
            )
        )
        admitted += count
    return pairs


def add_pairs(
    connection: duckdb.DuckDBPyConnection, patients: Mapping[int, Sequence[PairCodes]]
) -> None:
    """Fill `events` and `titles` with the stays of every patient's pairs."""
    stays = [stay for subject, pairs in patients.items() for stay in _stays(subject, pairs)]
    table = pa.table(
        {
            "subject_id": pa.array([stay.subject_id for stay in stays], pa.int64()),
            "visit_id": pa.array([stay.visit_id for stay in stays], pa.string()),
            "admit_day": pa.array([stay.days[0] for stay in stays], pa.int64()),
            "discharge_day": pa.array([stay.days[1] for stay in stays], pa.int64()),
            "codes": pa.array(
                [[code for code, _ in stay.codes] for stay in stays], pa.list_(pa.string())
            ),
            "titles": pa.array(
                [[title for _, title in stay.codes] for stay in stays], pa.list_(pa.string())
            ),
        }
    )
    connection.register("stays", table)
    connection.execute(f"""
        INSERT INTO events
        WITH timed AS (
            SELECT *, TIMESTAMP '{FIRST_DAY}' + INTERVAL 1 DAY * admit_day AS admitted,
                TIMESTAMP '{FIRST_DAY}' + INTERVAL 1 DAY * discharge_day AS discharged
            FROM stays)
        SELECT subject_id, admitted, '{ADMISSION}', NULL, visit_id FROM timed
        UNION ALL SELECT subject_id, discharged, '{DISCHARGE}', NULL, visit_id FROM timed
        UNION ALL SELECT subject_id, discharged, code,
            if(starts_with(code, '{MEDICATION}//'), NULL, place), visit_id
        FROM (SELECT *, unnest(codes) AS code, unnest(range(1, len(codes) + 1)) AS place
            FROM timed)""")
    connection.execute(
        "INSERT INTO titles SELECT DISTINCT unnest(codes), unnest(titles) FROM stays"
    )
    connection.unregister("stays")


@dataclass(frozen=True, slots=True)
class _Stay:
    subject_id: int
    visit_id: str
    days: Days
    codes: tuple[Coded, ...] = ()


def _stays(subject_id: int, pairs: Sequence[PairCodes]) -> Iterator[_Stay]:
    days = lay_out([len(pair.history) for pair in pairs])
    for pair, when in zip(pairs, days, strict=True):
        key = hashlib.sha256(f"{subject_id}:{pair}".encode()).hexdigest()[:16]
        for number, codes in enumerate(pair.history):
            yield _Stay(subject_id, f"{key}-{number + 1}", when.history[number], codes)
        if when.cover:
            yield _Stay(subject_id, f"{key}-cover", when.cover)
        yield _Stay(subject_id, f"{key}-next", when.following, pair.following)
