"""Two runs are compared pair by pair, over patients and seeds, or refused with a reason."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss

import synthetic_run
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json, read_table, write_json, write_table
from ckd_ehr.contracts.records import PREDICTIONS, with_label_names
from ckd_ehr.metrics.evaluation import write_evaluation
from ckd_ehr.metrics.results import MODELS
from ckd_ehr.metrics.run_comparison import EvaluatedRun, compare_runs
from ckd_ehr.metrics.significance import holm

MODEL = "student_distilled"
Change = Callable[[pa.Table], pa.Table]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run with `cohort` and a finished evaluation."""
    root = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        synthetic_run.stub_models(patch)
        write_evaluation(synthetic_run.write_run(root, synthetic_run.config_of()))
    yield root


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Callable[..., EvaluatedRun]:
    """Makes a run of its own of the finished one, its predictions changed."""

    def copy(name: str, change: Change | None = None, *, seed: int = 0, **labels: object):  # type: ignore[no-untyped-def]
        root = tmp_path / name
        shutil.copytree(finished, root)
        evaluation = root / "08_evaluation.partial"
        metrics = read_json(evaluation / "metrics.json")
        write_json(evaluation / "metrics.json", {**metrics, "seed": seed})
        if change is not None:
            path = evaluation / "predictions.parquet"
            table = change(read_table(path, PREDICTIONS))
            names = labels.get("names", synthetic_run.LABELS)
            write_table(table, path, with_label_names(PREDICTIONS, names))  # type: ignore[arg-type]
        return EvaluatedRun.read(name, evaluation=evaluation, cohort=root / "cohort")

    return copy


def noisy(seed: int, *, scale: float = 0.5) -> Change:
    """Every model's probabilities drawn towards noise."""

    def change(table: pa.Table) -> pa.Table:
        values = np.array(table["probabilities"].to_pylist())
        noise = np.random.default_rng(seed).random(values.shape)
        return replaced(table, "probabilities", (1 - scale) * values + scale * noise)

    return change


def replaced(table: pa.Table, column: str, values: np.ndarray) -> pa.Table:
    place = table.schema.get_field_index(column)
    kind = PREDICTIONS.field(column).type
    return table.set_column(place, column, pa.array(list(values), kind))


def held_out(run: EvaluatedRun) -> tuple[np.ndarray, np.ndarray]:
    predicted = run.models[MODEL]
    rows = predicted.rows("held_out")
    return predicted.labels[rows], predicted.probabilities[rows]


def test_differences_equal_scikit_learn(copied: Callable[..., EvaluatedRun]) -> None:
    a, b = copied("a"), copied("b", noisy(1))
    found = compare_runs([(a, b)], draws=200)
    assert (found.pairs, found.patients, found.not_shared) == (40, 40, {"a": 0, "b": 0})
    assert list(found.models) == list(MODELS)
    one = found.models[MODEL]
    scores, briers, firsts = [], [], []
    for run in (a, b):
        labels, risks = held_out(run)
        scores.append(average_precision_score(labels[:, :2], risks[:, :2], average="macro"))
        firsts.append(average_precision_score(labels[:, 0], risks[:, 0]))
        briers.append(brier_score_loss(labels.ravel(), risks.ravel()))
    assert one.a["macro_auprc"].value == pytest.approx(scores[0], abs=1e-6)
    assert one.b["macro_auprc"].value == pytest.approx(scores[1], abs=1e-6)
    gain = one.difference["macro_auprc"]
    assert gain.value == pytest.approx(scores[0] - scores[1], abs=1e-6)
    assert gain.low is not None
    assert gain.low < gain.value < gain.high  # type: ignore[operator]
    assert one.difference["brier"].value == pytest.approx(briers[0] - briers[1], abs=1e-6)
    by_label = one.labels[synthetic_run.LABELS[0]]["auprc"]
    assert by_label.value == pytest.approx(firsts[0] - firsts[1], abs=1e-6)
    assert one.labels["Shock"]["auprc"].value is None  # no held-out pair has it
    raw = [one.p_value for one in found.models.values()]
    assert [one.p_holm for one in found.models.values()] == holm(raw)


def test_a_run_does_not_differ_from_itself(copied: Callable[..., EvaluatedRun]) -> None:
    run = copied("a")
    found = compare_runs([(run, run)], model=MODEL, draws=50)
    assert list(found.models) == [MODEL]
    one = found.models[MODEL]
    assert (one.p_value, one.p_holm) == (1.0, 1.0)
    for figure in one.difference.values():
        assert (figure.value, figure.low, figure.high) == (0.0, 0.0, 0.0)


def test_several_seeds_are_a_mean_with_their_variance(
    copied: Callable[..., EvaluatedRun],
) -> None:
    a = [copied(f"a{seed}", noisy(10 + seed, scale=0.2), seed=seed) for seed in range(3)]
    b = [copied(f"b{seed}", noisy(20 + seed, scale=0.8), seed=seed) for seed in range(3)]
    runs = list(zip(a, b, strict=True))
    alone = [compare_runs([pair], model=MODEL, draws=200).models[MODEL] for pair in runs]
    together = compare_runs(runs, model=MODEL, draws=200)
    assert together.seeds == [(0, 0), (1, 1), (2, 2)]
    gain = together.models[MODEL].difference["macro_auprc"]
    values = [one.difference["macro_auprc"].value for one in alone]
    assert gain.value == pytest.approx(np.mean(values), abs=2e-6)  # type: ignore[arg-type]
    assert gain.low is not None
    with pytest.raises(CkdEhrError, match=r"training seeds \[0, 0\] are not all different"):
        compare_runs([runs[0], runs[0]], draws=0)


def test_only_pairs_and_labels_of_both_are_compared(copied: Callable[..., EvaluatedRun]) -> None:
    def fewer(table: pa.Table) -> pa.Table:
        ids = sorted(set(table.filter(pc.equal(table["split"], "held_out"))["pair_id"].to_pylist()))
        return table.filter(pc.invert(pc.is_in(table["pair_id"], pa.array(ids[:10]))))

    a = copied("a")
    b = copied("b", fewer, names=("Another disease", *synthetic_run.LABELS[1:]))
    found = compare_runs([(a, b)], model=MODEL, draws=20)
    assert (found.pairs, found.not_shared) == (30, {"a": 10, "b": 0})
    assert found.labels == list(synthetic_run.LABELS[1:])
    assert found.labels_not_shared == ["Another disease", synthetic_run.LABELS[0]]
    labels, risks = held_out(b)
    expected = average_precision_score(labels[:, 1], risks[:, 1])
    assert found.models[MODEL].b["macro_auprc"].value == pytest.approx(expected, abs=1e-6)


def test_what_cannot_be_compared_is_refused(copied: Callable[..., EvaluatedRun]) -> None:
    def moved(table: pa.Table) -> pa.Table:
        splits = ["tuning" if s == "held_out" else "held_out" for s in table["split"].to_pylist()]
        return table.set_column(3, "split", pa.array(splits))

    def relabelled(table: pa.Table) -> pa.Table:
        return replaced(table, "labels", ~np.array(table["labels"].to_pylist()))

    a = copied("a")
    with pytest.raises(CkdEhrError, match="a, b: no pair is held out in all of them"):
        compare_runs([(a, copied("b", moved))], draws=0)
    with pytest.raises(CkdEhrError, match="c: 40 of 40 pairs shared with a have other labels"):
        compare_runs([(a, copied("c", relabelled))], draws=0)
    other = copied("d", lambda table: table, names=("x", "y", "z"))
    with pytest.raises(CkdEhrError, match="a, d: no label in common"):
        compare_runs([(a, other)], draws=0)
    with pytest.raises(CkdEhrError, match="no model 'gru' in all; in common: carry_forward"):
        compare_runs([(a, a)], model="gru", draws=0)


def test_predictions_that_cannot_be_trusted_are_refused(
    copied: Callable[..., EvaluatedRun], finished: Path, tmp_path: Path
) -> None:
    def unknown(table: pa.Table) -> pa.Table:
        return table.set_column(0, "pair_id", pa.array([f"{n:016x}" for n in range(420)]))

    with pytest.raises(CkdEhrError, match="70 predictions of carry_forward are for pairs that"):
        copied("a", unknown)
    with pytest.raises(CkdEhrError, match="70 rows of carry_forward repeat a pair"):
        copied("b", lambda table: pa.concat_tables([table, table]))
    with pytest.raises(CkdEhrError, match="1 of 210 are not probabilities"):
        copied("c", lambda t: replaced(t, "probabilities", with_nan(t)))


def with_nan(table: pa.Table) -> np.ndarray:
    values = np.array(table["probabilities"].to_pylist())
    values[0, 0] = np.nan
    return values


def test_metrics_of_an_older_schema_are_refused(
    copied: Callable[..., EvaluatedRun], tmp_path: Path
) -> None:
    copied("a")
    root = tmp_path / "a"
    path = root / "08_evaluation.partial" / "metrics.json"
    older = {k: v for k, v in read_json(path).items() if k != "schema_version"}
    write_json(path, older)
    with pytest.raises(CkdEhrError, match=r"schema an older one, not 3\); rerun the stage"):
        EvaluatedRun.read("a", evaluation=path.parent, cohort=root / "cohort")


def test_no_patient_is_in_a_comparison(copied: Callable[..., EvaluatedRun]) -> None:
    run = copied("a")
    text = json.dumps(compare_runs([(run, run)], draws=20).model_dump(mode="json"))
    assert str(synthetic_run.FIRST_SUBJECT)[:4] not in text
    assert not any(pair_id in text for pair_id in run.held_out().to_pylist())
