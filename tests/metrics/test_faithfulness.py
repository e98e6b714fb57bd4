"""Erasing concepts tells evidence that a prediction rests on from evidence that it does not."""

import numpy as np
import pytest
from scipy.special import expit, logit

from ckd_ehr.contracts.records import Narrative, Span
from ckd_ehr.metrics.faithfulness import FRACTIONS, measure_faithfulness, without
from ckd_ehr.metrics.results import Faithfulness

CONCEPTS = 10


def narrative(seed: int) -> Narrative:
    """Ten concepts, each written as its weight in tenths."""
    weights = np.random.default_rng(seed).permutation(np.arange(CONCEPTS))
    text, spans = "Visit 1: ", []
    for place, weight in enumerate(weights):
        word = f"w{weight}"
        spans.append(Span(len(text), len(text) + len(word), f"{place}", "diagnosis", "S", word, 0))
        text += f"{word}; " if place < CONCEPTS - 1 else f"{word}."
    return Narrative(text, tuple(spans), 0)


def weights_of(one: Narrative) -> np.ndarray:
    return np.array([float(one.text[span.start + 1 : span.end]) for span in one.spans])


def predict(narratives: list[Narrative]) -> np.ndarray:
    """Two labels; the second, which is always likelier, rests on the concepts' weights."""
    log_odds = np.array([weights_of(one).sum() / 10 - 2 for one in narratives])
    return expit(np.stack([log_odds - 5, log_odds], axis=1))


def explain(one: Narrative, *, sign: float = 1.0) -> np.ndarray:
    weights = weights_of(one) / 10
    return np.array([[0.0, *np.zeros(len(weights))], [-0.5, *(sign * weights)]])


def measured(*, sign: float = 1.0, patients: int = 30, gate: float = 0.0) -> Faithfulness:
    found = measure_faithfulness(
        [narrative(seed) for seed in range(patients)],
        predict=predict,  # type: ignore[arg-type]
        explain=lambda one: explain(one, sign=sign),
        random_orders=3,
        draws=200,
        gate=gate,
        seed=0,
    )
    assert found is not None
    return found


def test_a_narrative_without_its_concepts_keeps_the_others_in_their_places() -> None:
    one = narrative(3)
    left = without(one, {0, 4, 9})
    kept = [weight for place, weight in enumerate(weights_of(one)) if place not in (0, 4, 9)]
    assert weights_of(left).tolist() == kept
    assert left.text == "Visit 1: " + "; ".join(f"w{weight:.0f}" for weight in kept) + "; ."


def test_falls_are_those_of_the_risk_without_the_named_and_with_them_alone() -> None:
    evidence = measured().orders["evidence"]
    full = expit(4.5 - 2)
    for n, fraction in enumerate(FRACTIONS):
        named = sum(sorted(range(CONCEPTS))[-round(fraction * CONCEPTS) :]) / 10
        expected = full - expit(4.5 - named - 2), full - expit(named - 2)
        assert evidence.comprehensiveness[n].value == pytest.approx(expected[0], abs=1e-5)
        assert evidence.sufficiency[n].value == pytest.approx(expected[1], abs=1e-5)


def test_faithful_evidence_passes_and_equals_occlusion() -> None:
    result = measured()
    assert result.passed is True
    assert result.orders["evidence"] == result.orders["occlusion"]
    assert result.gain["comprehensiveness"].value > 0.05  # type: ignore[operator]
    assert result.reading_share == pytest.approx(0.5 / 5.0)


def test_evidence_the_wrong_way_round_fails() -> None:
    result = measured(sign=-1.0)
    assert result.passed is False
    assert result.gain["comprehensiveness"].high < 0  # type: ignore[operator]
    assert result.gain["sufficiency"].high < 0  # type: ignore[operator]


def test_the_gate_is_the_settings() -> None:
    low = min(figure.low for figure in measured().gain.values())  # type: ignore[type-var]
    assert measured(gate=low - 0.001).passed is True
    assert measured(gate=low + 0.001).passed is False


def test_few_patients_get_no_verdict() -> None:
    result = measured(patients=19)
    assert result.passed is None
    assert result.gain["comprehensiveness"].low is None
    assert result.pairs == 19


def test_nothing_is_measured_where_nothing_can_be_erased() -> None:
    empty = Narrative("Nothing was coded.", (), 0)
    assert logit(predict([empty])[0, 1]) == pytest.approx(-2.0)
    assert (
        measure_faithfulness(
            [empty],
            predict=predict,  # type: ignore[arg-type]
            explain=explain,
            random_orders=1,
            draws=10,
            gate=0.0,
            seed=0,
        )
        is None
    )
