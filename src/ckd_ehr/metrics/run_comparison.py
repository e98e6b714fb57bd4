"""Two runs on the pairs both have held out: paired differences, over patients and seeds.

In: finished evaluations, in pairs of the two runs, one pair a training seed. Out: the content of
`ckd-ehr compare --json`: counts and aggregates. Ignores: how the runs differ, and new onset apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json, read_table
from ckd_ehr.contracts.records import PAIRS
from ckd_ehr.learning.scoring import Bools, Floats, patient_draws
from ckd_ehr.metrics.compare import Draws, Measured, ScoredPairs, figure_of, measure
from ckd_ehr.metrics.dataset_facts import Record
from ckd_ehr.metrics.predicted import Predicted, read_predicted
from ckd_ehr.metrics.results import FEWEST_PATIENTS, PRIMARY, Figure, Metrics, parse_metrics
from ckd_ehr.metrics.significance import across_seeds, bootstrap_p, degenerate, holm

DRAW_SEED = 0
BY_LABEL = ("auprc", "auroc")


class ModelComparison(Record):
    """A model of both runs: scores of A and B, A − B, and A − B by label; p corrected by Holm."""

    a: dict[str, Figure]
    b: dict[str, Figure]
    difference: dict[str, Figure]
    labels: dict[str, dict[str, Figure]]
    p_value: float | None
    p_holm: float | None


class RunComparison(Record):
    """What `ckd-ehr compare --json` writes."""

    pairs: int  # held out in every run
    patients: int
    not_shared: dict[str, int]  # pairs that only the first A, or B, has held out
    labels: list[str]
    labels_not_shared: list[str]
    seeds: list[tuple[int, int]]  # of A and B
    bootstrap_draws: int
    degenerate_draws: int  # in which some label shows one class, and is left out
    models: dict[str, ModelComparison]


@dataclass(frozen=True)
class EvaluatedRun:
    """A finished evaluation, checked."""

    name: str
    metrics: Metrics
    models: dict[str, Predicted]

    @classmethod
    def read(cls, name: str, *, evaluation: Path, cohort: Path) -> "EvaluatedRun":
        """Read it.

        Raises:
            CkdEhrError: metrics.json is of another version, or a prediction is of no pair of the
                run.
        """
        path = evaluation / "metrics.json"
        metrics = parse_metrics(read_json(path), origin=str(path))
        models = read_predicted(evaluation / "predictions.parquet")
        known = read_table(cohort / "pairs.parquet", PAIRS)["pair_id"].combine_chunks()
        for model, predicted in models.items():
            found = pc.is_in(predicted.table["pair_id"], value_set=known)
            unknown = predicted.table.num_rows - pc.sum(found).as_py()
            if unknown:
                raise CkdEhrError(
                    f"{evaluation}/predictions.parquet: {unknown} predictions of {model} are for "
                    f"pairs that {cohort}/pairs.parquet does not have; rerun the stage evaluation"
                )
        return cls(name, metrics, models)

    @property
    def any_model(self) -> Predicted:
        """A model's predictions: pairs and labels are those of all."""
        return next(iter(self.models.values()))

    def held_out(self) -> pa.Array:
        """The ids of its held-out pairs."""
        predicted = self.any_model
        return predicted.table["pair_id"].filter(pa.array(predicted.rows("held_out")))


@dataclass(frozen=True)
class _Shared:
    """The pairs and labels that all runs have, and what they are."""

    ids: pa.Array
    labels: tuple[str, ...]
    truth: Bools  # (pairs, labels)
    subject_ids: NDArray[np.int64]

    def of(self, predicted: Predicted, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """A matrix of a model, for the shared pairs and labels only."""
        rows = pc.index_in(self.ids, value_set=predicted.table["pair_id"].combine_chunks())
        columns = [predicted.label_names.index(name) for name in self.labels]
        return np.asarray(values[rows.to_numpy()][:, columns])


def compare_runs(
    runs: Sequence[tuple[EvaluatedRun, EvaluatedRun]], *, model: str | None = None, draws: int
) -> RunComparison:
    """Compare A with B, on the labels and held-out pairs of all runs.

    Args:
        runs: (A, B), one pair a training seed. Differences are of a pair; several pairs are
            resampled with the patients (`significance.across_seeds`).
        model: one model; None: all that every run has.
        draws: bootstrap draws; none are made of fewer than 20 patients.

    Raises:
        CkdEhrError: nothing is shared, shared pairs have other labels, a seed comes twice.
    """
    every = [run for pair in runs for run in pair]
    _refuse_equal_seeds(runs)
    shared = _shared(every)
    models = _models(every, model)
    patients = len(np.unique(shared.subject_ids))
    draws = draws if patients >= FEWEST_PATIENTS else 0
    pairs = ScoredPairs(
        labels=shared.truth,
        previously_present=None,
        weights=patient_draws(shared.subject_ids, draws=draws, seed=DRAW_SEED),
        bins=every[0].metrics.calibration_bins,
    )
    compared = {name: _compare_model(name, runs, shared, pairs) for name in models}
    corrected = holm([one.p_value for one in compared.values()])
    named = sorted({name for run in every for name in run.any_model.label_names})
    return RunComparison(
        pairs=len(shared.ids),
        patients=patients,
        not_shared={
            side: len(run.held_out()) - len(shared.ids)
            for side, run in zip(("a", "b"), runs[0], strict=True)
        },
        labels=list(shared.labels),
        labels_not_shared=[name for name in named if name not in shared.labels],
        seeds=[(a.metrics.seed, b.metrics.seed) for a, b in runs],
        bootstrap_draws=draws,
        degenerate_draws=degenerate(shared.truth, pairs.weights).draws,
        models={
            name: one.model_copy(update={"p_holm": p})
            for (name, one), p in zip(compared.items(), corrected, strict=True)
        },
    )


def _refuse_equal_seeds(runs: Sequence[tuple[EvaluatedRun, EvaluatedRun]]) -> None:
    for side in zip(*runs, strict=True):
        seeds = [run.metrics.seed for run in side]
        if len(set(seeds)) < len(seeds):
            raise CkdEhrError(
                f"{', '.join(run.name for run in side)}: training seeds {seeds} are not all "
                "different; runs of one seed say nothing of the variance between seeds"
            )


def _shared(runs: Sequence[EvaluatedRun]) -> _Shared:
    first = runs[0].any_model
    names = tuple(
        name for name in first.label_names if all(name in run.any_model.label_names for run in runs)
    )
    if not names:
        raise CkdEhrError(f"{_names(runs)}: no label in common; compare runs of like labels")
    ids = set.intersection(*(set(run.held_out().to_pylist()) for run in runs))
    if not ids:
        raise CkdEhrError(
            f"{_names(runs)}: no pair is held out in all of them; compare runs of the same records "
            "and splits"
        )
    shared_ids = pa.array(sorted(ids), pa.string())
    rows = pc.index_in(shared_ids, value_set=first.table["pair_id"].combine_chunks())
    subjects = first.table["subject_id"].take(rows).to_numpy()
    shared = _Shared(shared_ids, names, np.empty(0, dtype=bool), subjects)
    truths = [shared.of(run.any_model, run.any_model.labels) for run in runs]
    for run, truth in zip(runs, truths, strict=True):
        differing = int((truth != truths[0]).any(axis=1).sum())
        if differing:
            raise CkdEhrError(
                f"{run.name}: {differing} of {len(ids)} pairs shared with {runs[0].name} have "
                "other labels there; compare runs of the same records and definitions of labels"
            )
    return _Shared(shared_ids, names, truths[0].astype(bool), subjects)


def _models(runs: Sequence[EvaluatedRun], model: str | None) -> list[str]:
    common = [name for name in runs[0].models if all(name in run.models for run in runs)]
    if model is None and common:
        return common
    if model in common:
        return [str(model)]
    said = f"no model '{model}'" if model else "no model"
    raise CkdEhrError(f"{_names(runs)}: {said} in all; in common: {', '.join(common) or 'none'}")


def _names(runs: Sequence[EvaluatedRun]) -> str:
    return ", ".join(run.name for run in runs)


def _compare_model(
    name: str,
    runs: Sequence[tuple[EvaluatedRun, EvaluatedRun]],
    shared: _Shared,
    pairs: ScoredPairs,
) -> ModelComparison:
    measured = [[_measure(run.models[name], shared, pairs) for run in pair] for pair in runs]
    first, second = ([pair[side] for pair in measured] for side in (0, 1))
    a, b = (
        _combined([one.point for one in s], [one.resampled for one in s]) for s in (first, second)
    )
    less = {key: (a[key][0] - b[key][0], a[key][1] - b[key][1]) for key in a}
    primary = less[PRIMARY]
    return ModelComparison(
        a={key: figure_of(*a[key]) for key in first[0].point.overall},
        b={key: figure_of(*b[key]) for key in first[0].point.overall},
        difference={key: _signed(less[key]) for key in first[0].point.overall},
        labels={
            label: {score: _signed(less[f"{score}/{k}"]) for score in BY_LABEL}
            for k, label in enumerate(shared.labels)
        },
        p_value=bootstrap_p(float(primary[0][0]), primary[1]),
        p_holm=None,
    )


def _measure(predicted: Predicted, shared: _Shared, pairs: ScoredPairs) -> Measured:
    risks = shared.of(predicted, predicted.probabilities).astype(np.float64)
    thresholds = predicted.thresholds()
    columns = [predicted.label_names.index(name) for name in shared.labels]
    return measure(risks, thresholds[columns], pairs)


def _combined(
    points: Sequence[Draws], resampled: Sequence[Draws]
) -> Mapping[str, tuple[Floats, Floats]]:
    """Each score over the seeds: the estimate and its draws. One seed of resampling for all."""
    return {
        key: across_seeds(
            [_flat(one)[key][0] for one in points],
            [_flat(one)[key] for one in resampled],
            seed=DRAW_SEED,
        )
        for key in _flat(points[0])
    }


def _flat(draws: Draws) -> dict[str, Floats]:
    """Overall scores by name, and those of label k as `score/k`."""
    by_label = {
        f"{score}/{k}": column
        for score in BY_LABEL
        for k, column in enumerate(draws.per_label[score].T)
    }
    return {**draws.overall, **by_label}


def _signed(values: tuple[Floats, Floats]) -> Figure:
    return figure_of(*values, bounds=(-1.0, 1.0))
