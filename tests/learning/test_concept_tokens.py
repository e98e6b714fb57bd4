"""Whole concepts as tokens: one each, where the text has them; the rest as before."""

import datetime
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import BertModel

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.records import Code, Narrative, Visit
from ckd_ehr.knowledge.narrative import Teller
from ckd_ehr.learning.alignment import encode
from ckd_ehr.learning.concept_tokens import (
    extend_embeddings,
    extended_tokenizer,
    read_extended,
    write_extended,
)
from ckd_ehr.learning.weights import counter_of, load_tokenizer
from tiny import tiny_bert

KNOWN = (
    "Sepsis",
    "Sepsis due to fever",
    "Heart failure, unspecified",
    "Shock (chronic)",
    "aspirin 2.5 mg",
    "60-year-old",
    "woman",
)
UNKNOWN = ("Sepsis due to cough", "Gout", "Rare failure, unspecified", "Sepsislike", "insulin 2.5")
PIECES_OF_SEPSIS = ("s", "##e", "##p", "##s", "##i", "##s")
PIECES_OF_DUE_TO = ("d", "##u", "##e", "t", "##o")
MARKERS = ("Visit 1:", "Visit 2 (emergency):", "Drugs:", "Procedures:")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def base(model: str) -> Tokenizer:
    return load_tokenizer(model)


@pytest.fixture(scope="module")
def extended(base: Tokenizer) -> Tokenizer:
    return extended_tokenizer(base, [*MARKERS, *KNOWN])


def _codes(titles: list[str]) -> tuple[Code, ...]:
    return tuple(Code("SITE", str(place), title) for place, title in enumerate(titles))


def _visit(diagnoses: list[str], drugs: list[str], admission: str | None = None) -> Visit:
    return Visit(
        visit_id="v",
        subject_id=1,
        admit_time=datetime.datetime(2100, 1, 1),
        discharge_time=datetime.datetime(2100, 1, 2),
        age_years=60.5,
        sex="F",
        ethnicity="WHITE",
        admission_type=admission,
        died=False,
        diagnoses=_codes(diagnoses),
        medications=_codes(drugs),
        procedures=(),
    )


titles = st.lists(st.sampled_from(KNOWN + UNKNOWN), max_size=5)


@given(st.lists(st.tuples(titles, titles), max_size=3), st.integers(16, 80))
def test_each_known_concept_is_one_token_and_counts_are_what_is_read(
    extended: Tokenizer, visits: list[tuple[list[str], list[str]]], budget: int
) -> None:
    teller = Teller(counter_of(extended), max_tokens=budget)
    history = [_visit(*visit, "EMERGENCY" if n else None) for n, visit in enumerate(visits)]
    told = teller.tell_by_pieces(history)
    text, spans = told.narrative.text, told.narrative.spans
    encoded = encode(told.narrative, extended, reading="first")
    assert told.tokens == len(encoded.input_ids) + 1  # the reading position
    for place, span in enumerate(spans, start=1):
        its = [number for number, of in zip(encoded.input_ids, encoded.concept_index, strict=True)
               if of == place]  # fmt: skip
        words = text[span.start : span.end]
        if words in KNOWN:
            assert its == [extended.token_to_id(words)]
        else:
            assert its
            assert [extended.token_to_id(words)] == [None]
    for (start, end), token in zip(*_read(extended, text), strict=True):
        if token in KNOWN + MARKERS:
            assert text[start:end] == token
        else:
            assert text[start:end].lower() == token.removeprefix("##")


def _read(tokenizer: Tokenizer, text: str) -> tuple[list[tuple[int, int]], list[str]]:
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return encoding.offsets, encoding.tokens


@pytest.mark.parametrize(
    ("known", "tokens"),
    [
        (["Sepsis", "Sepsis due to shock"], ["Sepsis due to shock", "Sepsis"]),
        (["Sepsis due to shock"], ["Sepsis due to shock", *PIECES_OF_SEPSIS]),
        (["Sepsis"], ["Sepsis", *PIECES_OF_DUE_TO, "shock", "Sepsis"]),
    ],
)
def test_of_concepts_that_begin_alike_the_longest_known_one_is_read(
    base: Tokenizer, known: list[str], tokens: list[str]
) -> None:
    tokenizer = extended_tokenizer(base, known)
    assert _read(tokenizer, "Sepsis due to shock; Sepsis.")[1] == tokens


def test_separators_cost_nothing_and_decimal_points_stay(extended: Tokenizer) -> None:
    said = "60-year-old woman, fever. Visit 1: Sepsis; cough, 2.5; aspirin 2.5 mg. Drugs: shock."
    assert _read(extended, said)[1] == [
        *("60-year-old", "woman", "fever", "Visit 1:", "Sepsis", "cough", "2", ".", "5"),
        *("aspirin 2.5 mg", "Drugs:", "shock"),
    ]
    assert extended.encode("Sepsis; Sepsis.").tokens == ["[CLS]", "Sepsis", "Sepsis", "[SEP]"]


def test_an_unknown_concept_is_read_in_the_pieces_of_the_base(
    base: Tokenizer, extended: Tokenizer
) -> None:
    assert _read(extended, "Sepsis; Gout; Sepsis")[1][1:-1] == _read(base, "Gout")[1]
    assert _read(extended, "Sepsislike")[1] == _read(base, "Sepsislike")[1]


def test_a_word_that_the_model_knows_keeps_its_token(base: Tokenizer, extended: Tokenizer) -> None:
    assert extended.token_to_id("woman") == base.token_to_id("woman")
    assert extended.get_vocab_size() == base.get_vocab_size() + len(MARKERS) + len(KNOWN) - 1


def test_new_embeddings_are_the_mean_of_their_pieces_and_the_others_stay(
    model: str, base: Tokenizer, extended: Tokenizer
) -> None:
    backbone = BertModel.from_pretrained(model, add_pooling_layer=False)
    before = backbone.get_input_embeddings().weight.detach().clone()
    extend_embeddings(backbone, extended, base)
    after = backbone.get_input_embeddings().weight.detach()
    assert backbone.config.vocab_size == len(after) == extended.get_vocab_size()
    torch.testing.assert_close(after[: len(before)], before, rtol=0, atol=0)
    for text in (*MARKERS, *KNOWN):
        pieces = base.encode(text, add_special_tokens=False).ids
        torch.testing.assert_close(after[extended.token_to_id(text)], before[pieces].mean(0))


def test_a_written_tokenizer_reads_and_counts_as_before_in_any_process(
    model: str, extended: Tokenizer, tmp_path: Path
) -> None:
    count = write_extended(model, [*MARKERS, *KNOWN], tmp_path / "t.json")
    text = "60-year-old woman. Visit 1: Sepsis due to fever; Gout. Drugs: aspirin 2.5 mg."
    ids = extended.encode(text).ids
    assert read_extended(model, tmp_path / "t.json").encode(text).ids == ids
    assert count(text) == pickle.loads(pickle.dumps(count))(text) == len(ids) + 1
    narrative = Narrative(text, (), 0)
    assert encode(narrative, extended, reading="first").input_ids.tolist() == ids


def test_a_tokenizer_of_another_model_or_none_is_refused(
    model: str, extended: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "t.json"
    with pytest.raises(CkdEhrError, match=r"t\.json: missing or no tokenizer.*rerun stage"):
        read_extended(model, path)
    path.write_text("{}")
    with pytest.raises(CkdEhrError, match=r"t\.json: missing or no tokenizer.*rerun stage"):
        read_extended(model, path)
    path.write_text(extended.to_str().replace('"shock":', '"fever2":'))
    with pytest.raises(CkdEhrError, match=r"t\.json: extends another tokenizer.*rerun stage"):
        read_extended(model, path)
