"""What the coders make of a stay: true conditions in, coded conditions and their codes out.

Coding is as imperfect as in life: conditions are missed, old ones are copied from the bill before,
a few are written down that never were; a patient's condition keeps its usual code most of the
time, and has a second one now and then. Which conditions are coded does not depend on the code
system, so that the labels of a hospital are the same in ICD-9 and ICD-10. Ignores: drugs and
procedures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ckd_ehr.data.simulator.catalogue import (
    Bools,
    Catalogue,
    CodeChoice,
    Coding,
    Floats,
    Ints,
    Texts,
    read_conditions,
)
from ckd_ehr.data.simulator.course import Stays
from ckd_ehr.data.simulator.risks import coded_if_absent

USUAL_CODE = 0.7  # chance that a condition keeps the patient's usual code
SECOND_CODE = 0.25  # chance that a coded condition gets a second code
ACUTE_FIRST = 0.25  # how far up acute conditions stand in a bill, where 1 is all the way
USUAL_PLACE = 0.7  # how much a condition's place in a bill is the patient's usual one
# For stays in which nothing else was coded: malaise and fatigue (CCS 252, no condition here).
NOTHING_CODED: dict[Coding, str] = {"icd9": "78079", "icd10": "R5383"}


@dataclass(frozen=True)
class Bill:
    """The diagnoses of some stays, stay by stay, in the order of the bill; one entry a code."""

    stay: Ints
    code: Texts


def draw_coded(rng: np.random.Generator, medicine: Catalogue, stays: Stays) -> Bools:
    """Which conditions are written down at each stay, (stays, conditions)."""
    absent = coded_if_absent(medicine, conditions_before(stays))
    chance = np.where(stays.conditions, medicine.coded, absent)
    written: Bools = rng.random(chance.shape) < chance
    return written


def conditions_before(stays: Stays) -> Bools:
    """The true conditions at the same patient's stay before; none before the first."""
    before = np.zeros_like(stays.conditions)
    follows = np.flatnonzero(stays.patient[1:] == stays.patient[:-1]) + 1
    before[follows] = stays.conditions[follows - 1]
    return before


def write_bills(
    rng: np.random.Generator,
    choices: Sequence[CodeChoice],
    coded: Bools,
    *,
    patient: Ints,
    coding: Coding,
) -> Bill:
    """Choose the codes of the coded conditions, (stays, conditions), of these patients' stays."""
    starts = np.cumsum([0, *(len(choice.codes) for choice in choices)])
    stay, condition = np.nonzero(coded)
    _, person = np.unique(patient, return_inverse=True)
    whose = (2, int(person.max(initial=-1)) + 1, len(choices))
    usual, usual_place = rng.random(whose)[:, person[stay], condition]
    first = np.where(rng.random(len(stay)) < USUAL_CODE, usual, rng.random(len(stay)))
    first_code = _chosen(choices, starts, condition, first)
    again = np.flatnonzero(rng.random(len(stay)) < SECOND_CODE)
    second_code = _chosen(choices, starts, condition[again], rng.random(len(again)))
    again, second_code = (part[second_code != first_code[again]] for part in (again, second_code))
    empty = np.flatnonzero(~coded.any(axis=1))
    acute = np.array([condition.course == "acute" for condition in read_conditions()])[condition]
    rank = rng.random(len(stay) + len(again) + len(empty))
    rank[: len(stay)] = (1 - USUAL_PLACE) * rank[: len(stay)] + USUAL_PLACE * usual_place
    rank[: len(stay)] -= ACUTE_FIRST * acute
    codes = np.concatenate([*(choice.codes for choice in choices), [NOTHING_CODED[coding]]])
    nothing = np.full(len(empty), len(codes) - 1)
    stays = np.concatenate([stay, stay[again], empty])
    order = np.lexsort((rank, stays))
    return Bill(stays[order], codes[np.concatenate([first_code, second_code, nothing])[order]])


def _chosen(choices: Sequence[CodeChoice], starts: Ints, condition: Ints, draw: Floats) -> Ints:
    """Position of the code that each draw, between 0 and 1, falls on."""
    chosen = np.empty(len(condition), dtype=np.int64)
    order = np.argsort(condition, kind="stable")
    ends = np.searchsorted(condition[order], np.arange(len(choices) + 1))
    for number, choice in enumerate(choices):
        rows = order[ends[number] : ends[number + 1]]
        place = np.searchsorted(choice.ends, draw[rows])
        chosen[rows] = starts[number] + np.minimum(place, len(choice.codes) - 1)
    return chosen
