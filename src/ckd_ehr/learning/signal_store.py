"""Reading signals by key: what was written for another text or teacher is refused.

In: a signals folder, the teacher's folder. Out: concept attention, and whether all of it is whole;
the teacher's opinions and evidence. Ignores: how signals were made.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ckd_ehr.contracts.config import RunConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json, read_table, sha256_of
from ckd_ehr.contracts.records import SOFT_LABELS, Narrative
from ckd_ehr.learning.examples import PairTable
from ckd_ehr.learning.precision import Arithmetic
from ckd_ehr.learning.scoring import Floats
from ckd_ehr.learning.soft_labels import FoldOpinion, rows_to_label
from ckd_ehr.learning.teacher import trained_in
from ckd_ehr.learning.weights import model_digest

TEMPLATE = "narrative-2"
KEPT = ("attention", "readout", "retained", "state")
REMEDY = "rerun stage signals"
LOGITS, EVIDENCE = "logits", "evidence"
OF_THE_MACHINE = ("base_model_name_or_path", "revision", "peft_version")

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
    reading: str

    @classmethod
    def of(cls, config: RunConfig, folder: Path, fold: int) -> "FoldTeacher":
        """The teacher without this fold, from the folder of the teacher stage."""
        here = folder / f"fold_{fold}"
        return cls(
            model=model_digest(config.teacher.model),
            adapter=adapter_digest(here),
            fold=fold,
            precision=trained_in(here),
            reading=_reading(config),
        )

    def key(self, text: str) -> str:
        """hash(text, template, tokenizer and weights, adapter, fold, dtype, how it is read).

        The dtype is what was computed in, never `auto`: that is not the same on every machine.
        """
        facts = (self.model, self.adapter, str(self.fold), self.precision, self.reading)
        return hashlib.sha256("\0".join((text, TEMPLATE, *facts)).encode()).hexdigest()[:32]


def adapter_digest(folder: Path) -> str:
    """The identity of a fold teacher's trained weights, their scale, and the labels they are of."""
    files = ("adapter_model.safetensors", "head.safetensors", "head.json")
    adapter = read_json(folder / "adapter_config.json")
    facts = {name: value for name, value in adapter.items() if name not in OF_THE_MACHINE}
    parts = [*(sha256_of(folder / name) for name in files), json.dumps(facts, sort_keys=True)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _reading(config: RunConfig) -> str:
    """The settings that decide what a trained teacher says of a text."""
    teacher, orders = config.teacher, config.signals.orders
    facts: dict[str, object] = {
        "orders": orders,
        "seed": config.seed if orders > 1 else None,
        "bidirectional": teacher.bidirectional,
        "quantize": teacher.quantize,
        "pooling": teacher.head_pooling,
        "prompt_tokens": teacher.paper.max_tokens if teacher.recipe == "paper" else None,
    }
    return json.dumps(facts, sort_keys=True)


def shard_name(fold: int, start: int) -> str:
    """The file of what the student reads of a chunk of pairs."""
    return f"signals-{fold}-{start:08d}.safetensors"


def opinions_name(fold: int, start: int) -> str:
    """The file of a chunk's raw log-odds (orders, pairs, labels), and evidence by pair."""
    return f"opinions-{fold}-{start:08d}.safetensors"


def read_opinions(folder: Path, fold: int, pairs: PairTable) -> FoldOpinion:
    """What the teacher without a fold says of the fold's pairs and of all later splits."""
    rows = rows_to_label(pairs, fold)
    parts = []
    for path in _opinion_files(folder, fold):
        with _opened(path) as shard:
            parts.append(shard.get_tensor(LOGITS).double().numpy())
    logits = np.concatenate(parts, axis=1) if parts else np.zeros((1, 0, len(pairs.label_names)))
    if logits.shape[1:] != (len(rows), len(pairs.label_names)):
        raise CkdEhrError(
            f"{folder}: opinions of {logits.shape[1]:,} pairs and {logits.shape[2]} labels, the "
            f"cohort has {len(rows):,} and {len(pairs.label_names)}; {REMEDY}"
        )
    return FoldOpinion(fold, rows, logits)


def read_evidence(folder: Path, fold: int) -> Iterator[tuple[str, Floats]]:
    """Each pair's evidence of raw log-odds (labels, 1 + concepts) by the teacher without a fold."""
    for path in _opinion_files(folder, fold):
        with _opened(path) as shard:
            for name in shard.keys():  # noqa: SIM118 - it is no mapping
                if name != LOGITS:
                    yield name.split("/")[0], shard.get_tensor(name).double().numpy()


def _opinion_files(folder: Path, fold: int) -> list[Path]:
    return sorted(folder.glob(f"opinions-{fold}-*.safetensors"))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as shard:
            yield shard
    except (OSError, SafetensorError) as error:
        kind = type(error).__name__
        raise CkdEhrError(f"{path}: missing or damaged ({kind}); {REMEDY}") from None


def soft_logits(committee: Path, source: str) -> dict[str, NDArray[np.float32]]:
    """A source's calibrated log-odds (labels,) of every pair, from the committee stage's folder."""
    path = committee / "soft_labels.parquet"
    table = read_table(path, SOFT_LABELS)
    mine = table.filter(pc.equal(table["source"], source))
    if not mine.num_rows:
        raise CkdEhrError(f"{path}: no source '{source}'; see student.soft_labels")
    ids = mine["pair_id"].to_pylist()
    if len(set(ids)) != len(ids):
        raise CkdEhrError(f"{path}: source '{source}' names a pair twice; rerun stage committee")
    values = (np.asarray(row, dtype=np.float32) for row in mine["logits"].to_pylist())
    return dict(zip(ids, values, strict=True))


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
        with _opened(path) as shard:
            for row in rows:
                for name in KEPT:
                    values = shard.get_tensor(f"{row['pair_id']}/{name}").float().numpy()
                    if not np.isfinite(values).all():
                        raise CkdEhrError(f"{path}: {name} of a pair is not finite; {REMEDY}")
                    if name == "attention" and np.abs(values.sum(-1) - 1).max() > 5e-3:
                        raise CkdEhrError(f"{path}: attention does not sum to 1; {REMEDY}")

    def _check_key(self, row: Mapping[str, object], text: str) -> None:
        if row["key"] != self._teacher(int(str(row["fold"]))).key(text):
            raise CkdEhrError(
                f"{self.folder}: a pair's signals come from another text or teacher; {REMEDY}"
            )

    def _teacher(self, fold: int) -> FoldTeacher:
        if fold not in self._teachers:
            self._teachers[fold] = FoldTeacher.of(self._config, self._teacher_folder, fold)
        return self._teachers[fold]
