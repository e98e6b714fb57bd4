"""The audit of narratives: every pair has its texts, and no text knows the next visit.

In: the narratives' files, the cohort they tell of, and how texts call a code. Out: a result for
each check. Ignores: how texts are written. A span of a diagnosis, drug or procedure must be a code
of its history visit (`visit_index`, the oldest is 0), in the words that this code always has: what
depends on the code alone cannot tell of the next visit. Outside these spans, in demographics too,
must not stand dates, distances in time, deaths, readmissions, nor the next visit's id and titles.
Within them numbers and words of the kind are part of a title. Spans of knowledge: see facts.py.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ckd_ehr.contracts.records import Reader
from ckd_ehr.data.audit.facts import ADD_FACTS, FACT_CHECKS, FACT_TABLES, views_of
from ckd_ehr.data.audit.findings import CheckResult, Finding, SqlCheck, findings_of, run_checks
from ckd_ehr.data.audit.tables import ITEM_KEY, open_cohort, scan

# System, code and the source's title → the words for the code, which depend on nothing else.
WordsOf = Callable[[str, str, str | None], str]

STAGE = "knowledge"
# Words of the text outside spans of codes: a disease's own title may speak of death.
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
# Titles come into texts as one line of printable characters.
_PLAIN = r"trim(regexp_replace(lower({}), '[\p{{Z}}\p{{C}}]+', ' ', 'g'))"
_AGAIN = "delete the stage's folder and run again; if it comes back, report it with the config"
_WORDING = (
    "a field that the source gives as words (admission type, ethnicity, a title) tells of what "
    "came later: change it in the source's tables, then run again"
)

_CHECKS = (
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
        "one wording a code",
        "spans show words that are neither a title of their code nor what it is called elsewhere",
        _AGAIN,
        "SELECT unnest(range(shown)) FROM (SELECT item, words, shown, row_number() OVER "
        "(PARTITION BY item ORDER BY shown DESC, words) AS place FROM unusual_words) "
        "WHERE place > 1",
    ),
    SqlCheck(
        "titles of the next visit in spans",
        "codes of a single pair are called by the title of a code that only its next visit has",
        _AGAIN,
        "SELECT DISTINCT unusual_words.item, words FROM unusual_words "
        "JOIN future ON future.pair_no = only_pair "
        "JOIN titles ON titles.item = future.item "
        f"WHERE length(title) >= {_SHORTEST_TITLE} AND contains(words, title) AND NOT EXISTS ("
        "SELECT 1 FROM titles AS own WHERE own.item = unusual_words.item "
        "AND contains(own.title, titles.title))",
    ),
    SqlCheck(
        "ids of the next visit",
        "texts hold the id of the next visit",
        _WORDING,
        f"SELECT 1 FROM frames JOIN pairs USING (pair_no) WHERE "
        f"length(next_visit_id) >= {_SHORTEST_ID} AND contains(frame, next_visit_id) "
        r"AND regexp_matches(frame, '\b' || regexp_escape(next_visit_id) || '\b')",
    ),
    SqlCheck(
        "times, deaths, readmissions in texts",
        "texts tell a date, a distance in time, a death or a readmission outside codes",
        _WORDING,
        f"SELECT 1 FROM frames WHERE regexp_matches(frame, '{_TOLD_LATER}', 'i')",
    ),
    SqlCheck(
        "titles of the next visit in texts",
        "texts hold outside codes the title of a code that only the next visit has",
        _WORDING,
        "SELECT 1 FROM frames JOIN future USING (pair_no) JOIN codes USING (item) "
        f"WHERE length(title) >= {_SHORTEST_TITLE} AND contains(lower(frame), lower(title))",
    ),
)

CHECKS = (*_CHECKS, *FACT_CHECKS)

# shown: what each history visit has, by its position. future: what only the next visit has.
# frames: texts without spans of codes. titles: what a code may be called, by the source or by
# `words_of`. words: what each is called; unusual_words: other than by such a title, or by itself;
# only_pair: where it is called so nowhere else.
_TABLES = f"""
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
    CREATE TABLE frames (pair_no BIGINT, frame VARCHAR);
    CREATE TABLE words (
        item UBIGINT, words VARCHAR, shown BIGINT, first_pair BIGINT, last_pair BIGINT);
    CREATE TABLE named AS SELECT DISTINCT {ITEM_KEY} AS item, system, code, title FROM coded;
    CREATE TABLE titles AS
        SELECT DISTINCT item, {_PLAIN.format("title")} AS title FROM named WHERE title IS NOT NULL;
    CREATE VIEW unusual_words AS
        SELECT item, words, sum(shown)::BIGINT AS shown,
            if(min(first_pair) = max(last_pair), min(first_pair), NULL) AS only_pair
        FROM words ANTI JOIN (
            FROM titles UNION ALL SELECT item, {_PLAIN.format("code")} AS title FROM codes
        ) AS own ON own.item = words.item AND own.title = words.words
        GROUP BY item, words;"""
_ADD_TITLES = f"INSERT INTO titles SELECT item, {_PLAIN.format('title')} FROM given_titles"
_ADD_SPANS = f"""
    INSERT INTO spans
    SELECT pair_no, visit_index, {ITEM_KEY}, from_knowledge, kind = 'demographics',
        "start" < 0 OR "end" <= "start" OR "end" > size
    FROM batch_spans JOIN keys USING (pair_id)"""
_ADD_WORDS = f"""
    INSERT INTO words
    SELECT {ITEM_KEY} AS item, {_PLAIN.format("words")} AS words, count(*), min(pair_no),
        max(pair_no)
    FROM batch_spans JOIN keys USING (pair_id)
    WHERE kind <> 'demographics' AND NOT from_knowledge
        AND "start" >= 0 AND "end" > "start" AND "end" <= size
    GROUP BY 1, 2"""
_ADD_FRAMES = "INSERT INTO frames SELECT pair_no, frame FROM batch_frames JOIN keys USING (pair_id)"
_SPAN_FIELDS = ("start", "end", "kind", "system", "code", "visit_index", "from_knowledge")
_UNREAD = ("reader", "concept_id", "concepts_cut", "knowledge_cut")
_BUFFER = 1 << 20
_BATCH = 2048  # narratives at a time: their spans are many


def narrative_findings(knowledge: Path, cohort: Path, *, words_of: WordsOf) -> list[Finding]:
    """All that is wrong with a run's narratives; empty if nothing is.

    Args:
        knowledge: the stage's folder, with the narratives of each reader and what is known.
        cohort: the folder of visits.parquet and pairs.parquet.
        words_of: how the narratives call a code.
    """
    return findings_of(narrative_checks(knowledge, cohort, words_of=words_of))


def narrative_checks(knowledge: Path, cohort: Path, *, words_of: WordsOf) -> list[CheckResult]:
    """As `narrative_findings`, with the checks that passed."""
    narratives = [knowledge / f"{reader}.parquet" for reader in get_args(Reader)]
    with open_cohort(cohort) as connection:
        connection.execute(f"CREATE VIEW narratives AS {scan(narratives)}")
        connection.execute(views_of(knowledge) + _TABLES + FACT_TABLES)
        _add_titles(connection, words_of)
        for path in narratives:
            file = pq.ParquetFile(path, buffer_size=_BUFFER)
            leaves = [file.schema.column(n).path for n in range(len(file.schema))]
            columns = [leaf for leaf in leaves if leaf.rpartition(".")[2] not in _UNREAD]
            for batch in file.iter_batches(_BATCH, columns=columns):
                _add(connection, batch)
        return run_checks(connection, CHECKS, STAGE)


def _add_titles(connection: duckdb.DuckDBPyConnection, words_of: WordsOf) -> None:
    """Enter what each code is called in texts, for every title that the source gives it."""
    named = connection.table("named").to_arrow_table()
    facts = (named[name].to_pylist() for name in ("system", "code", "title"))
    titles = pa.array([words_of(*fact) for fact in zip(*facts, strict=True)], pa.string())
    connection.register("given_titles", pa.table({"item": named["item"], "title": titles}))
    connection.execute(_ADD_TITLES)


def _add(connection: duckdb.DuckDBPyConnection, batch: pa.RecordBatch) -> None:
    """Enter the spans, words and frames of some narratives."""
    ids, texts, lists = batch.column("pair_id"), batch.column("text"), batch.column("spans")
    spans, owners = lists.flatten(), pc.list_parent_indices(lists)
    plain = texts.to_pylist()
    starts, ends = spans.field("start").to_pylist(), spans.field("end").to_pylist()
    texts_of_spans = zip(owners.to_pylist(), starts, ends, strict=True)
    words = [plain[owner][max(start, 0) : end] for owner, start, end in texts_of_spans]
    columns = {name: spans.field(name) for name in _SPAN_FIELDS}
    columns |= {"pair_id": ids.take(owners), "words": pa.array(words, pa.string())}
    columns |= {"size": pc.utf8_length(texts).take(owners)}
    connection.register("batch_spans", pa.table(columns))
    connection.execute(_ADD_SPANS)
    connection.execute(_ADD_WORDS)
    connection.execute(ADD_FACTS)
    edges: list[tuple[list[int], list[int]]] = [([], []) for _ in plain]
    of_codes = pc.not_equal(spans.field("kind"), "demographics").to_pylist()
    for owner, start, end, cut in zip(owners.to_pylist(), starts, ends, of_codes, strict=True):
        if cut:
            edges[owner][0].append(start)
            edges[owner][1].append(end)
    frames = [frame_of(text, *edge) for text, edge in zip(plain, edges, strict=True)]
    connection.register(
        "batch_frames", pa.table({"pair_id": ids, "frame": pa.array(frames, pa.string())})
    )
    connection.execute(_ADD_FRAMES)


def frame_of(text: str, starts: Sequence[int], ends: Sequence[int]) -> str:
    """A text without what stands between starts and ends.

    >>> frame_of("Visit 1: gout; fever.", [9, 15], [13, 20])
    'Visit 1:  ;  .'
    """
    opens, closes = [*sorted(starts), len(text)], [0, *sorted(ends)]
    return " ".join(text[close:open_] for close, open_ in zip(closes, opens, strict=True))
