"""ICD codes as OMOP's source columns write them: which version they are, where it can be known.

In: a source value, with the vocabulary and code of its source concept where CONCEPT tells them.
Out: the plain code and its system; for a code that exists in ICD-9-CM and ICD-10-CM, such as
`V4581` or `E8809`, both are possible, and the caller decides by the stay's other codes. Ignores:
categories of diseases, and codes of other kinds (SNOMED, CPT, a hospital's own numbers).

A number of three to five digits is ICD-9-CM: ICD-10 starts with a letter. A letter other than E
and V is ICD-10. External causes of ICD-9 are E000-E030 and E800-E999 with a dot after the fourth
character, ICD-10's chapter E ends with E89 and has its dot after the third. ICD-10 of the WHO and
of countries counts as ICD-10-CM: a code that is no leaf there is mapped by its prefix.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ckd_ehr.contracts.code_patterns import plain_code
from ckd_ehr.contracts.records import ICD9CM, ICD9PROC, ICD10CM, ICD10PCS
from ckd_ehr.data.ccs import icd9_leaves, icd10_leaves

Kind = Literal["diagnosis", "procedure"]
# `either`: the code exists in both versions. `other`: no ICD code. `none`: nothing is written.
How = Literal["concept", "form", "either", "other", "none"]

# Vocabulary of CONCEPT → system. ICD-10 modifications of countries are read as ICD-10-CM.
VOCABULARIES: Mapping[Kind, Mapping[str, str]] = {
    "diagnosis": {
        "ICD9CM": ICD9CM,
        **dict.fromkeys(("ICD10CM", "ICD10", "ICD10GM", "ICD10CN", "CIM10", "KCD7"), ICD10CM),
    },
    "procedure": {"ICD9Proc": ICD9PROC, "ICD10PCS": ICD10PCS},
}
_ICD9_SYSTEM: Mapping[Kind, str] = {"diagnosis": ICD9CM, "procedure": ICD9PROC}
_ICD10_SYSTEM: Mapping[Kind, str] = {"diagnosis": ICD10CM, "procedure": ICD10PCS}

# "ICD9CM:428.0", "ICD-10-CM|I50.9", "ICD10PCS 0210093"
_PREFIX = re.compile(r"ICD[ -]?(9|10)(?:[ -]?(?:CM|PROC|PCS|GM|WHO))?\s*[:|/ -]\s*(?=\S)", re.I)
# Marks of ICD-10 for a code's role in a pair of codes.
_MARKS = "†*+!"
_ICD9_NUMBER = re.compile(r"\d{3}(\.?\d{1,2})?")
_ICD9_V = re.compile(r"V\d{2}(\.?\d{1,2})?")
_ICD9_E = re.compile(r"E(0[0-2]\d|030|[89]\d{2})(\.?\d)?")
_ICD10 = re.compile(r"[A-Z]\d[0-9A-Z](\.?[0-9A-Z]{1,4})?")
_ICD10_LAST_E = 89
_ICD10_E90 = "E90"  # of the WHO, without subdivisions
_ICD9_PROCEDURE = re.compile(r"\d{2}(\.?\d{1,2})?")
_ICD10_PROCEDURE = re.compile(r"[0-9A-HJ-NP-Z]{7}")


@dataclass(frozen=True, slots=True)
class WrittenCode:
    """A plain code, its system where it is known, and how that was found.

    `leaf` is the only system of two that has an `either` code as a full code, if one has.
    """

    code: str | None
    system: str | None
    how: How
    leaf: str | None = None


NOTHING = WrittenCode(None, None, "none")
NO_ICD = WrittenCode(None, None, "other")


def read_code(
    written: str | None,
    kind: Kind,
    *,
    vocabulary: str | None = None,
    concept_code: str | None = None,
) -> WrittenCode:
    """What a row's code is: by its source concept, else by the form of its source value.

    The form decides without a source concept, and for a diagnosis whose source concept is of
    another vocabulary than ICD, unless the value is that concept's own code.

    >>> read_code("x", "diagnosis", vocabulary="ICD10CM", concept_code="I50.9")
    WrittenCode(code='I509', system='ICD10CM', how='concept', leaf=None)
    >>> read_code("428.0", "diagnosis").system, read_code("E87.1", "diagnosis").system
    ('ICD9CM', 'ICD10CM')
    >>> read_code("V45.81", "diagnosis").how, read_code("99213", "procedure").how
    ('either', 'other')
    """
    text = (written or "").strip().rstrip(_MARKS).rstrip().removesuffix(".").upper()
    if vocabulary is not None and concept_code is not None:
        system = VOCABULARIES[kind].get(vocabulary)
        if system:
            return WrittenCode(plain_code(concept_code), system, "concept")
        # SNOMED beside a diagnosis may be what its ICD code was mapped to; its own code is no ICD
        # code, whatever its form, and the numbers of procedures are too much alike to tell.
        if kind == "procedure" or not text or plain_code(text) == plain_code(concept_code):
            return NO_ICD
    if not plain_code(text):
        return NOTHING
    prefix = _PREFIX.match(text)
    rest = text[prefix.end() :] if prefix else text
    versions = _versions(rest.replace(" ", ""), kind)
    if prefix is not None:
        stated = _ICD9_SYSTEM if prefix[1] == "9" else _ICD10_SYSTEM
        versions = [stated[kind]] if stated[kind] in versions else []
    code = plain_code(rest)
    match versions:
        case []:
            return NO_ICD
        case [system]:
            return WrittenCode(code, system, "form")
        case _:
            return WrittenCode(code, None, "either", _only_leaf(code))


def _versions(text: str, kind: Kind) -> list[str]:
    if kind == "procedure":
        if _ICD9_PROCEDURE.fullmatch(text):
            return [ICD9PROC]
        return [ICD10PCS] if _ICD10_PROCEDURE.fullmatch(text) else []
    versions = []
    if any(form.fullmatch(text) for form in (_ICD9_NUMBER, _ICD9_V, _ICD9_E)) and not (
        # A dot after the third character: 9 has it after the fourth.
        text.startswith("E") and "." in text and text.index(".") == 3
    ):
        versions.append(ICD9CM)
    beyond = text.startswith("E") and _category_number(text) > _ICD10_LAST_E
    if _ICD10.fullmatch(text) and (not beyond or text == _ICD10_E90):
        versions.append(ICD10CM)
    return versions


def _category_number(text: str) -> int:
    """The two characters after the letter; letters among them count as 0.

    >>> _category_number("E87.1"), _category_number("C4A")
    (87, 0)
    """
    return int(text[1:3]) if text[1:3].isdigit() else 0


def _only_leaf(code: str) -> str | None:
    """The system that has a code as a full code, where the other has not.

    >>> _only_leaf("E039"), _only_leaf("E8788"), _only_leaf("E8809")
    ('ICD10CM', 'ICD9CM', None)
    """
    having = [
        system
        for system, leaves in ((ICD9CM, icd9_leaves()), (ICD10CM, icd10_leaves()))
        if code in leaves
    ]
    return having[0] if len(having) == 1 else None
