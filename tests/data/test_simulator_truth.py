"""The simulated hospital's truth: the true risks are right, and nothing learned beats them."""

import csv
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from hospital import Stage
from scipy.special import expit, log_expit
from scipy.stats import binomtest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from ckd_ehr.contracts.config import SimulatorConfig
from ckd_ehr.contracts.files import read_table
from ckd_ehr.contracts.phenotype import PHENOTYPES_25
from ckd_ehr.contracts.records import label_names
from ckd_ehr.contracts.truth import RISKS_SCHEMA
from ckd_ehr.data.simulator import course
from ckd_ehr.data.simulator.catalogue import (
    LABELS,
    Bools,
    Catalogue,
    Coding,
    Floats,
    Ints,
    hospital,
)
from ckd_ehr.data.simulator.coding import conditions_before
from ckd_ehr.data.simulator.course import BURN_IN, People, Stays
from ckd_ehr.data.simulator.hospital import simulate
from ckd_ehr.data.simulator.replay import replay
from ckd_ehr.data.simulator.risks import Nodes, coded_at_next_stay, coded_if_absent, true_risks
from ckd_ehr.data.simulator.world import World, make_world
from small_hospital import FREQUENT

GROUPS = 50


@pytest.fixture(scope="module")
def world() -> World:
    settings = SimulatorConfig(patients=20_000, visits_per_patient=3)
    return make_world(settings, np.random.SeedSequence(11))


@pytest.fixture(scope="module")
def pairs(world: World) -> Ints:
    """The stays after which somebody came back."""
    return np.flatnonzero(world.stays.returned)


@pytest.fixture(scope="module")
def risks(world: World, pairs: Ints) -> Floats:
    return true_risks(world.medicine, world.people, world.stays.take(pairs))


def labels_of(world: World, pairs: Ints) -> Bools:
    return world.coded[pairs + 1][:, :LABELS]


def p_values_by_group(risks: Floats, labels: Bools, *, patient: Ints) -> Floats:
    """Exact binomial p-values over groups of risk, from one pair and one label a patient.

    Labels of one patient depend on each other, those of different ones do not.
    """
    rng = np.random.default_rng(0)
    shuffled = rng.permutation(len(patient))
    _, one = np.unique(patient[shuffled], return_index=True)
    rows, column = shuffled[one], rng.integers(0, LABELS, size=len(one))
    risk, seen = risks[rows, column], labels[rows, column]
    groups = np.array_split(np.argsort(risk, kind="stable"), GROUPS)
    return np.array([binomtest(int(seen[g].sum()), len(g), risk[g].mean()).pvalue for g in groups])


def test_the_true_risk_is_right_in_every_group_of_risk(
    world: World, pairs: Ints, risks: Floats
) -> None:
    patient = world.stays.patient[pairs]
    p_values = p_values_by_group(risks, labels_of(world, pairs), patient=patient)
    assert len(p_values) == GROUPS
    assert p_values.min() > 0.01 / GROUPS
    assert np.sum(p_values < 0.05) <= 8  # 2.5 are expected, and 9 one time in a thousand
    # Risks that are off by a fifth would not pass.
    wrong = p_values_by_group(risks * 0.8, labels_of(world, pairs), patient=patient)
    assert np.sum(wrong < 0.05) > 8


def test_the_true_risk_is_right_for_every_label(world: World, pairs: Ints, risks: Floats) -> None:
    labels = labels_of(world, pairs)
    error = np.sqrt((risks * (1 - risks)).sum(axis=0)) / len(pairs)
    # A patient's labels depend on each other from stay to stay: twice the independent error.
    assert np.abs((labels - risks).mean(axis=0) / error).max() < 4 * 2


def test_more_nodes_do_not_change_the_true_risk(world: World, pairs: Ints, risks: Floats) -> None:
    some = world.stays.take(pairs[:300])
    finer = true_risks(world.medicine, world.people, some, nodes=Nodes(gaps=300, severities=25))
    assert np.abs(finer - risks[:300]).max() < 0.002


def record_features(world: World, pairs: Ints) -> npt.NDArray[np.float32]:
    """What the record shows up to a pair's discharge: now, at the stay before, age and sex."""
    stays = world.stays
    before = conditions_before(replace(stays, conditions=world.coded))
    parts = (
        world.coded[pairs], before[pairs], stays.drugs[pairs], stays.procedures[pairs],
        stays.age_years[pairs, None] / 50, world.people.male[stays.patient[pairs], None],
    )  # fmt: skip
    return np.hstack([np.asarray(part, dtype=np.float32) for part in parts])


def fitted(model: object, features: npt.NDArray[np.float32], labels: Bools, test: Bools) -> Floats:
    return np.column_stack(
        [
            model.fit(features[~test], label[~test]).predict_proba(features[test])[:, 1]  # type: ignore[attr-defined]
            for label in labels.T
        ]
    )


def clustered_mean(values: Floats, patient: Ints) -> tuple[float, float]:
    """The mean over pairs and its standard error over patients."""
    _, person = np.unique(patient, return_inverse=True)
    off = np.bincount(person, values - values.mean())
    return float(values.mean()), float(np.sqrt(np.sum(off**2)) / len(values))


def macro_auprc(labels: Bools, risks: Floats) -> float:
    columns = zip(labels.T, risks.T, strict=True)
    return float(np.mean([average_precision_score(label, risk) for label, risk in columns]))


@pytest.fixture(scope="module")
def held_out(world: World, pairs: Ints) -> Bools:
    return np.asarray(world.stays.patient[pairs] % 4 == 0)


@pytest.fixture(scope="module")
def regression(world: World, pairs: Ints, held_out: Bools) -> Floats:
    """Logistic regression's risks on held-out patients."""
    features = record_features(world, pairs)
    model = LogisticRegression(C=0.01, max_iter=200, tol=1e-2)
    return fitted(model, features, labels_of(world, pairs), held_out)


def test_learning_beats_carrying_forward_and_does_not_reach_the_truth(
    world: World, pairs: Ints, risks: Floats, held_out: Bools, regression: Floats
) -> None:
    labels, now = labels_of(world, pairs), world.coded[pairs][:, :LABELS]
    carried = np.where(
        now[held_out],
        [label[~held_out][n[~held_out]].mean() for label, n in zip(labels.T, now.T, strict=True)],
        [label[~held_out][~n[~held_out]].mean() for label, n in zip(labels.T, now.T, strict=True)],
    )
    labels, best = labels[held_out], risks[held_out]
    reached = [macro_auprc(labels, each) for each in (carried, regression, best)]
    assert reached[1] > reached[0] + 0.05
    assert reached[2] > reached[1] + 0.03
    new = ~now[held_out]
    onset = [
        np.mean([average_precision_score(labels[n, k], each[n, k]) for k, n in enumerate(new.T)])
        for each in (regression, best)
    ]
    prevalence = np.mean([labels[n, k].mean() for k, n in enumerate(new.T)])
    assert prevalence + 0.05 < onset[0] < onset[1]  # predictable, but hard
    assert onset[1] < reached[2] - 0.1


def refuse_better_than_truth(world: World, rows: Ints, model: Floats, best: Floats) -> None:
    """Neither in squared error nor in log loss, beyond sampling error."""
    labels, patient = labels_of(world, rows), world.stays.patient[rows]
    model = np.clip(model, 1e-6, 1 - 1e-6)
    for loss in (
        lambda p: np.mean((p - labels) ** 2, axis=1),
        lambda p: -np.mean(np.where(labels, np.log(p), np.log1p(-p)), axis=1),
    ):
        ahead, error = clustered_mean(loss(model) - loss(best), patient)
        assert ahead > 2 * error  # the truth is ahead


def test_logistic_regression_does_not_beat_the_truth(
    world: World, pairs: Ints, risks: Floats, held_out: Bools, regression: Floats
) -> None:
    refuse_better_than_truth(world, pairs[held_out], regression, risks[held_out])


@pytest.mark.slow
def test_boosted_trees_do_not_beat_the_truth(
    world: World, pairs: Ints, risks: Floats, held_out: Bools
) -> None:
    model = HistGradientBoostingClassifier(max_iter=60, learning_rate=0.08, max_leaf_nodes=15)
    features = record_features(world, pairs)
    boosted = fitted(model, features, labels_of(world, pairs), held_out)
    refuse_better_than_truth(world, pairs[held_out], boosted, risks[held_out])


@pytest.mark.slow
def test_the_best_of_the_record_lies_between_what_is_learned_and_the_truth(
    world: World, pairs: Ints, risks: Floats, held_out: Bools, regression: Floats
) -> None:
    patients = np.unique(world.stays.patient[pairs[held_out]])[:350]
    known = replay(np.random.default_rng(3), world, patients=patients, visits_per_patient=3)
    back = np.isin(known.rows, pairs)
    rows, best = known.rows[back], known.risks[back]
    here = np.searchsorted(pairs[held_out], rows)
    refuse_better_than_truth(world, rows, best, risks[held_out][here])
    refuse_better_than_truth(world, rows, regression[here], best)
    labels, groups = labels_of(world, rows), np.array_split(np.argsort(best, axis=None), 10)
    for group in groups:
        expected, seen = best.ravel()[group].mean(), labels.ravel()[group].mean()
        error = np.sqrt(expected * (1 - expected) / len(group))
        assert abs(seen - expected) < 5 * error  # of labels that depend on each other


def tiny_medicine() -> tuple[Catalogue, Ints]:
    """The hospital's medicine with three chronic conditions that occur, and their positions."""
    medicine = hospital()
    chronic = np.flatnonzero(medicine.fades[:LABELS] == 0)[[2, 6, 9]]
    onset = np.full_like(medicine.onset, -40.0)
    onset[chronic] = (-1.0, -1.6, -2.2)
    progression = np.zeros_like(medicine.progression)
    progression[chronic[0], chronic[1]] = 1.5
    calm = np.zeros_like(onset)
    medicine = replace(medicine, onset=onset, progression=progression, surge=calm, exclusive=())
    return medicine, chronic


def states_of(medicine: Catalogue, chronic: Ints) -> Bools:
    states = np.zeros((8, len(medicine.onset)), dtype=bool)
    states[:, chronic] = list(itertools.product([False, True], repeat=3))
    return states


def transitions(
    medicine: Catalogue, people: People, states: Bools, chronic: Ints, drugs: Bools | None
) -> Floats:
    """The probability of each state after each, (before, after)."""
    who = people.take(np.zeros(len(states), dtype=np.int64))
    given = None if drugs is None else np.broadcast_to(drugs, (len(states), len(drugs)))
    outlook = course.next_outlook(medicine, who, who.age_years, states, given)
    present = expit(outlook.steady[:, chronic])[:, None]
    return np.prod(np.where(states[:, chronic], present, 1 - present), axis=-1)


def log_likelihood(world: World, row: int, states: Bools, past: Bools) -> Floats:
    """Of what the record shows of one stay, for each state."""
    medicine, stays = world.medicine, world.stays
    absent = coded_if_absent(medicine, past)
    chance = np.where(states, medicine.coded, absent)
    logs = np.log(np.where(world.coded[row], chance, 1 - chance)).sum(axis=1)
    for causes, seen in (
        (medicine.prescribed, stays.drugs[row]),
        (medicine.performed, stays.procedures[row]),
    ):
        none = causes.log_absent(states)
        logs += np.where(seen, np.log(-np.expm1(none)), none).sum(axis=1)
    location = course.stay_location(states)
    logs += -0.5 * ((np.log(stays.stay_days[row]) - location) / course.STAY_SCALE) ** 2
    age = np.full(len(states), stays.age_years[row])
    for log_odds, seen in (
        (course.elective_log_odds(states), stays.elective[row]),
        (course.death_log_odds(medicine, states, age), stays.died[row]),
    ):
        logs += log_expit(log_odds if seen else -log_odds)
    return logs


def test_the_replay_equals_the_exact_posterior_where_that_can_be_enumerated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(course, "FRAILTY_DEVIATION", 0.0)
    medicine, chronic = tiny_medicine()
    rng = np.random.default_rng(4)
    people = course.draw_people(rng, patients=300, visits_per_patient=3)
    stays = course.live(rng, medicine, people)
    chance = np.where(
        stays.conditions, medicine.coded, coded_if_absent(medicine, conditions_before(stays))
    )
    coded = rng.random(chance.shape) < chance
    ids = np.arange(len(stays.patient))
    world = World(medicine, people, stays, coded, np.arange(300), ids)
    patients = np.unique(stays.patient[stays.returned])[:12]
    known = replay(rng, world, patients=patients, visits_per_patient=3, particles=4_000)
    found = dict(zip(known.rows.tolist(), known.risks, strict=True))
    wants = course.draw_return_log_odds(rng, 3, 40_000)
    for patient in patients:
        first = int(np.searchsorted(stays.patient, patient))
        for row, exact in exact_risks(world, chronic, first, wants):
            assert found[row][chronic] == pytest.approx(exact, abs=0.015)


def exact_risks(world: World, chronic: Ints, first: int, wants: Floats) -> list[tuple[int, Floats]]:
    """The risks after a patient's first and second stay, by enumeration of the states."""
    medicine, stays = world.medicine, world.stays
    states = states_of(medicine, chronic)
    person = world.people.take(stays.patient[[first]])
    nobody = np.zeros_like(states)
    start = np.zeros(len(states))
    start[0] = 1
    unseen = transitions(medicine, person, states, chronic, None)
    prior = start @ np.linalg.matrix_power(unseen, BURN_IN)
    with np.errstate(divide="ignore"):
        logs = np.log(prior) + log_likelihood(world, first, states, nobody)
    comes_back = expit(wants[:, None] + course.RETURN_BURDEN * course.burden(states))
    found = [(first, risk_of(world, first, chronic, np.exp(logs) * comes_back.mean(axis=0)))]
    second = first + 1
    if second < len(stays.patient) and stays.patient[second] == stays.patient[first]:
        gap = stays.gap_days[first]
        rate = course.deaths_a_day(medicine, states, np.full(8, stays.age_years[first]))
        location = course.gap_location(states)
        logs += -0.5 * ((np.log(gap - 1) - location) / course.GAP_SCALE) ** 2 - rate * gap
        older = replace(person, age_years=stays.age_years[[first]])
        step = transitions(medicine, older, states, chronic, stays.drugs[first])
        # Who wanted back once is likelier to want it again: the wish is the patient's own.
        likelihoods = np.array([log_likelihood(world, second, states, p[None]) for p in states])
        both = np.exp(logs)[:, None] * step * np.exp(likelihoods)
        again = comes_back.T @ comes_back / len(wants)
        found.append((second, risk_of(world, second, chronic, (both * again).sum(axis=0))))
    return [(row, risk) for row, risk in found if not np.isnan(risk).any()]


def risk_of(world: World, row: int, chronic: Ints, weights: Floats) -> Floats:
    """The labels' risks at the next stay, averaged over the states by weight and survival."""
    medicine, stays = world.medicine, world.stays
    states = states_of(medicine, chronic)
    who = world.people.take(np.full(8, stays.patient[row]))
    age = np.full(8, stays.age_years[row])
    drugs = np.broadcast_to(stays.drugs[row], (8, stays.drugs.shape[1]))
    outlook = course.next_outlook(medicine, who, age, states, drugs)
    rate = course.deaths_a_day(medicine, states, age)
    risks, alive = coded_at_next_stay(
        medicine, outlook, states, rate, nodes=Nodes(gaps=200, severities=3)
    )
    weighted: Floats = (weights * alive) @ risks[:, chronic] / (weights * alive).sum()
    return weighted


def test_the_truth_is_written_beside_the_records(tmp_path: Path) -> None:
    settings = SimulatorConfig(patients=300, seed=5, visits_per_patient=4, replayed_patients=10)
    simulate(settings, tmp_path / "hospital")
    truth = tmp_path / "hospital" / "truth"
    table = read_table(truth / "risks.parquet", RISKS_SCHEMA)
    assert label_names(pq.read_schema(truth / "risks.parquet")) == tuple(
        phenotype.name for phenotype in PHENOTYPES_25
    )
    assert table["true_probabilities"].null_count == 0
    risks = np.array(table["true_probabilities"].to_pylist())
    assert risks.shape == (table.num_rows, LABELS)
    assert ((risks > 0) & (risks < 1)).all()
    replayed = {
        subject
        for subject, known in zip(
            table["subject_id"].to_pylist(), table["record_probabilities"].to_pylist(), strict=True
        )
        if known is not None
    }
    assert len(replayed) == 10
    with (truth / "effects.csv").open(encoding="utf-8") as file:
        effects = list(csv.DictReader(file))
    helping = [row for row in effects if float(row["log_odds"]) < 0]
    assert {row["drug"] for row in helping} >= {"Levofloxacin", "Furosemide"}
    assert len(helping) < 0.1 * len(effects)
    assert all(float(row["log_odds"]) <= 0 for row in effects)


@pytest.mark.parametrize("coding", ["icd9", "icd10"])
def test_the_cohort_s_labels_are_those_whose_risks_are_known(
    make_events: Stage, make_cohort: Stage, coding: Coding
) -> None:
    settings = SimulatorConfig(patients=200, coding=coding, **FREQUENT)
    events = make_events(None, source="simulated", simulator=settings.model_dump())
    pairs = pq.read_table(make_cohort(events) / "pairs.parquet")
    world = make_world(settings, np.random.SeedSequence(settings.seed).spawn(3)[0])
    stay_of = {str(hadm_id): row for row, hadm_id in enumerate(world.hadm_ids)}
    truth = read_table(events / "truth" / "risks.parquet", RISKS_SCHEMA)
    known = set(truth["visit_id"].to_pylist())
    labelled = 0
    for pair in pairs.to_pylist():
        last = stay_of[pair["history"][-1]]
        assert pair["history"][-1] in known
        assert world.subject_ids[world.stays.patient[last]] == pair["subject_id"]
        if pair["labels"] is not None:
            labelled += 1
            assert stay_of[pair["next_visit_id"]] == last + 1
            assert pair["labels"] == world.coded[last + 1, :LABELS].tolist()
    assert labelled == world.stays.returned.sum() > 200
    assert len(known) == np.sum(~world.stays.died)


def test_a_truly_effective_drug_clears_its_disease_and_a_useless_one_does_not() -> None:
    settings = SimulatorConfig(patients=40_000, visits_per_patient=3)
    world = make_world(settings, np.random.SeedSequence(12))
    medicine, stays = world.medicine, world.stays
    names = [drug.name for drug in medicine.drugs]
    ccs = [condition.ccs for condition in medicine.conditions]
    had = np.flatnonzero(stays.returned)
    left = {}
    for drug, disease in (("Levofloxacin", 122), ("Ceftriaxone", 122)):
        k = ccs.index(disease)
        sick = had[stays.conditions[had, k]]
        given = stays.drugs[sick, names.index(drug)]
        left[drug] = [stays.conditions[sick[g] + 1, k].mean() for g in (given, ~given)]
    assert left["Levofloxacin"][0] < 0.75 * left["Levofloxacin"][1]
    assert left["Ceftriaxone"][0] == pytest.approx(left["Ceftriaxone"][1], abs=0.04)


def test_the_sick_come_back_sooner_and_the_dead_do_not() -> None:
    world = make_world(SimulatorConfig(patients=20_000), np.random.SeedSequence(13))
    stays: Stays = world.stays
    ill = stays.conditions.sum(axis=1)
    back = stays.returned
    assert not (back & stays.died).any()
    gaps = [np.median(stays.gap_days[back & mask]) for mask in (ill >= 14, ill <= 8)]
    assert gaps[0] < 0.9 * gaps[1]
    deaths = [stays.died[mask].mean() for mask in (ill >= 14, ill <= 8)]
    assert deaths[0] > 2 * deaths[1]
