"""Diagnosis codes → the diseases to predict, and how well the codes are covered.

In: distinct (system, code) with their counts, and the phenotypes of the config. Out: the labels of
each code, and a coverage report. Ignores: patients and visits.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ckd_ehr.contracts.records import ICD9CM, ICD10CM, UCI_ICD9, Phenotype
from ckd_ehr.data.ccs import HOW, CcsMatch, How, icd9_ccs_of, icd10_ccs_of
from ckd_ehr.data.truncated_icd9 import truncated_ccs_of

SHOWN_CODES = 20
CCS_OF_SYSTEM: Mapping[str, Callable[[str], CcsMatch]] = {
    ICD9CM: icd9_ccs_of,
    ICD10CM: icd10_ccs_of,
    UCI_ICD9: truncated_ccs_of,
}


@dataclass(frozen=True, slots=True)
class CodeMatch:
    """What a code means: its category, how that was found, and the labels it sets."""

    system: str
    code: str
    occurrences: int
    ccs: int | None
    how: How
    labels: tuple[int, ...]


def ccs_of(system: str, code: str) -> CcsMatch:
    """A code's CCS category by the table of its system; unmapped where there is none.

    >>> ccs_of("ICD9CM", "4280"), ccs_of("READ", "H33")
    (CcsMatch(ccs=108, how='exact'), CcsMatch(ccs=None, how='unmapped'))
    """
    lookup = CCS_OF_SYSTEM.get(system)
    return lookup(code) if lookup else CcsMatch(None, "unmapped")


def labels_of(
    system: str, code: str, ccs: int | None, phenotypes: Sequence[Phenotype]
) -> tuple[int, ...]:
    """The positions of the phenotypes that a code belongs to, by category or by code list.

    A list of ICD-9-CM codes holds for UCI_ICD9 too, where it must name the truncated codes.

    >>> shock = Phenotype(name="Shock", ccs=(249,), icd10cm=("R579",))
    >>> labels_of("ICD9CM", "78551", 249, [shock]), labels_of("ICD9CM", "4019", 98, [shock])
    ((0,), ())
    """
    return tuple(
        position
        for position, phenotype in enumerate(phenotypes)
        if ccs in phenotype.ccs
        or (system in (ICD9CM, UCI_ICD9) and code in phenotype.icd9cm)
        or (system == ICD10CM and code in phenotype.icd10cm)
    )


def match_codes(
    counts: Mapping[tuple[str, str], int], phenotypes: Sequence[Phenotype]
) -> list[CodeMatch]:
    """Match every distinct code once; `counts` says how often each (system, code) occurs."""
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
                labels=labels_of(system, code, found.ccs, phenotypes),
            )
        )
    return matches


def coverage_report(matches: Sequence[CodeMatch]) -> dict[str, object]:
    """Per code system: codes and occurrences by how they were mapped, the frequent misses.

    >>> report = coverage_report(match_codes({("ICD9CM", "4280"): 9, ("ICD9CM", "518"): 2}, []))
    >>> report["ICD9CM"]["occurrences"]["ambiguous"]
    2
    """
    return {
        system: _coverage([match for match in matches if match.system == system])
        for system in sorted({match.system for match in matches})
    }


def _coverage(matches: Sequence[CodeMatch]) -> dict[str, object]:
    codes: Counter[str] = Counter(match.how for match in matches)
    occurrences: Counter[str] = Counter()
    for match in matches:
        occurrences[match.how] += match.occurrences
    return {
        "codes": {how: codes[how] for how in HOW},
        "occurrences": {how: occurrences[how] for how in HOW},
        "most_frequent_unmapped": _most_frequent(matches, "unmapped"),
        "most_frequent_ambiguous": _most_frequent(matches, "ambiguous"),
    }


def _most_frequent(matches: Sequence[CodeMatch], how: How) -> list[dict[str, object]]:
    found = sorted(
        (match for match in matches if match.how == how),
        key=lambda match: (-match.occurrences, match.code),
    )
    return [{"code": m.code, "occurrences": m.occurrences} for m in found[:SHOWN_CODES]]
