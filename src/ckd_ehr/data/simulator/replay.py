"""The best risk that could be known from the record alone: patients' records in, risks out.

A particle filter that knows the true model (course.py) but not the patients: frailty, wish to come
back and the true conditions are drawn many times over, each draw is weighed by how well it explains
the record so far (coded conditions, drugs, procedures, length and kind of stay, gaps, being alive),
and the draws' true risks are averaged. Conditions are proposed from what their codes, drugs and
procedures suggest; the weights correct for what the suggestion leaves out (Doucet & Johansen 2009,
"A tutorial on particle filtering and smoothing"). Ignores: which of a condition's codes was
written, which tells nothing, and the hiding of ages over 89.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from scipy.special import expit, log_expit, logsumexp
from threadpoolctl import threadpool_limits

from ckd_ehr.data.simulator.catalogue import (
    FALSELY_CODED,
    LABELS,
    Bools,
    Catalogue,
    Causes,
    Floats,
    Ints,
)
from ckd_ehr.data.simulator.course import (
    GAP_SCALE,
    STAY_SCALE,
    Outlook,
    People,
    death_log_odds,
    deaths_a_day,
    draw_frailty,
    draw_return_log_odds,
    draw_state,
    elective_log_odds,
    gap_location,
    next_outlook,
    return_log_odds,
    stay_location,
    surged,
    unseen_log_odds,
)
from ckd_ehr.data.simulator.risks import Nodes, coded_at_next_stay, coded_if_absent
from ckd_ehr.data.simulator.world import World

PARTICLES = 512
PILOTS = 2_048  # unseen lives to choose from
TOGETHER = 16  # patients at a time
NODES = Nodes(gaps=4, severities=5)  # gaps that stand for all, per particle
HINTS = (0.0, 0.3, 0.8)  # how far a first stay sways the unseen rounds before it
SUGGESTIONS = 1  # rounds in which conditions make others' drugs more or less telling
LEAST_SHARE = 0.5  # of particles that still count, before they are drawn anew


@dataclass(frozen=True)
class Replayed:
    """The estimate after each stay that was replayed."""

    rows: Ints  # positions among the stays
    risks: Floats  # (rows, labels)
    effective_particles: Floats  # (rows,)


def replay(
    rng: np.random.Generator,
    world: World,
    *,
    patients: Ints,
    visits_per_patient: float,
    particles: int = PARTICLES,
    say: Callable[[str], None] = lambda _: None,
) -> Replayed:
    """Estimate each label's risk after every stay of some patients, from the record up to it.

    Args:
        rng: of the particles.
        world: of its people, age and sex are read; of its stays, all but the true conditions.
        patients: which ones.
        visits_per_patient: how often patients come back.
        particles: per patient.
        say: is told how far it is.
    """
    stays = world.stays
    world = replace(world, medicine=world.medicine.in_single_precision())
    first = np.searchsorted(stays.patient, patients)
    count = np.searchsorted(stays.patient, patients, side="right") - first
    order = np.argsort(-count, kind="stable")  # the longest records first
    batches = [order[start : start + TOGETHER] for start in range(0, len(order), TOGETHER)]

    def follow(batch: Ints, rng: np.random.Generator) -> list[Replayed]:
        cloud = Cloud(
            wants=draw_return_log_odds(rng, visits_per_patient, len(batch), particles),
            frailty=_short(draw_frailty(rng, len(batch), particles)),
            state=np.zeros((len(batch), particles, len(world.medicine.onset)), dtype=bool),
            log_weights=np.zeros((len(batch), particles)),
        )
        return list(_through(rng, world, cloud, first=first[batch], count=count[batch]))

    found = [Replayed(np.zeros(0, dtype=np.int64), np.zeros((0, LABELS)), np.zeros(0))]
    # NumPy lets go of the interpreter: a thread a core. Each batch has draws of its own, so that
    # the result does not depend on who comes first.
    threads = ThreadPoolExecutor(os.cpu_count())
    try:
        with threadpool_limits(1, user_api="blas"):
            for number, parts in enumerate(threads.map(follow, batches, rng.spawn(len(batches)))):
                done = min((number + 1) * TOGETHER, len(order))
                say(f"records replayed of {done:,} of {len(order):,} patients")
                found += parts
    finally:
        threads.shutdown(cancel_futures=True)
    return Replayed(
        rows=np.concatenate([part.rows for part in found]),
        risks=np.concatenate([part.risks for part in found]),
        effective_particles=np.concatenate([part.effective_particles for part in found]),
    )


@dataclass(frozen=True)
class Cloud:
    """Draws of what is hidden, (patients, particles, …), and how well each explains the record."""

    wants: Floats  # log-odds of coming back
    frailty: Floats  # (…, systems)
    state: Bools  # (…, conditions) at the latest stay
    log_weights: Floats

    def take(self, patients: Ints) -> "Cloud":
        """Some patients' draws."""
        return Cloud(*(part[patients] for part in vars(self).values()))

    def people(self, who: People) -> People:
        """The draws as people."""
        return People(
            who.age_years[:, None], who.male[:, None], frailty=self.frailty,
            return_log_odds=self.wants,
        )  # fmt: skip


def _through(
    rng: np.random.Generator, world: World, cloud: "Cloud", *, first: Ints, count: Ints
) -> Iterator[Replayed]:
    """Follow some patients, longest records first, from stay to stay."""
    who = world.people.take(world.stays.patient[first])
    for number in range(int(count.max())):
        here = np.arange(np.sum(count > number))
        who, cloud, rows = who.take(here), cloud.take(here), first[here] + number
        record = _record(world, rows, before=rows - 1 if number else None)
        cloud = _explain(rng, world.medicine, who, cloud, record)
        yield _estimate(world.medicine, who, cloud, record, rows)
        cloud = _drawn_anew(rng, cloud)


@dataclass(frozen=True)
class _Stay:
    """What the record shows of one stay of each patient, with an axis for the particles."""

    age_years: Floats  # (patients, 1), as all that follow
    stay_days: Floats
    elective: Bools
    died: Bools
    coded: Bools  # (patients, 1, conditions)
    drugs: Bools  # (patients, 1, drugs)
    procedures: Bools
    before: "_Stay | None"
    gap_days: Floats  # since the stay before

    def take(self, patients: Ints) -> "_Stay":
        """Some patients' first stays."""
        parts = {name: part[patients] for name, part in vars(self).items() if name != "before"}
        return _Stay(**parts, before=None)


def _record(world: World, rows: Ints, *, before: Ints | None) -> _Stay:
    stays = world.stays
    gap_days = np.zeros(len(rows)) if before is None else stays.gap_days[before]
    return _Stay(
        age_years=stays.age_years[rows, None],
        stay_days=stays.stay_days[rows, None],
        elective=stays.elective[rows, None],
        died=stays.died[rows, None],
        coded=world.coded[rows][:, None],
        drugs=stays.drugs[rows][:, None],
        procedures=stays.procedures[rows][:, None],
        before=None if before is None else _record(world, before, before=None),
        gap_days=gap_days[:, None],
    )


def _explain(
    rng: np.random.Generator, medicine: Catalogue, who: People, cloud: Cloud, stay: _Stay
) -> Cloud:
    """The next stay's conditions, proposed from its record, with the weights that follow."""
    people, log_weights = cloud.people(who), cloud.log_weights.copy()
    if stay.before is None:
        cloud, log_odds = _lives_before(rng, medicine, who, cloud, stay)
        people, log_weights = cloud.people(who), cloud.log_weights.copy()
        past = np.zeros_like(cloud.state)  # nothing to copy from
    else:
        past = cloud.state
        outlook = next_outlook(medicine, people, stay.before.age_years, past, stay.before.drugs)
        gap_days = np.broadcast_to(stay.gap_days, log_weights.shape)
        log_odds = surged(rng, medicine, outlook.log_odds(gap_days))
        log_weights += _return_log_likelihood(medicine, people, past, stay)
    state, log_ratio = _propose(rng, medicine, log_odds, past, stay)
    log_weights += log_ratio
    log_weights += _caused_log_likelihood(medicine.prescribed, state, stay.drugs)
    log_weights += _caused_log_likelihood(medicine.performed, state, stay.procedures)
    log_weights += _normal_log_density(np.log(stay.stay_days), stay_location(state), STAY_SCALE)
    log_weights += _log_probability(elective_log_odds(state), stay.elective)
    log_weights += _log_probability(death_log_odds(medicine, state, stay.age_years), stay.died)
    return Cloud(cloud.wants, cloud.frailty, state, log_weights)


def _return_log_likelihood(medicine: Catalogue, people: People, past: Bools, stay: _Stay) -> Floats:
    """Of wanting back, of the gap, and of living through it."""
    assert stay.before is not None
    rate = deaths_a_day(medicine, past, stay.before.age_years)
    gap = np.log(np.maximum(stay.gap_days - 1, 1e-9))
    density = _normal_log_density(gap, gap_location(past), GAP_SCALE)
    likelihood: Floats = log_expit(return_log_odds(people, past)) + density - rate * stay.gap_days
    return likelihood


def _lives_before(
    rng: np.random.Generator, medicine: Catalogue, who: People, cloud: Cloud, stay: _Stay
) -> tuple[Cloud, Floats]:
    """Draw unseen lives, more than wanted, and keep those that may lead to such a first stay.

    Returns:
        The lives kept, with what corrects for keeping them as weights, and the log-odds of their
        conditions at the first stay.
    """
    patients, particles = cloud.log_weights.shape
    kept, kept_log_odds = [], []
    for patient in np.arange(patients)[:, None]:
        person, seen = who.take(patient), stay.take(patient)
        frailty = _short(draw_frailty(rng, 1, PILOTS))
        pilots = People(person.age_years[:, None], person.male[:, None], frailty, cloud.wants[:1])
        state = np.zeros((1, PILOTS, len(medicine.onset)), dtype=bool)
        log_ratio = np.zeros((1, PILOTS))
        for share in HINTS:
            log_odds = unseen_log_odds(rng, medicine, pilots, state)
            hint = share * _hindsight(medicine, log_odds, seen)
            state, ratio = _draw_suggested(rng, medicine, log_odds, hint)
            log_ratio += ratio
        log_odds = unseen_log_odds(rng, medicine, pilots, state)
        promise = _promise(medicine, log_odds, seen)
        chosen = _systematic(rng, _normalised(log_ratio + promise)[0], particles)
        kept.append(
            Cloud(cloud.wants[patient], frailty[:, chosen], state[:, chosen], -promise[:, chosen])
        )
        kept_log_odds.append(log_odds[:, chosen])
    parts = zip(*(vars(one).values() for one in kept), strict=True)
    return Cloud(*(np.concatenate(part) for part in parts)), np.concatenate(kept_log_odds)


def _promise(medicine: Catalogue, log_odds: Floats, stay: _Stay) -> Floats:
    """About the log-likelihood of a first stay's codes, drugs and procedures, (patients, draws)."""
    if_present, if_absent = _code_log_likelihoods(medicine, np.zeros(1, dtype=bool), stay)
    suggested = log_odds + if_present - if_absent
    evidence = _evidence_of(medicine, suggested, stay)[:, None]
    told = np.exp(if_present - if_absent + evidence)
    promise: Floats = np.log(expit(log_odds) * (told - 1) + 1).sum(axis=-1)
    return promise


def _hindsight(medicine: Catalogue, log_odds: Floats, stay: _Stay) -> Floats:
    """What a first stay suggests of the round before it, log-odds (patients, 1, conditions)."""
    usual = log_odds.mean(axis=1, keepdims=True)
    likelihoods = []
    for had in (0.0, 1.0):
        written = medicine.coded * expit(usual + had * medicine.persistence) + FALSELY_CODED
        likelihoods.append(np.where(stay.coded, written, 1 - written))
    ratio: Floats = np.log(likelihoods[1]) - np.log(likelihoods[0])
    return ratio


def _draw_suggested(
    rng: np.random.Generator, medicine: Catalogue, log_odds: Floats, hint: Floats
) -> tuple[Bools, Floats]:
    """Conditions drawn with a hint, and log(prior / proposal)."""
    suggested = log_odds + hint
    state = draw_state(rng, medicine, suggested)
    ratio = _log_absent(log_odds) - _log_absent(suggested) - state * hint
    for spared, worse in medicine.exclusive:
        ratio[..., spared] *= ~state[..., worse]
    return state, ratio.sum(axis=-1)


def _propose(
    rng: np.random.Generator, medicine: Catalogue, log_odds: Floats, past: Bools, stay: _Stay
) -> tuple[Bools, Floats]:
    """Conditions drawn in the light of the record, and log(prior · codes / proposal)."""
    if_present, if_absent = _code_log_likelihoods(medicine, past, stay)
    suggested = log_odds + if_present - if_absent
    for spared, worse in medicine.exclusive:
        prior = expit(log_odds[..., spared])
        told = prior * np.exp(if_present[..., spared] - if_absent[..., spared]) + 1 - prior
        suggested[..., worse] -= np.log(told)
    evidence = _evidence_of(medicine, suggested, stay)
    suggested += evidence[:, None]
    state = rng.random(suggested.shape, dtype=suggested.dtype) < expit(suggested)
    ruled_out = np.zeros_like(state)
    for spared, worse in medicine.exclusive:
        ruled_out[..., spared] = state[..., worse]
    state &= ~ruled_out
    ratio = _log_absent(log_odds) - _log_absent(suggested) + if_absent
    ratio += state * (log_odds - suggested + if_present - if_absent)
    return state, np.where(ruled_out, if_absent, ratio).sum(axis=-1)


def _log_absent(log_odds: Floats) -> Floats:
    """Log-probability that a condition of these log-odds is not there."""
    logs: Floats = -np.log(1 + np.exp(log_odds))  # log1p is ten times slower
    return logs


def _code_log_likelihoods(medicine: Catalogue, past: Bools, stay: _Stay) -> tuple[Floats, Floats]:
    """Of what is coded, for each condition if it is present and if it is not."""
    absent = coded_if_absent(medicine, past)
    if_present = np.log(np.where(stay.coded, medicine.coded, 1 - medicine.coded))
    return if_present, np.log(np.where(stay.coded, absent, 1 - absent))


def _evidence_of(medicine: Catalogue, suggested: Floats, stay: _Stay) -> Floats:
    """What drugs and procedures suggest beside `suggested`, log-odds (patients, conditions)."""
    likely, evidence = expit(suggested).mean(axis=1), np.zeros(1)
    for _ in range(SUGGESTIONS):
        evidence = _evidence(medicine.prescribed, likely, stay.drugs[:, 0])
        evidence += _evidence(medicine.performed, likely, stay.procedures[:, 0])
        likely = expit(suggested + evidence[:, None]).mean(axis=1)
    return evidence


def _evidence(causes: Causes, likely: Floats, seen: Bools) -> Floats:
    """What the items seen and not seen suggest of each condition, were the others as `likely`.

    Args:
        causes: of the items.
        likely: probability of each condition, (patients, conditions).
        seen: (patients, items).

    Returns:
        Log-odds, (patients, conditions).
    """
    spared = np.log1p(-likely[..., None] * causes.caused)  # (patients, conditions, items)
    others = np.log1p(-causes.everyone) + spared.sum(axis=1, keepdims=True) - spared
    own = np.log1p(-causes.caused)
    with np.errstate(divide="ignore"):
        told = np.log(-np.expm1(others + own)) - np.log(-np.expm1(np.minimum(others, -1e-9)))
    log_odds: Floats = np.where(seen[:, None], told, own).sum(axis=-1)
    return np.clip(log_odds, -6, 6)


def _caused_log_likelihood(causes: Causes, state: Bools, seen: Bools) -> Floats:
    log_absent = causes.log_absent(state)
    log_present = np.log(np.maximum(1 - np.exp(log_absent), 1e-6))
    likelihood: Floats = np.where(seen, log_present, log_absent).sum(axis=-1)
    return likelihood


def _normal_log_density(values: Floats, location: Floats, scale: float) -> Floats:
    """Up to a constant."""
    return -0.5 * ((values - location) / scale) ** 2


def _log_probability(log_odds: Floats, seen: Bools) -> Floats:
    logs: Floats = log_expit(np.where(seen, log_odds, -log_odds))
    return logs


def _estimate(medicine: Catalogue, who: People, cloud: Cloud, stay: _Stay, rows: Ints) -> Replayed:
    """The risks at the next stay, averaged over the draws that come back."""
    people = cloud.people(who)
    outlook: Outlook = next_outlook(medicine, people, stay.age_years, cloud.state, stay.drugs)
    rate = deaths_a_day(medicine, cloud.state, stay.age_years)
    risks, alive = coded_at_next_stay(medicine, outlook, cloud.state, rate, nodes=NODES)
    log_weights = cloud.log_weights + log_expit(return_log_odds(people, cloud.state))
    log_weights += np.log(alive)
    weights = _normalised(log_weights)
    return Replayed(
        rows=rows,
        risks=np.einsum("pn,pnk->pk", weights, risks),
        effective_particles=1 / np.sum(weights**2, axis=1),
    )


def _drawn_anew(rng: np.random.Generator, cloud: Cloud) -> Cloud:
    """Resampling where too few draws still count."""
    patients, particles = cloud.log_weights.shape
    weights = _normalised(cloud.log_weights)
    few = 1 / np.sum(weights**2, axis=1) < LEAST_SHARE * particles
    chosen = np.tile(np.arange(particles), (patients, 1))
    for patient in np.flatnonzero(few):
        chosen[patient] = _systematic(rng, weights[patient], particles)
    who = np.arange(patients)[:, None]
    return Cloud(
        cloud.wants[who, chosen],
        cloud.frailty[who, chosen],
        cloud.state[who, chosen],
        np.where(few[:, None], 0.0, cloud.log_weights),
    )


def _short(values: Floats) -> Floats:
    """In single precision, as the medicine is here."""
    return cast(Floats, values.astype(np.float32))


def _normalised(log_weights: Floats) -> Floats:
    weights: Floats = np.exp(log_weights - logsumexp(log_weights, axis=1, keepdims=True))
    return weights


def _systematic(rng: np.random.Generator, weights: Floats, count: int) -> Ints:
    """Positions drawn by weight, evenly spread."""
    ends = np.cumsum(weights)
    return np.searchsorted(ends / ends[-1], (rng.random() + np.arange(count)) / count)
