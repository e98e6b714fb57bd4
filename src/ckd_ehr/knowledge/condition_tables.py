"""Which guideline is for which condition, and by which words texts speak of a condition.

In: `guideline_conditions.csv`, `condition_terms.csv`, and `guideline_statements.csv`, which decides
on statements of the pinned pack where the rule of guidelines.py errs. Out: CCS categories. Ignores:
what guidelines say.
"""

import csv
import difflib
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.data.ccs import category_names


@cache
def guideline_conditions() -> Mapping[str, tuple[int, ...]]:
    """Guideline → the CCS categories it is for; none for those that are for no condition."""
    found: dict[str, list[int]] = {}
    for row in _table("guideline_conditions.csv"):
        some = found.setdefault(row["guideline"], [])
        if row["ccs"]:
            some.append(_table_category("guideline_conditions.csv", row))
    return {name: tuple(sorted(some)) for name, some in found.items()}


@cache
def reviewed_statements() -> Mapping[str, tuple[str, bool]]:
    """Places in the pack, as in snippet ids → how the statement begins, whether to keep it."""
    rows = _table("guideline_statements.csv")
    return {row["place"]: (row["begins"], row["keep"] == "yes") for row in rows}


@cache
def condition_terms() -> Mapping[str, int]:
    """The words by which a text speaks of a condition → its CCS category."""
    name = "condition_terms.csv"
    return {row["term"]: _table_category(name, row) for row in _table(name)}


def mentions_of(text: str) -> tuple[int, ...]:
    """The CCS categories that a text speaks of; of overlapping terms the longest counts.

    >>> mentions_of("AKI may progress to CKD, portal hypertension to ascites")
    (151, 157, 158)
    """
    words, capitals = _patterns()
    found = {_words()[m.group().casefold()] for m in words.finditer(text)}
    return tuple(sorted(found | {condition_terms()[m.group()] for m in capitals.finditer(text)}))


def without_mentions(text: str) -> str:
    """The text without the words by which it speaks of conditions.

    >>> without_mentions("Essential hypertension increases the risk of stroke")
    '… increases the risk of …'
    """
    words, capitals = _patterns()
    return capitals.sub("…", words.sub("…", text))


@cache
def _words() -> Mapping[str, int]:
    """`condition_terms` without regard to case, abbreviations left out."""
    return {
        term.casefold(): ccs for term, ccs in condition_terms().items() if not _is_capital(term)
    }


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """For words, whatever their case, and for abbreviations in capitals."""
    parts: dict[bool, list[str]] = {True: [], False: []}
    for term in sorted(condition_terms(), key=lambda term: (-len(term), term)):
        parts[_is_capital(term)].append(re.escape(term))
    words, capitals = (rf"(?<![\w-])(?:{'|'.join(parts[key])})(?![\w-])" for key in (False, True))
    return re.compile(words, re.IGNORECASE), re.compile(capitals)


def _is_capital(term: str) -> bool:
    return sum(map(str.isupper, term)) >= 2


def category_of(value: int | str) -> int:
    """A CCS category by its number or name."""
    names = category_names()
    written = str(value).strip()
    if written.isdecimal() and int(written) in names:
        return int(written)
    by_name = {name.casefold(): ccs for ccs, name in names.items()}
    if (folded := written.casefold()) in by_name:
        return by_name[folded]
    by_start = {re.split(r"[;(]", name)[0].strip(): ccs for name, ccs in by_name.items()}
    near = difflib.get_close_matches(folded, by_start | by_name, n=1, cutoff=0.7)
    remedy = "take one of AHRQ's single-level CCS, by number or exact name"
    if near:
        ccs = (by_start | by_name)[near[0]]
        remedy = f"did you mean {ccs} ({names[ccs]})?"
    raise ValueError(f"CCS has no category '{written[:40]}'; {remedy}")


def _table_category(name: str, row: Mapping[str, str]) -> int:
    try:
        return category_of(row["ccs"])
    except ValueError as error:
        key = next(iter(value for field, value in row.items() if field != "ccs"))
        raise CkdEhrError(f"{name}: '{key}': {error}") from None


def _table(name: str) -> list[dict[str, str]]:
    file = resources.files("ckd_ehr.knowledge") / name
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
