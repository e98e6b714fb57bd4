"""Titles: the best wording known for a code, and where it is from."""

import csv
from pathlib import Path

import pytest

from ckd_ehr.contracts.records import ICD9CM, ICD9PROC, ICD10CM, ICD10PCS, UCI_ICD9
from ckd_ehr.knowledge.ontology import Title, title_of


@pytest.mark.parametrize(
    ("system", "code", "text"),
    [
        (ICD9CM, "4280", "Congestive heart failure, unspecified"),
        (ICD9CM, "428.0", "Congestive heart failure, unspecified"),
        (ICD9CM, "042", "Human immunodeficiency virus [HIV] disease"),
        (ICD9PROC, "3995", "Hemodialysis"),
        (ICD10CM, "J189", "Pneumonia, unspecified organism"),
        (ICD10PCS, "5A1D70Z", "Performance of Urinary Filtration, Intermittent, Less than 6 Hours"
                              " Per Day"),
        (UCI_ICD9, "486", "Pneumonia, organism unspecified"),
        (UCI_ICD9, "38.9", "Unspecified septicemia"),
    ],
)  # fmt: skip
def test_the_code_system_s_own_title_comes_first(system: str, code: str, text: str) -> None:
    assert title_of(system, code, "Another wording") == Title(text, "ontology")


def test_leading_zeros_matter_outside_truncated_codes() -> None:
    assert title_of(ICD9CM, "42").origin == "code"


@pytest.mark.parametrize(
    ("system", "code", "text"),
    [
        (ICD9CM, "585", "Chronic kidney disease"),
        (ICD10CM, "N17", "Acute and unspecified renal failure"),
        (UCI_ICD9, "8", "Intestinal infection"),
        (UCI_ICD9, "428", "Congestive heart failure; nonhypertensive"),
        (UCI_ICD9, "250", "Diabetes mellitus without complication"),
        (ICD9PROC, "399599", "Hemodialysis"),
    ],
)
def test_a_code_without_a_title_takes_the_source_s_then_its_parent_s(
    system: str, code: str, text: str
) -> None:
    assert title_of(system, code, "As recorded") == Title("As recorded", "source")
    assert title_of(system, code) == Title(text, "parent")


def test_the_code_itself_is_the_last_resort() -> None:
    assert title_of("NAME", "furosemide") == Title("furosemide", "code")
    assert title_of(ICD9CM, "ZZZ") == Title("ZZZ", "code")
    assert title_of("LOCAL", " \n ", "\x00") == Title("unknown", "code")


def test_titles_are_one_clean_line() -> None:
    assert title_of("LOCAL", "1", "Fall\r\n from\ta\u2028ladder\x00").text == "Fall from a ladder"
    assert title_of(ICD9CM, "0413").text.startswith("Friedländer's bacillus")


@pytest.mark.parametrize(
    ("table", "system", "codes", "reworded"),
    [("D_ICD_DIAGNOSES", ICD9CM, 14_567, 7), ("D_ICD_PROCEDURES", ICD9PROC, 3_882, 0)],
)
def test_every_code_of_mimic3_s_dictionaries_has_its_title(
    real_data: Path, table: str, system: str, codes: int, reworded: int
) -> None:
    path = real_data / "mimic3-demo-1.4" / f"{table}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(row["icd9_code"], row["long_title"]) for row in csv.DictReader(file)]
    titles = [title_of(system, code) for code, _ in rows]
    assert len(rows) == codes
    assert {title.origin for title in titles} == {"ontology"}
    differing = sum(
        t.text != " ".join(own.split()) for t, (_, own) in zip(titles, rows, strict=True)
    )
    assert differing <= reworded


def test_codes_billed_in_the_mimic3_demo_without_a_dictionary_title_get_a_parent_s(
    real_data: Path,
) -> None:
    with (real_data / "mimic3-demo-1.4" / "DIAGNOSES_ICD.csv").open(encoding="utf-8") as file:
        billed = {row["icd9_code"] for row in csv.DictReader(file)}
    titles = {code: title_of(ICD9CM, code) for code in billed}
    assert len(billed) == 581
    assert sum(title.origin == "ontology" for title in titles.values()) == 561
    assert titles["5185"].text == "Respiratory failure; insufficiency; arrest (adult)"
