"""Batches: padded where a pair has less, and without what no pair of theirs has."""

import numpy as np
import pytest
import torch

from ckd_ehr.learning.batches import MODEL_INPUTS, Example, PairDataset, Signal, make_batch
from tiny import encoded_of

OWN = {*MODEL_INPUTS, "visit_index", "labels", "labelled"}
SHORT = encoded_of([7, 8], [1, 0], "a")
LONG = encoded_of([4, 5, 6], [0, 3, 1], "abc")  # its concept b was cut


def signal(*, layers: bool) -> Signal:
    return Signal(
        fold=1,
        attention=np.array([[0.75, 0.25], [0.5, 0.5]], dtype=np.float32),
        shared=np.array([True, True]),
        readout=np.array([[1.0], [0.0], [0.5]], dtype=np.float32) if layers else None,
        retained=np.array([0.2, 0.0, 0.1], dtype=np.float32) if layers else None,
        state=np.array([1.0, 2.0], dtype=np.float32) if layers else None,
    )


def test_a_pair_is_padded_to_the_longest_of_its_batch() -> None:
    labels = np.array([1.0, 0.0], dtype=np.float32)
    batch = make_batch([Example("s", SHORT, labels), Example("l", LONG)], pad_token=9, labels=2)
    assert set(batch) == OWN  # nothing of a teacher
    assert batch["input_ids"].tolist() == [[7, 8, 9], [4, 5, 6]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["concept_index"].tolist() == [[1, 0, 0], [0, 3, 1]]
    assert batch["concept_mask"].tolist() == [[True, False, False], [True, False, True]]
    assert batch["reading_index"].tolist() == [1, 2]
    assert batch["visit_index"].tolist() == [[0, 3, -1, -1], [0, 3, 3, 3]]
    assert batch["labels"].tolist() == [[1, 0], [0, 0]]
    assert batch["labelled"].tolist() == [True, False]
    whole = ("input_ids", "attention_mask", "concept_index", "reading_index", "visit_index")
    assert {batch[name].dtype for name in whole} == {torch.int64}


def test_soft_labels_without_signals_stand_beside_pairs_that_have_none() -> None:
    soft = Example(
        "s",
        SHORT,
        teacher_logits=np.array([0.5, -1.0], dtype=np.float32),
        teacher_spread=np.array([0.25, np.nan], dtype=np.float32),
    )
    batch = make_batch([Example("l", LONG), soft], pad_token=0, labels=2)
    assert set(batch) == OWN | {"teacher_logits", "taught", "teacher_spread"}
    assert batch["teacher_logits"].tolist() == [[0, 0], [0.5, -1]]
    assert batch["taught"].tolist() == [False, True]
    assert batch["teacher_spread"].isnan().tolist() == [[True, True], [False, True]]
    assert batch["teacher_spread"][1, 0] == 0.25


def test_a_signal_is_padded_with_nothing_shared_and_no_fold() -> None:
    examples = [Example("l", LONG), Example("s", SHORT, signal=signal(layers=True))]
    batch = make_batch(examples, pad_token=0, labels=2)
    assert batch["teacher_attention"].shape == (2, 2, 4)
    assert batch["teacher_attention"][1].tolist() == [[0.75, 0.25, 0, 0], [0.5, 0.5, 0, 0]]
    assert batch["shared"].tolist() == [[False] * 4, [True, True, False, False]]
    assert batch["teacher_fold"].tolist() == [-1, 1]
    assert batch["teacher_readout"].shape == (2, 3, 3)
    assert batch["teacher_readout"][1].tolist() == [[1, 0, 0], [0, 0, 0], [0.5, 0, 0]]
    torch.testing.assert_close(batch["teacher_retained"][1], torch.tensor([0.2, 0.0, 0.1]))
    assert batch["teacher_state"].tolist() == [[0, 0], [1, 2]]
    for name in ("teacher_attention", "teacher_readout", "teacher_retained"):
        assert not batch[name][0].any()


def test_a_batch_has_no_layers_that_were_not_read() -> None:
    batch = make_batch([Example("s", SHORT, signal=signal(layers=False))], pad_token=0, labels=2)
    assert set(batch) == OWN | {"teacher_attention", "shared", "teacher_fold"}


def test_a_signal_is_asked_for_when_its_item_is_taken() -> None:
    asked: list[str] = []

    def signal_of(pair_id: str) -> Signal | None:
        asked.append(pair_id)
        return signal(layers=False) if pair_id == "s" else None

    dataset = PairDataset([Example("s", SHORT), Example("l", LONG)], signal_of=signal_of)
    assert asked == []
    unread, read = dataset[1]["example"], dataset[0]["example"]
    assert asked == ["l", "s"]
    assert unread.signal is None
    assert read.signal.fold == 1
    assert all(example.signal is None for example in dataset.examples)  # not kept


def test_signals_of_one_order_do_not_go_with_concepts_in_another() -> None:
    with pytest.raises(AssertionError):
        PairDataset([], retell=lambda example, _: example, signal_of=lambda _: None)
