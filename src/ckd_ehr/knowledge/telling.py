"""Every history told to every reader: the `narratives` tables.

In: visits and pairs, what is known, each reader's token counter. Out: a table a reader, and figures
about it. Ignores: how one history is told. Tokens are counted by pieces, and now and then a text is
counted as a whole; if that disagrees, all texts of that reader are counted as wholes.
"""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, islice
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ckd_ehr.contracts.records import NARRATIVES, SPAN, Narrative, Reader, Visit, visits_from_table
from ckd_ehr.knowledge.facts import KnowledgeBase
from ckd_ehr.knowledge.narrative import Teller, Told
from ckd_ehr.knowledge.pieces import CountTokens
from ckd_ehr.knowledge.story import RECENT_VISITS, RecentSentences

BATCH = RECENT_VISITS // 2  # narratives held as Python objects at a time
CHECKED = 500  # of so many texts one is counted as a whole
Figures = dict[str, int | float]


class ToTell(NamedTuple):
    """A history, and the fold of its pair (-1 outside train)."""

    history: Sequence[Visit]
    fold: int


class _PiecesDisagreeError(Exception):
    """Of a reader's text the tokens of the pieces are not the tokens of the whole."""

    def __init__(self, reader: Reader) -> None:
        super().__init__(reader)
        self.reader: Reader = reader


def histories_of(visits: pa.Table, pairs: pa.Table) -> dict[str, ToTell]:
    """The history of each pair, by pair_id; a visit of several is one object."""
    known = visits_from_table(visits)
    columns = (pairs[name].to_pylist() for name in ("pair_id", "history", "fold"))
    return {
        pair_id: ToTell([known[visit_id] for visit_id in history], fold)
        for pair_id, history, fold in zip(*columns, strict=True)
    }


def tell_all(
    histories: Mapping[str, ToTell],
    base: KnowledgeBase,
    count_tokens: Mapping[Reader, CountTokens],
) -> dict[Reader, tuple[pa.Table, Figures]]:
    """Each reader's `narratives` table, and figures about it.

    Args:
        histories: by pair_id; those of a patient one after the other are told fastest.
        base: what is known, and what each reader is told of it.
        count_tokens: the tokens of a text, for each reader.
    """
    exactly: set[Reader] = set()
    with _without_collector():
        while True:
            try:
                return _tell_all(histories, base, count_tokens, exactly)
            except _PiecesDisagreeError as error:
                exactly.add(error.reader)


def _tell_all(
    histories: Mapping[str, ToTell],
    base: KnowledgeBase,
    count_tokens: Mapping[Reader, CountTokens],
    exactly: set[Reader],
) -> dict[Reader, tuple[pa.Table, Figures]]:
    settings, sentences = base.settings.readers, RecentSentences()
    tellers = {
        reader: Teller(count, max_tokens=settings[reader].max_tokens, sentences=sentences)
        for reader, count in count_tokens.items()
    }
    tables = {reader: [NARRATIVES.empty_table()] for reader in tellers}
    tokens: dict[Reader, list[int]] = {reader: [] for reader in tellers}
    waiting = iter(histories.items())
    while batch := dict(islice(waiting, BATCH)):
        for reader, teller in tellers.items():
            told = _tell_batch(batch, base, teller, reader=reader, exactly=reader in exactly)
            tokens[reader] += [one.tokens for one in told]
            tables[reader].append(_table(list(batch), reader, [one.narrative for one in told]))
    whole = {reader: pa.concat_tables(parts) for reader, parts in tables.items()}
    return {
        reader: (table, _figures(table, tokens[reader], allowed=settings[reader].max_tokens))
        for reader, table in whole.items()
    }


def _tell_batch(
    batch: Mapping[str, ToTell],
    base: KnowledgeBase,
    teller: Teller,
    *,
    reader: Reader,
    exactly: bool,
) -> list[Told]:
    settings = base.settings.readers[reader]
    tell = teller.tell_exactly if exactly else teller.tell_by_pieces
    told = []
    for history, fold in batch.values():
        facts = base.facts(history, fold=fold, reader=settings, counter=teller.counter)
        told.append(tell(history, facts))
    if not all(map(teller.is_exact, told[::CHECKED])):
        raise _PiecesDisagreeError(reader)
    return told


@contextmanager
def _without_collector() -> Iterator[None]:
    """Millions of small objects are made, none of them a cycle: do not look through them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _figures(table: pa.Table, tokens: Sequence[int], *, allowed: int) -> Figures:
    cut = table["concepts_cut"].to_numpy()
    spans = pc.list_flatten(table["spans"]).combine_chunks()
    knowledge = int(pc.sum(spans.field("from_knowledge")).as_py() or 0)
    return {
        "narratives": table.num_rows,
        "max_tokens_allowed": allowed,
        "mean_tokens": round(sum(tokens) / max(len(tokens), 1), 1),
        "max_tokens": max(tokens, default=0),
        "concepts": len(spans) - knowledge,
        "concepts_cut": int(cut.sum()),
        "narratives_cut": int((cut > 0).sum()),
        "knowledge": knowledge,
        "knowledge_cut": int(table["knowledge_cut"].to_numpy().sum()),
    }


def _table(pair_ids: Sequence[str], reader: Reader, narratives: Sequence[Narrative]) -> pa.Table:
    spans = [span for narrative in narratives for span in narrative.spans]
    fields = zip(*spans, strict=True) if spans else [()] * len(SPAN)
    columns = [pa.array(values, f.type) for values, f in zip(fields, SPAN, strict=True)]
    ends = accumulate((len(narrative.spans) for narrative in narratives), initial=0)
    return pa.table(
        {
            "pair_id": pa.array(pair_ids, pa.string()),
            "reader": pa.array([reader] * len(pair_ids), pa.string()),
            "text": pa.array([narrative.text for narrative in narratives], pa.string()),
            "spans": pa.ListArray.from_arrays(
                pa.array(list(ends), pa.int32()), pa.StructArray.from_arrays(columns, fields=SPAN)
            ),
            "concepts_cut": pa.array([n.concepts_cut for n in narratives], pa.int32()),
            "knowledge_cut": pa.array([n.knowledge_cut for n in narratives], pa.int32()),
        },
        schema=NARRATIVES,
    )
