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
        ("Dorzolamide 2%/Timolol 0.5% Ophth.", "dorzolamide/timolol ophthalmic"),
        ("Metoprolol Tartrate 25 mg", "metoprolol tartrate"),
        ("Metoprolol Succinate XL", "metoprolol succinate"),
        ("Potassium Chl 20 mEq / 1000 mL D5W", "potassium chl d5w"),
        ("Spray", "spray"),
        ("Vancomycin", "vancomycin"),
        ("Vancomycin Enema", "vancomycin rectal"),
        ("Vancomycin Oral Liquid", "vancomycin oral"),
        ("Ciprofloxacin 0.3% Ophth Soln", "ciprofloxacin ophthalmic"),
        ("Erythromycin 0.5% Ophth Oint", "erythromycin ophthalmic"),
        ("Lactulose Enema", "lactulose rectal"),
        ("Acetaminophen (Rectal) 650 mg", "acetaminophen rectal"),
        ("Bisacodyl 10 mg PR", "bisacodyl rectal"),
        ("Lidocaine 5% Patch", "lidocaine topical"),
        ("Lidocaine Jelly 2% (Urojet)", "lidocaine topical"),
        ("Sodium Chloride Nasal", "sodium chloride nasal"),
        ("Albuterol 0.083% Neb Soln", "albuterol inhaled"),
        ("Albuterol Inhaler", "albuterol inhaled"),
        ("Ofloxacin Otic Drops", "ofloxacin otic"),
        ("Lansoprazole Oral Disintegrating Tab", "lansoprazole"),
        ("Nasal Spray", "nasal spray"),
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


PARTS = st.sampled_from(
    ["Lidocaine", "HCl", "2%", "5 mg", "1", "mg", "(Rectal)", "(", ")", "/", "-", "Ophth.", "Oint",
     "Neb", "Soln", "PR", "oral", "XL", "*NF*", "1:1000", "Preservative Free", ",", "mg/ml", ";"]
)  # fmt: skip


@given(st.text() | st.lists(PARTS, min_size=1).map(" ".join) | st.lists(PARTS).map("".join))
def test_a_name_folds_to_itself(ordered: str) -> None:
    assert drug_name(drug_name(ordered)) == drug_name(ordered)


@given(st.sampled_from(["Furosemide", "Insulin Glargine", "Aspirin"]), st.integers(1, 999))
def test_a_strength_does_not_make_another_drug(drug: str, strength: int) -> None:
    assert drug_name(f"{drug} {strength} mg Tab") == drug.lower()
    assert drug_name(f"{drug.upper()} ({strength} MG/ML)") == drug.lower()
