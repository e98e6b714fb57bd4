"""Scores equal scikit-learn's, weights equal repetition, and intervals follow patients."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, roc_auc_score

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.learning import scoring

PAIRS, LABELS = 200, 4


@pytest.fixture
def sample() -> tuple[scoring.Floats, scoring.Bools]:
    """Probabilities with ties, and labels of which the last never occurs."""
    rng = np.random.default_rng(3)
    labels = rng.random((PAIRS, LABELS)) < np.array([0.5, 0.2, 0.05, 0.0])
    noisy = expit(rng.normal(size=(PAIRS, LABELS)) + 1.5 * labels - 1)
    return noisy.round(2), labels


def test_ranking_equals_scikit_learn(sample: tuple[scoring.Floats, scoring.Bools]) -> None:
    probabilities, labels = sample
    ours = scoring.label_ranking(probabilities, labels)
    for k in range(LABELS - 1):
        assert ours.auroc[0, k] == pytest.approx(roc_auc_score(labels[:, k], probabilities[:, k]))
        assert ours.auprc[0, k] == pytest.approx(
            average_precision_score(labels[:, k], probabilities[:, k])
        )
    micro = scoring.micro_ranking(probabilities, labels)
    assert micro.auroc[0] == pytest.approx(roc_auc_score(labels.ravel(), probabilities.ravel()))
    assert micro.auprc[0] == pytest.approx(
        average_precision_score(labels.ravel(), probabilities.ravel())
    )


def test_label_with_one_class_has_no_figure(
    sample: tuple[scoring.Floats, scoring.Bools],
) -> None:
    probabilities, labels = sample
    ours = scoring.label_ranking(probabilities, labels)
    assert np.isnan(ours.auroc[0, -1])
    assert np.isnan(ours.auprc[0, -1])
    assert scoring.macro(ours.auroc)[0] == pytest.approx(ours.auroc[0, :-1].mean())
    assert np.isnan(scoring.macro([np.nan, np.nan]))
    assert np.isnan(scoring.ranking([0.5, 0.6], [True, True]).auprc[0])
    assert np.isnan(scoring.ranking([], []).auroc[0])


def test_weights_equal_scikit_learn_and_repetition(
    sample: tuple[scoring.Floats, scoring.Bools],
) -> None:
    probabilities, labels = sample
    weights = np.random.default_rng(0).integers(0, 4, size=(3, PAIRS)).astype(np.float32)
    ours = scoring.label_ranking(probabilities, labels, weights)
    f1 = scoring.f1_scores(probabilities >= 0.4, labels, weights)
    error = scoring.brier(probabilities, labels, weights)
    for draw, row in enumerate(weights):
        expected = average_precision_score(labels[:, 1], probabilities[:, 1], sample_weight=row)
        assert ours.auprc[draw, 1] == pytest.approx(expected, abs=1e-6)
        expected = roc_auc_score(labels[:, 1], probabilities[:, 1], sample_weight=row)
        assert ours.auroc[draw, 1] == pytest.approx(expected, abs=1e-6)
        repeated = np.repeat(np.arange(PAIRS), row.astype(int))
        again = scoring.label_ranking(probabilities[repeated], labels[repeated])
        np.testing.assert_allclose(ours.auroc[draw], again.auroc[0], rtol=1e-5)
        expected = f1_score(labels[:, 0], probabilities[:, 0] >= 0.4, sample_weight=row)
        assert f1.per_label[draw, 0] == pytest.approx(expected)
        expected = f1_score(labels, probabilities >= 0.4, sample_weight=row, average="micro")
        assert f1.micro[draw] == pytest.approx(expected)
        expected = brier_score_loss(labels[:, 0], probabilities[:, 0], sample_weight=row)
        assert error[draw, 0] == pytest.approx(expected)
        one = scoring.calibration_error(probabilities, labels, row[None])
        same = scoring.calibration_error(probabilities[repeated], labels[repeated])
        np.testing.assert_allclose(one.per_label, same.per_label)
        np.testing.assert_allclose(one.micro, same.micro)


def test_mask_scores_only_its_cells(sample: tuple[scoring.Floats, scoring.Bools]) -> None:
    probabilities, labels = sample
    mask = np.random.default_rng(1).random(labels.shape) < 0.6
    ours = scoring.label_ranking(probabilities, labels, mask=mask)
    rows = mask[:, 0]
    assert ours.auroc[0, 0] == pytest.approx(roc_auc_score(labels[rows, 0], probabilities[rows, 0]))
    micro = scoring.micro_ranking(probabilities, labels, mask=mask)
    assert micro.auprc[0] == pytest.approx(
        average_precision_score(labels[mask], probabilities[mask])
    )


def test_blocks_of_draws_do_not_change_figures(
    sample: tuple[scoring.Floats, scoring.Bools], monkeypatch: pytest.MonkeyPatch
) -> None:
    probabilities, labels = sample
    weights = scoring.patient_draws(np.arange(PAIRS) // 3, draws=7, seed=5)
    whole = scoring.micro_ranking(probabilities, labels, weights)
    monkeypatch.setattr(scoring, "CELLS_AT_ONCE", 10)
    blocks = scoring.micro_ranking(probabilities, labels, weights)
    np.testing.assert_array_equal(whole.auprc, blocks.auprc)


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(-20, 20), st.booleans()), min_size=2, max_size=40),
    st.floats(0.1, 5),
    st.floats(-3, 3),
)
def test_ranking_ignores_monotone_transforms(
    rows: list[tuple[int, bool]], slope: float, shift: float
) -> None:
    scores = np.array([score for score, _ in rows], dtype=float)
    labels = np.array([label for _, label in rows])
    before = scoring.ranking(scores, labels)
    after = scoring.ranking(np.exp(scores / 10) * slope + shift, labels)
    np.testing.assert_allclose(before.auroc, after.auroc, equal_nan=True)
    np.testing.assert_allclose(before.auprc, after.auprc, equal_nan=True)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=40))
def test_reversed_scores_mirror_auroc(rows: list[tuple[int, bool]]) -> None:
    scores = np.array([score for score, _ in rows], dtype=float)
    labels = np.array([label for _, label in rows])
    mirrored = 1 - scoring.ranking(-scores, labels).auroc
    np.testing.assert_allclose(scoring.ranking(scores, labels).auroc, mirrored, equal_nan=True)


@pytest.mark.parametrize("wrong", [np.nan, 1.5, -0.1])
def test_what_is_no_probability_is_refused(
    sample: tuple[scoring.Floats, scoring.Bools], wrong: float
) -> None:
    probabilities, labels = sample
    probabilities[3, 1] = wrong
    for score in (scoring.brier, scoring.calibration_error):
        with pytest.raises(CkdEhrError, match=r"1 of 800 are not probabilities .*first is"):
            score(probabilities, labels)


def test_scores_that_are_nan_have_no_order(sample: tuple[scoring.Floats, scoring.Bools]) -> None:
    probabilities, labels = sample
    probabilities[3, 1] = np.nan
    with pytest.raises(CkdEhrError, match="1 of 200 scores are NaN"):
        scoring.label_ranking(probabilities, labels)


def test_a_draw_without_one_class_has_no_figure() -> None:
    weights = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 0]], dtype=np.float32)
    ours = scoring.ranking([0.9, 0.8, 0.1], [True, False, False], weights)
    np.testing.assert_array_equal(ours.auroc, [1.0, np.nan, np.nan])
    np.testing.assert_array_equal(ours.auprc, [1.0, np.nan, np.nan])


def test_thresholds_reach_the_best_f1(sample: tuple[scoring.Floats, scoring.Bools]) -> None:
    probabilities, labels = sample
    thresholds = scoring.best_f1_thresholds(probabilities, labels, fallback=0.7)
    assert thresholds[-1] == 0.7
    for k in range(LABELS - 1):
        reached = f1_score(labels[:, k], probabilities[:, k] >= thresholds[k])
        every = [
            f1_score(labels[:, k], probabilities[:, k] >= t) for t in np.unique(probabilities[:, k])
        ]
        assert reached == pytest.approx(max(every))


def test_calibration_error_by_hand() -> None:
    probabilities = np.array([[0.1, 0.9], [0.1, 0.9]])
    labels = np.array([[False, True], [True, True]])
    error = scoring.calibration_error(probabilities, labels, bins=10)
    np.testing.assert_allclose(error.per_label, [[0.4, 0.1]])
    np.testing.assert_allclose(error.micro, [0.25])


def test_platt_recovers_a_known_distortion() -> None:
    rng = np.random.default_rng(0)
    true_logits = rng.normal(size=(20_000, 2))
    labels = rng.random(true_logits.shape) < expit(true_logits)
    scaling = scoring.fit_platt((true_logits - [1.0, -0.5]) / [0.5, 2.0], labels)
    np.testing.assert_allclose(scaling.slope, [0.5, 2.0], atol=0.1)
    np.testing.assert_allclose(scaling.intercept, [1.0, -0.5], atol=0.1)


def test_platt_keeps_the_identity_without_two_classes() -> None:
    logits = np.array([[-2.0, 3.0], [1.0, 0.5]])
    labels = np.array([[False, True], [False, True]])
    scaling = scoring.fit_platt(logits, labels)
    np.testing.assert_array_equal(scaling.apply(logits), logits)
    nothing = scoring.fit_platt(np.zeros((0, 2)), np.zeros((0, 2), dtype=bool))
    np.testing.assert_array_equal(nothing.slope, [1.0, 1.0])


def test_platt_never_reverses_a_ranking_and_a_strong_ridge_holds_it() -> None:
    logits = np.linspace(-2, 2, 50)[:, None]
    labels = logits < 0
    assert scoring.fit_platt(logits, labels).slope[0] == scoring.SMALLEST_SLOPE
    held = scoring.fit_platt(logits, labels, ridge=1e6)
    np.testing.assert_allclose([held.slope[0], held.intercept[0]], [1, 0], atol=1e-3)


def test_bootstrap_moves_whole_patients() -> None:
    subjects = np.array([5, 5, 8, 9, 9, 9])
    weights = scoring.patient_draws(subjects, draws=400, seed=1)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 1])
    np.testing.assert_array_equal(weights[:, 3], weights[:, 5])
    assert set(weights[:, [0, 2, 3]].sum(axis=1)) == {3.0}
    np.testing.assert_array_equal(weights, scoring.patient_draws(subjects, draws=400, seed=1))


def test_one_patient_has_an_interval_of_no_width() -> None:
    probabilities = np.array([[0.2], [0.7], [0.6]])
    labels = np.array([[False], [True], [False]])
    weights = scoring.patient_draws([4, 4, 4], draws=20, seed=0)
    values = scoring.brier(probabilities, labels, weights)[:, 0]
    point = float(scoring.brier(probabilities, labels)[0, 0])
    assert scoring.basic_interval(point, values) == pytest.approx((point, point))


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for seed in range(100):
        probabilities = rng.random((60, 1))
        labels = rng.random((60, 1)) < probabilities
        weights = scoring.patient_draws(np.arange(60), draws=200, seed=seed)
        point = float(scoring.brier(probabilities, labels)[0, 0])
        low, high = scoring.basic_interval(
            point, scoring.brier(probabilities, labels, weights)[:, 0]
        ) or (0, 0)
        hits += low <= 1 / 6 <= high
    assert 86 <= hits <= 100


def test_interval_needs_half_of_the_draws() -> None:
    assert scoring.basic_interval(0.5, [0.5, np.nan, np.nan]) is None
    assert scoring.basic_interval(0.5, []) is None
    assert scoring.basic_interval(0.5, [0.5, 0.5, np.nan]) == (0.5, 0.5)


def test_interval_of_macro_auprc_covers_the_truth() -> None:
    def population(rng: np.random.Generator, pairs: int) -> tuple[np.ndarray, np.ndarray]:
        risk = rng.beta(1, 7, size=(pairs, 12))
        return risk + rng.normal(0, 0.1, risk.shape), rng.random(risk.shape) < risk

    def macro_auprc(scores: np.ndarray, labels: np.ndarray, weights: object = None) -> np.ndarray:
        return scoring.macro(scoring.label_ranking(scores, labels, weights).auprc)

    rng = np.random.default_rng(5)
    truth = macro_auprc(*population(rng, 200_000))[0]
    hits = 0
    for seed in range(60):
        scores, labels = population(rng, 1000)
        weights = scoring.patient_draws(np.arange(1000), draws=200, seed=seed)
        point = float(macro_auprc(scores, labels)[0])
        low, high = scoring.basic_interval(point, macro_auprc(scores, labels, weights)) or (0, 0)
        hits += low <= truth <= high
    assert hits >= 51


def test_safe_logit_is_finite_and_inverts_expit() -> None:
    assert np.isfinite(scoring.safe_logit([0.0, 1.0])).all()
    np.testing.assert_allclose(scoring.safe_logit([0.3]), logit([0.3]))
