"""The simulated hospital's medicine: real codes of the right category, possible rates."""

import numpy as np
import pytest

from ckd_ehr.contracts.phenotype import PHENOTYPES_25
from ckd_ehr.data.ccs import icd9_ccs_of, icd10_ccs_of
from ckd_ehr.data.simulator.catalogue import (
    LABELS,
    SYSTEMS,
    Coding,
    HospitalName,
    code_choices,
    hospital,
    read_conditions,
    read_table,
)
from ckd_ehr.data.simulator.titles import titles
from ckd_ehr.data.sources.drug_names import drug_name

CCS = [condition.ccs for condition in read_conditions()]


def test_the_25_phenotypes_stand_first_in_the_order_of_the_labels() -> None:
    assert [(ccs,) for ccs in CCS[:LABELS]] == [phenotype.ccs for phenotype in PHENOTYPES_25]
    assert len(set(CCS)) == len(CCS) == 100


def test_conditions_have_possible_rates() -> None:
    for condition in read_conditions():
        assert condition.system in SYSTEMS
        assert condition.course in ("chronic", "acute")
        assert 0 < condition.prevalence < 0.5
        assert 0.5 < condition.coded < 1
        assert 0 <= condition.history < 0.2
        assert 0 <= condition.persistence <= 6
        assert abs(condition.elsewhere) <= 1


@pytest.mark.parametrize("coding", ["icd9", "icd10"])
@pytest.mark.parametrize("name", ["a", "b"])
def test_every_code_is_of_its_condition_s_category(coding: Coding, name: HospitalName) -> None:
    category_of = icd9_ccs_of if coding == "icd9" else icd10_ccs_of
    for condition, choice in zip(read_conditions(), code_choices(coding, name), strict=True):
        assert {category_of(code).ccs for code in choice.codes} == {condition.ccs}
        assert len(set(choice.codes)) == len(choice.codes)
        assert (np.diff(choice.ends) > 0).all()
        assert choice.ends[-1] == pytest.approx(1)


def test_listed_codes_are_real_but_for_outdated_ones_of_icd9() -> None:
    untitled = []
    for row in read_table("codes.csv"):
        coding: Coding = "icd9" if row["system"] == "ICD9CM" else "icd10"
        assert float(row["weight"]) > 0
        if row["code"] not in titles(coding, "diagnosis"):
            untitled.append((coding, row["code"]))
    assert {coding for coding, _ in untitled} == {"icd9"}
    assert ("icd9", "585") in untitled
    assert len(untitled) < 50


def test_procedures_are_real_in_both_code_systems() -> None:
    for row in read_table("procedures.csv"):
        assert row["icd9"] in titles("icd9", "procedure")
        assert row["icd10"] in titles("icd10", "procedure")
    medicine = hospital()
    for codes in medicine.procedures.values():
        assert len(set(codes)) == len(codes)


def test_what_is_referred_to_exists_and_nothing_leads_to_itself() -> None:
    for row in read_table("progressions.csv"):
        before, after = int(row["before"]), int(row["after"])
        assert before != after
        assert {before, after} <= set(CCS)
    places = [(row["before"], row["after"]) for row in read_table("progressions.csv")]
    assert len(set(places)) == len(places)
    assert {int(row["ccs"]) for row in read_table("onsets.csv")} == set(CCS)


def test_drugs_have_two_names_that_stay_apart_when_spelling_is_folded() -> None:
    rows = read_table("drugs.csv")
    names = [row[column] for row in rows for column in ("name", "other_name")]
    folded = {drug_name(name) for name in names}
    assert len(folded) == len(names)
    for row in rows:
        assert drug_name(f"{row['name']} {row['strength']}") == drug_name(row["name"])


def test_true_effects_are_few_and_of_drugs_given_for_the_disease() -> None:
    medicine = hospital()
    helps = np.argwhere(medicine.effects)
    assert 10 <= len(helps) <= 20
    assert (medicine.effects <= 0).all()
    everyone = []
    for drug, condition in helps:
        assert condition < LABELS
        assert medicine.prescribed.caused[condition, drug] >= 0.25
        everyone.append(medicine.prescribed.everyone[drug] > 0.1)
        rivals = np.flatnonzero(medicine.prescribed.caused[condition])
        assert np.sum(medicine.effects[rivals, condition] == 0) >= 2  # useless ones beside it
    assert sum(everyone) == 1  # one that everybody gets


def test_probabilities_are_probabilities() -> None:
    for name in ("a", "b"):
        medicine = hospital(name)
        for causes in (medicine.prescribed, medicine.performed):
            assert ((causes.everyone > 0) & (causes.everyone < 1)).all()
            assert ((causes.caused >= 0) & (causes.caused < 1)).all()
        assert ((medicine.coded > 0) & (medicine.coded < 1)).all()
        assert ((medicine.copied >= 0) & (medicine.copied <= 0.5)).all()


def test_less_detail_thins_out_only_what_bears_on_no_label() -> None:
    whole, thin = hospital("a"), hospital("a", detail=0.1)
    helps = whole.effects.any(axis=1)
    assert (thin.coded[:LABELS] == whole.coded[:LABELS]).all()
    assert (thin.coded[LABELS:] < 0.2 * whole.coded[LABELS:]).all()
    assert (thin.prescribed.everyone[helps] == whole.prescribed.everyone[helps]).all()
    assert thin.prescribed.everyone[~helps] == pytest.approx(
        0.1 * whole.prescribed.everyone[~helps]
    )
    assert (thin.onset == whole.onset).all()
