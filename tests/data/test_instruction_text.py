"""The paper's sentences: lists with commas in names, hints that are no history, visits in order."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckd_ehr.contracts.phenotype import PHENOTYPES_25
from ckd_ehr.data.sources.instruction_labels import PAPER_NAMES, LabelNames
from ckd_ehr.data.sources.instruction_text import (
    VisitWords,
    read_answer,
    read_history,
    write_history,
)
from ckd_ehr.knowledge.ontology import icd9_procedure_titles, icd9_titles, icd10_titles

NAMES = LabelNames()
THE_SAME = (
    "Acute and unspecified renal failure", "Acute cerebrovascular disease",
    "Acute myocardial infarction", "Cardiac dysrhythmias", "Chronic kidney disease",
    "Conduction disorders", "Congestive heart failure; nonhypertensive",
    "Diabetes mellitus with complications", "Diabetes mellitus without complication",
    "Disorders of lipid metabolism", "Essential hypertension", "Fluid and electrolyte disorders",
    "Gastrointestinal hemorrhage", "Other liver diseases", "Other lower respiratory disease",
    "Other upper respiratory disease", "Pleurisy; pneumothorax; pulmonary collapse", "Pneumonia",
    "Septicemia (except in labor)", "Shock",
)  # fmt: skip
HINTS = (
    " The medications that maybe have therapeutic effect on Shock are Norepinephrine, Dopamine."
    " The surgical operations that maybe have therapeutic effect on Pneumonia are Bronchoscopy."
)


def read(prompt: str) -> Sequence[VisitWords]:
    return read_history(prompt, NAMES.split)


def test_the_papers_25_names_are_ours() -> None:
    ours = [phenotype.name for phenotype in PHENOTYPES_25]
    assert sorted(map(NAMES.ours, (*THE_SAME, *PAPER_NAMES.values()))) == sorted(ours)
    assert sorted(map(NAMES.paper, ours)) == sorted((*THE_SAME, *PAPER_NAMES.values()))
    category = {phenotype.name: phenotype.ccs for phenotype in PHENOTYPES_25}
    for ccs, name in PAPER_NAMES.items():
        assert category[str(NAMES.ours(name.upper()))] == (ccs,)


def test_a_prompt_as_of_the_paper_is_one_visit_and_its_hints_are_not_read() -> None:
    prompt = (
        "Predict the diseases of the next visit.\nThe patient-acquired disease is Septicemia "
        "(except in labor), Pleurisy; pneumothorax; pulmonary collapse, Gout. The patient used the "
        "following medication: Sodium Chloride 0.9%, Vit. B, 5% Dextrose and has had surgical "
        "operation: Venous catheterization, not elsewhere classified, Spinal tap." + HINTS
    )
    assert read(prompt) == (
        VisitWords(
            diagnoses=(
                "Septicemia (except in labor)",
                "Pleurisy; pneumothorax; pulmonary collapse",
                "Gout",
            ),
            medications=("Sodium Chloride 0.9%", "Vit. B", "5% Dextrose"),
            procedures=("Venous catheterization, not elsewhere classified", "Spinal tap"),
        ),
    )


def test_a_disease_that_begins_like_a_procedure_list_is_a_disease() -> None:
    prompt = "The patient-acquired disease is Surgical operation with graft, Gout." + HINTS
    assert read(prompt) == (VisitWords(diagnoses=("Surgical operation with graft", "Gout")),)


@pytest.mark.parametrize("ending", ["", ".", ".\n", " . Answer now.", "\nThe task: predict."])
def test_a_list_ends_with_its_sentence_or_its_line(ending: str) -> None:
    assert read(f"Patient-acquired disease is Gout, None, Asthma{ending}") == (
        VisitWords(diagnoses=("Gout", "Asthma")),
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("At the first visit", "At the second visit"),
        ("Visit 1", "Visit 2"),
        ("During the 9th admission", "During the 10th admission"),
    ],
)
def test_numbered_visits_are_put_in_order(first: str, second: str) -> None:
    told = (
        f"{second}, the patient-acquired disease is Asthma. "
        f"{first}, the patient-acquired disease is Gout. He used the following medication: aspirin."
    )
    assert read(told) == (
        VisitWords(diagnoses=("Gout",), medications=("aspirin",)),
        VisitWords(diagnoses=("Asthma",)),
    )


def test_text_without_the_phrases_has_no_history_and_none_is_an_empty_one() -> None:
    assert read("The patient has gout." + HINTS) == ()
    assert read("The patient-acquired disease is None.") == (VisitWords(),)


@pytest.mark.parametrize(
    ("answer", "listed"),
    [
        ("Disease that the patient may acquire: Shock, Pneumonia.", "Shock, Pneumonia"),
        ("Sure. Diseases that the patient may acquire:\nShock\n", "Shock"),
        ("Disease that the patient may acquire: None", "None"),
        ("Disease that the patient may acquire: ", None),
        ("Shock", None),
    ],
)
def test_an_answer_is_the_list_after_the_phrase(answer: str, listed: str | None) -> None:
    assert read_answer(answer) == listed


def test_every_title_of_a_code_survives_a_list() -> None:
    for titles in (icd9_titles(), icd9_procedure_titles(), icd10_titles()):
        names = [*dict.fromkeys(" ".join(title.split()) for title in titles.values())][::5]
        for start in range(0, len(names), 50):
            some = tuple(names[start : start + 50])
            visits = (VisitWords(some, some[:2], some[:3]), VisitWords(some[:1]))
            assert read("Predict.\n" + write_history(visits, NAMES.join)) == visits


words = st.text(st.sampled_from('aZ9é ,.;:()[]"-/%&!?'), min_size=1, max_size=12)
titles = st.lists(
    words.map(lambda text: " ".join(f"x{text}y".split())), min_size=1, max_size=4, unique=True
).map(tuple)


@given(st.lists(st.builds(VisitWords, titles, titles, titles), min_size=1, max_size=3))
def test_whatever_the_names_hold_they_survive(visits: list[VisitWords]) -> None:
    assert read(write_history(visits, NAMES.join)) == tuple(visits)


FRAGMENTS = (
    "The patient-acquired disease is", "used the following medication:", "surgical operation is",
    "Visit 2", "the first visit", " that maybe have therapeutic effect on", "The", '"', "(", ")",
    ", ", ". ", "\n", "Gout", "not elsewhere classified", " ",
)  # fmt: skip


@given(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5)).map("".join))
def test_any_text_is_read_to_clean_names(text: str) -> None:
    for visit in read(text):
        for name in (*visit.diagnoses, *visit.medications, *visit.procedures):
            assert name == " ".join(name.split()) != ""
            assert name.casefold() != "none"
