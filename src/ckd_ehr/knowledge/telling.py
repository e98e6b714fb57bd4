"""Every history told to every reader: the `narratives` tables.

In: visits and pairs, what is known, each reader's token counter. Out: a table a reader, and figures
about it. Ignores: how one history is told. Tokens are counted by pieces, and now and then a text is
counted as a whole; if that disagrees, all texts of that reader are counted as wholes. Several
processes tell many pairs, and the texts are the same.
"""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ckd_ehr.contracts.records import NARRATIVES, SPAN, Narrative, Reader, Visit, visits_from_table
from ckd_ehr.contracts.workers import available_cores, in_processes
from ckd_ehr.knowledge.facts import KnowledgeBase
from ckd_ehr.knowledge.narrative import Teller, Told
from ckd_ehr.knowledge.pieces import CountTokens
from ckd_ehr.knowledge.story import RECENT_VISITS, RecentSentences

BATCH = RECENT_VISITS // 2  # narratives held as Python objects at a time
BATCHES_A_PROCESS = 8  # fewer are told sooner than another process has started
MOST_PROCESSES = 8
CHECKED = 500  # of so many texts one is counted as a whole
Figures = dict[str, int | float]


class ToTell(NamedTuple):
    """A history, and the fold of its pair (-1 outside train)."""

    history: Sequence[Visit]
    fold: int


@dataclass(frozen=True)
class _Share:
    """Pairs that one process tells, with their visits."""

    visits: pa.Table
    pairs: pa.Table
    base: KnowledgeBase
    count_tokens: Mapping[Reader, CountTokens]
    exactly: frozenset[Reader]


@dataclass
class _ToldShare:
    """Each reader's tables and tokens, or the readers whose pieces do not add up."""

    tables: dict[Reader, list[pa.Table]]
    tokens: dict[Reader, list[int]]
    disagreeing: frozenset[Reader] = frozenset()


def histories_of(visits: pa.Table, pairs: pa.Table) -> dict[str, ToTell]:
    """The history of each pair, by pair_id; a visit of several is one object."""
    known = visits_from_table(visits)
    columns = (pairs[name].to_pylist() for name in ("pair_id", "history", "fold"))
    return {
        pair_id: ToTell([known[visit_id] for visit_id in history], fold)
        for pair_id, history, fold in zip(*columns, strict=True)
    }


def tell_all(
    visits: pa.Table,
    pairs: pa.Table,
    base: KnowledgeBase,
    count_tokens: Mapping[Reader, CountTokens],
    *,
    processes: int | None = None,
) -> dict[Reader, tuple[pa.Table, Figures]]:
    """Each reader's `narratives` table, and figures about it.

    Args:
        visits: all that the pairs' histories have.
        pairs: those of a patient one after the other are told fastest.
        base: what is known, and what each reader is told of it.
        count_tokens: the tokens of a text, for each reader; with several processes, picklable.
        processes: as many as there are cores, if the pairs are worth it.
    """
    shares = _shared(visits, pairs, processes or _worthwhile_processes(pairs.num_rows))
    exactly: frozenset[Reader] = frozenset()
    while True:
        told = in_processes(
            _tell_share, [_Share(*share, base, count_tokens, exactly) for share in shares]
        )
        if not (disagreeing := frozenset[Reader]().union(*(one.disagreeing for one in told))):
            return {
                reader: _whole(reader, told, allowed=base.settings.readers[reader].max_tokens)
                for reader in count_tokens
            }
        exactly |= disagreeing


def _worthwhile_processes(pairs: int) -> int:
    return max(1, min(available_cores(), MOST_PROCESSES, pairs // (BATCH * BATCHES_A_PROCESS)))


def _shared(visits: pa.Table, pairs: pa.Table, parts: int) -> list[tuple[pa.Table, pa.Table]]:
    """Whole batches for each process, so that their number does not change which texts are checked.

    Each with the visits of its histories.
    """
    if parts == 1:
        return [(visits, pairs)]
    batches = -(-pairs.num_rows // BATCH)
    ends = [batches * part // parts * BATCH for part in range(parts + 1)]
    shares = []
    for start, end in pairwise(ends):
        some = pairs.slice(start, end - start)
        told = pc.is_in(visits["visit_id"], pc.unique(pc.list_flatten(some["history"])))
        shares.append((visits.filter(told), some))
    return shares


def _whole(reader: Reader, told: Sequence[_ToldShare], *, allowed: int) -> tuple[pa.Table, Figures]:
    table = pa.concat_tables(part for share in told for part in share.tables[reader])
    tokens = [number for share in told for number in share.tokens[reader]]
    return table, _figures(table, tokens, allowed=allowed)


def _tell_share(share: _Share) -> _ToldShare:
    settings, sentences = share.base.settings.readers, RecentSentences()
    tellers = {
        reader: Teller(count, max_tokens=settings[reader].max_tokens, sentences=sentences)
        for reader, count in share.count_tokens.items()
    }
    done = _ToldShare(
        {reader: [NARRATIVES.empty_table()] for reader in tellers},
        {reader: [] for reader in tellers},
    )
    with _without_collector():
        histories = list(histories_of(share.visits, share.pairs).items())
        for start in range(0, len(histories), BATCH):
            batch = dict(histories[start : start + BATCH])
            for reader, teller in tellers.items():
                exactly = reader in share.exactly
                told = _tell_batch(batch, share.base, teller, reader=reader, exactly=exactly)
                if not all(map(teller.is_exact, told[::CHECKED])):
                    return _ToldShare({}, {}, frozenset([reader]))
                done.tokens[reader] += [one.tokens for one in told]
                narratives = [one.narrative for one in told]
                done.tables[reader].append(_table(list(batch), reader, narratives))
    return done


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
