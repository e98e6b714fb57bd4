"""ICD codes as they are written: which version each is, where its form tells."""

import pytest

from ckd_ehr.data.sources.omop_codes import NO_ICD, NOTHING, WrittenCode, read_code


@pytest.mark.parametrize(
    ("written", "system", "code"),
    [
        ("042", "ICD9CM", "042"),
        ("250.00", "ICD9CM", "25000"),
        ("i10", "ICD10CM", "I10"),
        ("U07.1", "ICD10CM", "U071"),
        ("C4A.0", "ICD10CM", "C4A0"),
        ("J44.1†", "ICD10CM", "J441"),
        ("I10.", "ICD10CM", "I10"),
        ("401.", "ICD9CM", "401"),
        ("G01.*", "ICD10CM", "G01"),
        ("ICD10CM:I10.", "ICD10CM", "I10"),
        # Letters and length that ICD-9's V codes never have.
        ("V43.52XA", "ICD10CM", "V4352XA"),
        # Where the dot stands tells the versions' E codes apart.
        ("E878.8", "ICD9CM", "E8788"),
        ("E87.8", "ICD10CM", "E878"),
        # Without a dot: causes are E000-E030 and E800-E999, chapter E ends with E89.
        ("E1165", "ICD10CM", "E1165"),
        ("E11", "ICD10CM", "E11"),
        ("E039", "ICD10CM", "E039"),
        ("E9352", "ICD9CM", "E9352"),
        ("E900", "ICD9CM", "E900"),
        ("E90", "ICD10CM", "E90"),
        # A name of the vocabulary before the code decides.
        ("ICD9CM:V45.81", "ICD9CM", "V4581"),
        ("ICD-10-CM|E87.8", "ICD10CM", "E878"),
        ("icd10 v45.81", "ICD10CM", "V4581"),
    ],
)
def test_the_form_of_a_diagnosis_tells_its_version(written: str, system: str, code: str) -> None:
    assert read_code(written, "diagnosis") == WrittenCode(code, system, "form")


@pytest.mark.parametrize(
    ("written", "leaf"),
    [
        ("V45.81", "ICD9CM"),  # a full code in ICD-9-CM alone
        ("E878", "ICD10CM"),  # ICD-9's category; E87.8 in ICD-10-CM
        ("E8788", "ICD9CM"),
        ("E8029", None),  # E802.9 and E80.29
        ("E030", None),  # E030 and E03.0
        ("V27", None),  # of neither, in full
    ],
)
def test_a_code_of_both_versions_stays_undecided(written: str, leaf: str | None) -> None:
    read = read_code(written, "diagnosis")
    assert (read.how, read.system, read.leaf) == ("either", None, leaf)


@pytest.mark.parametrize(
    ("written", "system", "code"),
    [
        ("37.22", "ICD9PROC", "3722"),
        ("0066", "ICD9PROC", "0066"),
        ("0210093", "ICD10PCS", "0210093"),
        ("02hv33z", "ICD10PCS", "02HV33Z"),
        ("ICD9Proc:37.22", "ICD9PROC", "3722"),
    ],
)
def test_the_length_of_a_procedure_tells_its_version(written: str, system: str, code: str) -> None:
    assert read_code(written, "procedure") == WrittenCode(code, system, "form")


@pytest.mark.parametrize("written", ["42", "100000", "M8000/0", "44054006", "flu", "ICD9:I10"])
def test_other_diagnoses_are_no_icd_codes(written: str) -> None:
    assert read_code(written, "diagnosis") == NO_ICD


@pytest.mark.parametrize("written", ["99213", "J1234", "02HV33I", "CABG", "ICD10PCS:3722"])
def test_other_procedures_are_no_icd_codes(written: str) -> None:
    assert read_code(written, "procedure") == NO_ICD


@pytest.mark.parametrize("written", [None, "", " . ", "†"])
def test_nothing_written_is_no_code(written: str | None) -> None:
    assert read_code(written, "diagnosis") == NOTHING


def test_a_source_concept_decides_whatever_is_written() -> None:
    def of(vocabulary: str) -> WrittenCode:
        return read_code("401.9", "diagnosis", vocabulary=vocabulary, concept_code="E87.8")

    assert of("ICD10") == WrittenCode("E878", "ICD10CM", "concept")
    assert of("ICD9CM") == WrittenCode("E878", "ICD9CM", "concept")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        # The ICD code of the source, and what it was mapped to.
        ("I50.9", WrittenCode("I509", "ICD10CM", "form")),
        # Its own code, or none: no ICD code, even if it looks like one (Read: C10F.).
        ("c10f.", NO_ICD),
        ("44054006", NO_ICD),
        ("", NO_ICD),
        (None, NO_ICD),
    ],
)
def test_beside_a_source_concept_of_another_vocabulary_the_form_decides_a_diagnosis(
    written: str | None, read: WrittenCode
) -> None:
    code = read_code(written, "diagnosis", vocabulary="SNOMED", concept_code="C10F.")
    assert code == read


def test_a_procedures_source_concept_of_another_vocabulary_is_no_icd_code() -> None:
    code = read_code("0210093", "procedure", vocabulary="SNOMED", concept_code="232717009")
    assert code == NO_ICD
