"""What a signals folder holds: names, index, keys, and the teacher's opinions.

In: a signals folder, the teacher's folder. Out: the key of a text and teacher; of each fold's
teacher raw log-odds and evidence. Ignores: how signals were made; `signal_loader` reads those of
the student.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError, safe_open

from ckd_ehr.contracts.config import RunConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json, sha256_of
from ckd_ehr.learning.examples import PairTable
from ckd_ehr.learning.precision import Arithmetic
from ckd_ehr.learning.scoring import Floats
from ckd_ehr.learning.soft_labels import FoldOpinion, rows_to_label
from ckd_ehr.learning.teacher import trained_in
from ckd_ehr.learning.weights import model_digest

TEMPLATE = "narrative-2"
REMEDY = "rerun stage signals"
INDEX_FILE = "index.parquet"
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


def read_opinions(
    folder: Path, fold: int, pairs: PairTable, *, unlabelled: bool = True
) -> FoldOpinion:
    """What the teacher without a fold says of the fold's pairs and of all later splits."""
    rows = rows_to_label(pairs, fold, unlabelled=unlabelled)
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
    with naming(path), safe_open(path, framework="pt") as shard:
        yield shard


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """A shard that cannot be read is an error that names it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        kind = type(error).__name__
        raise CkdEhrError(f"{path}: missing or damaged ({kind}); {REMEDY}") from None
