"""Which graphs are refused, and what the table shows."""

import numpy as np
import pytest

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.learning.alignment import Encoded
from ckd_ehr.release.gates import (
    compare_with_student,
    failures,
    gate_table,
    refuse_failing,
    refuse_variance,
    thresholds_between,
)
from ckd_ehr.release.session import Output, Session
from tiny import encoded_of

NAMES = ["Shock", "Pneumonia"]
RNG = np.random.default_rng(0)
STUDENT = RNG.random((400, 2))
LABELS = RNG.random((400, 2)) < STUDENT
THRESHOLDS = np.array([0.5, 0.5])


def test_a_graph_that_says_the_same_passes() -> None:
    gates = compare_with_student(STUDENT, STUDENT, LABELS, names=NAMES, thresholds=THRESHOLDS)
    assert [gate.beyond for gate in gates] == [(), ()]
    assert gates[0].model_dump(exclude={"label"}) == dict.fromkeys(
        ("auroc", "auprc", "ece", "p99_shift", "flips"), 0.0
    )
    refuse_failing("fp32", gates)


def test_a_graph_that_shifts_one_label_is_refused_with_the_table() -> None:
    graph = STUDENT.copy()
    graph[:, 1] = np.clip(graph[:, 1] + 0.03, 0, 1)
    gates = compare_with_student(STUDENT, graph, LABELS, names=NAMES, thresholds=THRESHOLDS)
    assert failures(gates) == 1
    assert gates[0].beyond == ()
    assert {"p99_shift", "flips"} <= set(gates[1].beyond)
    with pytest.raises(CkdEhrError, match=r"int8: 1 of 2 labels .* nothing is published") as caught:
        refuse_failing("int8", gates)
    assert "0.03000!" in str(caught.value)
    assert "--precision fp32" in str(caught.value)


def test_a_label_of_one_class_has_no_ranking_to_compare() -> None:
    none = np.zeros_like(LABELS)
    gates = compare_with_student(STUDENT, STUDENT, none, names=NAMES, thresholds=THRESHOLDS)
    assert gates[0].auroc is None
    assert gates[0].beyond == ()
    assert gate_table(gates).splitlines()[2].count("–") == 2


def test_thresholds_keep_decisions_and_gain_room() -> None:
    moved = thresholds_between(STUDENT, np.sort(STUDENT, axis=0)[200])
    assert ((moved <= STUDENT).sum(0) == 200).all()
    assert np.abs(STUDENT - moved).min() > 1e-9
    np.testing.assert_array_equal(thresholds_between(STUDENT, np.zeros(2)), np.zeros(2))


class Moody(Session):
    """A graph that says more of texts that share their batch, and of padded ones."""

    def __init__(self, *, company: float, padding: float) -> None:
        self.most_tokens = 64
        self._company, self._padding = company, padding

    def run(self, texts: list[Encoded], *, padded_to: int = 0) -> list[Output]:  # type: ignore[override]
        risk = 0.5 + self._company * (len(texts) > 1) + self._padding * (padded_to > 0)
        return [Output(np.full(2, risk), np.zeros((2, 1)))] * len(texts)


def test_a_risk_that_depends_on_the_batch_or_on_padding_is_refused() -> None:
    texts = [encoded_of([1, 2], [0, 1], ["a"])] * 3
    refuse_variance("fp32", Moody(company=0, padding=0), texts)
    refuse_variance("int8", Moody(company=0, padding=1e-3), texts)
    with pytest.raises(CkdEhrError, match="who shares the batch"):
        refuse_variance("int8", Moody(company=1e-4, padding=0), texts)
    with pytest.raises(CkdEhrError, match="with padding"):
        refuse_variance("fp32", Moody(company=0, padding=1e-3), texts)
