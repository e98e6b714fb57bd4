"""What a reader is told of a pair, and the source of every piece of knowledge in it.

In: the files of a finished knowledge stage. Out: narratives as their readers see them, and
citations by concept. Ignores: how narratives are written, and who reads them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ckd_ehr.contracts.config import RunConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_batches, read_table
from ckd_ehr.contracts.records import NARRATIVES, PAIRS, Narrative, Reader, Span
from ckd_ehr.knowledge.facts import KnowledgeBase


def read_narratives(knowledge: Path, reader: Reader) -> dict[str, Narrative]:
    """One reader's narratives, by pair."""
    return dict(iter_narratives(knowledge, reader))


def iter_narratives(knowledge: Path, reader: Reader) -> Iterator[tuple[str, Narrative]]:
    """Each pair and its narrative, of one reader; few of them are in memory at a time."""
    for batch in read_batches(knowledge / f"{reader}.parquet", NARRATIVES):
        yield from _narratives(batch).items()


def cite_narrative(
    folders: Mapping[str, Path], config: RunConfig, *, pair_id: str, reader: Reader
) -> tuple[Narrative, dict[str, str]]:
    """A pair's narrative, and concept_id → citation of each piece of knowledge in it.

    Args:
        folders: of the stages `cohort` and `knowledge`.
        config: of the run.
        pair_id: the pair.
        reader: whose narrative.

    Raises:
        CkdEhrError: the run has no such pair.
    """
    pairs = read_table(folders["cohort"] / "pairs.parquet", PAIRS)
    folds = pairs.filter(pc.equal(pairs["pair_id"], pair_id))["fold"].to_pylist()
    if not folds:
        raise CkdEhrError(
            f"pair {pair_id} is not in this run; its pairs are in {folders['cohort']}/pairs.parquet"
        )
    told = read_table(folders["knowledge"] / f"{reader}.parquet", NARRATIVES)
    narrative = _narratives(told.filter(pc.equal(told["pair_id"], pair_id)))[pair_id]
    base = KnowledgeBase.load(
        folders["knowledge"], phenotypes=config.labels.selected, settings=config.knowledge
    )
    return narrative, {
        span.concept_id: base.cite(span, fold=folds[0])
        for span in narrative.spans
        if span.from_knowledge
    }


def pairs_told_knowledge(knowledge: Path, reader: Reader) -> list[str]:
    """The pairs in whose narratives there is a piece of knowledge that has not been cut."""
    table = read_table(knowledge / f"{reader}.parquet", NARRATIVES)
    spans = table["spans"].combine_chunks()
    of_knowledge = spans.flatten().field("from_knowledge")
    rows = pc.unique(pc.list_parent_indices(spans).filter(of_knowledge))
    ids: list[str] = table["pair_id"].take(rows).to_pylist()
    return ids


def _narratives(table: pa.Table | pa.RecordBatch) -> dict[str, Narrative]:
    return {
        row["pair_id"]: Narrative(
            text=row["text"],
            spans=tuple(Span(**span) for span in row["spans"]),
            concepts_cut=row["concepts_cut"],
            knowledge_cut=row["knowledge_cut"],
        )
        for row in table.to_pylist()
    }
