"""What the student reads of the teacher's signals, a batch at a time: all of them are gigabytes.

In: a signals folder, the teacher's folder and texts. Out: each pair's signal on the student's own
concepts, read as it is asked for; or whether the folder is whole. Signals of another text or
teacher are refused before anything is read. Ignores: how signals were made, and how they are used.
"""

import sys
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors import safe_open

from ckd_ehr.contracts.config import RunConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_batches
from ckd_ehr.contracts.records import NARRATIVES
from ckd_ehr.learning.alignment import Encoded
from ckd_ehr.learning.batches import Example, Signal
from ckd_ehr.learning.signal_store import INDEX, INDEX_FILE, REMEDY, FoldTeacher, naming

KEPT = ("attention", "readout", "retained", "state")
OPEN_SHARDS = 32  # of 4 to 8 MB each, mapped into memory
KEYS = pa.schema([INDEX.field(name) for name in ("pair_id", "fold", "key", "shard")])
CONCEPTS = pa.schema([INDEX.field(name) for name in ("pair_id", "concept_ids")])
TEXTS = pa.schema([NARRATIVES.field(name) for name in ("pair_id", "text")])


class Shards:
    """A signals folder's tensors; the shards used last stay open, the others' memory is given back.

    Args:
        folder: of the signals stage.
        limit: how many stay open.
    """

    def __init__(self, folder: Path, *, limit: int = OPEN_SHARDS) -> None:
        self.folder = folder
        self.limit = limit
        self._open: OrderedDict[str, tuple[Any, ExitStack]] = OrderedDict()

    def read(self, shard: str, pair_id: str, name: str) -> NDArray[np.float32]:
        """A pair's tensor, in memory of its own.

        Raises:
            CkdEhrError: the shard is missing or damaged, or lacks the tensor.
        """
        with naming(self.folder / shard):
            values = self._opened(shard).get_tensor(f"{pair_id}/{name}")
        return np.asarray(values, dtype=np.float32)

    def _opened(self, shard: str) -> Any:
        if shard not in self._open:
            while len(self._open) >= self.limit:
                _, (_, oldest) = self._open.popitem(last=False)
                oldest.close()
            stack = ExitStack()
            path = self.folder / shard
            self._open[shard] = stack.enter_context(safe_open(path, framework="numpy")), stack
        self._open.move_to_end(shard)
        return self._open[shard][0]


class _Place(NamedTuple):
    """Where a pair's signal is, and the teacher's place of each of the student's states, or -1."""

    shard: str
    fold: int
    places: NDArray[np.int16]


class SignalLoader:
    """Reads the signals of train pairs as batches ask for them.

    Args:
        folder: of the signals stage.
        teacher, knowledge: the folders of those stages.
        config: of the run.
        examples: the pairs as the student reads them.
        layers: whether to read what each layer looks at.
        states: whether to read the teacher's state of the whole text.

    Raises:
        CkdEhrError: some signal was made from another text or by another teacher.
    """

    def __init__(
        self,
        folder: Path,
        *,
        teacher: Path,
        knowledge: Path,
        config: RunConfig,
        examples: Iterable[Example],
        layers: bool = False,
        states: bool = False,
    ) -> None:
        self.layers = layers
        self.states = states
        self._shards = Shards(folder)
        index = _checked_index(folder, teacher=teacher, knowledge=knowledge, config=config)
        self._places = _places(folder, index, examples)

    def __len__(self) -> int:
        """How many of the examples have a signal."""
        return len(self._places)

    def signal(self, pair_id: str) -> Signal | None:
        """The pair's signal on the student's states; None where the teacher has not read it."""
        if pair_id not in self._places:
            return None
        shard, fold, places = self._places[pair_id]
        read = partial(self._shards.read, shard, pair_id)
        attention = _placed(read("attention"), places)
        shared = np.asarray(attention.any(0))  # all zero: cut from the teacher's text
        shared[0] = True  # both have a reading state, however little rests on it
        return Signal(
            fold=fold,
            attention=attention,
            shared=shared,
            readout=_placed(read("readout"), places[1:] - 1) if self.layers else None,
            retained=read("retained") if self.layers else None,
            state=read("state") if self.states else None,
        )


def _checked_index(
    folder: Path, *, teacher: Path, knowledge: Path, config: RunConfig
) -> dict[str, tuple[str, int]]:
    """Shard and fold of each pair, after every pair's key was compared with the teacher's text.

    Raises:
        CkdEhrError: a signal is of another text or teacher, or of no text.
    """
    keys: dict[str, str] = {}
    index: dict[str, tuple[str, int]] = {}
    for batch in read_batches(folder / INDEX_FILE, KEYS):
        for row in batch.to_pylist():
            keys[row["pair_id"]] = row["key"]
            index[row["pair_id"]] = sys.intern(row["shard"]), row["fold"]
    folds = {fold for _, fold in index.values()}
    teachers = {fold: FoldTeacher.of(config, teacher, fold) for fold in folds}
    for batch in read_batches(knowledge / "teacher.parquet", TEXTS):
        for row in batch.to_pylist():
            key = keys.pop(row["pair_id"], None)
            if key is not None and key != teachers[index[row["pair_id"]][1]].key(row["text"]):
                raise CkdEhrError(
                    f"{folder}: a pair's signals come from another text or teacher; {REMEDY}"
                )
    if keys:
        raise CkdEhrError(f"{folder / INDEX_FILE}: {len(keys):,} pairs have no narrative; {REMEDY}")
    return index


def _places(
    folder: Path, index: Mapping[str, tuple[str, int]], examples: Iterable[Example]
) -> dict[str, _Place]:
    encoded = {example.pair_id: example.encoded for example in examples}
    places: dict[str, _Place] = {}
    for batch in read_batches(folder / INDEX_FILE, CONCEPTS):
        for row in batch.to_pylist():
            if (mine := encoded.get(row["pair_id"])) is not None:
                there = _places_of(mine, row["concept_ids"])
                places[row["pair_id"]] = _Place(*index[row["pair_id"]], there)
    return places


def _places_of(encoded: Encoded, concept_ids: Sequence[str]) -> NDArray[np.int16]:
    """The place of each state (1 + concepts,) among the teacher's, whose concepts these are.

    The reading state is 0; -1 is a concept of which the teacher was not told, or no token of which
    was left for this reader.
    """
    place_of = {name: place for place, name in enumerate(concept_ids, start=1)}
    places = np.full(1 + len(encoded.concept_ids), -1, dtype=np.int16)
    places[0] = 0
    for state in np.unique(encoded.concept_index):
        if state > 0:
            places[state] = place_of.get(encoded.concept_ids[state - 1], -1)
    return places


def _placed(values: NDArray[np.float32], places: NDArray[np.int16]) -> NDArray[np.float32]:
    """Columns of `values` (rows, columns) at these places, zero where there is none.

    >>> _placed(np.array([[5, 6]], dtype=np.float32), np.array([1, -1, 0], dtype=np.int16)).tolist()
    [[6.0, 0.0, 5.0]]
    """
    placed = np.zeros((len(values), len(places)), dtype=np.float32)
    placed[:, places >= 0] = values[:, places[places >= 0]]
    return placed


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


def verify_signals(
    folder: Path, *, teacher: Path, knowledge: Path, config: RunConfig
) -> SignalFacts:
    """Check every pair's key, tensors and sums.

    Raises:
        CkdEhrError: something is missing, damaged, or of another text or teacher.
    """
    index = _checked_index(folder, teacher=teacher, knowledge=knowledge, config=config)
    shards = Shards(folder, limit=1)
    for pair_id, (shard, _) in index.items():
        for name in KEPT:
            values = shards.read(shard, pair_id, name)
            if not np.isfinite(values).all():
                raise CkdEhrError(f"{folder / shard}: {name} of a pair is not finite; {REMEDY}")
            if name == "attention" and np.abs(values.sum(-1) - 1).max() > 5e-3:
                raise CkdEhrError(f"{folder / shard}: attention does not sum to 1; {REMEDY}")
    names = {shard for shard, _ in index.values()}
    size = sum((folder / name).stat().st_size for name in names)
    return SignalFacts(pairs=len(index), shards=len(names), bytes=size)
