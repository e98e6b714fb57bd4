"""The course of disease in the simulated hospital: settings in, patients and their stays out.

Each of the 25 phenotypes is a state that a patient is in or not at a visit. From one visit to the
next a state persists, brings others about (hypertension → heart failure, diabetes → kidney
disease, …), is helped away by the few drugs that truly work, and depends on age, sex, lasting
traits and a hidden frailty of each organ system. Ignores: laboratory values, notes, wards, the
calendar, how a stay is written down, and any claim to mirror a real population.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ckd_ehr.data.simulator_catalogue import (
    CONDITIONS,
    EFFECTIVE,
    PROGRESSIONS,
    SYSTEMS,
    TRAITS,
    UBIQUITOUS_DRUGS,
)

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MAX_VISITS = 14
BURN_IN = 4
FRAILTY_DEVIATION = 0.7
CROWDING = -0.25  # log-odds per condition beyond three: else the sick gather all there is
DAY = 86_400
FIRST_ADMISSION = 4_102_444_800  # 2100-01-01 in seconds since 1970: MIMIC's shifted calendar.
CENTURY = 100 * 365 * DAY

_INDEX = {condition.ccs: i for i, condition in enumerate(CONDITIONS)}
DRUGS: tuple[str, ...] = tuple(
    dict.fromkeys(
        [name for condition in CONDITIONS for name, _ in condition.drugs]
        + [name for name, _ in UBIQUITOUS_DRUGS]
    )
)
PROCEDURES: tuple[str, ...] = tuple(
    dict.fromkeys(code for condition in CONDITIONS for code, _ in condition.procedures)
)


@dataclass(frozen=True)
class People:
    """What does not change about the patients; one entry each."""

    age_years: Floats  # at the first admission
    male: Bools
    traits: Bools  # (patients, traits)
    frailty: Floats  # (patients, systems)
    visits_planned: Ints


@dataclass(frozen=True)
class Stays:
    """What happened at each stay, patients one after another, oldest stay first."""

    patient: Ints
    age_years: Floats
    admit_seconds: Ints
    discharge_seconds: Ints
    died: Bools
    conditions: Bools  # (stays, conditions)
    drugs: Bools  # (stays, drugs)
    procedures: Bools  # (stays, procedures)


def draw_people(rng: np.random.Generator, *, patients: int, visits_per_patient: float) -> People:
    """Patients at their first admission."""
    extra = rng.poisson(visits_per_patient - 1, size=patients)
    return People(
        age_years=np.clip(rng.normal(66, 14, size=patients), 20, 97),
        male=rng.random(patients) < 0.54,
        traits=rng.random((patients, len(TRAITS))) < [trait.frequency for trait in TRAITS],
        frailty=rng.normal(0, FRAILTY_DEVIATION, size=(patients, len(SYSTEMS))),
        visits_planned=np.minimum(1 + extra, MAX_VISITS).astype(np.int64),
    )


def live(rng: np.random.Generator, people: People) -> Stays:
    """Send everybody through their stays, one round of visits at a time."""
    count = len(people.male)
    age_years = people.age_years.copy()
    nothing = np.zeros((count, len(DRUGS)), dtype=bool)
    state = np.zeros((count, len(CONDITIONS)), dtype=bool)
    for _ in range(BURN_IN):
        state = next_state(rng, people, age_years, state, nothing)
    admit = FIRST_ADMISSION + rng.integers(0, CENTURY, size=count)
    present = np.ones(count, dtype=bool)
    rounds: list[Stays] = []
    for number in range(1, MAX_VISITS + 1):
        drugs, procedures = treat(rng, state)
        severity = state.sum(axis=1)
        stay_days = rng.lognormal(1.0 + 0.12 * severity, 0.6)
        discharge = admit + (stay_days * DAY).astype(np.int64) + 3600
        died = rng.random(count) < _sigmoid(death_log_odds(state, age_years))
        here = np.flatnonzero(present)
        rounds.append(
            Stays(here, age_years[here], admit[here], discharge[here], died[here],
                  state[here], drugs[here], procedures[here])
        )  # fmt: skip
        present &= ~died & (people.visits_planned > number)
        gap_days = 1 + rng.lognormal(5.2 - 0.1 * severity, 1.0)
        admit = discharge + (gap_days * DAY).astype(np.int64)
        age_years += (stay_days + gap_days) / 365.25
        state = next_state(rng, people, age_years, state, drugs)
    return _in_patient_order(rounds)


def next_state(
    rng: np.random.Generator, people: People, age_years: Floats, state: Bools, drugs: Bools
) -> Bools:
    """Draw the conditions of the next visit from those of this one, (patients, conditions)."""
    log_odds = _ONSET + state @ _TRANSITION + people.traits @ _TRAIT_EFFECT
    log_odds += people.frailty @ _SYSTEM_OF
    log_odds += CROWDING * (np.minimum(state.sum(axis=1, keepdims=True), 10) - 3)
    log_odds += np.outer((age_years - 65) / 10, _PER_DECADE) + np.outer(people.male, _MALE)
    for drug, ccs, effect in EFFECTIVE:
        given = drugs[:, DRUGS.index(drug)]
        log_odds[:, _INDEX[ccs]] += effect * (given & state[:, _INDEX[ccs]])
    drawn = rng.random(state.shape) < _sigmoid(log_odds)
    # A coder writes the worse of two exclusive categories.
    drawn[:, _INDEX[49]] &= ~drawn[:, _INDEX[50]]
    drawn[:, _INDEX[98]] &= ~drawn[:, _INDEX[99]]
    return drawn


def treat(rng: np.random.Generator, state: Bools) -> tuple[Bools, Bools]:
    """Drugs and procedures of a stay, (stays, drugs) and (stays, procedures)."""
    drugs = np.zeros((len(state), len(DRUGS)), dtype=bool)
    procedures = np.zeros((len(state), len(PROCEDURES)), dtype=bool)
    for column, condition in zip(state.T, CONDITIONS, strict=True):
        for name, probability in condition.drugs:
            drugs[:, DRUGS.index(name)] |= column & (rng.random(len(state)) < probability)
        for code, probability in condition.procedures:
            done = column & (rng.random(len(state)) < probability)
            procedures[:, PROCEDURES.index(code)] |= done
    burden = np.clip(state.sum(axis=1) / 3, 0.3, 2)
    for name, probability in UBIQUITOUS_DRUGS:
        drugs[:, DRUGS.index(name)] |= rng.random(len(state)) < probability * burden
    return drugs, procedures


def death_log_odds(state: Bools, age_years: Floats) -> Floats:
    """Log-odds of dying in hospital, one per patient."""
    lethality = np.array([condition.lethality for condition in CONDITIONS])
    log_odds: Floats = -5.3 + state @ lethality + 0.25 * (age_years - 65) / 10
    return log_odds


def _in_patient_order(rounds: list[Stays]) -> Stays:
    order = np.argsort(np.concatenate([r.patient for r in rounds]), kind="stable")
    return Stays(
        patient=np.concatenate([r.patient for r in rounds])[order],
        age_years=np.concatenate([r.age_years for r in rounds])[order],
        admit_seconds=np.concatenate([r.admit_seconds for r in rounds])[order],
        discharge_seconds=np.concatenate([r.discharge_seconds for r in rounds])[order],
        died=np.concatenate([r.died for r in rounds])[order],
        conditions=np.concatenate([r.conditions for r in rounds])[order],
        drugs=np.concatenate([r.drugs for r in rounds])[order],
        procedures=np.concatenate([r.procedures for r in rounds])[order],
    )


def _sigmoid(log_odds: Floats) -> Floats:
    probabilities: Floats = 1 / (1 + np.exp(-log_odds))
    return probabilities


def _transition() -> Floats:
    matrix = np.diag([condition.persistence for condition in CONDITIONS])
    for before, after, log_odds in PROGRESSIONS:
        matrix[_INDEX[before], _INDEX[after]] += log_odds
    return matrix


def _trait_effect() -> Floats:
    matrix = np.zeros((len(TRAITS), len(CONDITIONS)))
    for row, trait in zip(matrix, TRAITS, strict=True):
        for ccs, log_odds in trait.raises:
            row[_INDEX[ccs]] = log_odds
    return matrix


_ONSET = np.array([condition.onset for condition in CONDITIONS])
_PER_DECADE = np.array([condition.per_decade for condition in CONDITIONS])
_MALE = np.array([condition.male for condition in CONDITIONS])
_TRANSITION = _transition()  # (conditions before, conditions after)
_TRAIT_EFFECT = _trait_effect()  # (traits, conditions)
_SYSTEM_OF = np.array([[c.system == name for c in CONDITIONS] for name in SYSTEMS], dtype=float)
