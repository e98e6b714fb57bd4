"""Category paths: one for a disease in all systems, and honest about codes that are no leaf."""

import csv
from collections.abc import Iterable
from pathlib import Path

import pytest

from ckd_ehr.contracts.phenotype import PHENOTYPES_25, Phenotype
from ckd_ehr.contracts.records import DRUG_NAME, ICD9CM, ICD9PROC, ICD10CM, ICD10PCS, UCI_ICD9
from ckd_ehr.data.ccs import category_names, icd9_leaves, icd10_leaves, multilevel_rows
from ckd_ehr.knowledge.categories import (
    DIAGNOSES_TABLE,
    NOWHERE,
    PROCEDURES_TABLE,
    CategoryPath,
    category_path_of,
)
from ckd_ehr.knowledge.ontology import icd9_procedure_titles, icd10_titles

CIRCULATORY = "Diseases of the circulatory system"
RESPIRATORY = "Diseases of the respiratory system"
DIGESTIVE = "Diseases of the digestive system"
ENDOCRINE = "Endocrine; nutritional; and metabolic diseases and immunity disorders"
HEART = (CIRCULATORY, "Diseases of the heart")
HYPERTENSION = (CIRCULATORY, "Hypertension")
URINARY = ("Diseases of the genitourinary system", "Diseases of the urinary system")
FAILURE = (*HEART, "Congestive heart failure; nonhypertensive")
CARDIOVASCULAR = "Operations on the cardiovascular system"
E_CODES = "Residual codes; unclassified; all E codes"

# CCS category: a leaf of ICD-9-CM, one of ICD-10-CM, and what stands above the category.
PHENOTYPE_LEAVES = {
    157: ("5849", "N179", URINARY),
    109: ("43491", "I639", (CIRCULATORY, "Cerebrovascular disease")),
    100: ("41071", "I214", HEART),
    106: ("42731", "I4891", HEART),
    158: ("5856", "N186", URINARY),
    127: ("496", "J449", (RESPIRATORY,)),
    238: ("99859", "T814XXA", ("Injury and poisoning", "Complications")),
    105: ("4260", "I442", HEART),
    108: ("4280", "I509", HEART),
    101: ("41401", "I2510", HEART),
    50: ("25040", "E1121", (ENDOCRINE,)),
    49: ("25000", "E119", (ENDOCRINE,)),
    53: ("2724", "E785", (ENDOCRINE,)),
    98: ("4019", "I10", HYPERTENSION),
    55: ("2761", "E871", (ENDOCRINE,)),
    153: ("5789", "K922", (DIGESTIVE,)),
    99: ("40391", "I120", HYPERTENSION),
    151: ("5722", "K7290", (DIGESTIVE, "Liver disease")),
    134: ("47819", "J342", (RESPIRATORY,)),
    133: ("515", "J8410", (RESPIRATORY,)),
    130: ("5119", "J90", (RESPIRATORY,)),
    122: ("486", "J189", (RESPIRATORY, "Respiratory infections")),
    131: ("51881", "J9600", (RESPIRATORY,)),
    2: ("0389", "A419", ("Infectious and parasitic diseases", "Bacterial infection")),
    249: ("78551", "R570", ("Symptoms; signs; and ill-defined conditions and factors influencing"
                            " health status", "Symptoms; signs; and ill-defined conditions")),
}  # fmt: skip


@pytest.mark.parametrize("phenotype", PHENOTYPES_25, ids=lambda p: p.name[:20])
def test_a_disease_has_the_same_path_in_icd9_and_icd10(phenotype: Phenotype) -> None:
    [ccs] = phenotype.ccs
    icd9, icd10, above = PHENOTYPE_LEAVES[ccs]
    expected = CategoryPath((*above, category_names()[ccs]), "leaf")
    assert category_path_of(ICD9CM, icd9) == expected
    assert category_path_of(ICD10CM, icd10) == expected


@pytest.mark.parametrize(
    ("system", "code", "names"),
    [
        (ICD9CM, "428", FAILURE),
        (ICD9CM, "42899", FAILURE),  # in no release: as the codes beside it
        (ICD10CM, "I50", FAILURE),
        (ICD10CM, "N1830", (*URINARY, "Chronic kidney disease")),  # N183 was divided in 2020
        (UCI_ICD9, "428", FAILURE),
        (ICD9PROC, "793", ("Operations on the musculoskeletal system",
                           "Open reduction of fracture with internal fixation")),
        (ICD10PCS, "5A1D70", (CARDIOVASCULAR, "Hemodialysis")),
    ],
)  # fmt: skip
def test_a_code_that_is_no_leaf_has_the_category_all_leaves_agree_on(
    system: str, code: str, names: tuple[str, ...]
) -> None:
    assert category_path_of(system, code) == CategoryPath(names, "prefix")


@pytest.mark.parametrize(
    ("system", "code", "names"),
    [
        (ICD9CM, "401", HYPERTENSION),
        (ICD10CM, "E11", (ENDOCRINE,)),
        (ICD9CM, "518", (RESPIRATORY,)),  # AHRQ has one of its leaves among the infections
        (ICD9CM, "V45", ("Supplementary classification of factors influencing health status and"
                         " contact with health services",)),
        (ICD10CM, "U07.1", ("Codes for special purposes",)),  # younger than AHRQ's table
        (ICD9PROC, "399", (CARDIOVASCULAR,)),
        (ICD10PCS, "0270", (CARDIOVASCULAR,)),
    ],
)  # fmt: skip
def test_leaves_that_disagree_leave_the_broader_levels_or_the_chapter(
    system: str, code: str, names: tuple[str, ...]
) -> None:
    assert category_path_of(system, code) == CategoryPath(names, "chapter")


@pytest.mark.parametrize(
    ("system", "code"),
    [
        (DRUG_NAME, "furosemide"),
        ("READ", "H33"),
        (ICD9CM, ""),
        (ICD9CM, "42"),
        (ICD9CM, "E88"),
        (ICD9CM, "V99"),
        (ICD9CM, "heart failure"),
        (ICD10CM, "PAIN"),
        (ICD10CM, "asthma"),
        (ICD9PROC, "A1"),
        (ICD10PCS, "X-ray"),
        (ICD10PCS, "aspirin"),
        (UCI_ICD9, "?"),
    ],
)
def test_an_unknown_system_or_a_word_has_no_path(system: str, code: str) -> None:
    assert category_path_of(system, code) == NOWHERE == CategoryPath((), "none")


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("V4581", (*HEART, "Coronary atherosclerosis and other heart disease")),
        ("E8889", (E_CODES, "External cause codes: Fall")),
        ("E888", (E_CODES, "External cause codes: Fall")),
        ("E8497", (E_CODES, "External cause codes: Place of occurrence")),
    ],
)
def test_v_and_e_codes_are_placed_by_their_category(code: str, names: tuple[str, ...]) -> None:
    assert category_path_of(ICD9CM, code) == CategoryPath(names, "leaf")


@pytest.mark.parametrize(
    ("system", "written", "plain"),
    [
        (ICD9CM, " 428. 0 ", "4280"),
        (ICD9CM, "v45.81", "V4581"),
        (ICD10CM, "i50.9", "I509"),
        (ICD9PROC, "79.35", "7935"),
        (ICD10PCS, "02703zz ", "02703ZZ"),
        (UCI_ICD9, " v27", "V27"),
    ],
)
def test_dots_blanks_and_lower_case_do_not_matter(system: str, written: str, plain: str) -> None:
    path = category_path_of(system, written)
    assert path == category_path_of(system, plain)
    assert path.origin != "none"


def test_a_truncated_code_has_its_zeros_back() -> None:
    assert category_path_of(UCI_ICD9, "8") == category_path_of(ICD9CM, "008")
    assert category_path_of(UCI_ICD9, "8").names == (DIGESTIVE, "Intestinal infection")


def test_a_truncated_code_has_the_category_its_label_has() -> None:
    plain = (ENDOCRINE, "Diabetes mellitus without complication")
    assert category_path_of(UCI_ICD9, "250") == CategoryPath(plain, "leaf")
    assert category_path_of(ICD9CM, "250") == CategoryPath((ENDOCRINE,), "chapter")


def test_a_level_that_is_the_category_once_more_stands_once() -> None:
    stent = "Percutaneous transluminal coronary angioplasty (PTCA) with or without stent placement"
    assert category_path_of(ICD10PCS, "02703ZZ") == CategoryPath((CARDIOVASCULAR, stent), "leaf")
    assert category_path_of(ICD10PCS, "GZGZZZZ").origin == "leaf"  # a code without a digit


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("3995", (CARDIOVASCULAR,)),
        ("7935", ("Operations on the musculoskeletal system",
                  "Open reduction of fracture with internal fixation")),
        ("0066", ("Procedures and interventions, not elsewhere classified",)),
        ("640", ("Operations on the male genital organs",)),
        ("9671", ("Miscellaneous diagnostic and therapeutic procedures",
                  "Continuous invasive mechanical ventilation")),
        ("9801", ("Miscellaneous diagnostic and therapeutic procedures",)),  # "Removal of … from"
    ],
)  # fmt: skip
def test_an_icd9_procedure_is_in_a_chapter_of_volume_3(code: str, names: tuple[str, ...]) -> None:
    assert category_path_of(ICD9PROC, code) == CategoryPath(names, "leaf")


@pytest.mark.parametrize(("table", "categories"), [(DIAGNOSES_TABLE, 283), (PROCEDURES_TABLE, 224)])
def test_every_ccs_category_stands_in_one_place(table: str, categories: int) -> None:
    places: dict[str, set[tuple[str, ...]]] = {}
    for row in multilevel_rows(table):
        places.setdefault(row[1], set()).add(row[3:])
    assert len(places) == categories
    assert {len(found) for found in places.values()} == {1}


def _share_of_two_levels(system: str, codes: Iterable[str]) -> float:
    deep = [len(category_path_of(system, code).names) >= 2 for code in codes]
    return sum(deep) / len(deep)


def test_every_leaf_of_ahrq_s_tables_has_two_levels() -> None:
    assert _share_of_two_levels(ICD9CM, icd9_leaves()) == 1
    assert _share_of_two_levels(ICD10CM, icd10_leaves()) == 1
    assert (
        _share_of_two_levels(ICD10PCS, [row[0] for row in multilevel_rows(PROCEDURES_TABLE)]) == 1
    )


def test_few_codes_younger_than_ahrq_s_table_have_a_chapter_only() -> None:
    assert 0.99 < _share_of_two_levels(ICD10CM, icd10_titles()) < 1


def test_every_icd9_procedure_has_a_chapter_and_one_in_eight_a_second_level() -> None:
    codes = icd9_procedure_titles()
    assert all(category_path_of(ICD9PROC, code).names for code in codes)
    assert _share_of_two_levels(ICD9PROC, codes) == pytest.approx(0.132, abs=0.001)


def test_no_name_has_a_number_in_brackets_or_blanks_to_spare() -> None:
    codes = {
        ICD9CM: icd9_leaves(),
        ICD10CM: icd10_titles(),
        ICD10PCS: [row[0] for row in multilevel_rows(PROCEDURES_TABLE)],
    }
    names = {
        name
        for system, of_system in codes.items()
        for code in of_system
        for name in category_path_of(system, code).names
    }
    assert not [name for name in names if "[" in name or name != " ".join(name.split())]


def test_every_code_billed_in_the_mimic3_demo_is_a_leaf(real_data: Path) -> None:
    with (real_data / "mimic3-demo-1.4" / "DIAGNOSES_ICD.csv").open(encoding="utf-8") as file:
        billed = {row["icd9_code"] for row in csv.DictReader(file)}
    assert len(billed) == 581
    assert {category_path_of(ICD9CM, code).origin for code in billed} == {"leaf"}
