"""All that is true of a simulated hospital: settings in, patients, stays, coded conditions out.

Ignores: how it is written down, and in which code system.
"""

from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from ckd_ehr.contracts.config import SimulatorConfig
from ckd_ehr.data.simulator.catalogue import Bools, Catalogue, Ints, hospital
from ckd_ehr.data.simulator.coding import draw_coded
from ckd_ehr.data.simulator.course import People, Stays, draw_people, live

FIRST_SUBJECT, FIRST_STAY = 10_000, 100_000


@dataclass(frozen=True)
class World:
    """A hospital's medicine, its patients, and what its coders found."""

    medicine: Catalogue
    people: People
    stays: Stays
    coded: Bools  # (stays, conditions)
    subject_ids: Ints  # of each patient
    hadm_ids: Ints  # of each stay; those from FIRST_STAY + number of stays on are free

    def patients(self, first: int, end: int) -> "World":
        """The stays of some patients; `people` and `subject_ids` stay those of all."""
        rows = np.arange(*np.searchsorted(self.stays.patient, [first, end]))
        return World(
            self.medicine, self.people, self.stays.take(rows), self.coded[rows],
            self.subject_ids, self.hadm_ids[rows],
        )  # fmt: skip


def make_world(settings: SimulatorConfig, seed: np.random.SeedSequence) -> World:
    """Let the patients live and the coders code; the same settings and seed give the same."""
    medicine = hospital(settings.hospital, detail=settings.detail)
    life, coders, offices = (np.random.default_rng(part) for part in seed.spawn(3))
    # With threads, sums may differ in their last bits from run to run.
    with threadpool_limits(1, user_api="blas"):
        people = draw_people(
            life, patients=settings.patients, visits_per_patient=settings.visits_per_patient
        )
        stays = live(life, medicine, people)
        coded = draw_coded(coders, medicine, stays)
    # Ids say nothing of time, as in MIMIC-III.
    subject_ids = offices.permutation(settings.patients) + FIRST_SUBJECT
    hadm_ids = offices.permutation(len(stays.patient)) + FIRST_STAY
    return World(medicine, people, stays, coded, subject_ids, hadm_ids)
