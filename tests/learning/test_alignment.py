"""Spans ↔ tokens: every token belongs to the concept it overlaps most."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckd_ehr.contracts.records import Narrative, Span
from ckd_ehr.knowledge.story import OF_MEDICINE, OF_THE_PATIENT
from ckd_ehr.learning.alignment import concept_index_of, encode, groups_of
from ckd_ehr.learning.weights import load_tokenizer
from tiny import tiny_bert, tiny_qwen2


def _spans(lengths: list[tuple[int, int]]) -> list[Span]:
    spans, position = [], 0
    for gap, length in lengths:
        start = position + gap
        position = start + length
        spans.append(Span(start, position, f"c{len(spans)}", "diagnosis", "S", "1", 0))
    return spans


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), max_size=6),
    st.lists(st.integers(1, 5), min_size=1, max_size=20),
)
def test_each_token_takes_the_span_of_greatest_overlap_when_it_meets_at_most_two(
    lengths: list[tuple[int, int]], widths: list[int]
) -> None:
    spans = _spans(lengths)
    offsets, position = [], 0
    for width in widths:
        offsets.append((position, position + width))
        position += width
    index = concept_index_of(offsets, spans)
    for (start, end), found in zip(offsets, index, strict=True):
        overlaps = [max(0, min(end, s.end) - max(start, s.start)) for s in spans]
        touched = sum(overlap > 0 for overlap in overlaps)
        if touched == 0:
            assert found == 0
        elif touched <= 2:
            assert overlaps[found - 1] == max(overlaps)
        else:
            assert overlaps[found - 1] > 0


@pytest.mark.parametrize("reading", ["first", "last"])
def test_encoding_reads_where_the_model_sees_everything(tmp_path: Path, reading: str) -> None:
    model = tiny_bert(tmp_path / "m") if reading == "first" else tiny_qwen2(tmp_path / "m")
    text = "woman. visit: shock; aspirin;"
    spans = (
        Span(14, 19, "0/diagnosis/S/1/0", "diagnosis", "S", "1", 0),
        Span(21, 28, "0/medication/N/aspirin/0", "medication", "N", "aspirin", 0),
    )
    narrative = Narrative(text, spans, concepts_cut=0)
    if reading == "first":
        encoded = encode(narrative, load_tokenizer(model), reading="first")
        assert encoded.reading_index == 0
        assert encoded.input_ids[0] == 2  # [CLS]
    else:
        encoded = encode(narrative, load_tokenizer(model), reading="last", end_token=0)
        assert encoded.reading_index == len(encoded.input_ids) - 1
        assert encoded.input_ids[-1] == 0
    assert encoded.concept_index[encoded.reading_index] == 0
    assert set(encoded.concept_index) == {0, 1, 2}
    assert encoded.concept_ids == tuple(span.concept_id for span in spans)
    assert encoded.groups.tolist() == [0, 3, 3]
    arrays = (encoded.input_ids, encoded.concept_index, encoded.groups)
    assert [values.dtype.itemsize for values in arrays] == [4, 4, 2]


def test_states_are_grouped_by_visit_and_apart_from_demographics_and_knowledge() -> None:
    numbers = (OF_THE_PATIENT, 0, 0, 4, OF_MEDICINE)
    spans = [Span(n, n + 1, str(n), "diagnosis", "S", "1", v) for n, v in enumerate(numbers)]
    assert groups_of(spans).tolist() == [0, 1, 3, 3, 7, 2]


def test_an_empty_history_still_reads(tmp_path: Path) -> None:
    encoded = encode(
        Narrative("", (), 0),
        load_tokenizer(tiny_qwen2(tmp_path / "m")),
        reading="last",
        end_token=0,
    )
    assert encoded.input_ids.tolist() == [0]
    assert encoded.concept_index.tolist() == [0]
