"""Every phenotype against the oracle, in both code systems and both directions."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml

from ckd_ehr.contracts.records import (
    ICD9CM,
    ICD10CM,
    PHENOTYPES_25,
    UCI_ICD9,
    Phenotype,
    normal_form,
)
from ckd_ehr.data.ccs import CcsMatch, icd9_leaves, icd10_leaves, prefixes_of
from ckd_ehr.data.phenotypes import ccs_of, coverage_report, labels_of, match_codes
from ckd_ehr.data.truncated_icd9 import truncated_ccs_of, truncated_title_of


def leaf_codes_of(system: str, leaves: set[str]) -> dict[int, set[str]]:
    """CCS category of each phenotype → the leaf codes that set it."""
    found: dict[int, set[str]] = {phenotype.ccs[0]: set() for phenotype in PHENOTYPES_25}
    for match in match_codes({(system, code): 1 for code in leaves}, PHENOTYPES_25):
        for label in match.labels:
            found[PHENOTYPES_25[label].ccs[0]].add(match.code)
    return found


def test_every_icd9_phenotype_has_exactly_the_oracles_codes(real_data: Path) -> None:
    oracle = yaml.safe_load((real_data / "oracle" / "phenotypes_icd9.yaml").read_text())
    expected = {entry["id"]: set(entry["codes"]) for entry in oracle.values()}
    assert len(expected) == 25
    assert leaf_codes_of(ICD9CM, set(icd9_leaves())) == expected


def test_every_icd10_phenotype_has_exactly_the_oracles_codes(real_data: Path) -> None:
    oracle = json.loads((real_data / "oracle" / "phenotypes_icd10.json").read_text())
    expected = {entry["ccs"]: set(entry["codes"]) for entry in oracle.values()}
    assert len(expected) == 25
    assert leaf_codes_of(ICD10CM, set(icd10_leaves())) == expected


def test_every_truncated_code_has_the_oracles_category(real_data: Path) -> None:
    oracle = json.loads((real_data / "oracle" / "uci_code_to_ccs.json").read_text())
    assert len(oracle) == 915
    ours = {code: truncated_ccs_of(normal_form(code)).ccs for code in oracle}
    assert ours == {code: entry["ccs"] for code, entry in oracle.items()}


def test_every_override_of_truncated_codes_changes_something(real_data: Path) -> None:
    oracle = json.loads((real_data / "oracle" / "uci_code_to_ccs.json").read_text())
    decided = {code: truncated_ccs_of(normal_form(code)).how for code in oracle}
    overridden = [code for code, how in decided.items() if how == "override"]
    assert len(overridden) == 22
    assert all(oracle[code]["how"].startswith("empirical") for code in overridden)


@pytest.mark.parametrize(
    ("system", "code", "expected"),
    [
        (ICD9CM, "042", CcsMatch(5, "exact")),
        (ICD9CM, "42", CcsMatch(None, "unmapped")),
        (ICD9CM, "428", CcsMatch(108, "prefix")),
        (ICD9CM, "518", CcsMatch(None, "ambiguous")),
        (ICD9CM, "4", CcsMatch(None, "unmapped")),
        (ICD10CM, "N17", CcsMatch(157, "prefix")),
        (ICD10CM, "E11", CcsMatch(None, "ambiguous")),
        (UCI_ICD9, "250", CcsMatch(49, "exact")),
        (UCI_ICD9, "25083", CcsMatch(50, "exact")),
        (UCI_ICD9, "518", CcsMatch(131, "majority")),
        (UCI_ICD9, "507", CcsMatch(129, "override")),
        (UCI_ICD9, "XYZ", CcsMatch(None, "unmapped")),
        ("LOCAL", "4280", CcsMatch(None, "unmapped")),
    ],
)
def test_category_of_a_code(system: str, code: str, expected: CcsMatch) -> None:
    assert ccs_of(system, code) == expected


@pytest.mark.parametrize("leaves_of", [icd9_leaves, icd10_leaves])
def test_a_shorter_code_is_mapped_if_and_only_if_all_its_leaves_agree(
    leaves_of: Callable[[], Mapping[str, int]],
) -> None:
    below: dict[str, set[int]] = {}
    for code, ccs in leaves_of().items():
        for length in range(3, len(code)):
            below.setdefault(code[:length], set()).add(ccs)
    expected = {code: found.pop() if len(found) == 1 else None for code, found in below.items()}
    assert prefixes_of(leaves_of()) == expected


def test_code_lists_count_in_their_own_system_only() -> None:
    phenotype = Phenotype(name="Gout", icd9cm=("2749",), icd10cm=("M109",))
    assert labels_of(ICD9CM, "2749", 54, [phenotype]) == (0,)
    assert labels_of(ICD10CM, "M109", 54, [phenotype]) == (0,)
    assert labels_of(ICD10CM, "2749", None, [phenotype]) == ()


def test_code_lists_are_read_with_dots_and_in_lower_case() -> None:
    phenotype = Phenotype(name="Gout", icd9cm=("274.9", "v12.2"), icd10cm=("m10.9",))
    assert labels_of(ICD9CM, "2749", 54, [phenotype]) == (0,)
    assert labels_of(ICD9CM, "V122", None, [phenotype]) == (0,)
    assert labels_of(ICD10CM, "M109", 54, [phenotype]) == (0,)


def test_lists_of_icd9_hold_for_truncated_codes() -> None:
    phenotype = Phenotype(name="Gout", icd9cm=("274",))
    assert labels_of(UCI_ICD9, normal_form("274"), 54, [phenotype]) == (0,)
    assert labels_of(ICD9CM, "2749", 54, [phenotype]) == ()


def test_coverage_counts_codes_and_occurrences_by_how_they_were_mapped() -> None:
    counts = {(ICD9CM, "4280"): 5, (ICD9CM, "428"): 3, (ICD9CM, "518"): 2, (ICD9CM, "ZZZ"): 7}
    report = coverage_report(match_codes(counts, PHENOTYPES_25))[ICD9CM]
    assert isinstance(report, dict)
    assert report["codes"]["exact"] == report["codes"]["unmapped"] == 1
    assert report["occurrences"] == {
        "exact": 5, "prefix": 3, "majority": 0, "override": 0, "ambiguous": 2, "unmapped": 7,
    }  # fmt: skip
    assert report["most_frequent_unmapped"] == [{"code": "ZZZ", "occurrences": 7}]
    assert report["most_frequent_ambiguous"] == [{"code": "518", "occurrences": 2}]


def test_titles_of_truncated_codes_are_general() -> None:
    assert truncated_title_of("428") == "Heart failure, unspecified"
    assert truncated_title_of("486") == "Pneumonia, organism unspecified"
    assert truncated_title_of("XYZ") is None
