"""Reading signals by key: what was written for another text or teacher is refused.

In: a signals folder, the teacher's folder. Out: soft labels, concept attention, and whether all of
it is whole. Ignores: how signals were made.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ckd_ehr.contracts.config import RunConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_table, sha256_of
from ckd_ehr.contracts.records import SOFT_LABELS, Narrative
from ckd_ehr.learning.precision import Arithmetic
from ckd_ehr.learning.teacher import trained_in
from ckd_ehr.learning.weights import model_digest

TEMPLATE = "narrative-2"
KEPT = ("attention", "readout", "retained", "state")

INDEX = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("fold", pa.int8(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("concept_ids", pa.list_(pa.string()), nullable=False),
    ]
)


@dataclass(frozen=True)
class FoldTeacher:
    """All that decides what a fold's teacher says of a text."""

    model: str
    adapter: str
    fold: int
    precision: Arithmetic
    orders: int

    @classmethod
    def of(cls, config: RunConfig, folder: Path, fold: int) -> "FoldTeacher":
        """The teacher without this fold, from the folder of the teacher stage."""
        here = folder / f"fold_{fold}"
        return cls(
            model=model_digest(config.teacher.model),
            adapter=adapter_digest(here),
            fold=fold,
            precision=trained_in(here),
            orders=config.signals.orders,
        )

    def key(self, text: str) -> str:
        """hash(text, template, tokenizer and weights, adapter, fold, dtype, orders).

        The dtype is what was computed in, never `auto`: that is not the same on every machine.
        """
        facts = (self.model, self.adapter, str(self.fold), self.precision, str(self.orders))
        return hashlib.sha256("\0".join((text, TEMPLATE, *facts)).encode()).hexdigest()[:32]


def adapter_digest(folder: Path) -> str:
    """The identity of a fold teacher's trained weights."""
    files = ("adapter_model.safetensors", "head.safetensors")
    return hashlib.sha256("".join(sha256_of(folder / name) for name in files).encode()).hexdigest()


@dataclass(frozen=True)
class ConceptAttention:
    """The teacher's attention on a pair: (labels, 1 + concepts), the reading state first."""

    concept_ids: tuple[str, ...]
    attention: NDArray[np.float32]


@dataclass(frozen=True)
class SignalFacts:
    """What a whole signals folder holds."""

    pairs: int
    shards: int
    bytes: int

    @property
    def bytes_per_pair(self) -> float:
        """Of the shards."""
        return self.bytes / max(self.pairs, 1)


class SignalStore:
    """Reads a signals folder by key, and refuses signals of another text or teacher.

    Args:
        folder: of the signals stage.
        teacher: the folder of the teacher stage.
        config: of the run.
    """

    def __init__(self, folder: Path, *, teacher: Path, config: RunConfig) -> None:
        self.folder = folder
        self._config = config
        self._teacher_folder = teacher
        self._teachers: dict[int, FoldTeacher] = {}
        index = read_table(folder / "index.parquet", INDEX).to_pylist()
        self._index = {row["pair_id"]: row for row in index}

    def logits(self, source: str) -> dict[str, NDArray[np.float32]]:
        """A source's calibrated log-odds (labels,) of every pair."""
        table = read_table(self.folder / "soft_labels.parquet", SOFT_LABELS)
        rows = table.filter(pc.equal(table["source"], source)).to_pylist()
        if not rows:
            raise CkdEhrError(
                f"{self.folder}/soft_labels.parquet: no source '{source}'; see student.soft_labels"
            )
        return {row["pair_id"]: np.asarray(row["logits"], dtype=np.float32) for row in rows}

    def attention(self, pair_id: str, text: str) -> ConceptAttention | None:
        """The attention of a pair, if it was made from this text by its fold's teacher.

        None where the teacher has not read the pair.
        """
        row = self._index.get(pair_id)
        if row is None:
            return None
        self._check_key(row, text)
        with safe_open(self.folder / row["shard"], framework="pt") as shard:
            attention = shard.get_tensor(f"{pair_id}/attention").float().numpy()
        return ConceptAttention(tuple(row["concept_ids"]), attention)

    def verify(self, narratives: Mapping[str, Narrative]) -> SignalFacts:
        """Check every pair's key, tensors and sums.

        Raises:
            CkdEhrError: something is missing, damaged, or of another text or teacher.
        """
        shards: dict[str, list[Mapping[str, object]]] = {}
        for pair_id, row in self._index.items():
            if pair_id not in narratives:
                raise CkdEhrError(f"{self.folder}/index.parquet: a pair has no narrative")
            self._check_key(row, narratives[pair_id].text)
            shards.setdefault(row["shard"], []).append(row)
        for name, rows in shards.items():
            self._verify_shard(self.folder / name, rows)
        size = sum((self.folder / name).stat().st_size for name in shards)
        return SignalFacts(pairs=len(self._index), shards=len(shards), bytes=size)

    def _verify_shard(self, path: Path, rows: list[Mapping[str, object]]) -> None:
        remedy = "rerun stage signals"
        try:
            with safe_open(path, framework="pt") as shard:
                for row in rows:
                    for name in KEPT:
                        values = shard.get_tensor(f"{row['pair_id']}/{name}").float().numpy()
                        if not np.isfinite(values).all():
                            raise CkdEhrError(f"{path}: {name} of a pair is not finite; {remedy}")
                        if name == "attention" and np.abs(values.sum(-1) - 1).max() > 5e-3:
                            raise CkdEhrError(f"{path}: attention does not sum to 1; {remedy}")
        except (OSError, SafetensorError) as error:
            kind = type(error).__name__
            raise CkdEhrError(f"{path}: missing or damaged ({kind}); {remedy}") from None

    def _check_key(self, row: Mapping[str, object], text: str) -> None:
        if row["key"] != self._teacher(int(str(row["fold"]))).key(text):
            raise CkdEhrError(
                f"{self.folder}: a pair's signals come from another text or teacher; "
                f"rerun stage signals"
            )

    def _teacher(self, fold: int) -> FoldTeacher:
        if fold not in self._teachers:
            self._teachers[fold] = FoldTeacher.of(self._config, self._teacher_folder, fold)
        return self._teachers[fold]
