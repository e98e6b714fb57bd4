"""Fits how frequent each condition is: wanted prevalences in, onsets.csv out.

`python -m ckd_ehr.data.simulator.fit` simulates hospital a with MIMIC-III's spread of stays, moves
each condition's onset towards the prevalence that conditions.csv wants of it, and so on until they
agree; rerun it after a change to the medicine. Ignores: every other number, which stays as written.
"""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.special import logit

from ckd_ehr.contracts.config import SimulatorConfig
from ckd_ehr.data.simulator.catalogue import Catalogue, Floats, hospital, read_conditions
from ckd_ehr.data.simulator.coding import draw_coded
from ckd_ehr.data.simulator.course import draw_people, live

PATIENTS = 40_000
ROUNDS = 30
AVERAGED = 12  # of the last rounds, so that chance evens out
STEP = 0.7
SEED = 7


def coded_prevalence(medicine: Catalogue, *, patients: int, seed: int) -> Floats:
    """The share of stays in which each condition is coded."""
    rng = np.random.default_rng(seed)
    visits_per_patient = SimulatorConfig().visits_per_patient
    people = draw_people(rng, patients=patients, visits_per_patient=visits_per_patient)
    stays = live(rng, medicine, people)
    prevalence: Floats = draw_coded(rng, medicine, stays).mean(axis=0)
    return prevalence


def fitted_onsets() -> Floats:
    """The onset of each condition, log-odds."""
    medicine = hospital("a")
    wanted = logit(np.array([condition.prevalence for condition in read_conditions()]))
    tried = []
    for number in range(ROUNDS):
        found = coded_prevalence(medicine, patients=PATIENTS, seed=SEED + number)
        away = wanted - logit(np.clip(found, 1e-5, 1 - 1e-5))
        medicine = replace(medicine, onset=medicine.onset + STEP * np.clip(away, -1, 1))
        tried.append(medicine.onset)
        print(f"{number + 1}: {np.abs(away).max():.3f} away at most", flush=True)  # noqa: T201
    averaged: Floats = np.mean(tried[-AVERAGED:], axis=0)
    return averaged


def main() -> None:
    """Write onsets.csv beside this module."""
    onsets = fitted_onsets()
    path = Path(__file__).with_name("onsets.csv")
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["ccs", "onset"])
        for condition, onset in zip(read_conditions(), onsets, strict=True):
            rows.writerow([condition.ccs, f"{onset:.3f}"])


if __name__ == "__main__":
    main()
