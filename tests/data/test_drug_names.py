"""Drug names: spelling, strengths and forms fold; different drugs stay apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckd_ehr.data.sources.drug_names import drug_name


@pytest.mark.parametrize(
    ("ordered", "name"),
    [
        ("CefTRIAXone", "ceftriaxone"),
        ("Azithromycin ", "azithromycin"),
        ("*NF* Ertapenem Sodium", "ertapenem sodium"),
        ("Albumin 5% (12.5g / 250mL)", "albumin"),
        ("Heparin Flush PICC (100 units/ml)", "heparin flush picc"),
        ("5 mg Tab", "5 mg tab"),
        ("0.9% Sodium Chloride", "sodium chloride"),
        ("Fluticasone Propionate 110mcg", "fluticasone propionate"),
        ("Creon 10", "creon 10"),
        ("Vitamin B-12", "vitamin b-12"),
        ("D5W", "d5w"),
        ("Piperacillin-Tazobactam Na", "piperacillin-tazobactam na"),
        ("Dorzolamide 2%/Timolol 0.5% Ophth.", "dorzolamide/timolol"),
        ("Metoprolol Tartrate 25 mg", "metoprolol tartrate"),
        ("Metoprolol Succinate XL", "metoprolol succinate"),
        ("Potassium Chl 20 mEq / 1000 mL D5W", "potassium chl d5w"),
        ("Spray", "spray"),
        ("(Oncology)", "(oncology)"),
    ],
)
def test_name_of_what_was_ordered(ordered: str, name: str) -> None:
    assert drug_name(ordered) == name


@given(st.text(min_size=1).filter(str.strip))
def test_a_name_is_never_empty_and_has_no_stray_blanks(ordered: str) -> None:
    name = drug_name(ordered)
    assert name
    assert name == " ".join(name.split())


@given(st.sampled_from(["Furosemide", "Insulin Glargine", "Aspirin"]), st.integers(1, 999))
def test_a_strength_does_not_make_another_drug(drug: str, strength: int) -> None:
    assert drug_name(f"{drug} {strength} mg Tab") == drug.lower()
    assert drug_name(f"{drug.upper()} ({strength} MG/ML)") == drug.lower()
