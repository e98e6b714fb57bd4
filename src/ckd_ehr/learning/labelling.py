"""A fold teacher reads the pairs it has not learnt from, in several orders of their codes.

In: a trained fold teacher, narratives. Out: raw log-odds of each order, and per pair what each
label rests on: attention, evidence, and the reading position's own attention layer by layer.
Chunks of pairs are written as they are done, so that a kill loses one: of each chunk a shard for
the student (of train pairs alone), then the opinions, with which it counts as done. Ignores:
calibration.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.processes import rank, world_size
from ckd_ehr.contracts.records import Narrative
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.learning.batches import MODEL_INPUTS, Example, batches_by_tokens, make_batch
from ckd_ehr.learning.examples import PairTable, TextReader
from ckd_ehr.learning.heads import HeadOutput, LabelAttentionModel
from ckd_ehr.learning.orders import generator_of, shuffled
from ckd_ehr.learning.prefix import Prefix
from ckd_ehr.learning.prompts import PromptReader
from ckd_ehr.learning.reading import on_cpu, pick_device, reading
from ckd_ehr.learning.readout import Readout, recording
from ckd_ehr.learning.signal_store import EVIDENCE, LOGITS, opinions_name, shard_name
from ckd_ehr.learning.soft_labels import rows_to_label
from ckd_ehr.learning.teacher import load_teacher, trained_in

CHUNK = 256


@dataclass
class PairSignals:
    """What a fold teacher knows of a pair, mean of the orders; states: the reading state first."""

    attention: Tensor  # (labels, 1 + concepts)
    evidence: Tensor  # (labels, 1 + concepts), of raw log-odds
    readout: Tensor  # (layers, concepts), each row sums to 1 where anything was retained
    retained: Tensor  # (layers,), share of the layer's attention that falls on concepts
    state: Tensor  # (size,)

    def add(self, other: "PairSignals") -> None:
        """Add the signals of another order."""
        for name, value in vars(other).items():
            getattr(self, name).add_(value)

    def tensors(self, *, divided_by: int) -> dict[str, Tensor]:
        """By name, as they are kept."""
        means = {name: value / divided_by for name, value in vars(self).items()}
        return {name: value.half().contiguous() for name, value in means.items()}


class FoldLabeller:
    """Runs one fold teacher over the pairs that it may label.

    Args:
        context: of the stage `signals`.
        fold: the fold that the teacher has not seen.
        pairs: all pairs.
        narratives: the teacher's, by pair_id.
        reader: the teacher's tokeniser.
    """

    def __init__(
        self,
        context: StageContext,
        fold: int,
        *,
        pairs: PairTable,
        narratives: Mapping[str, Narrative],
        reader: TextReader,
    ) -> None:
        self.context = context
        self.fold = fold
        self.rows = rows_to_label(pairs, fold, unlabelled=context.config.signals.unlabelled)
        self.pair_ids = [pairs.pair_ids[row] for row in self.rows]
        self.is_train: NDArray[np.bool_] = pairs.split[self.rows] == "train"
        self.narratives = narratives
        self.reader = reader
        self.folder = context.inputs["teacher"] / f"fold_{fold}"
        self.precision = trained_in(self.folder)
        self.device = pick_device(context.config.device)
        self.batch_tokens = 0
        self._model: LabelAttentionModel | None = None
        self._prefix: Prefix | None = None

    def read(self, batch_tokens: int) -> int:
        """Read every pair that has not been read by an earlier, killed start.

        Of several processes each reads its share of the chunks.

        Returns:
            The tokens of a batch that memory has sufficed for.
        """
        self.batch_tokens = batch_tokens
        starts = list(range(0, len(self.rows), CHUNK))[rank() :: world_size()]
        waiting = [start for start in starts if not self._is_done(start)]
        begun, here = monotonic(), 0
        for place, start in enumerate(waiting, start=1):
            self._label_chunk(start)
            here += len(self.pair_ids[start : start + CHUNK])
            rate = here / max(monotonic() - begun, 1e-9)
            left = sum(len(self.pair_ids[at : at + CHUNK]) for at in waiting[place:]) / rate
            done = min(start + CHUNK, len(self.rows))
            self.context.say(
                f"    teacher of fold {self.fold}: {done:,}/{len(self.rows):,} labelled, "
                f"{rate:.1f} pairs/s, {left:.0f} s left"
            )
        self._model = self._prefix = None  # the next fold's takes its place in memory
        return self.batch_tokens

    def places(self) -> Iterator[tuple[str, str]]:
        """Each train pair, and the shard in which its signals are."""
        for place, pair_id in enumerate(self.pair_ids):
            if self.is_train[place]:
                yield pair_id, shard_name(self.fold, place - place % CHUNK)

    def publish(self) -> None:
        """Move what has been read to where the stage's results are."""
        for start in range(0, len(self.rows), CHUNK):
            for name in (shard_name(self.fold, start), opinions_name(self.fold, start)):
                if (path := self.context.work / name).is_file():
                    path.rename(self.context.folder / name)

    def example(self, pair_id: str, *, order: int = 0) -> Example:
        """The pair as the teacher reads it; order 0 is the written one."""
        narrative = self.narratives[pair_id]
        if order:
            rng = generator_of(pair_id, order=order, seed=self.context.config.seed)
            narrative = shuffled(narrative, rng)
        return self.reader.example(pair_id, narrative)

    def _is_done(self, start: int) -> bool:
        """Whether an earlier start has read the chunk; a damaged one is read again."""
        path = self.context.work / opinions_name(self.fold, start)
        try:
            with safe_open(path, framework="pt"):
                return True
        except (OSError, SafetensorError):
            return False

    def _label_chunk(self, start: int) -> None:
        pair_ids = self.pair_ids[start : start + CHUNK]
        orders = self.context.config.signals.orders
        written = [self.example(pair_id) for pair_id in pair_ids]
        logits, signals = self._read(written)
        by_order = [logits]
        for order in range(1, orders):
            examples = [self.example(pair_id, order=order) for pair_id in pair_ids]
            logits, others = self._read(examples)
            by_order.append(logits)
            for mine, other, here, there in zip(signals, others, written, examples, strict=True):
                mine.add(_in_order_of(here, there, other))
        opinions = {LOGITS: torch.stack(by_order)}
        shard: dict[str, Tensor] = {}
        for place, pair_id in enumerate(pair_ids):
            known = signals[place].tensors(divided_by=orders)
            opinions[f"{pair_id}/{EVIDENCE}"] = known.pop(EVIDENCE)
            if self.is_train[start + place]:
                shard |= {f"{pair_id}/{name}": value for name, value in known.items()}
        if shard:
            save_shard(shard, self.context.work / shard_name(self.fold, start))
        save_shard(opinions, self.context.work / opinions_name(self.fold, start))

    def _read(self, examples: Sequence[Example]) -> tuple[Tensor, list[PairSignals]]:
        """Logits (pairs, labels), and each pair's signals."""
        model = self._loaded()
        if self._prefix is not None:
            examples = [self._prefix.rest(example) for example in examples]
        lengths = [len(example.encoded.input_ids) for example in examples]
        logits = torch.zeros(len(examples), len(model.head.bias))
        signals: dict[int, PairSignals] = {}
        waiting = list(batches_by_tokens(lengths, self.batch_tokens))
        while waiting:
            rows = waiting.pop(0)
            try:
                output, readout = self._forward(model, [examples[row] for row in rows])
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                left = [row for batch in waiting for row in batch]
                waiting = self._smaller(rows, lengths, error)
                later = batches_by_tokens([lengths[row] for row in left], self.batch_tokens)
                waiting += [[left[place] for place in batch] for batch in later]
                continue
            shares, retained = readout.shares().cpu(), readout.retained().cpu()
            for place, row in enumerate(rows):
                logits[row] = output.logits[place]
                concepts = len(examples[row].encoded.concept_ids)
                signals[row] = PairSignals(
                    attention=output.attention[place, :, : 1 + concepts].clone(),
                    evidence=output.evidence[place, :, : 1 + concepts].clone(),
                    readout=shares[place, :, :concepts].clone(),
                    retained=retained[place].clone(),
                    state=output.state[place].clone(),
                )
        return logits, [signals[row] for row in range(len(examples))]

    def _smaller(
        self, rows: Sequence[int], lengths: Sequence[int], error: Exception
    ) -> list[list[int]]:
        """The rows in smaller batches, if memory was the trouble; from now on all are smaller."""
        if isinstance(error, RuntimeError) and not _is_of_memory(error):
            raise error
        if len(rows) == 1:
            raise CkdEhrError(
                f"teacher of fold {self.fold}: out of memory on one text of {lengths[rows[0]]} "
                "tokens; lower knowledge.teacher.max_tokens, or free memory"
            ) from None
        half = max(1, len(rows) * max(lengths[row] for row in rows) // 2)
        if half < self.batch_tokens:
            self.batch_tokens = half
            self.context.say(f"    out of memory: batches of {half:,} tokens from now on")
        parts = batches_by_tokens([lengths[row] for row in rows], half)
        return [[rows[place] for place in part] for part in parts]

    def _forward(
        self, model: LabelAttentionModel, examples: Sequence[Example]
    ) -> tuple[HeadOutput, Readout]:
        batch = make_batch(examples, pad_token=self.reader.pad_token, labels=len(model.head.bias))
        inputs = {name: batch[name].to(self.device) for name in MODEL_INPUTS}
        if self._prefix is not None:
            inputs["attention_mask"] = self._prefix.mask(inputs["attention_mask"])
            inputs["past_key_values"] = self._prefix.cache(len(examples))
        index, where = inputs["concept_index"], inputs["reading_index"]
        concepts = inputs["concept_mask"].shape[1]
        with (
            reading(self.device, self.precision),
            recording(index, where, concepts=concepts) as readout,
        ):
            output: HeadOutput = model(**inputs)
        return on_cpu(output), readout

    def _loaded(self) -> LabelAttentionModel:
        if self._model is None:
            settings = self.context.config.teacher.model_copy(update={"precision": self.precision})
            self._model = load_teacher(settings, self.folder, device=self.device, readout=True)
            if isinstance(self.reader, PromptReader):
                with reading(self.device, self.precision):
                    self._prefix = Prefix(
                        self._model.backbone, self.reader.before, device=self.device
                    )
        return self._model


def save_shard(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a whole file or none, on the disk before it has its name."""
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.rename(path)


def _is_of_memory(error: RuntimeError) -> bool:
    """PyTorch tells of a CPU's lack of memory by a RuntimeError like any other."""
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in said


def _in_order_of(here: Example, there: Example, signals: PairSignals) -> PairSignals:
    """The signals of a shuffled reading, its concepts in the order of the written one."""
    place = {name: number for number, name in enumerate(there.encoded.concept_ids)}
    order = torch.tensor([place[name] for name in here.encoded.concept_ids], dtype=torch.long)
    states = torch.cat([torch.zeros(1, dtype=torch.long), order + 1])
    return PairSignals(
        attention=signals.attention[:, states],
        evidence=signals.evidence[:, states],
        readout=signals.readout[:, order],
        retained=signals.retained,
        state=signals.state,
    )
