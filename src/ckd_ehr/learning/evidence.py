"""What a teacher's soft labels rest on, as a table for people.

In: per pair the evidence of each concept for each label, as parts of the calibrated log-odds. Out:
per pair and label the concepts that weigh most, what each visit adds, and how much is knowledge or
rests on the text as a whole. Ignores: whether the evidence is faithful; the evaluation tests that.
"""

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import pyarrow as pa

from ckd_ehr.contracts.records import Narrative, Span
from ckd_ehr.learning.scoring import Floats

TOP = 5
ROWS_AT_ONCE = 20_000
CONCEPT = pa.struct([pa.field("concept_id", pa.string()), pa.field("log_odds", pa.float32())])
VISIT = pa.struct([pa.field("visit_index", pa.int32()), pa.field("log_odds", pa.float32())])
EVIDENCE = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("knowledge_share", pa.float32(), nullable=False),
        pa.field("reading_share", pa.float32(), nullable=False),
        pa.field("visits", pa.list_(VISIT), nullable=False),
        pa.field("concepts", pa.list_(CONCEPT), nullable=False),
    ]
)


def evidence_rows(
    pair_id: str, evidence: Floats, narrative: Narrative, labels: Sequence[str]
) -> list[dict[str, object]]:
    """The rows of one pair.

    Shares are of the sum of absolute evidence. `visits` sums the evidence of each visit of the
    narrative, oldest first; demographics and knowledge belong to none.

    Args:
        evidence: (labels, 1 + concepts), the reading state first.
    """
    spans = narrative.spans
    size = np.abs(evidence)
    total = np.maximum(size.sum(1), 1e-12)
    knowledge = np.array([span.from_knowledge for span in spans], dtype=bool)
    knowledge_share = size[:, 1:][:, knowledge].sum(1) / total
    reading_share = size[:, 0] / total
    numbers, members = _visits(spans)
    visits = evidence[:, 1:] @ members
    top = np.argsort(-size[:, 1:], axis=1, kind="stable")[:, :TOP]
    return [
        {
            "pair_id": pair_id,
            "label": label,
            "knowledge_share": float(knowledge_share[k]),
            "reading_share": float(reading_share[k]),
            "visits": [
                {"visit_index": number, "log_odds": float(value)}
                for number, value in zip(numbers, visits[k], strict=True)
            ],
            "concepts": [
                {"concept_id": spans[c].concept_id, "log_odds": float(evidence[k, 1 + c])}
                for c in top[k]
            ],
        }
        for k, label in enumerate(labels)
    ]


def _visits(spans: Sequence[Span]) -> tuple[list[int], Floats]:
    """The told visits, and (concepts, visits) which concept of the record belongs to which."""
    told = [
        span.visit_index if span.kind != "demographics" and not span.from_knowledge else -1
        for span in spans
    ]
    numbers = sorted({number for number in told if number >= 0})
    member = np.array(told)[:, None] == np.array(numbers, dtype=int)[None, :]
    return numbers, np.asarray(member, dtype=np.float64)


def evidence_table(rows: Iterable[dict[str, object]]) -> pa.Table:
    """The table of all pairs' rows; few of them are Python objects at a time."""
    waiting, batches = iter(rows), []
    while batch := list(islice(waiting, ROWS_AT_ONCE)):
        batches.append(pa.RecordBatch.from_pylist(batch, EVIDENCE))
    return pa.Table.from_batches(batches, EVIDENCE)
