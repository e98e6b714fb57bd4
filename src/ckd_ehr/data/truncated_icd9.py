"""The truncated ICD-9-CM codes of the UCI diabetes data → CCS categories and titles.

In: a code as the file has it, mostly the 3-digit category with leading zeros gone. Out: its CCS
category. Ignores: every other source. Where the leaves under a category disagree, the category of
most leaves decides, unless `truncated_icd9.csv` decides otherwise and says why.
"""

import csv
from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib import resources

from ckd_ehr.data.ccs import CcsMatch, category_names, icd9_leaves, icd9_titles

OVERRIDES = "truncated_icd9.csv"
# 250.xx keeps its decimals in this file, so that a bare 250 is 250.00.
WHOLE = {"250": "25000"}
# Where ICD-9-CM puts "unspecified" and "other" under a category, in order of preference.
GENERAL_ENDINGS = ("9", "90", "99", "8", "0", "00")
GENERAL_WORDS = ("unspecified", "other", "not elsewhere")


def truncated_ccs_of(code: str) -> CcsMatch:
    """The category of a code in normal form.

    >>> truncated_ccs_of("250"), truncated_ccs_of("428")
    (CcsMatch(ccs=49, how='exact'), CcsMatch(ccs=108, how='prefix'))
    """
    leaves = icd9_leaves()
    whole = WHOLE.get(code, code)
    if whole in leaves:
        return CcsMatch(leaves[whole], "exact")
    if code in _overrides():
        return CcsMatch(_overrides()[code], "override")
    categories = _leaf_categories().get(code)
    if not categories:
        return CcsMatch(None, "unmapped")
    # Equal counts: the lower category, so that the choice does not depend on order.
    ccs, _ = min(categories.items(), key=lambda item: (-item[1], item[0]))
    return CcsMatch(ccs, "prefix" if len(categories) == 1 else "majority")


def truncated_title_of(code: str) -> str | None:
    """A title for a code in normal form: its own, or its most general leaf's, or its category's.

    >>> truncated_title_of("428"), truncated_title_of("250")
    ('Heart failure, unspecified', 'Diabetes mellitus without complication')
    """
    titles, ccs = icd9_titles(), truncated_ccs_of(code).ccs
    if code in titles:
        return titles[code]
    leaves = (titles.get(code + ending, "") for ending in GENERAL_ENDINGS)
    general = [t for t in leaves if any(word in t.lower() for word in GENERAL_WORDS)]
    if general and code not in WHOLE:
        return general[0]
    return None if ccs is None else category_names()[ccs]


@cache
def _leaf_categories() -> Mapping[str, Counter[int]]:
    """Shorter code → how many of its leaves are in each category."""
    found: dict[str, Counter[int]] = {}
    for code, ccs in icd9_leaves().items():
        for length in range(3, len(code)):
            found.setdefault(code[:length], Counter())[ccs] += 1
    return found


@cache
def _overrides() -> Mapping[str, int]:
    table = resources.files("ckd_ehr.data").joinpath(OVERRIDES)
    rows = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
    return {row["code"]: int(row["ccs"]) for row in rows}
