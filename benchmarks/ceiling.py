"""How far usual models stand from the best possible, on the simulated hospital at MIMIC-III's size.

A fifth of the patients are for test, a tenth for tuning, the others for training. Carry-forward and
logistic regression are the project's own baselines; LightGBM stands for the best of the usual ones.
They see what the record shows at discharge: coded conditions, drugs and procedures of this stay and
how often each condition was coded so far, age, sex, kind and length of the stay, number of stays,
the gap before this one. Two references: the true risk given the hidden state, on all test pairs,
and the best that the record alone allows (a particle filter, data/simulator/replay.py) on those of
a sample of test patients. The records are read from the simulator, not from files: no rows are
broken, and a condition's code and a drug's spelling tell nothing. Intervals: bootstrap over
patients.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import lightgbm
import numpy as np
from scipy import sparse

from ckd_ehr.contracts.config import SimulatorConfig
from ckd_ehr.contracts.files import write_json
from ckd_ehr.contracts.machine import commit, machine_facts
from ckd_ehr.data.simulator.catalogue import LABELS, Bools, Floats, Ints
from ckd_ehr.data.simulator.replay import replay
from ckd_ehr.data.simulator.risks import true_risks
from ckd_ehr.data.simulator.world import World, make_world
from ckd_ehr.learning.baselines import carry_forward, logistic_regression
from ckd_ehr.learning.scoring import Weights, brier, label_ranking, macro, patient_draws
from ckd_ehr.metrics.compare import figure_of

PATIENTS = 46_520
REPLAYED = 600
REPLAYED_TWICE = 100  # to see how much depends on the draws
DRAWS = 200
TEST, TUNING = 5, 10  # one patient in so many
PENALTIES = (0.003, 0.01, 0.03)
# One thread: on a busy machine two wait for each other, seven times as long.
BOOSTING = {
    "objective": "binary", "learning_rate": 0.05, "num_leaves": 15, "min_data_in_leaf": 50,
    "feature_fraction": 0.5, "num_threads": 1, "verbosity": -1, "deterministic": True,
    "force_row_wise": True,
}  # fmt: skip
MOST_TREES, PATIENCE = 200, 20
TRUE_STATE, RECORD = "true_state", "record"
# By model, metric, and "value" or the distance to a reference: an estimate with its interval.
Compared = dict[str, dict[str, dict[str, dict[str, float | None]]]]
METRICS = ("auroc", "auprc", "brier", "new_onset_auroc", "new_onset_auprc")


@dataclass(frozen=True)
class Pairs:
    """Each stay that was followed by another: what was coded then, before and next."""

    rows: Ints  # positions of the stays
    patients: Ints
    features: sparse.csr_matrix  # (pairs, features)
    now: Bools  # (pairs, labels)
    before: Bools  # (pairs, labels) at this stay or an earlier one
    later: Bools  # (pairs, labels)

    def split(self) -> tuple[Bools, Bools, Bools]:
        """Train, tuning and test, by patient."""
        test = self.patients % TEST == 0
        tuning = ~test & (self.patients % TUNING == 1)
        return ~test & ~tuning, tuning, test


@dataclass(frozen=True)
class Scored:
    """A model's scores: of the pairs themselves, and of the bootstrap's draws."""

    point: Mapping[str, Floats]  # (1,)
    drawn: Mapping[str, Floats]  # (draws,)


def make_pairs(world: World) -> Pairs:
    """What the record shows at each discharge that another stay follows."""
    stays = world.stays
    rows = np.flatnonzero(stays.returned)
    times = counts_so_far(world.coded, stays.patient)
    number = counts_so_far(np.ones((len(stays.patient), 1)), stays.patient)
    gap_days = np.where(number[1:, 0] > 1, stays.gap_days[:-1], 0)
    plain = np.column_stack(
        [
            stays.age_years / 50,
            world.people.male[stays.patient],
            np.log(stays.stay_days),
            stays.elective,
            np.log(number),
            np.log1p(np.append(0, gap_days)),
        ]
    )
    blocks = [world.coded, np.minimum(times, 3), stays.drugs, stays.procedures, plain]
    return Pairs(
        rows=rows,
        patients=stays.patient[rows],
        features=sparse.csr_matrix(np.hstack([block[rows].astype(float) for block in blocks])),
        now=world.coded[rows, :LABELS],
        before=times[rows, :LABELS] > 0,
        later=world.coded[rows + 1, :LABELS],
    )


def counts_so_far(values: Bools | Floats, patient: Ints) -> Floats:
    """Running sums over each patient's stays, this one included.

    Args:
        values: (stays, n), patients one after another.
        patient: of each stay.
    """
    total = np.cumsum(values, axis=0, dtype=float)
    first = np.searchsorted(patient, patient)
    return np.asarray(total - total[first] + values[first])


def boosted_trees(pairs: Pairs, train: Bools, tuning: Bools) -> Floats:
    """One LightGBM model a label, stopped where tuning gets no better: (pairs, labels)."""
    features = pairs.features.toarray()
    risks = np.empty(pairs.later.shape)
    for label in range(LABELS):
        data, checked = (
            lightgbm.Dataset(features[some], pairs.later[some, label], params=dict(BOOSTING))
            for some in (train, tuning)
        )
        checked.set_reference(data)
        model = lightgbm.train(
            dict(BOOSTING), data, MOST_TREES, [checked],
            callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
        )  # fmt: skip
        risks[:, label] = np.asarray(model.predict(features, num_threads=1))
    return risks


def model_risks(pairs: Pairs) -> dict[str, Floats]:
    """The risks that each model gives every pair."""
    train, tuning, _ = pairs.split()
    carried = carry_forward(pairs.now[train], pairs.later[train], pairs.now)
    regression = logistic_regression(
        pairs.features, pairs.later, train=train, tuning=tuning, penalties=PENALTIES
    )
    return {
        "carry_forward": carried,
        "logistic_regression": regression.probabilities,
        "lightgbm": boosted_trees(pairs, train, tuning),
    }


def score(risks: Floats, pairs: Pairs, some: Bools, weights: Weights) -> Scored:
    """All metrics on some pairs; `weights` (draws, those pairs) are shared by all models."""

    def with_weights(weight: Weights) -> dict[str, Floats]:
        later, shown = pairs.later[some], risks[some]
        whole = label_ranking(shown, later, weight)
        new = label_ranking(shown, later, weight, mask=~pairs.before[some])
        found = (whole.auroc, whole.auprc, brier(shown, later, weight), new.auroc, new.auprc)
        return {name: macro(values) for name, values in zip(METRICS, found, strict=True)}

    return Scored(with_weights(np.ones((1, int(some.sum())))), with_weights(weights))


def best_from_record(
    world: World, settings: SimulatorConfig, pairs: Pairs, seed: np.random.SeedSequence
) -> tuple[Floats, Bools, float]:
    """The best that the records of some test patients allow.

    Returns:
        The risks (pairs, labels), NaN where they were not estimated; which pairs have them; and
        how many draws they are worth at the median.
    """
    rng = np.random.default_rng(seed)
    *_, test = pairs.split()
    patients = np.unique(pairs.patients[test])
    chosen = np.sort(rng.choice(patients, size=min(REPLAYED, len(patients)), replace=False))
    known = replay(rng, world, patients=chosen, visits_per_patient=settings.visits_per_patient)
    place = np.full(len(world.stays.patient), -1)
    place[known.rows] = np.arange(len(known.rows))
    found = place[pairs.rows]
    replayed = found >= 0
    risks = np.where(replayed[:, None], known.risks[found], np.nan)
    return risks, replayed, float(np.median(known.effective_particles[found[replayed]]))


def replay_error(
    world: World, settings: SimulatorConfig, pairs: Pairs, seed: np.random.SeedSequence
) -> float:
    """How far a replayed risk is from what endless draws would give, root mean square.

    Two replays of the same test patients differ by √2 of it.
    """
    *_, test = pairs.split()
    patients = np.unique(pairs.patients[test])[:REPLAYED_TWICE]
    once, again = (
        replay(
            np.random.default_rng(part),
            world,
            patients=patients,
            visits_per_patient=settings.visits_per_patient,
        ).risks
        for part in seed.spawn(2)
    )
    return float(np.sqrt(np.mean((once - again) ** 2) / 2))


def compare(
    risks: Mapping[str, Floats],
    pairs: Pairs,
    some: Bools,
    *,
    references: Sequence[str],
    seed: int,
) -> Compared:
    """Every metric of every model on some pairs, and its distance to each reference.

    Distances are model − reference, each draw with the same patients for both.
    """
    weights = patient_draws(pairs.patients[some], draws=DRAWS, seed=seed)
    scored = {name: score(values, pairs, some, weights) for name, values in risks.items()}
    return {
        name: {
            metric: {
                "value": interval(model.point[metric], model.drawn[metric]),
                **{
                    f"less_{other}": interval(
                        model.point[metric] - scored[other].point[metric],
                        model.drawn[metric] - scored[other].drawn[metric],
                        bounds=(-1.0, 1.0),
                    )
                    for other in references
                    if other != name
                },
            }
            for metric in METRICS
        }
        for name, model in scored.items()
    }


def interval(
    point: Floats, drawn: Floats, *, bounds: tuple[float, float] = (0.0, 1.0)
) -> dict[str, float | None]:
    """An estimate with its interval, in four decimals."""
    figure = figure_of(point, drawn, bounds=bounds).model_dump()
    return {name: None if value is None else round(value, 4) for name, value in figure.items()}


def figures_of(report: Mapping[str, Compared]) -> dict[str, float | None]:
    """One flat list for the page of results; intervals and distances stand in the report."""
    return {
        f"{name}_{metric}{suffix}": model[metric]["value"]["value"]
        for part, suffix in (("test", ""), ("replayed", "_replayed"))
        for name, model in report[part].items()
        for metric in ("auroc", "auprc", "brier", "new_onset_auroc")
    }


def main() -> None:
    """Fit, replay and compare; print a table and, with `--json`, write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the figures and the report")
    out = parser.parse_args().json
    settings = SimulatorConfig(patients=PATIENTS)
    # The patients that `ckd-ehr simulate` writes for these settings.
    course, sample = np.random.SeedSequence(settings.seed).spawn(2)
    world = make_world(settings, course)
    pairs = make_pairs(world)
    train, _, test = pairs.split()
    started = perf_counter()
    risks = model_risks(pairs)
    print(f"models fitted in {perf_counter() - started:.0f} s", flush=True)
    risks[TRUE_STATE] = true_risks(world.medicine, world.people, world.stays.take(pairs.rows))
    risks[RECORD], replayed, particles = best_from_record(world, settings, pairs, sample)
    on_all = {name: values for name, values in risks.items() if name != RECORD}
    report = {
        "test": compare(on_all, pairs, test, references=[TRUE_STATE], seed=settings.seed),
        "replayed": compare(
            risks, pairs, replayed, references=[TRUE_STATE, RECORD], seed=settings.seed
        ),
    }
    counts = {
        "train_pairs": int(train.sum()),
        "test_pairs": int(test.sum()),
        "test_patients": len(np.unique(pairs.patients[test])),
        "replayed_pairs": int(replayed.sum()),
        "replayed_patients": len(np.unique(pairs.patients[replayed])),
        "median_effective_particles": round(particles),
        "replay_error": round(replay_error(world, settings, pairs, sample), 4),
        "test_prevalence": round(float(pairs.later[test].mean()), 4),
        "test_new_onset_rate": round(float(pairs.later[test][~pairs.before[test]].mean()), 4),
    }
    figures = {**counts, **figures_of(report)}
    for name, value in figures.items():
        print(f"{name:<48} {value:>10}")
    if out:
        about = {"name": "ceiling", "commit": commit(), "machine": machine_facts()}
        data = f"simulated hospital of {PATIENTS:,} patients, default settings"
        result = {**about, "data": data, "seed": settings.seed, "figures": figures}
        write_json(out, {**result, "report": {"counts": counts, "draws": DRAWS, **report}})


if __name__ == "__main__":
    main()
