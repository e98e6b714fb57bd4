"""Concept spans ↔ tokens, for any fast tokenizer.

In: a narrative and a tokenizer. Out: token ids, and for each token the concept it belongs to.
Ignores: what the concepts mean.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ckd_ehr.contracts.records import Narrative, Span

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Reading = Literal["first", "last"]


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A narrative as one model reads it, in few bytes: a run keeps 100,000 of them.

    `input_ids` (tokens,). `concept_index` (tokens,) is 0 for a token of no concept, else 1 + the
    concept's place in `concept_ids`; `reading_index` is the token whose state sums up the text.
    `groups` (1 + concepts,) is what `groups_of` says.
    """

    input_ids: NDArray[np.int32]
    concept_index: NDArray[np.int32]
    reading_index: int
    concept_ids: tuple[str, ...]
    groups: NDArray[np.int16]

    @classmethod
    def of(
        cls,
        input_ids: Sequence[int],
        concept_index: NDArray[np.int64],
        spans: Sequence[Span],
        *,
        reading_index: int,
    ) -> "Encoded":
        """The tokens of a text and the concepts they are of."""
        return cls(
            input_ids=np.array(input_ids, dtype=np.int32),
            concept_index=concept_index.astype(np.int32),
            reading_index=reading_index,
            # patients have many concepts in common: one string each
            concept_ids=tuple(sys.intern(span.concept_id) for span in spans),
            groups=groups_of(spans),
        )


def groups_of(spans: Sequence[Span]) -> NDArray[np.int16]:
    """What each state belongs to, the reading state first: (1 + concepts,).

    0: the text as a whole; 1: demographics; 2: knowledge; 3 + v: visit v.

    >>> woman = Span(0, 5, "a", "demographics", "GENDER", "F", -1)
    >>> gout = Span(7, 11, "b", "diagnosis", "ICD9CM", "2749", 4)
    >>> groups_of([woman, gout]).tolist()
    [0, 1, 7]
    """
    visits = [span.visit_index for span in spans]
    return np.array([0, *(3 + v if v >= 0 else -v for v in visits)], dtype=np.int16)


def concept_index_of(
    offsets: Sequence[tuple[int, int]], spans: Sequence[Span]
) -> NDArray[np.int64]:
    """For each token the 1-based span it overlaps most, 0 for none.

    Args:
        offsets: (start, end) characters of each token, in the text; (0, 0) for special tokens.
        spans: in order of their start, not overlapping.

    >>> first = Span(0, 6, "a", "diagnosis", "ICD9CM", "4280", 0)
    >>> spans = [first, Span(8, 12, "b", "diagnosis", "ICD9CM", "4019", 0)]
    >>> concept_index_of([(0, 0), (0, 3), (3, 6), (6, 7), (7, 12)], spans).tolist()
    [0, 1, 1, 0, 2]
    """
    tokens = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    if not spans:
        return np.zeros(len(tokens), dtype=np.int64)
    starts = np.array([span.start for span in spans], dtype=np.int64)
    ends = np.array([span.end for span in spans], dtype=np.int64)
    last = np.searchsorted(starts, tokens[:, 1] - 1, side="right") - 1
    best = np.zeros(len(tokens), dtype=np.int64)
    best_overlap = np.zeros(len(tokens), dtype=np.int64)
    for candidate in (last - 1, last):
        inside = np.maximum(candidate, 0)
        overlap = np.minimum(tokens[:, 1], ends[inside]) - np.maximum(tokens[:, 0], starts[inside])
        better = (candidate >= 0) & (overlap > best_overlap)
        best[better] = candidate[better] + 1
        best_overlap[better] = overlap[better]
    return best


def encode(
    narrative: Narrative, tokenizer: "Tokenizer", *, reading: Reading, end_token: int | None = None
) -> Encoded:
    """Tokenise a narrative and find each concept's tokens.

    `reading="first"` reads at the first token ([CLS] of an encoder); `reading="last"` appends
    `end_token` and reads there (causal models see the whole text only at the end).
    """
    encoding = tokenizer.encode(narrative.text)
    index = concept_index_of(encoding.offsets, narrative.spans)
    ids = list(encoding.ids)
    if reading == "last":
        if end_token is not None:
            ids.append(end_token)
            index = np.append(index, 0)
        position = len(ids) - 1
        index[position] = 0
    else:
        position = 0
    return Encoded.of(ids, index, narrative.spans, reading_index=position)
