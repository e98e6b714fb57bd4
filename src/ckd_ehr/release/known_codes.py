"""Which codes the student has learnt from, so that a history of others can be told.

In: histories. Out: the codes that enough train patients have, and the share of others in a history.
Ignores: what codes mean. A code of few patients is left out, since it might point to one of them.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from ckd_ehr.contracts.files import read_json, write_json
from ckd_ehr.contracts.records import Visit
from ckd_ehr.release.manifest import KNOWN_CODES

FEWEST_PATIENTS = 5
Codes = frozenset[tuple[str, str]]  # system, code


def codes_of(history: Sequence[Visit]) -> Codes:
    """The distinct codes of a history."""
    return frozenset(
        (code.system, code.code)
        for visit in history
        for code in (*visit.diagnoses, *visit.medications, *visit.procedures)
    )


def known_codes(histories: Iterable[Sequence[Visit]], *, fewest: int = FEWEST_PATIENTS) -> Codes:
    """The codes that at least so many patients have."""
    patients: dict[tuple[str, str], set[int]] = defaultdict(set)
    for history in histories:
        for code in codes_of(history):
            patients[code].add(history[-1].subject_id)
    return frozenset(code for code, having in patients.items() if len(having) >= fewest)


def unknown_share(codes: Codes, known: Codes) -> float:
    """The share of codes that are not known; 0 of none.

    >>> unknown_share(frozenset({("NAME", "warfarin"), ("NAME", "x")}), frozenset({("NAME", "x")}))
    0.5
    """
    return len(codes - known) / len(codes) if codes else 0.0


def write_known_codes(folder: Path, known: Codes) -> None:
    """Write the codes, by system."""
    by_system: dict[str, list[str]] = defaultdict(list)
    for system, code in sorted(known):
        by_system[system].append(code)
    write_json(folder / KNOWN_CODES, by_system)


def read_known_codes(folder: Path) -> Codes:
    """What `write_known_codes` wrote."""
    by_system = read_json(folder / KNOWN_CODES)
    return frozenset(
        (system, str(code))
        for system, codes in by_system.items()
        if isinstance(codes, list)
        for code in codes
    )
