"""A narrative in other orders of the codes within its visits: the order is arbitrary.

In: a narrative. Out: the same concepts, each in the place of another of its visit and kind.
Ignores: demographics and medical knowledge, whose order has a meaning.
"""

import hashlib
from dataclasses import replace
from itertools import groupby

import numpy as np

from ckd_ehr.contracts.records import Narrative, Span


def shuffled(narrative: Narrative, rng: np.random.Generator) -> Narrative:
    """The narrative with the concepts of each visit and kind in a random order.

    The words between the concepts stay where they are, so a text keeps its characters.
    """
    order: list[int] = []
    for (_, kind, knowledge), group in groupby(
        range(len(narrative.spans)), key=lambda place: _group(narrative.spans[place])
    ):
        places = list(group)
        fixed = kind == "demographics" or knowledge
        order += places if fixed else rng.permutation(places).tolist()
    return reordered(narrative, order)


def _group(span: Span) -> tuple[int, str, bool]:
    return span.visit_index, span.kind, span.from_knowledge


def reordered(narrative: Narrative, order: list[int]) -> Narrative:
    """The narrative with concept `order[n]` in place n.

    >>> spans = (Span(0, 1, "a", "drug", "", "a", 0), Span(3, 5, "b", "drug", "", "b", 0))
    >>> text = reordered(Narrative("A; BB.", spans, 0, 0), [1, 0])
    >>> text.text, [(span.start, span.end, span.concept_id) for span in text.spans]
    ('BB; A.', [(0, 2, 'b'), (4, 5, 'a')])
    """
    pieces: list[str] = []
    spans: list[Span] = []
    position = behind = 0
    for place, source in zip(narrative.spans, order, strict=True):
        between = narrative.text[behind : place.start]
        span = narrative.spans[source]
        told = narrative.text[span.start : span.end]
        start = position + len(between)
        position, behind = start + len(told), place.end
        pieces += (between, told)
        spans.append(span._replace(start=start, end=position))
    pieces.append(narrative.text[behind:])
    return replace(narrative, text="".join(pieces), spans=tuple(spans))


def generator_of(pair_id: str, *, order: int, seed: int) -> np.random.Generator:
    """Randomness that depends on the pair and the number of the order, not on its neighbours."""
    digest = hashlib.sha256(f"{seed}:{order}:{pair_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))
