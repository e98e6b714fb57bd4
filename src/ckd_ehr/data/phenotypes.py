"""Diagnosis codes → the diseases to predict, and how well the codes are covered.

In: distinct (system, code) with their counts, and the phenotypes of the config. Out: the labels of
each code, and a coverage report. Ignores: patients and visits. What the written forms of code lists
mean is told in docs/phenotypes.md.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from ckd_ehr.contracts.code_patterns import PatternLists, plain_code, plain_name
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.phenotype import Phenotype
from ckd_ehr.contracts.records import DRUG_NAME, ICD9CM, ICD10CM, UCI_ICD9
from ckd_ehr.data.ccs import HOW, CcsMatch, How, category_names, icd9_ccs_of, icd10_ccs_of
from ckd_ehr.data.truncated_icd9 import truncated_ccs_of

SHOWN_CODES = 20
SAID_CODES = 3
LONGEST_CODE = 8
FEWEST_SHOWN = 5  # occurrences from which on words are shown
SAID: Mapping[str, str] = {
    "exact": "mapped",
    "prefix": "by prefix",
    "majority": "by majority",
    "override": "by the table of truncated codes",
    "ambiguous": "ambiguous",
    "unmapped": "unmapped",
}
# The system of diagnoses that are words: the one of drugs that are.
NAME = DRUG_NAME
CCS_OF_SYSTEM: Mapping[str, Callable[[str], CcsMatch]] = {
    ICD9CM: icd9_ccs_of,
    ICD10CM: icd10_ccs_of,
    UCI_ICD9: truncated_ccs_of,
}


class Tally(TypedDict):
    """How many distinct codes, and how many occurrences of codes."""

    codes: int
    occurrences: int


class MissedCode(TypedDict):
    """A code without a category, and how often it occurs."""

    code: str
    occurrences: int


class SystemCoverage(TypedDict):
    """What became of the codes of one system; `codes` and `occurrences` by `How`."""

    codes: dict[str, int]
    occurrences: dict[str, int]
    most_frequent_unmapped: list[MissedCode]
    most_frequent_ambiguous: list[MissedCode]
    labelling: Tally
    phenotypes: dict[str, Tally]


@dataclass(frozen=True, slots=True)
class CodeMatch:
    """What a code means: its category, how that was found, and the labels it sets."""

    system: str
    code: str
    occurrences: int
    ccs: int | None
    how: How
    labels: tuple[int, ...]


def refuse_unknown_categories(phenotypes: Sequence[Phenotype]) -> None:
    """An error for a category that CCS does not have: it would label nothing.

    >>> refuse_unknown_categories([Phenotype(name="Shock", ccs=(249,))])
    """
    for phenotype in phenotypes:
        unknown = [ccs for ccs in phenotype.ccs if ccs not in category_names()]
        if unknown:
            raise CkdEhrError(
                f"labels.phenotypes: phenotype '{phenotype.name}': CCS has no category "
                f"{', '.join(map(str, unknown))}; the single-level categories are meant (108)"
            )


def ccs_of(system: str, code: str) -> CcsMatch:
    """A code's CCS category by the table of its system; unmapped where there is none.

    Dots, blanks and lower case do not matter.

    >>> ccs_of("ICD9CM", "4280"), ccs_of("READ", "H33")
    (CcsMatch(ccs=108, how='exact'), CcsMatch(ccs=None, how='unmapped'))
    """
    lookup = CCS_OF_SYSTEM.get(system)
    return lookup(plain_code(code)) if lookup else CcsMatch(None, "unmapped")


class LabelRules:
    """The definitions of all phenotypes, ready for many codes."""

    def __init__(self, phenotypes: Sequence[Phenotype]) -> None:
        """Read the definitions once."""
        icd9 = PatternLists(p.icd9cm for p in phenotypes)
        icd10 = PatternLists(p.icd10cm for p in phenotypes)
        not_icd9 = PatternLists(p.exclude_icd9cm for p in phenotypes)
        not_icd10 = PatternLists(p.exclude_icd10cm for p in phenotypes)
        self._listed = {ICD9CM: icd9, UCI_ICD9: icd9, ICD10CM: icd10}
        self._excluded = {ICD9CM: not_icd9, UCI_ICD9: not_icd9, ICD10CM: not_icd10}
        self._of_category: dict[int, set[int]] = {}
        self._of_name: dict[str, set[int]] = {}
        for position, phenotype in enumerate(phenotypes):
            for ccs in phenotype.ccs:
                self._of_category.setdefault(ccs, set()).add(position)
            for name in (plain_name(phenotype.name), *phenotype.names):
                self._of_name.setdefault(name, set()).add(position)

    def labels_of(self, system: str, code: str, ccs: int | None) -> tuple[int, ...]:
        """The positions of the phenotypes that a code belongs to, in order."""
        if system == NAME:
            return tuple(sorted(self._of_name.get(plain_name(code), ())))
        found = set(self._of_category.get(ccs, ())) if ccs is not None else set()
        if system in self._listed:
            plain = plain_code(code)
            found |= self._listed[system].having(plain)
            found -= self._excluded[system].having(plain)
        return tuple(sorted(found))


def labels_of(
    system: str, code: str, ccs: int | None, phenotypes: Sequence[Phenotype]
) -> tuple[int, ...]:
    """The positions of the phenotypes that a code belongs to; for many codes see `match_codes`.

    A list of ICD-9-CM codes holds for UCI_ICD9 too, where it must name the truncated codes.

    >>> shock = Phenotype(name="Shock", ccs=(249,), icd10cm=("R57*",), exclude_icd9cm=("785.50",))
    >>> labels_of("ICD9CM", "78551", 249, [shock]), labels_of("ICD10CM", "R579", None, [shock])
    ((0,), (0,))
    >>> labels_of("ICD9CM", "78550", 249, [shock])
    ()
    """
    return LabelRules(phenotypes).labels_of(system, code, ccs)


def match_codes(
    counts: Mapping[tuple[str, str], int], phenotypes: Sequence[Phenotype]
) -> list[CodeMatch]:
    """Match every distinct code once; `counts` says how often each (system, code) occurs."""
    rules = LabelRules(phenotypes)
    matches = []
    for (system, code), occurrences in counts.items():
        found = ccs_of(system, code)
        matches.append(
            CodeMatch(
                system=system,
                code=code,
                occurrences=occurrences,
                ccs=found.ccs,
                how=found.how,
                labels=rules.labels_of(system, code, found.ccs),
            )
        )
    return matches


def coverage_report(
    matches: Sequence[CodeMatch], label_names: Sequence[str] = ()
) -> dict[str, SystemCoverage]:
    """Per code system: codes and occurrences by how they were mapped, the frequent misses.

    With the names of the labels, also how many codes and occurrences of the system set each label.

    >>> report = coverage_report(match_codes({("ICD9CM", "4280"): 9, ("ICD9CM", "518"): 2}, []))
    >>> report["ICD9CM"]["occurrences"]["ambiguous"]
    2
    """
    by_system: dict[str, list[CodeMatch]] = {}
    for match in matches:
        by_system.setdefault(match.system, []).append(match)
    return {system: _coverage(by_system[system], label_names) for system in sorted(by_system)}


def _coverage(matches: Sequence[CodeMatch], label_names: Sequence[str]) -> SystemCoverage:
    codes: Counter[str] = Counter(match.how for match in matches)
    occurrences: Counter[str] = Counter()
    of_label: list[Tally] = [{"codes": 0, "occurrences": 0} for _ in label_names]
    for match in matches:
        occurrences[match.how] += match.occurrences
        for label in match.labels if label_names else ():
            of_label[label]["codes"] += 1
            of_label[label]["occurrences"] += match.occurrences
    return {
        "codes": {how: codes[how] for how in HOW},
        "occurrences": {how: occurrences[how] for how in HOW},
        "most_frequent_unmapped": _most_frequent(matches, "unmapped"),
        "most_frequent_ambiguous": _most_frequent(matches, "ambiguous"),
        "labelling": {
            "codes": sum(bool(match.labels) for match in matches),
            "occurrences": sum(match.occurrences for match in matches if match.labels),
        },
        "phenotypes": dict(zip(label_names, of_label, strict=True)),
    }


def _most_frequent(matches: Sequence[CodeMatch], how: How) -> list[MissedCode]:
    """The most frequent codes without a category, but for those that a list gives a label.

    What does not look like a code may be a note on one patient: it is shown if it is frequent.
    """
    found = sorted(
        (
            match
            for match in matches
            if match.how == how and not match.labels
            if _looks_like_a_code(match.code) or match.occurrences >= FEWEST_SHOWN
        ),
        key=lambda match: (-match.occurrences, match.code),
    )
    return [{"code": m.code, "occurrences": m.occurrences} for m in found[:SHOWN_CODES]]


def _looks_like_a_code(written: str) -> bool:
    plain = plain_code(written)
    return plain.isalnum() and len(plain) <= LONGEST_CODE and any(map(str.isdigit, plain))


def coverage_lines(report: Mapping[str, SystemCoverage]) -> list[str]:
    """One line a code system, for people, from `coverage_report`; words are not shown in it.

    >>> counts = {("ICD9CM", "4280"): 9, ("ICD9CM", "X1"): 1}
    >>> coverage_lines(coverage_report(match_codes(counts, [])))
    ['ICD9CM: 10 diagnoses: 90.0 % mapped, 10.0 % unmapped (top: X1 x 1); 0.0 % set a label']
    """
    return [_coverage_line(system, coverage) for system, coverage in report.items()]


def _coverage_line(system: str, coverage: SystemCoverage) -> str:
    total = sum(coverage["occurrences"].values())
    missed: dict[str, list[MissedCode]] = {
        "unmapped": coverage["most_frequent_unmapped"],
        "ambiguous": coverage["most_frequent_ambiguous"],
    }
    parts = [
        f"{_percent(count, total)} {SAID[how]}{_top(missed.get(how, []))}"
        for how, count in coverage["occurrences"].items()
        if count
    ]
    labelling = _percent(coverage["labelling"]["occurrences"], total)
    return f"{system}: {total:,} diagnoses: {', '.join(parts)}; {labelling} set a label"


def _percent(count: int, total: int) -> str:
    return f"{100 * count / max(total, 1):.1f} %"


def _top(missed: Sequence[MissedCode]) -> str:
    codes = [m for m in missed if _looks_like_a_code(m["code"])][:SAID_CODES]
    said = ", ".join(f"{m['code']} x {m['occurrences']:,}" for m in codes)
    return f" (top: {said})" if said else ""
