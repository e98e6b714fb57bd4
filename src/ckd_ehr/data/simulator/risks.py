"""The true risk of each label at the next stay: the simulated patients' true state in.

Given everything that is true of a patient at discharge (conditions, drugs, frailty, age, sex), the
chance that coders write each of the 25 phenotypes down at the next stay, if there is one. No model
can do better; from the record alone not even the true model can (replay.py). Ignores: what the
records say.
"""

from dataclasses import dataclass

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import expit
from scipy.stats import norm

from ckd_ehr.data.simulator.catalogue import FALSELY_CODED, LABELS, Bools, Catalogue, Floats
from ckd_ehr.data.simulator.course import (
    GAP_SCALE,
    Outlook,
    People,
    Stays,
    deaths_a_day,
    gap_location,
    next_outlook,
)


@dataclass(frozen=True)
class Nodes:
    """How many gaps, equally likely, and how many severities (Gauss–Hermite) stand for all."""

    gaps: int = 16
    severities: int = 7


NODES = Nodes()
ROWS = 4_096


def true_risks(
    medicine: Catalogue, people: People, stays: Stays, *, nodes: Nodes = NODES
) -> Floats:
    """The true probability of each label at the stay after each of these, (stays, labels).

    Also of stays after which nobody came back: the risk had they.
    """
    risks = np.empty((len(stays.patient), LABELS))
    for start in range(0, len(risks), ROWS):
        rows = np.arange(start, min(start + ROWS, len(risks)))
        some = stays.take(rows)
        outlook = next_outlook(
            medicine, people.take(some.patient), some.age_years, some.conditions, some.drugs
        )
        rate = deaths_a_day(medicine, some.conditions, some.age_years)
        risks[rows], _ = coded_at_next_stay(medicine, outlook, some.conditions, rate, nodes=nodes)
    return risks


def coded_at_next_stay(
    medicine: Catalogue,
    outlook: Outlook,
    state: Bools,
    death_rate: Floats,
    *,
    nodes: Nodes = NODES,
) -> tuple[Floats, Floats]:
    """Average over the unknown gap, of who comes back before they die, and the next severity.

    Args:
        medicine: of the hospital.
        outlook: of the conditions at the next stay.
        state: the conditions at discharge, (…, conditions).
        death_rate: of dying outside, per day, (…).
        nodes: how many gaps and severities stand for all.

    Returns:
        The probability of each label, (…, labels), and of living until the gap is over, (…).
    """
    labels = slice(LABELS)
    short = Outlook(outlook.steady[..., labels], outlook.fading[..., labels])
    total = np.zeros(short.steady.shape)
    alive = np.zeros(death_rate.shape)
    severities, shares = hermegauss(nodes.severities)
    for quantile in (np.arange(nodes.gaps) + 0.5) / nodes.gaps:
        gap_days = 1 + np.exp(gap_location(state) + GAP_SCALE * norm.ppf(quantile))
        survival = np.exp(-death_rate * gap_days)
        log_odds = short.log_odds(gap_days)
        present = np.zeros_like(log_odds)
        for severity, share in zip(severities, shares / shares.sum(), strict=True):
            shifted = log_odds + severity.astype(log_odds.dtype) * medicine.surge[labels]
            present += share.astype(log_odds.dtype) * without_exclusive(medicine, expit(shifted))
        total += survival[..., None] * present
        alive += survival
    return coded(medicine, total / alive[..., None], state), alive / nodes.gaps


def without_exclusive(medicine: Catalogue, probabilities: Floats) -> Floats:
    """The probabilities of independent conditions, once the worse of two has won."""
    present = probabilities.copy()
    for spared, worse in medicine.exclusive:
        present[..., spared] *= 1 - probabilities[..., worse]
    return present


def coded(medicine: Catalogue, present: Floats, before: Bools) -> Floats:
    """The probability that a condition is coded, from that of having it, (…, ≤ conditions).

    What was there at the stay before may be copied although it is over.
    """
    count = present.shape[-1]
    found = medicine.coded[:count] * present
    written: Floats = found + (1 - present) * coded_if_absent(medicine, before)[..., :count]
    return written


def coded_if_absent(medicine: Catalogue, before: Bools) -> Floats:
    """The chance that coders write down what is not there, (…, conditions)."""
    return FALSELY_CODED + (medicine.copied - FALSELY_CODED).clip(0) * before
