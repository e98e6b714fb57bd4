"""Encoded pairs as PyTorch batches, for teacher and student alike.

In: encoded narratives with their targets. Out: padded tensors. Ignores: models and losses.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ckd_ehr.learning.alignment import Encoded

MODEL_INPUTS = (
    "input_ids",
    "attention_mask",
    "concept_index",
    "concept_mask",
    "reading_index",
)
Batch = dict[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Signal:
    """What a teacher knows of a pair, on the states of another reader: reading state, concepts.

    Rows of the layers and the teacher's state are there if they were asked for.
    """

    fold: int  # that the teacher has not seen
    attention: NDArray[np.float32]  # (labels, 1 + concepts), zero where not shared
    shared: NDArray[np.bool_]  # (1 + concepts,), of which both saw at least one token
    readout: NDArray[np.float32] | None = None  # (layers, concepts), zero where not the teacher's
    retained: NDArray[np.float32] | None = None  # (layers,), mass of a layer on all its concepts
    state: NDArray[np.float32] | None = None  # (size,)


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One pair as a model reads it, with the targets it has, of labels (labels,)."""

    pair_id: str
    encoded: Encoded
    labels: NDArray[np.float32] | None = None
    teacher_logits: NDArray[np.float32] | None = None
    teacher_spread: NDArray[np.float32] | None = None  # NaN where there is one opinion
    signal: Signal | None = None


class PairDataset(Dataset[dict[str, object]]):
    """Examples in the form Trainer's samplers expect (`input_ids` gives the length).

    `retell` gives an example as it is read in an epoch, say in another order of its concepts.
    `signal_of` gives a pair's signal on the concepts in the order of the example, as an item is
    taken: those of all pairs would not fit into memory.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        retell: Callable[[Example, int], Example] | None = None,
        signal_of: Callable[[str], Signal | None] | None = None,
    ) -> None:
        assert retell is None or signal_of is None  # a signal is of one order of the concepts
        self.examples = list(examples)
        self.retell = retell
        self.signal_of = signal_of
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, object]:
        example = self.examples[index]
        if self.retell is not None:
            example = self.retell(example, self.epoch)
        if self.signal_of is not None:
            example = replace(example, signal=self.signal_of(example.pair_id))
        return {"input_ids": example.encoded.input_ids, "example": example}


def collator(*, pad_token: int, labels: int) -> Callable[[Sequence[dict[str, object]]], Batch]:
    """A Trainer collator for `PairDataset` items."""

    def collate(items: Sequence[dict[str, object]]) -> Batch:
        examples = [item["example"] for item in items]
        return make_batch(
            [example for example in examples if isinstance(example, Example)],
            pad_token=pad_token,
            labels=labels,
        )

    return collate


def make_batch(examples: Sequence[Example], *, pad_token: int, labels: int) -> Batch:
    """Pad examples to one batch.

    Returns:
        The model's inputs; `visit_index` (B,1+C), the group of each state, -1 where there is none;
        `labels` (B,K), `labelled` (B,). Each of the following where any example has it:
        `teacher_logits` (B,K) with `taught` (B,); `teacher_spread` (B,K), NaN where unknown;
        `teacher_attention` (B,K,1+C) with `shared` (B,1+C) and `teacher_fold` (B,), -1 where
        unknown; `teacher_readout` (B,L,C); `teacher_retained` (B,L); `teacher_state` (B,D).
    """
    encoded = [example.encoded for example in examples]
    states = 1 + max(len(one.concept_ids) for one in encoded)
    index = _padded([one.concept_index for one in encoded], fill=0)
    seen = torch.zeros(len(examples), states, dtype=torch.bool).scatter_(1, index, True)
    return {
        "input_ids": _padded([one.input_ids for one in encoded], fill=pad_token),
        "attention_mask": _padded([np.ones_like(one.input_ids) for one in encoded], fill=0),
        "concept_index": index,
        "concept_mask": seen[:, 1:].contiguous(),
        "reading_index": torch.tensor([one.reading_index for one in encoded]),
        "visit_index": _padded([one.groups for one in encoded], fill=-1),
        "labels": _padded([example.labels for example in examples], labels, fill=0.0),
        "labelled": torch.tensor([example.labels is not None for example in examples]),
        **_soft_labels(examples),
        **_signals(examples, states),
    }


def _soft_labels(examples: Sequence[Example]) -> Batch:
    logits = [example.teacher_logits for example in examples]
    spread = [example.teacher_spread for example in examples]
    batch: Batch = {}
    if any(row is not None for row in logits):
        batch["teacher_logits"] = _padded(logits, fill=0.0)
        batch["taught"] = torch.tensor([row is not None for row in logits])
    if any(row is not None for row in spread):
        batch["teacher_spread"] = _padded(spread, fill=float("nan"))
    return batch


def _signals(examples: Sequence[Example], states: int) -> Batch:
    signals = [example.signal for example in examples]
    known = next((signal for signal in signals if signal is not None), None)
    if known is None:
        return {}
    batch = {"teacher_fold": torch.tensor([-1 if one is None else one.fold for one in signals])}
    for name, (field, width, fill) in {
        "teacher_attention": ("attention", states, 0.0),
        "shared": ("shared", states, False),
        "teacher_readout": ("readout", states - 1, 0.0),
        "teacher_retained": ("retained", None, 0.0),
        "teacher_state": ("state", None, 0.0),
    }.items():
        if getattr(known, field) is not None:
            batch[name] = _padded([getattr(one, field, None) for one in signals], width, fill=fill)
    return batch


def _padded(
    rows: Sequence[NDArray[np.generic] | None], width: int | None = None, *, fill: float
) -> Tensor:
    """Rows as one tensor, of the kind of number that `fill` is, which stands where a row ends.

    Args:
        rows: (…, up to width) each.
        width: of the last axis; as the widest row has it, if not given.
    """
    known = [row for row in rows if row is not None]
    width = max(row.shape[-1] for row in known) if width is None else width
    padded = torch.full((len(rows), *(known[0].shape[:-1] if known else ()), width), fill)
    for place, row in enumerate(rows):
        if row is not None:
            padded[place, ..., : row.shape[-1]] = torch.from_numpy(row)
    return padded


def batches_by_tokens(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Row numbers in batches of similar length whose padded size stays within the budget.

    >>> list(batches_by_tokens([3, 9, 4, 8], batch_tokens=18))
    [[1, 3], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    batch: list[int] = []
    for row in order:
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
