"""Which pairs an epoch has, and in which order they are read.

In: lengths, and which pairs are labelled. Out: row numbers. Ignores: what is read. Neither order
nor choice depends on what the process has drawn before: dropout moves that on differently in each
process, and a resumption sets it back.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class Epoched(Protocol):
    """What is read in another way, or another order, in each epoch."""

    epoch: int


@dataclass(frozen=True)
class Unlabelled:
    """How many unlabelled pairs an epoch has: at most `ratio` times the labelled ones."""

    ratio: float | None = None  # None: all
    anew: bool = True  # others in each epoch

    def pairs(self, labelled: Sequence[bool]) -> int:
        """Of an epoch, labelled or not.

        >>> Unlabelled(ratio=0.5).pairs([True] * 4 + [False] * 9), Unlabelled().pairs([False] * 2)
        (6, 2)
        """
        known = sum(labelled)
        others = len(labelled) - known
        if self.ratio is None:
            return known + others
        return known + min(others, round(self.ratio * known))

    def rows(self, labelled: Sequence[bool], *, seed: int, epoch: int) -> list[int]:
        """Rows of an epoch, in ascending order."""
        is_labelled = np.asarray(labelled, dtype=bool)
        known, others = np.flatnonzero(is_labelled), np.flatnonzero(~is_labelled)
        wanted = self.pairs(labelled) - len(known)
        if wanted < len(others):
            rng = np.random.default_rng([seed, epoch if self.anew else 0])
            others = rng.permutation(others)[:wanted]
        return sorted([*known.tolist(), *others.tolist()])


ALL = Unlabelled()


class EpochSampler(Sampler[int]):
    """Batches of similar length in an order that seed and epoch alone decide.

    Args:
        dataset: tells the epoch.
        lengths: tokens of each row.
        labelled: which rows are labelled; without it all take part.
    """

    def __init__(
        self,
        dataset: Epoched,
        *,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        labelled: Sequence[bool] = (),
        unlabelled: Unlabelled = ALL,
    ) -> None:
        self.dataset = dataset
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.labelled = list(labelled) or [True] * len(self.lengths)
        self.unlabelled = unlabelled

    def __len__(self) -> int:
        return self.unlabelled.pairs(self.labelled)

    def __iter__(self) -> Iterator[int]:
        epoch = self.dataset.epoch
        rows = self.unlabelled.rows(self.labelled, seed=self.seed, epoch=epoch)
        # Not their sum: the epochs of one seed would be those of the next, one later.
        [mixed] = np.random.SeedSequence([self.seed, epoch]).generate_state(1).tolist()
        generator = torch.Generator().manual_seed(mixed)
        lengths = [self.lengths[row] for row in rows]
        order = get_length_grouped_indices(lengths, self.batch_size, generator=generator)
        return iter([rows[place] for place in order])
