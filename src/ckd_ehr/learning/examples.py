"""Pairs and narratives from their tables, ready to be encoded.

In: the cohort's and the knowledge stage's files. Out: arrays keyed by pair, and examples for one
tokenizer. Ignores: what is trained on them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_table
from ckd_ehr.contracts.records import PAIRS, Narrative, label_names
from ckd_ehr.learning.alignment import Reading, encode
from ckd_ehr.learning.batches import Example
from ckd_ehr.learning.concept_tokens import read_extended
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


def read_label_names(cohort: Path) -> tuple[str, ...]:
    """What the cohort stage's labels are called, in their order."""
    try:
        return label_names(pq.read_schema(cohort / "pairs.parquet"))
    except (OSError, pa.ArrowInvalid) as error:
        raise CkdEhrError(
            f"{cohort / 'pairs.parquet'}: missing or damaged ({type(error).__name__}); "
            "run stage cohort again"
        ) from None


class TextReader:
    """How one model reads narratives: its tokenizer, its reading position, its padding.

    Args:
        model: its name.
        reading: where it reads.
        extended: the file of its tokenizer with whole concepts as tokens, if it reads with that.
    """

    def __init__(self, model: str, reading: Reading, extended: Path | None = None) -> None:
        self.tokenizer = read_extended(model, extended) if extended else load_tokenizer(model)
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
        wanted = [pairs.pair_ids[row] for row in rows]
        texts = ((pair_id, narratives[pair_id]) for pair_id in wanted if pair_id in narratives)
        return self.read(pairs, texts, rows)

    def read(
        self, pairs: PairTable, texts: Iterable[tuple[str, Narrative]], rows: Sequence[int]
    ) -> list[Example]:
        """As `examples`, of narratives that come in any order and are not kept."""
        row_of = {pairs.pair_ids[row]: row for row in rows}
        read: dict[int, Example] = {}
        for pair_id, narrative in texts:
            if (row := row_of.get(pair_id)) is not None:
                labels = pairs.labels[row].astype(np.float32) if pairs.labelled[row] else None
                read[row] = replace(self.example(pair_id, narrative), labels=labels)
        if len(read) < len(row_of):
            raise CkdEhrError("a pair has no narrative; rerun stage knowledge")
        return [read[row] for row in rows]


def _special_tokens(folder: Path) -> dict[str, int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    if end is None or pad is None:
        raise CkdEhrError(f"model {folder.name}: its tokenizer names no end or padding token")
    return {"pad": int(pad), "end": int(end)}
