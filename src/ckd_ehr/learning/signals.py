"""What the teacher knows, written once: calibrated soft labels and concept attention.

In: the fold teachers and the teacher's narratives. Out: `soft_labels.parquet`, and per train pair
the attention of each label over concepts in safetensors shards, found through `index.parquet`.
A pair's signals carry the hash of everything they came from; a wrong key is an error, never a
silent mismatch. Ignores: how the student uses them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_table, sha256_of, write_json, write_table
from ckd_ehr.contracts.fitted import FITTED, FittedOn, fitted_on, write_fitted
from ckd_ehr.contracts.records import SOFT_LABELS, Narrative, with_label_names
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.knowledge.sources import read_narratives
from ckd_ehr.learning.batches import Example, batches_by_tokens
from ckd_ehr.learning.examples import PairTable, TextReader, read_pairs
from ckd_ehr.learning.heads import LabelAttentionModel
from ckd_ehr.learning.precision import Arithmetic
from ckd_ehr.learning.reading import pick_device, read_batch, reading
from ckd_ehr.learning.scoring import PlattScaling, fit_platt
from ckd_ehr.learning.teacher import load_teacher, out_of_fold, trained_in
from ckd_ehr.learning.weights import model_digest

TEMPLATE = "narrative-1"
CHUNK = 256
MEAN_OF_FOLDS = -1

INDEX = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("concept_ids", pa.list_(pa.string()), nullable=False),
    ]
)


@dataclass(frozen=True)
class FoldOutput:
    """What one fold teacher says of its rows: raw logits (rows, labels)."""

    rows: NDArray[np.intp]
    logits: NDArray[np.float64]


def write_signals(context: StageContext) -> None:
    """Label every pair with the teacher that has not seen its patient; calibrate; write."""
    pairs = read_pairs(context.inputs["cohort"])
    narratives = read_narratives(context.inputs["knowledge"], "teacher")
    reader = TextReader(context.config.teacher.model, "last")
    outputs, index = [], []
    for fold in range(context.config.splits.folds):
        rows = out_of_fold(pairs, fold)
        examples = reader.examples(pairs, narratives, rows.tolist())
        labeller = _FoldLabeller(context, fold, reader.pad_token)
        logits = labeller.label(examples, attention_of=pairs.split[rows] == "train")
        outputs.append(FoldOutput(rows, logits))
        index += labeller.publish_attention(examples, narratives)
    calibrated = [_calibrate(output, pairs, context, fold) for fold, output in enumerate(outputs)]
    scalings = [scaling for scaling, _ in calibrated]
    write_fitted(context.folder / FITTED, [record for _, record in calibrated])
    _write_soft_labels(context.folder / "soft_labels.parquet", pairs, outputs, scalings)
    write_table(pa.Table.from_pylist(index, INDEX), context.folder / "index.parquet", INDEX)
    calibration = {
        f"fold_{fold}": {"slope": scaling.slope.tolist(), "intercept": scaling.intercept.tolist()}
        for fold, scaling in enumerate(scalings)
    }
    write_json(context.folder / "calibration.json", calibration)


def signal_key(text: str, *, model: str, adapter: str, fold: int, precision: Arithmetic) -> str:
    """hash(text, template, tokenizer and weights, adapter, fold, dtype).

    `precision` is what was computed in, never `auto`: that is not the same on every machine.
    """
    parts = (text, TEMPLATE, model, adapter, str(fold), precision)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def adapter_digest(folder: Path) -> str:
    """The identity of a fold teacher's trained weights."""
    files = ("adapter_model.safetensors", "head.safetensors")
    return hashlib.sha256("".join(sha256_of(folder / name) for name in files).encode()).hexdigest()


class _FoldLabeller:
    """Runs one fold teacher over its pairs, chunk by chunk, so that a kill loses one chunk."""

    def __init__(self, context: StageContext, fold: int, pad_token: int) -> None:
        self.context = context
        self.fold = fold
        self.pad_token = pad_token
        self.folder = context.inputs["teacher"] / f"fold_{fold}"
        self.precision = trained_in(self.folder)
        self.settings = context.config.teacher.model_copy(update={"precision": self.precision})
        self.device = pick_device(context.config.device)
        self._model: LabelAttentionModel | None = None

    def label(
        self, examples: Sequence[Example], *, attention_of: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Logits (examples, labels); the attention of the chosen ones goes to chunk files."""
        logits = []
        for start in range(0, len(examples), CHUNK):
            path = self._chunk(start)
            if not path.is_file():
                self._label_chunk(examples[start : start + CHUNK], attention_of[start:], path)
                done = min(start + CHUNK, len(examples))
                self.context.say(
                    f"    teacher of fold {self.fold}: {done}/{len(examples)} labelled"
                )
            logits.append(load_file(path)["logits"].double().numpy())
        return np.concatenate(logits)

    def _chunk(self, start: int) -> Path:
        return self.context.work / f"fold_{self.fold}_{start:08d}.safetensors"

    def _label_chunk(
        self, examples: Sequence[Example], attention_of: NDArray[np.bool_], path: Path
    ) -> None:
        if self._model is None:
            self._model = load_teacher(self.settings, self.folder, device=self.device)
        lengths = [len(example.encoded.input_ids) for example in examples]
        tensors: dict[str, torch.Tensor] = {}
        logits = torch.zeros(len(examples), len(self._model.head.bias))
        for rows in batches_by_tokens(lengths, self.context.config.signals.batch_tokens):
            batch = [examples[row] for row in rows]
            with reading(self.device, self.precision):
                output = read_batch(
                    self._model, batch, pad_token=self.pad_token, device=self.device
                )
            for place, row in enumerate(rows):
                logits[row] = output.logits[place]
                if attention_of[row]:
                    states = 1 + len(examples[row].encoded.concept_ids)
                    attention = output.attention[place, :, :states]
                    tensors[examples[row].pair_id] = attention.half().contiguous()
        temporary = path.with_suffix(".tmp")
        save_file({"logits": logits, **tensors}, temporary)
        temporary.rename(path)

    def publish_attention(
        self,
        examples: Sequence[Example],
        narratives: Mapping[str, Narrative],
    ) -> list[dict[str, object]]:
        """Copy the chunks' attention into the stage's folder; returns index rows."""
        origin = {
            "model": model_digest(self.settings.model),
            "adapter": adapter_digest(self.folder),
        }
        index: list[dict[str, object]] = []
        for start in range(0, len(examples), CHUNK):
            tensors = load_file(self._chunk(start))
            del tensors["logits"]
            if not tensors:
                continue
            shard = f"attention-{self.fold}-{start:08d}.safetensors"
            save_file(tensors, self.context.folder / shard)
            for example in examples[start : start + CHUNK]:
                if example.pair_id in tensors:
                    key = signal_key(
                        narratives[example.pair_id].text,
                        fold=self.fold,
                        precision=self.precision,
                        **origin,
                    )
                    concepts = list(example.encoded.concept_ids)
                    index.append(
                        {"pair_id": example.pair_id, "key": key, "shard": shard,
                         "concept_ids": concepts}
                    )  # fmt: skip
        return index


def _calibrate(
    output: FoldOutput, pairs: PairTable, context: StageContext, fold: int
) -> tuple[PlattScaling, FittedOn]:
    """Platt scaling on the fold's own labelled train pairs, none of which its teacher has seen."""
    train = (pairs.split[output.rows] == "train") & pairs.labelled[output.rows]
    rows = output.rows[train]
    ridge = context.config.signals.calibration_ridge
    scaling = fit_platt(output.logits[train], pairs.labels[rows], ridge=ridge)
    ids = [pairs.pair_ids[row] for row in rows]
    return scaling, fitted_on(f"fold_{fold}/platt", ids, split="train", folds=[fold])


def _write_soft_labels(
    path: Path,
    pairs: PairTable,
    outputs: Sequence[FoldOutput],
    scalings: Sequence[PlattScaling],
) -> None:
    """Train pairs: their own fold's teacher. Later splits: mean and spread over the teachers."""
    labels = len(pairs.label_names)
    calibrated = np.full((len(outputs), len(pairs.pair_ids), labels), np.nan)
    for fold, (output, scaling) in enumerate(zip(outputs, scalings, strict=True)):
        calibrated[fold, output.rows] = scaling.apply(output.logits)
    rows = []
    for row, pair_id in enumerate(pairs.pair_ids):
        by_fold = calibrated[:, row]
        known = by_fold[~np.isnan(by_fold[:, 0])]
        single = pairs.split[row] == "train"
        rows.append(
            {
                "pair_id": pair_id,
                "source": "teacher",
                "logits": known.mean(0).astype(np.float32).tolist(),
                "spread": None if single else known.std(0).astype(np.float32).tolist(),
                "fold": int(pairs.fold[row]) if single else MEAN_OF_FOLDS,
            }
        )
    schema = with_label_names(SOFT_LABELS, pairs.label_names)
    write_table(pa.Table.from_pylist(rows, SOFT_LABELS), path, schema)


@dataclass(frozen=True)
class ConceptAttention:
    """The teacher's attention on a pair: (labels, 1 + concepts), the reading state first."""

    concept_ids: tuple[str, ...]
    attention: NDArray[np.float32]


@dataclass(frozen=True)
class _FoldTeacher:
    """What tells a fold's teacher from another of the same model."""

    adapter: str
    precision: Arithmetic


class SignalStore:
    """Reads a signals folder by key, and refuses signals of another text or teacher."""

    def __init__(self, folder: Path, *, model: str, teacher: Path) -> None:
        self.folder = folder
        self.model = model_digest(model)
        self.teacher = teacher
        self._teachers: dict[int, _FoldTeacher] = {}
        index = read_table(folder / "index.parquet", INDEX).to_pylist()
        self._index = {row["pair_id"]: row for row in index}

    def logits(self) -> dict[str, NDArray[np.float32]]:
        """Calibrated log-odds (labels,) of every pair the teacher labelled."""
        table = read_table(self.folder / "soft_labels.parquet", SOFT_LABELS)
        return {
            row["pair_id"]: np.asarray(row["logits"], dtype=np.float32) for row in table.to_pylist()
        }

    def attention(self, pair_id: str, text: str, fold: int) -> ConceptAttention:
        """The attention of a pair, if it was made from this text by this fold's teacher."""
        row = self._index.get(pair_id)
        if row is None:
            raise CkdEhrError(f"{self.folder}: a pair has no signals; rerun stage signals")
        teacher = self._teacher(fold)
        expected = signal_key(
            text,
            model=self.model,
            adapter=teacher.adapter,
            fold=fold,
            precision=teacher.precision,
        )
        if row["key"] != expected:
            raise CkdEhrError(
                f"{self.folder}: a pair's signals come from another text or teacher; "
                f"rerun stage signals"
            )
        with safe_open(self.folder / row["shard"], framework="pt") as shard:
            attention = shard.get_tensor(pair_id).float().numpy()
        return ConceptAttention(tuple(row["concept_ids"]), attention)

    def _teacher(self, fold: int) -> _FoldTeacher:
        if fold not in self._teachers:
            folder = self.teacher / f"fold_{fold}"
            self._teachers[fold] = _FoldTeacher(adapter_digest(folder), trained_in(folder))
        return self._teachers[fold]
