"""Encoded pairs as PyTorch batches, for teacher and student alike.

In: encoded narratives with their targets. Out: padded tensors. Ignores: models and losses.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Example:
    """One pair as a model reads it, with the targets it has.

    `teacher_attention` is (labels, 1 + concepts) over this reader's own concepts, zero where the
    teacher did not see one; `shared` (1 + concepts,) says which states both saw.
    """

    pair_id: str
    encoded: Encoded
    labels: NDArray[np.float32] | None = None
    teacher_logits: NDArray[np.float32] | None = None
    teacher_attention: NDArray[np.float32] | None = None
    shared: NDArray[np.bool_] | None = None


class PairDataset(Dataset[dict[str, object]]):
    """Examples in the form Trainer's samplers expect (`input_ids` gives the length).

    `retell` gives an example as it is read in an epoch, say in another order of its concepts.
    """

    def __init__(
        self, examples: Sequence[Example], retell: Callable[[Example, int], Example] | None = None
    ) -> None:
        self.examples = list(examples)
        self.retell = retell
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, object]:
        example = self.examples[index]
        if self.retell is not None:
            example = self.retell(example, self.epoch)
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
        The model's inputs, and `labels` (B,K), `labelled` (B,), `teacher_logits` (B,K),
        `taught` (B,), `teacher_attention` (B,K,1+C), `shared` (B,1+C).
    """
    size = len(examples)
    tokens = max(len(example.encoded.input_ids) for example in examples)
    concepts = max(len(example.encoded.concept_ids) for example in examples)
    batch: Batch = {
        "input_ids": torch.full((size, tokens), pad_token),
        "attention_mask": torch.zeros(size, tokens, dtype=torch.long),
        "concept_index": torch.zeros(size, tokens, dtype=torch.long),
        "concept_mask": torch.zeros(size, concepts, dtype=torch.bool),
        "reading_index": torch.tensor([example.encoded.reading_index for example in examples]),
        "labels": torch.zeros(size, labels),
        "labelled": torch.tensor([example.labels is not None for example in examples]),
        "teacher_logits": torch.zeros(size, labels),
        "taught": torch.tensor([example.teacher_logits is not None for example in examples]),
        "teacher_attention": torch.zeros(size, labels, 1 + concepts),
        "shared": torch.zeros(size, 1 + concepts, dtype=torch.bool),
    }
    for row, example in enumerate(examples):
        _fill(batch, row, example)
    return batch


def _fill(batch: Batch, row: int, example: Example) -> None:
    encoded = example.encoded
    length = len(encoded.input_ids)
    batch["input_ids"][row, :length] = torch.tensor(encoded.input_ids)
    batch["attention_mask"][row, :length] = 1
    index = torch.tensor(encoded.concept_index)
    batch["concept_index"][row, :length] = index
    seen = index[index > 0] - 1
    batch["concept_mask"][row, seen] = True
    if example.labels is not None:
        batch["labels"][row] = torch.from_numpy(example.labels)
    if example.teacher_logits is not None:
        batch["teacher_logits"][row] = torch.from_numpy(example.teacher_logits)
    if example.teacher_attention is not None and example.shared is not None:
        states = example.teacher_attention.shape[1]
        batch["teacher_attention"][row, :, :states] = torch.from_numpy(example.teacher_attention)
        batch["shared"][row, :states] = torch.from_numpy(example.shared)


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
