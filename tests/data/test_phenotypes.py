"""Every phenotype against the oracle, in both directions; code lists, names, coverage."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ckd_ehr.contracts.config import build_config
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.phenotype import PHENOTYPES_25, Phenotype
from ckd_ehr.contracts.records import ICD9CM, ICD10CM, UCI_ICD9, normal_form
from ckd_ehr.data.ccs import CcsMatch, icd9_leaves, icd10_leaves, prefixes_of
from ckd_ehr.data.phenotypes import (
    NAME,
    ccs_of,
    coverage_lines,
    coverage_report,
    labels_of,
    match_codes,
)
from ckd_ehr.data.truncated_icd9 import truncated_ccs_of, truncated_title_of


def leaf_codes_of(system: str, leaves: set[str]) -> dict[int, set[str]]:
    """CCS category of each phenotype → the leaf codes that set it."""
    found: dict[int, set[str]] = {phenotype.ccs[0]: set() for phenotype in PHENOTYPES_25}
    for match in match_codes({(system, code): 1 for code in leaves}, PHENOTYPES_25):
        for label in match.labels:
            found[PHENOTYPES_25[label].ccs[0]].add(match.code)
    return found


def oracle_lists(real_data: Path) -> dict[str, dict[int, list[str]]]:
    """Code system → CCS category → the oracle's codes."""
    icd9 = yaml.safe_load((real_data / "oracle" / "phenotypes_icd9.yaml").read_text())
    icd10 = json.loads((real_data / "oracle" / "phenotypes_icd10.json").read_text())
    return {
        ICD9CM: {entry["id"]: entry["codes"] for entry in icd9.values()},
        ICD10CM: {entry["ccs"]: entry["codes"] for entry in icd10.values()},
    }


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


@pytest.mark.parametrize("system", [ICD9CM, ICD10CM])
@pytest.mark.parametrize(
    "written",
    [
        lambda code: code,
        lambda code: f"{code[:3]}.{code[3:]}".rstrip("."),
        lambda code: f" {code.lower()}  ",
    ],
    ids=["plain", "dots", "lower case and blanks"],
)
def test_every_code_of_the_oracle_sets_its_label_however_it_is_written(
    real_data: Path, system: str, written: Callable[[str], str]
) -> None:
    for ccs, codes in oracle_lists(real_data)[system].items():
        matches = match_codes({(system, written(code)): 1 for code in codes}, PHENOTYPES_25)
        assert len(matches) == len(codes)
        assert {match.how for match in matches} == {"exact"}
        assert {PHENOTYPES_25[match.labels[0]].ccs for match in matches} == {(ccs,)}
        assert {len(match.labels) for match in matches} == {1}


@pytest.mark.parametrize(
    ("system", "key", "leaves_of"),
    [(ICD9CM, "icd9cm", icd9_leaves), (ICD10CM, "icd10cm", icd10_leaves)],
)
def test_the_oracles_lists_as_code_lists_label_the_same_codes_as_the_categories(
    real_data: Path, system: str, key: str, leaves_of: Callable[[], Mapping[str, int]]
) -> None:
    oracle = oracle_lists(real_data)[system]
    listed = [
        Phenotype.model_validate({"name": phenotype.name, key: oracle[phenotype.ccs[0]]})
        for phenotype in PHENOTYPES_25
    ]
    counts = {(system, code): 1 for code in leaves_of()}
    by_list = {match.code: match.labels for match in match_codes(counts, listed)}
    by_category = {match.code: match.labels for match in match_codes(counts, PHENOTYPES_25)}
    assert by_list == by_category


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


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ("428", {"428"}, {"4280", "42", "427"}),
        ("428*", {"428", "4280", "42831"}, {"42", "427", "4290"}),
        ("428.*", {"428", "4280"}, {"429"}),
        ("410-414", {"410", "41000", "4149"}, {"409", "4150", "41", "E4140"}),
        ("250.00 - 250.03", {"25000", "25003"}, {"250", "2500", "25004"}),
        ("e10-E14", {"E10", "E109", "E1165", "E149"}, {"E09", "E15", "E1"}),
        ("C00-D49", {"C7A01", "D499", "C50"}, {"D50", "B99"}),
        ("e850-e858", {"E8500", "E858"}, {"E859", "850"}),
    ],
)
def test_patterns_hold_what_they_say(pattern: str, inside: set[str], outside: set[str]) -> None:
    for system, key in ((ICD9CM, "icd9cm"), (ICD10CM, "icd10cm")):
        phenotype = Phenotype.model_validate({"name": "P", key: [pattern]})
        found = {c for c in inside | outside if labels_of(system, c, None, [phenotype])}
        assert found == inside


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("4*8", "'4\\*8' is no code pattern; write a code"),
        ("*", "no code pattern"),
        ("", "'' is no code pattern"),
        ("428**", "no code pattern"),
        ("410-414*", "no code pattern"),
        ("410-", "no code pattern"),
        ("J18,J19", "no code pattern"),
        ("414-410", "'414-410' is reversed; write 410-414"),
        ("E14-E10", "reversed; write E10-E14"),
        ("41-414", "of one form and length"),
        ("800-E99", "of one form and length"),
    ],
)
@pytest.mark.parametrize("key", ["icd9cm", "icd10cm", "exclude_icd9cm", "exclude_icd10cm"])
def test_an_unusable_pattern_is_refused_with_its_phenotype(
    key: str, pattern: str, why: str
) -> None:
    lists = {"icd9cm": ["428"], key: ["428", pattern]}
    with pytest.raises(ValidationError, match=f"phenotype 'Heart failure', {key}: .*{why}"):
        Phenotype.model_validate({"name": "Heart failure", **lists})


def test_a_config_names_the_phenotype_with_an_unusable_pattern() -> None:
    labels = {"phenotypes": [{"name": "Gout", "icd9cm": ["27*4"]}]}
    with pytest.raises(CkdEhrError, match=r"labels.phenotypes.0 .*phenotype 'Gout', icd9cm: '27"):
        build_config({"name": "test", "labels": labels})


@pytest.mark.parametrize("number", [428, 398.91])
def test_a_code_that_yaml_read_as_a_number_is_refused_with_the_remedy(number: float) -> None:
    labels = {"phenotypes": [{"name": "Gout", "icd9cm": ["274*", number]}]}
    with pytest.raises(CkdEhrError, match=rf"'Gout', icd9cm: {number} is a number; put quotes"):
        build_config({"name": "test", "labels": labels})


def test_the_example_of_the_docs_is_a_config() -> None:
    page = (Path(__file__).parents[2] / "docs" / "phenotypes.md").read_text(encoding="utf-8")
    example = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    failure, heart, gout = build_config({"name": "test", **example}).labels.selected
    assert labels_of(ICD9CM, "39891", 108, [failure]) == ()
    assert labels_of(ICD9CM, "4280", 108, [failure]) == (0,)
    assert labels_of(ICD10CM, "I219", None, [heart]) == (0,)
    assert labels_of(ICD10CM, "M1A00X0", None, [gout]) == (0,)
    assert labels_of(NAME, "Gout", None, [gout]) == (0,)


def test_an_exclusion_takes_codes_out_of_a_category_and_of_lists() -> None:
    phenotype = Phenotype(
        name="Failure without the acute",
        ccs=(108,),
        icd10cm=("I50*",),
        exclude_icd9cm=("428.21", "428.3*"),
        exclude_icd10cm=("I50.2-I50.3", "I50.8*"),
    )
    counts = {
        **{(ICD9CM, code): 1 for code in ("4280", "42821", "42831", "39891")},
        **{(ICD10CM, code): 1 for code in ("I501", "I5021", "I5033", "I50810", "I509")},
    }
    labelled = {match.code for match in match_codes(counts, [phenotype]) if match.labels}
    assert labelled == {"4280", "39891", "I501", "I509"}


def test_an_exclusion_holds_for_its_own_phenotype_and_system_only() -> None:
    strict = Phenotype(name="Strict", ccs=(108,), exclude_icd9cm=("4280",))
    wide = Phenotype(name="Wide", ccs=(108,))
    assert labels_of(ICD9CM, "4280", 108, [strict, wide]) == (1,)
    assert labels_of(UCI_ICD9, "4280", 108, [strict, wide]) == (1,)
    assert labels_of(ICD10CM, "4280", 108, [strict, wide]) == (0, 1)


def test_an_exclusion_alone_defines_nothing() -> None:
    with pytest.raises(ValidationError, match="'Gout' has no definition"):
        Phenotype(name="Gout", exclude_icd9cm=("2749",))


def test_names_are_compared_without_regard_to_case_and_blanks() -> None:
    phenotypes = [
        Phenotype(name="Heart attack", names=("Acute  myocardial INFARCTION",), icd9cm=("410*",)),
        Phenotype(name="Shock", ccs=(249,)),
    ]
    for written in ("acute myocardial infarction", " Acute Myocardial  Infarction "):
        assert labels_of(NAME, written, None, phenotypes) == (0,)
    assert labels_of(NAME, "myocardial infarction", None, phenotypes) == ()
    assert labels_of(NAME, "410", None, phenotypes) == ()
    assert labels_of(ICD9CM, "acute myocardial infarction", None, phenotypes) == ()


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(ValidationError, match="phenotype 'Gout', names: an entry is empty"):
        Phenotype(name="Gout", names=("gout", "  "))


@given(
    codes=st.sets(st.text("01ABE", min_size=1, max_size=5), max_size=30),
    low=st.text("01AB", min_size=1, max_size=3),
    high=st.text("01AB", min_size=1, max_size=3),
    prefix=st.text("01AB", min_size=1, max_size=3),
    taken=st.text("01AB", min_size=1, max_size=3),
)
def test_lists_for_many_codes_mean_what_each_pattern_means(
    codes: set[str], low: str, high: str, prefix: str, taken: str
) -> None:
    n = min(len(low), len(high))
    low, high = sorted((low[:n], high[:n]))
    usable = low[0].isdigit() == high[0].isdigit()
    ranges = [f"{low}-{high}"] if usable else [low]
    phenotype = Phenotype(name="P", icd9cm=(*ranges, f"{prefix}*"), exclude_icd9cm=(f"{taken}*",))
    for code in codes:
        in_range = low <= code[:n] <= high if usable and len(code) >= n else code == low
        expected = (in_range or code.startswith(prefix)) and not code.startswith(taken)
        assert labels_of("ICD9CM", code, None, [phenotype]) == ((0,) if expected else ())


def test_many_codes_and_phenotypes_are_matched_in_seconds() -> None:
    codes = list(icd10_leaves())[:20_000]
    phenotypes = [
        Phenotype(
            name=f"P{n}",
            icd10cm=(f"{codes[97 * n][:3]}*", "A00-B99", f"C{n % 50:02d}-D{n % 49:02d}"),
            exclude_icd10cm=(f"{codes[97 * n]}*", "B20-B24"),
        )
        for n in range(200)
    ]
    start = time.process_time()
    matches = match_codes({(ICD10CM, code): 1 for code in codes}, phenotypes)
    assert time.process_time() - start < 5
    assert len(matches) == 20_000
    labels = {match.code: match.labels for match in matches}
    assert labels["A000"] == tuple(range(200))
    assert labels["B20"] == ()


def test_coverage_counts_codes_and_occurrences_by_how_they_were_mapped() -> None:
    counts = {(ICD9CM, "4280"): 5, (ICD9CM, "428"): 3, (ICD9CM, "518"): 2, (ICD9CM, "ZZZ"): 7}
    report = coverage_report(match_codes(counts, PHENOTYPES_25))[ICD9CM]
    assert report["codes"]["exact"] == report["codes"]["unmapped"] == 1
    assert report["occurrences"] == {
        "exact": 5, "prefix": 3, "majority": 0, "override": 0, "ambiguous": 2, "unmapped": 7,
    }  # fmt: skip
    assert report["most_frequent_unmapped"] == [{"code": "ZZZ", "occurrences": 7}]
    assert report["most_frequent_ambiguous"] == [{"code": "518", "occurrences": 2}]


def test_coverage_counts_what_labels_each_phenotype_per_system() -> None:
    phenotypes = [
        Phenotype(name="Heart failure", ccs=(108,), names=("heart failure",)),
        Phenotype(name="Local", icd9cm=("ZZ1",)),
    ]
    counts = {
        (ICD9CM, "4280"): 5, (ICD9CM, "42821"): 2, (ICD9CM, "ZZ1"): 4, (ICD9CM, "ZZ2"): 1,
        (NAME, "Heart Failure"): 6, (NAME, "Mr. X: frail"): 1, (NAME, "frailty"): 9,
    }  # fmt: skip
    report = coverage_report(
        match_codes(counts, phenotypes), [phenotype.name for phenotype in phenotypes]
    )
    assert list(report) == [ICD9CM, NAME]
    assert report[ICD9CM]["phenotypes"] == {
        "Heart failure": {"codes": 2, "occurrences": 7},
        "Local": {"codes": 1, "occurrences": 4},
    }
    assert report[NAME]["phenotypes"]["Heart failure"] == {"codes": 1, "occurrences": 6}
    assert report[ICD9CM]["labelling"] == {"codes": 3, "occurrences": 11}
    assert report[ICD9CM]["most_frequent_unmapped"] == [{"code": "ZZ2", "occurrences": 1}]


def test_words_that_may_be_a_note_on_one_patient_are_not_shown() -> None:
    counts = {(NAME, "frail, see Mr Smith"): 1, (NAME, "frailty"): 9, (ICD9CM, "longer than 1"): 4}
    report = coverage_report(match_codes(counts, []))
    assert report[NAME]["most_frequent_unmapped"] == [{"code": "frailty", "occurrences": 9}]
    assert report[ICD9CM]["most_frequent_unmapped"] == []
    assert report[NAME]["occurrences"]["unmapped"] == 10
    assert coverage_lines(report) == [
        "ICD9CM: 4 diagnoses: 100.0 % unmapped; 0.0 % set a label",
        "NAME: 10 diagnoses: 100.0 % unmapped; 0.0 % set a label",
    ]


def test_coverage_is_told_in_one_line_a_system() -> None:
    counts = {
        (ICD9CM, "4280"): 9_710, (ICD9CM, "428"): 120, (ICD9CM, "518"): 50, (ICD9CM, "7991"): 80,
        (ICD9CM, "799Z"): 39, (ICD9CM, "1"): 1, (UCI_ICD9, "507"): 1, (UCI_ICD9, "518"): 3,
    }  # fmt: skip
    assert coverage_lines(coverage_report(match_codes(counts, PHENOTYPES_25))) == [
        "ICD9CM: 10,000 diagnoses: 97.9 % mapped, 1.2 % by prefix, 0.5 % ambiguous "
        "(top: 518 x 50), 0.4 % unmapped (top: 799Z x 39, 1 x 1); 99.1 % set a label",
        "UCI_ICD9: 4 diagnoses: 75.0 % by majority, 25.0 % by the table of truncated codes; "
        "75.0 % set a label",
    ]
    assert coverage_lines({}) == []


def test_titles_of_truncated_codes_are_general() -> None:
    assert truncated_title_of("428") == "Heart failure, unspecified"
    assert truncated_title_of("486") == "Pneumonia, organism unspecified"
    assert truncated_title_of("XYZ") is None
