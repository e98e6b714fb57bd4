"""How long 2,000 bootstrap draws over patients take: 25 labels, 10,000 pairs, two a patient.

`seconds` is AUROC and AUPRC of every label, from drawing the patients to the intervals of the
macro scores; `seconds_all_scores` is all that the evaluation measures of one model.
"""

import argparse
from pathlib import Path
from time import perf_counter

import numpy as np

from ckd_ehr.contracts.files import write_json
from ckd_ehr.contracts.machine import commit, machine_facts
from ckd_ehr.learning.scoring import basic_interval, label_ranking, macro, patient_draws
from ckd_ehr.metrics.compare import ScoredPairs, measure

DRAWS, LABELS, PAIRS, SEED = 2_000, 25, 10_000, 1


def main() -> None:
    """Measure once; print a table and, with `--json`, write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--busy", action="store_true", help="Say that the machine was not idle.")
    arguments = parser.parse_args()
    figures = time_bootstrap()
    for name, value in figures.items():
        print(f"{name:<20} {value:>10,}")
    if arguments.json:
        about = {"name": "bootstrap", "commit": commit(), "machine": machine_facts()}
        data = f"{DRAWS:,} draws, {LABELS} labels of prevalence 2 to 35 %, {PAIRS:,} pairs"
        data += ", on a machine that was not idle" if arguments.busy else ""
        write_json(arguments.json, {**about, "data": data, "seed": SEED, "figures": figures})


def time_bootstrap() -> dict[str, float]:
    """Seconds of the macro scores' intervals, and of everything."""
    rng = np.random.default_rng(SEED)
    labels = rng.random((PAIRS, LABELS)) < np.linspace(0.02, 0.35, LABELS)
    risks = np.clip(rng.beta(1, 6, labels.shape) + 0.1 * labels, 0, 1)
    subjects = np.arange(PAIRS) // 2
    started = perf_counter()
    weights = patient_draws(subjects, draws=DRAWS, seed=SEED)
    once = label_ranking(risks, labels)
    ranked = label_ranking(risks, labels, weights)
    for point, drawn in zip(once, ranked, strict=True):
        if basic_interval(float(macro(point)[0]), macro(drawn)) is None:
            raise SystemExit("no interval")
    ranked_at = perf_counter()
    known = rng.random(labels.shape) < 0.3
    pairs = ScoredPairs(labels=labels, previously_present=known, weights=weights, bins=15)
    measure(risks, np.full(LABELS, 0.3), pairs)
    return {
        "seconds": round(ranked_at - started, 2),
        "seconds_all_scores": round(perf_counter() - ranked_at, 2),
        "draws": DRAWS,
        "labels": LABELS,
        "pairs": PAIRS,
    }


if __name__ == "__main__":
    main()
