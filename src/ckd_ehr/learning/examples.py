"""Pairs and narratives from their tables, ready to be encoded.

In: the cohort's and the knowledge stage's files. Out: arrays keyed by pair, and examples for one
tokenizer. Ignores: what is trained on them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_table
from ckd_ehr.contracts.records import PAIRS, Narrative, label_names
from ckd_ehr.learning.alignment import Reading, encode
from ckd_ehr.learning.batches import Example
from ckd_ehr.learning.weights import load_tokenizer, resolve_model


@dataclass(frozen=True)
class PairTable:
    """The cohort's pairs as aligned columns (pairs,), labels (pairs, labels)."""

    pair_ids: tuple[str, ...]
    subject_ids: NDArray[np.int64]
    split: NDArray[np.str_]
    fold: NDArray[np.int8]
    labelled: NDArray[np.bool_]
    labels: NDArray[np.bool_]  # False where not labelled
    label_names: tuple[str, ...]

    def rows(self, *, split: str, labelled: bool | None = None) -> NDArray[np.intp]:
        """Row numbers of a split, optionally only the labelled or only the unlabelled ones."""
        chosen = self.split == split
        if labelled is not None:
            chosen &= self.labelled == labelled
        return np.nonzero(chosen)[0]

    def prevalence(self, rows: NDArray[np.intp] | None = None) -> NDArray[np.float64]:
        """Share of each label among rows (default: all labelled train pairs), never 0 or 1."""
        if rows is None:
            rows = self.rows(split="train", labelled=True)
        return np.asarray((self.labels[rows].sum(0) + 0.5) / (len(rows) + 1.0))


def read_pairs(cohort: Path) -> PairTable:
    """Read the cohort stage's pairs."""
    table = read_table(cohort / "pairs.parquet", PAIRS)
    names = label_names(table.schema)
    rows = table.column("labels").to_pylist()
    return PairTable(
        pair_ids=tuple(table.column("pair_id").to_pylist()),
        subject_ids=table.column("subject_id").to_numpy(),
        split=np.asarray(table.column("split").to_pylist()),
        fold=table.column("fold").to_numpy(),
        labelled=np.array([row is not None for row in rows]),
        labels=np.array([row or [False] * len(names) for row in rows], dtype=bool),
        label_names=names,
    )


class TextReader:
    """How one model reads narratives: its tokenizer, its reading position, its padding."""

    def __init__(self, model: str, reading: Reading) -> None:
        self.tokenizer = load_tokenizer(model)
        self.reading: Reading = reading
        tokens = _special_tokens(resolve_model(model))
        self.pad_token = tokens["pad"]
        self.end_token = tokens["end"] if reading == "last" else None

    def example(self, pair_id: str, narrative: Narrative) -> Example:
        """The narrative as this model reads it, without targets."""
        encoded = encode(narrative, self.tokenizer, reading=self.reading, end_token=self.end_token)
        return Example(pair_id=pair_id, encoded=encoded)

    def examples(
        self, pairs: PairTable, narratives: Mapping[str, Narrative], rows: Sequence[int]
    ) -> list[Example]:
        """Examples of these rows, with their hard labels where they have any."""
        return [self._labelled(pairs, narratives, row) for row in rows]

    def _labelled(self, pairs: PairTable, texts: Mapping[str, Narrative], row: int) -> Example:
        pair_id = pairs.pair_ids[row]
        if pair_id not in texts:
            raise CkdEhrError("a pair has no narrative; rerun stage knowledge")
        example = self.example(pair_id, texts[pair_id])
        labels = pairs.labels[row].astype(np.float32) if pairs.labelled[row] else None
        return Example(pair_id=pair_id, encoded=example.encoded, labels=labels)


def _special_tokens(folder: Path) -> dict[str, int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    if end is None or pad is None:
        raise CkdEhrError(f"model {folder.name}: its tokenizer names no end or padding token")
    return {"pad": int(pad), "end": int(end)}
