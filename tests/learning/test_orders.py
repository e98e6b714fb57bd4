"""Other orders of a visit's codes hold the same concepts, each with its own text."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ckd_ehr.contracts.records import Narrative, Span
from ckd_ehr.learning.orders import generator_of, shuffled

WORDS = ("Anemia, unspecified", "Shock", "Äther", "Aspirin 81 mg", "Fever; of 2 days", "X")
KINDS = ("demographics", "diagnosis", "medication")


@st.composite
def narratives(draw: st.DrawFn) -> Narrative:
    text, spans = "Told: ", []
    for number in range(draw(st.integers(0, 12))):
        word = draw(st.sampled_from(WORDS))
        kind, visit = draw(st.sampled_from(KINDS)), draw(st.integers(0, 1))
        known = draw(st.booleans())
        start = len(text)
        text += word
        spans.append(Span(start, len(text), f"c{number}", kind, "S", word, visit, known))
        text += draw(st.sampled_from(("; ", ". Visit 2: ", ", ")))
    return Narrative(text, tuple(spans), concepts_cut=2, knowledge_cut=1)


@given(narratives(), st.integers(0, 5))
def test_every_concept_keeps_its_text_and_its_visit(narrative: Narrative, seed: int) -> None:
    told = shuffled(narrative, np.random.default_rng(seed))
    words = {span.concept_id: narrative.text[span.start : span.end] for span in narrative.spans}
    assert {span.concept_id: told.text[span.start : span.end] for span in told.spans} == words
    assert sorted(told.text) == sorted(narrative.text)
    assert (told.concepts_cut, told.knowledge_cut) == (2, 1)
    for before, after in zip(narrative.spans, told.spans, strict=True):
        assert (before.visit_index, before.kind, before.from_knowledge) == (
            after.visit_index,
            after.kind,
            after.from_knowledge,
        )
        if before.kind == "demographics" or before.from_knowledge:
            assert before.concept_id == after.concept_id
    starts = [span.start for span in told.spans]
    assert starts == sorted(starts)


def test_an_order_depends_on_pair_number_and_seed_alone() -> None:
    spans = tuple(Span(2 * n, 2 * n + 1, f"c{n}", "diagnosis", "S", "x", 0) for n in range(9))
    narrative = Narrative("a;b;c;d;e;f;g;h;i.", spans, 0)
    texts = {
        (pair, order): shuffled(narrative, generator_of(pair, order=order, seed=7)).text
        for pair in ("p", "q")
        for order in (1, 2)
    }
    assert len(set(texts.values())) == 4
    assert shuffled(narrative, generator_of("p", order=1, seed=7)).text == texts["p", 1]
    assert shuffled(narrative, generator_of("p", order=1, seed=8)).text != texts["p", 1]
