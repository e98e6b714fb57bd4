"""The audit of narratives: every pair has its texts, and no text knows the next visit.

In: the narratives' files and the cohort they tell of. Out: a result for each check. Ignores: how
texts are written. A span of a diagnosis, drug or procedure must be a code of its history visit
(`visit_index`, the oldest is 0). Dates, distances in time, deaths and readmissions must not stand
outside the concepts, the next visit's id nowhere.
"""

from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ckd_ehr.data.audit.findings import CheckResult, Finding, SqlCheck, findings_of, run_checks
from ckd_ehr.data.audit.tables import ITEM_KEY, open_cohort, scan

STAGE = "knowledge"
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
_AGAIN = "delete the stage's folder and run again; if it comes back, report it with the config"
_WORDING = (
    "a field that the source gives as words (admission type, ethnicity, a title) tells of what "
    "came later: change it in the source's tables, then run again"
)

CHECKS = (
    SqlCheck(
        "one narrative a pair and reader",
        "narratives are missing, or belong to no pair",
        _AGAIN,
        "SELECT 1 FROM (SELECT DISTINCT reader FROM narratives) CROSS JOIN pairs "
        "FULL JOIN narratives USING (pair_id, reader) "
        "WHERE pairs.pair_id IS NULL OR narratives.text IS NULL",
    ),
    SqlCheck(
        "no narrative twice",
        "pairs have several narratives for one reader",
        _AGAIN,
        "SELECT 1 FROM narratives GROUP BY pair_id, reader HAVING count(*) > 1",
    ),
    SqlCheck(
        "spans within their text",
        "spans lie outside their text",
        _AGAIN,
        "SELECT 1 FROM spans WHERE outside",
    ),
    SqlCheck(
        "codes of the next visit",
        "spans show a code of the next visit that no history visit has",
        _AGAIN,
        "SELECT 1 FROM spans JOIN future USING (pair_no, item) WHERE NOT from_knowledge",
    ),
    SqlCheck(
        "codes of the history",
        "spans show a code that their history visit does not have",
        _AGAIN,
        "SELECT 1 FROM spans ANTI JOIN shown USING (pair_no, visit_index, item) "
        "WHERE NOT from_knowledge AND NOT of_the_patient",
    ),
    SqlCheck(
        "ids of the next visit",
        "texts hold the id of the next visit",
        "take ids out of the titles that the source gives, then run again",
        f"SELECT 1 FROM narratives JOIN pairs USING (pair_id) WHERE "
        f"length(next_visit_id) >= {_SHORTEST_ID} AND contains(text, next_visit_id) "
        r"AND regexp_matches(text, '\b' || regexp_escape(next_visit_id) || '\b')",
    ),
    SqlCheck(
        "times, deaths, readmissions in texts",
        "texts tell a date, a distance in time, a death or a readmission outside concepts",
        _WORDING,
        f"SELECT 1 FROM frames WHERE regexp_matches(frame, '{_TOLD_LATER}', 'i')",
    ),
    SqlCheck(
        "titles of the next visit in texts",
        "texts hold outside concepts the title of a code that only the next visit has",
        _WORDING,
        "SELECT 1 FROM frames JOIN future USING (pair_no) JOIN codes USING (item) "
        f"WHERE length(title) >= {_SHORTEST_TITLE} AND contains(lower(frame), lower(title))",
    ),
)

# shown: what each history visit has, by its position. future: what only the next visit has.
# frames: texts without concepts.
_TABLES = """
    CREATE VIEW shown AS
        SELECT pair_no, CAST(visit_index AS SMALLINT) AS visit_index, item
        FROM histories JOIN stays USING (visit_id) JOIN items USING (visit_no);
    CREATE TABLE future AS
        SELECT pair_no, item
        FROM pairs JOIN stays ON stays.visit_id = next_visit_id JOIN items USING (visit_no)
        ANTI JOIN shown USING (pair_no, item);
    CREATE TABLE keys AS SELECT pair_id, pair_no FROM pairs;
    CREATE TABLE spans (pair_no BIGINT, visit_index SMALLINT, item UBIGINT,
        from_knowledge BOOLEAN, of_the_patient BOOLEAN, outside BOOLEAN);
    CREATE TABLE frames (pair_no BIGINT, frame VARCHAR);"""
_ADD_SPANS = f"""
    INSERT INTO spans
    SELECT pair_no, visit_index, {ITEM_KEY}, from_knowledge, kind = 'demographics',
        "start" < 0 OR "end" <= "start" OR "end" > size
    FROM batch_spans JOIN keys USING (pair_id)"""
_ADD_FRAMES = "INSERT INTO frames SELECT pair_no, frame FROM batch_frames JOIN keys USING (pair_id)"
_SPAN_FIELDS = ("start", "end", "kind", "system", "code", "visit_index", "from_knowledge")
_UNREAD = ("reader", "concept_id", "concepts_cut")
_BUFFER = 1 << 20
_BATCH = 2048  # narratives at a time: their spans are many


def narrative_findings(narratives: Sequence[Path], cohort: Path) -> list[Finding]:
    """All that is wrong with a run's narratives; empty if nothing is.

    Args:
        narratives: one Parquet file for each reader.
        cohort: the folder of visits.parquet and pairs.parquet.
    """
    return findings_of(narrative_checks(narratives, cohort))


def narrative_checks(narratives: Sequence[Path], cohort: Path) -> list[CheckResult]:
    """As `narrative_findings`, with the checks that passed."""
    with open_cohort(cohort) as connection:
        connection.execute(f"CREATE VIEW narratives AS {scan(list(narratives))}")
        connection.execute(_TABLES)
        for path in narratives:
            file = pq.ParquetFile(path, buffer_size=_BUFFER)
            leaves = [file.schema.column(n).path for n in range(len(file.schema))]
            columns = [leaf for leaf in leaves if leaf.rpartition(".")[2] not in _UNREAD]
            for batch in file.iter_batches(_BATCH, columns=columns):
                _add(connection, batch)
        return run_checks(connection, CHECKS, STAGE)


def _add(connection: duckdb.DuckDBPyConnection, batch: pa.RecordBatch) -> None:
    """Enter the spans and frames of some narratives."""
    ids, lists = batch.column("pair_id"), batch.column("spans")
    spans, owners = lists.flatten(), pc.list_parent_indices(lists)
    columns = {name: spans.field(name) for name in _SPAN_FIELDS}
    columns |= {"pair_id": ids.take(owners)}
    columns |= {"size": pc.utf8_length(batch.column("text")).take(owners)}
    connection.register("batch_spans", pa.table(columns))
    connection.execute(_ADD_SPANS)
    edges = zip(
        batch.column("text").to_pylist(),
        pa.ListArray.from_arrays(lists.offsets, spans.field("start")).to_pylist(),
        pa.ListArray.from_arrays(lists.offsets, spans.field("end")).to_pylist(),
        strict=True,
    )
    frames = pa.array([frame_of(*edge) for edge in edges], pa.string())
    connection.register("batch_frames", pa.table({"pair_id": ids, "frame": frames}))
    connection.execute(_ADD_FRAMES)


def frame_of(text: str, starts: Sequence[int], ends: Sequence[int]) -> str:
    """A text without what stands between starts and ends.

    >>> frame_of("Visit 1: gout; fever.", [9, 15], [13, 20])
    'Visit 1:  ;  .'
    """
    opens, closes = [*sorted(starts), len(text)], [0, *sorted(ends)]
    return " ".join(text[close:open_] for close, open_ in zip(closes, opens, strict=True))
