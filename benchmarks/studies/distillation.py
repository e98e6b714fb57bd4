"""Does distillation help? One student an arm and seed, on one run's teacher, labels and patients.

In: a run whose committee has finished. Out: a file an arm and seed in `--out`, with scores on
held_out and their bootstrap draws, all from one draw seed, so that any two arms can be compared in
pairs; no patient is in it. What is there already is not done again: a study may take many sittings.
Every arm has the student on hard labels of its seed to compare with, trained once a seed.

  python benchmarks/studies/distillation.py RUN --out docs/results/distillation --seeds 1 2 3
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter

import numpy as np
import pyarrow.compute as pc

from ckd_ehr.contracts.config import RunConfig, build_config
from ckd_ehr.contracts.files import read_json, read_table, write_json
from ckd_ehr.contracts.machine import commit, machine_facts
from ckd_ehr.contracts.records import PAIRS, PREDICTIONS
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.learning.scoring import best_f1_thresholds, patient_draws
from ckd_ehr.learning.student import write_students
from ckd_ehr.metrics.compare import ScoredPairs, figures_of, measure
from ckd_ehr.metrics.evaluation import SCORED
from ckd_ehr.metrics.labelled_pairs import LabelledPairs, read_labelled_pairs
from ckd_ehr.pipeline import finished_run

NOTHING = dict.fromkeys(("concept", "visit", "layers", "correlation", "relation"), 0.0)
ALONE: dict[str, object] = {"unlabelled_ratio": 0.0}
ARMS: dict[str, dict[str, object]] = {
    "teacher_soft": {"soft_labels": "teacher", "terms": NOTHING, **ALONE},
    "teacher_full": {"soft_labels": "teacher", **ALONE},
    "committee_soft": {"terms": NOTHING, **ALONE},
    "committee_full": ALONE,
    "committee_soft_ungated": {"gate": False, "terms": NOTHING, **ALONE},
    "committee_full_ungated": {"gate": False, **ALONE},
    "committee_full_unlabelled": {"unlabelled_ratio": 4.0},
    "regression_soft": {"soft_labels": "logistic_regression", "terms": NOTHING, **ALONE},
    "smoothed": {"control": "smoothed", "terms": NOTHING, **ALONE},
    "shuffled": {"control": "shuffled", "terms": NOTHING, **ALONE},
    "permuted": {"control": "permuted", **ALONE},
    "uniform": {"control": "uniform", **ALONE},
}
HARD = "hard"
STAGES = ("cohort", "knowledge", "teacher", "signals", "committee")
SHOWN = ("macro_auprc", "macro_auroc", "brier", "ece", "macro_f1")
DRAWN = ("macro_auprc", "macro_auroc", "macro_f1")


def main() -> None:
    """Train and score what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="SEED")
    parser.add_argument("--draws", type=int, default=1000, metavar="N")
    chosen = parser.parse_args()
    directory = finished_run(chosen.run, "committee", refuse_stale=True)
    inputs = {stage: directory.require(stage) for stage in STAGES}
    chosen.out.mkdir(parents=True, exist_ok=True)
    for seed in chosen.seeds:
        with tempfile.TemporaryDirectory(dir=chosen.run.parent) as scratch:
            for arm in chosen.arms:
                name = f"{directory.config().name}-{arm}-{seed}"
                if (chosen.out / f"{name}.json").exists():
                    print(f"{name}: is there")
                    continue
                config = with_student(directory.config(), {**ARMS[arm], "seed": seed})
                trained = train(config, inputs, Path(scratch), arm=arm)
                for variant, label in ((HARD, HARD), ("distilled", arm)):
                    path = chosen.out / f"{config.name}-{label}-{seed}.json"
                    if not path.exists():
                        facts = scores(config, inputs, trained, variant, draws=chosen.draws)
                        write_json(path, {"arm": label, "student_seed": seed, **facts})
                        print(f"{path.stem}: {facts['scores']}", flush=True)


def with_student(config: RunConfig, changes: Mapping[str, object]) -> RunConfig:
    """The config with other settings of the student."""
    settings = config.model_dump(mode="json", exclude_unset=True)
    student = settings.setdefault("student", {})
    for key, value in changes.items():
        student[key] = {**student.get(key, {}), **value} if isinstance(value, dict) else value
    return build_config(settings)


def train(config: RunConfig, inputs: Mapping[str, Path], scratch: Path, *, arm: str) -> Path:
    """The stage's folder of this arm; the student on hard labels is that of the seed's first."""
    folder = scratch / arm
    folder.mkdir()
    context = StageContext(config, folder, inputs, say=print)
    kept = scratch / HARD
    if kept.is_dir():
        shutil.copytree(kept, context.work, dirs_exist_ok=True)
    started = perf_counter()
    write_students(context)
    print(f"{arm}: {perf_counter() - started:.0f} s")
    if not kept.is_dir():
        kept.mkdir()
        shutil.copytree(folder / HARD, kept / HARD)
        shutil.copy(context.work / f"{HARD}.parquet", kept)
    return folder


def scores(
    config: RunConfig, inputs: Mapping[str, Path], trained: Path, variant: str, *, draws: int
) -> dict[str, object]:
    """A student's scores on held_out, their draws, and how it was trained."""
    table = read_table(inputs["cohort"] / "pairs.parquet", PAIRS)
    pairs = read_labelled_pairs(inputs["cohort"], table, config)
    held_out, tuning = pairs.rows(SCORED), pairs.rows("tuning")
    values = probabilities(trained, pairs, f"student_{variant}")
    thresholds = best_f1_thresholds(values[tuning], pairs.labels[tuning], fallback=0.5)
    subjects = pairs.table["subject_id"].to_numpy()[held_out]
    scored = ScoredPairs(
        labels=pairs.labels[held_out],
        previously_present=pairs.previously_present[held_out],
        weights=patient_draws(subjects, draws=draws, seed=0),
        bins=config.evaluation.calibration_bins,
    )
    measured = measure(values[held_out], thresholds, scored)
    figures = figures_of(measured.point.overall, measured.resampled.overall)
    training = read_json(trained / variant / "training.json")
    return {
        "run": config.name,
        "commit": commit(),
        "machine": machine_facts(),
        "seed": config.seed,
        "draw_seed": 0,
        "pairs": {name: int(pairs.rows(name).sum()) for name in ("train", "tuning", SCORED)},
        "student": json.loads(config.student.model_dump_json()),
        "training": {key: value for key, value in training.items() if key != "terms"},
        "scores": {name: figures[name].model_dump(mode="json") for name in SHOWN},
        "draws": {name: np.round(measured.resampled.overall[name], 5).tolist() for name in DRAWN},
    }


def probabilities(trained: Path, pairs: LabelledPairs, model: str) -> np.ndarray:
    """(pairs, labels), NaN for train pairs."""
    table = read_table(trained / "predictions.parquet", PREDICTIONS)
    table = table.filter(pc.equal(table["model"], model))
    rows = {pair_id: row for row, pair_id in enumerate(table["pair_id"].to_pylist())}
    found = np.array(table["probabilities"].to_pylist())
    values = np.full(pairs.labels.shape, np.nan)
    for place, pair_id in enumerate(pairs.ids.to_pylist()):
        if pair_id in rows:
            values[place] = found[rows[pair_id]]
    return values


if __name__ == "__main__":
    main()
