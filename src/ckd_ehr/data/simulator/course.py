"""The course of disease in the simulated hospital: medicine in, patients and their stays out.

At each stay a patient is in some of the conditions. From one stay to the next they persist, lead
to others, are helped away by the few drugs that truly work, and depend on age, sex, a hidden
frailty of each organ system and the hidden severity of the stay, which brings conditions together.
The sick come back more often and sooner, and die more often, in hospital and outside. The equations
are in docs/simulator.md under the names used here. Ignores: laboratory values, notes, wards,
seasons, and how a stay is written down.
"""

from dataclasses import dataclass, fields

import numpy as np
from scipy.special import expit, logit

from ckd_ehr.data.simulator.catalogue import SYSTEMS, Bools, Catalogue, Floats, Ints

MAX_STAYS = 42  # as in MIMIC-III
BURN_IN = 4  # unseen rounds of life before the first stay
FRAILTY_DEVIATION = 0.7
CROWDING, USUAL, MOST = -0.08, 9, 25  # log-odds per condition beyond the usual number
RETURN_SPREAD = 3.0  # sum of the Beta parameters of coming back: MIMIC-III's spread of stays
RETURN_BURDEN = 0.03  # log-odds of coming back per condition beyond the usual number
GAP_LOCATION, GAP_BURDEN, GAP_SCALE = 5.1, -0.03, 1.3  # log-normal days between stays
FADE_DAYS = 90.0
STAY_LOCATION, STAY_BURDEN, STAY_SCALE = 1.85, 0.04, 0.85  # log-normal days of a stay
DEATH, DEATH_PER_DECADE = -4.8, 0.25  # log-odds of dying in hospital
DEATHS_A_DAY, FRAIL_DEATHS = -9.5, 0.5  # log of the rate outside, and what lethality adds to it
FOLLOWED_DAYS = 1_500  # after the last stay; later deaths are not seen
ELECTIVE, ELECTIVE_BURDEN = -1.35, -0.06
URGENT_SHARE = 0.03
DAY = 86_400
FIRST_ADMISSION = 4_102_444_800  # 2100-01-01 in seconds since 1970: MIMIC's shifted calendar.
CENTURY = 100 * 365 * DAY


@dataclass(frozen=True)
class People:
    """What does not change about the patients; one entry each."""

    age_years: Floats  # at the first admission
    male: Bools
    frailty: Floats  # (patients, systems)
    return_log_odds: Floats  # of coming back, with the usual number of conditions

    def take(self, rows: Ints) -> "People":
        """Some of them."""
        return People(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


@dataclass(frozen=True)
class Stays:
    """What happened at each stay, patients one after another, oldest stay first."""

    patient: Ints
    age_years: Floats
    admit_seconds: Ints
    discharge_seconds: Ints
    stay_days: Floats
    elective: Bools
    died: Bools
    gap_days: Floats  # to the next stay; NaN where there is none
    death_days: Floats  # from discharge to a death outside; infinite where none was seen
    conditions: Bools  # (stays, conditions)
    drugs: Bools  # (stays, drugs)
    procedures: Bools  # (stays, procedures)

    def take(self, rows: Ints) -> "Stays":
        """Some of them."""
        return Stays(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @property
    def returned(self) -> Bools:
        """Whether another stay follows."""
        return ~np.isnan(self.gap_days)


@dataclass(frozen=True)
class Outlook:
    """Log-odds of each condition at the next stay: `steady` + `fading` · exp(−gap / FADE_DAYS)."""

    steady: Floats  # (…, conditions)
    fading: Floats  # (…, conditions)

    def log_odds(self, gap_days: Floats) -> Floats:
        """After a gap, (…, conditions)."""
        fades = np.exp(-gap_days / FADE_DAYS).astype(self.steady.dtype)
        return self.steady + self.fading * fades[..., None]


def draw_people(rng: np.random.Generator, *, patients: int, visits_per_patient: float) -> People:
    """Patients before their first admission."""
    return People(
        age_years=np.clip(rng.normal(65, 17, size=patients), 18, 97),
        male=rng.random(patients) < 0.56,
        frailty=draw_frailty(rng, patients),
        return_log_odds=draw_return_log_odds(rng, visits_per_patient, patients),
    )


def draw_return_log_odds(
    rng: np.random.Generator, visits_per_patient: float, *shape: int
) -> Floats:
    """Everybody's own log-odds of coming back after a stay.

    Probabilities drawn from Beta(a, b) give 1 + a / (b − 1) stays on average, if nobody dies.
    """
    extra = visits_per_patient - 1
    a = extra * (RETURN_SPREAD - 1) / (1 + extra)
    probabilities = rng.beta(max(a, 1e-6), RETURN_SPREAD - a, size=shape)
    return logit(np.clip(probabilities, 1e-9, 1 - 1e-9))


def draw_frailty(rng: np.random.Generator, *shape: int) -> Floats:
    """Frailties of the organ systems, (…, systems)."""
    return rng.normal(0, FRAILTY_DEVIATION, size=(*shape, len(SYSTEMS)))


def live(rng: np.random.Generator, medicine: Catalogue, people: People) -> Stays:
    """Send everybody through their stays, one round of stays at a time."""
    here = np.arange(len(people.male))
    age_years = people.age_years
    state = before_first_stay(rng, medicine, people)
    admit = FIRST_ADMISSION + rng.integers(0, CENTURY, size=len(here))
    rounds: list[Stays] = []
    for number in range(1, MAX_STAYS + 1):
        stays = _stay(
            rng, medicine, patient=here, age_years=age_years, admit_seconds=admit, state=state
        )
        gap_days, death_days = _afterwards(rng, medicine, people.take(here), stays)
        if number == MAX_STAYS:
            gap_days = np.full(len(here), np.nan)
        stays = Stays(**{**vars(stays), "gap_days": gap_days, "death_days": death_days})
        rounds.append(stays)
        back = np.flatnonzero(stays.returned)
        if not len(back):
            break
        stays = stays.take(back)
        outlook = next_outlook(
            medicine, people.take(stays.patient), stays.age_years, stays.conditions, stays.drugs
        )
        state = draw_state(rng, medicine, surged(rng, medicine, outlook.log_odds(stays.gap_days)))
        here = stays.patient
        admit = stays.discharge_seconds + (stays.gap_days * DAY).astype(np.int64)
        age_years = stays.age_years + (stays.stay_days + stays.gap_days) / 365.25
    return _in_patient_order(rounds)


def before_first_stay(rng: np.random.Generator, medicine: Catalogue, people: People) -> Bools:
    """The conditions at the first admission, after some unseen rounds of life."""
    state = np.zeros((len(people.male), len(medicine.onset)), dtype=bool)
    for _ in range(BURN_IN):
        state = draw_state(rng, medicine, unseen_log_odds(rng, medicine, people, state))
    return state


def unseen_log_odds(
    rng: np.random.Generator, medicine: Catalogue, people: People, state: Bools
) -> Floats:
    """Log-odds of the conditions after a round of life unseen, (patients, conditions)."""
    outlook = next_outlook(medicine, people, people.age_years, state, drugs=None)
    return surged(rng, medicine, outlook.log_odds(draw_gap_days(rng, state)))


def next_outlook(
    medicine: Catalogue, people: People, age_years: Floats, state: Bools, drugs: Bools | None
) -> Outlook:
    """What a state at discharge makes of the next stay's, with leading axes as `state`."""
    present = state.astype(medicine.onset.dtype)
    steady = medicine.onset + people.frailty @ medicine.of_system
    steady += ((age_years - 65) / 10)[..., None] * medicine.per_decade
    steady += people.male[..., None] * medicine.male
    steady += present @ medicine.progression
    steady += (CROWDING * (np.minimum(present.sum(axis=-1), MOST) - USUAL))[..., None]
    own = present * medicine.persistence
    steady += own * (1 - medicine.fades)
    if drugs is not None:
        helps = medicine.effects.any(axis=1)
        steady += present * (drugs[..., helps].astype(present.dtype) @ medicine.effects[helps])
    return Outlook(steady, own * medicine.fades)


def surged(rng: np.random.Generator, medicine: Catalogue, log_odds: Floats) -> Floats:
    """The log-odds in a stay of some severity, which brings conditions together."""
    severity = rng.standard_normal(log_odds.shape[:-1], dtype=log_odds.dtype)
    return log_odds + severity[..., None] * medicine.surge


def draw_state(rng: np.random.Generator, medicine: Catalogue, log_odds: Floats) -> Bools:
    """Draw conditions; of two exclusive ones the worse stays."""
    drawn = rng.random(log_odds.shape, dtype=log_odds.dtype) < expit(log_odds)
    for spared, worse in medicine.exclusive:
        drawn[..., spared] &= ~drawn[..., worse]
    return drawn


def burden(state: Bools) -> Floats:
    """Conditions beyond the usual number."""
    beyond: Floats = state.sum(axis=-1) - float(USUAL)
    return beyond


def draw_gap_days(rng: np.random.Generator, state: Bools) -> Floats:
    """Days until the next stay of who comes back alive."""
    location = gap_location(state)
    return 1 + np.exp(location + GAP_SCALE * rng.standard_normal(location.shape))


def gap_location(state: Bools) -> Floats:
    """Mean of log(gap_days − 1)."""
    return GAP_LOCATION + GAP_BURDEN * burden(state)


def stay_location(state: Bools) -> Floats:
    """Mean of log(stay_days)."""
    return STAY_LOCATION + STAY_BURDEN * burden(state)


def death_log_odds(medicine: Catalogue, state: Bools, age_years: Floats) -> Floats:
    """Log-odds of dying in hospital."""
    log_odds: Floats = DEATH + state @ medicine.lethality + DEATH_PER_DECADE * (age_years - 65) / 10
    return log_odds


def deaths_a_day(medicine: Catalogue, state: Bools, age_years: Floats) -> Floats:
    """Rate of dying outside the hospital, per day."""
    log_rate = DEATHS_A_DAY + FRAIL_DEATHS * (state @ medicine.lethality)
    rate: Floats = np.exp(log_rate + DEATH_PER_DECADE * (age_years - 65) / 10)
    return rate


def return_log_odds(people: People, state: Bools) -> Floats:
    """Log-odds of wanting back; death may come first."""
    return people.return_log_odds + RETURN_BURDEN * burden(state)


def elective_log_odds(state: Bools) -> Floats:
    """Log-odds of a planned admission."""
    return ELECTIVE + ELECTIVE_BURDEN * burden(state)


def _stay(
    rng: np.random.Generator,
    medicine: Catalogue,
    *,
    patient: Ints,
    age_years: Floats,
    admit_seconds: Ints,
    state: Bools,
) -> Stays:
    """One stay of everybody here; what comes afterwards is left open."""
    count = len(patient)
    given = -np.expm1(medicine.prescribed.log_absent(state))
    done = -np.expm1(medicine.performed.log_absent(state))
    stay_days = np.exp(stay_location(state) + STAY_SCALE * rng.standard_normal(count))
    return Stays(
        patient=patient,
        age_years=age_years,
        admit_seconds=admit_seconds,
        discharge_seconds=admit_seconds + (stay_days * DAY).astype(np.int64) + 3600,
        stay_days=stay_days,
        elective=rng.random(count) < expit(elective_log_odds(state)),
        died=rng.random(count) < expit(death_log_odds(medicine, state, age_years)),
        gap_days=np.full(count, np.nan),
        death_days=np.full(count, np.inf),
        conditions=state,
        drugs=rng.random(given.shape) < given,
        procedures=rng.random(done.shape) < done,
    )


def _afterwards(
    rng: np.random.Generator, medicine: Catalogue, people: People, stays: Stays
) -> tuple[Floats, Floats]:
    """Days until the next stay (NaN: none) and until death outside (infinite: not before it)."""
    count = len(stays.patient)
    wants = rng.random(count) < expit(return_log_odds(people, stays.conditions))
    gap_days = draw_gap_days(rng, stays.conditions)
    rate = deaths_a_day(medicine, stays.conditions, stays.age_years)
    death_days = rng.exponential(1 / rate)
    back = wants & (gap_days < death_days) & ~stays.died
    seen = ~back & ~stays.died & (death_days < FOLLOWED_DAYS)
    return np.where(back, gap_days, np.nan), np.where(seen, death_days, np.inf)


def _in_patient_order(rounds: list[Stays]) -> Stays:
    whole = Stays(
        **{
            field.name: np.concatenate([getattr(stays, field.name) for stays in rounds])
            for field in fields(Stays)
        }
    )
    return whole.take(np.argsort(whole.patient, kind="stable"))
