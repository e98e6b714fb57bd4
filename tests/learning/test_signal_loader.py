"""Signals read as they are asked for: each on the right concept, of the right text, or refused."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from ckd_ehr.contracts.config import RunConfig, build_config
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import write_json, write_table
from ckd_ehr.contracts.records import NARRATIVES
from ckd_ehr.learning.batches import Example
from ckd_ehr.learning.signal_loader import Shards, SignalLoader, verify_signals
from ckd_ehr.learning.signal_store import INDEX, INDEX_FILE, FoldTeacher, shard_name
from tiny import encoded_of, tiny_qwen2

LABELS, LAYERS, SIZE = 2, 3, 4
TOLD = {"p": "abcd", "q": "ba", "none": ""}  # the teacher's concepts of each pair it has read


class Folders:
    """A signals folder of three pairs in as many shards, written by hand."""

    def __init__(self, root: Path) -> None:
        self.signals, self.teacher, self.knowledge = (
            root / name for name in ("signals", "teacher", "knowledge")
        )
        model = tiny_qwen2(root / "qwen2")
        self.config = build_config({"name": "tiny", "teacher": {"model": model}})
        fold = self.teacher / "fold_1"
        for name in ("adapter_config.json", "head.json"):
            write_json(fold / name, {"labels": ["Shock", "Gout"]})
        write_json(fold / "training.json", {"precision": "fp32"})
        for name in ("adapter_model.safetensors", "head.safetensors"):
            save_file({"weight": torch.zeros(2)}, fold / name)
        key = FoldTeacher.of(self.config, self.teacher, 1).key
        self.signals.mkdir()
        self.tensors: dict[str, dict[str, torch.Tensor]] = {}
        index = []
        for number, (pair_id, concepts) in enumerate(TOLD.items()):
            tensors = self.tensors[pair_id] = tensors_of(number, len(concepts))
            shard = shard_name(1, number)
            named = {f"{pair_id}/{name}": value for name, value in tensors.items()}
            save_file(named, self.signals / shard)
            row = {"pair_id": pair_id, "fold": 1, "key": key(text_of(pair_id)), "shard": shard}
            index.append({**row, "concept_ids": list(concepts)})
        write_table(pa.Table.from_pylist(index, INDEX), self.signals / INDEX_FILE, INDEX)
        self.tell({pair_id: text_of(pair_id) for pair_id in [*reversed(TOLD), "unread"]})

    def tell(self, texts: dict[str, str]) -> None:
        """Write the teacher's narratives."""
        rows = [
            {"pair_id": pair_id, "reader": "teacher", "text": text, "spans": [],
             "concepts_cut": 0, "knowledge_cut": 0}
            for pair_id, text in texts.items()
        ]  # fmt: skip
        table = pa.Table.from_pylist(rows, NARRATIVES)
        write_table(table, self.knowledge / "teacher.parquet", NARRATIVES)

    def loader(
        self,
        examples: Sequence[Example] = (),
        *,
        config: RunConfig | None = None,
        layers: bool = False,
        states: bool = False,
    ) -> SignalLoader:
        return SignalLoader(
            self.signals,
            teacher=self.teacher,
            knowledge=self.knowledge,
            config=config or self.config,
            examples=examples,
            layers=layers,
            states=states,
        )


def text_of(pair_id: str) -> str:
    return f"history of {pair_id}"


def tensors_of(seed: int, concepts: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator) + 0.1

    attention, readout = some(LABELS, 1 + concepts), some(LAYERS, concepts)
    tensors = {
        "attention": attention / attention.sum(-1, keepdim=True),
        "readout": readout / readout.sum(-1, keepdim=True),
        "retained": some(LAYERS),
        "state": some(SIZE),
    }
    return {name: value.half() for name, value in tensors.items()}


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


def test_each_value_is_on_the_students_concept_of_the_same_name(folders: Folders) -> None:
    """The student tells the same concepts in another order."""
    example = Example("p", encoded_of([0, 1, 2, 3, 4], [1, 2, 3, 4, 0], "dbac"))
    signal = folders.loader([example], layers=True, states=True).signal("p")
    assert signal is not None
    kept = {name: value.float().numpy() for name, value in folders.tensors["p"].items()}
    np.testing.assert_array_equal(signal.attention, kept["attention"][:, [0, 4, 2, 1, 3]])
    np.testing.assert_array_equal(signal.readout, kept["readout"][:, [3, 1, 0, 2]])
    np.testing.assert_array_equal(signal.retained, kept["retained"])
    np.testing.assert_array_equal(signal.state, kept["state"])
    assert signal.shared.tolist() == [True] * 5
    assert signal.fold == 1
    arrays = (signal.attention, signal.readout, signal.retained, signal.state)
    assert {values.dtype for values in arrays if values is not None} == {np.dtype(np.float32)}


def test_what_either_reader_was_not_told_or_lost_is_not_shared(folders: Folders) -> None:
    """a: no token left for the student; x: its own; c: no token left for the teacher; b, d: both;
    the reading states are shared though the teacher's rests on its concepts alone."""
    cut = folders.tensors["p"]["attention"]
    cut[:, 0] = cut[:, 3] = 0
    named = {f"p/{name}": value for name, value in folders.tensors["p"].items()}
    save_file(named, folders.signals / shard_name(1, 0))
    example = Example("p", encoded_of([5, 6, 7, 8, 9], [2, 3, 4, 5, 0], "axcbd"))
    signal = folders.loader([example], layers=True).signal("p")
    assert signal is not None
    assert signal.shared.tolist() == [True, False, False, False, True, True]
    expected = np.zeros((LABELS, 6), dtype=np.float32)
    expected[:, 4:] = cut.float().numpy()[:, [2, 4]]
    np.testing.assert_array_equal(signal.attention, expected)
    assert signal.readout is not None
    assert signal.readout.any(0).tolist() == [False, False, True, True, True]
    assert signal.state is None


def test_an_empty_history_shares_the_reading_state_alone(folders: Folders) -> None:
    signal = folders.loader([Example("none", encoded_of([0], [0], ()))], layers=True).signal("none")
    assert signal is not None
    assert signal.shared.tolist() == [True]
    assert signal.readout is not None
    assert signal.readout.shape == (LAYERS, 0)


def test_a_pair_the_teacher_has_not_read_has_no_signal(folders: Folders) -> None:
    examples = [Example(name, encoded_of([1, 0], [1, 0], "a")) for name in ("q", "unread")]
    loader = folders.loader(examples)
    assert len(loader) == 1
    assert loader.signal("unread") is None
    assert loader.signal("p") is None  # none of the examples


def test_layers_and_states_are_read_only_when_asked_for(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, names = Shards.read, []

    def noting(self: Shards, shard: str, pair_id: str, name: str) -> np.ndarray:
        names.append(name)
        return read(self, shard, pair_id, name)

    monkeypatch.setattr(Shards, "read", noting)
    example = Example("q", encoded_of([1, 0], [1, 0], "a"))
    signal = folders.loader([example]).signal("q")
    assert signal is not None
    assert names == ["attention"]
    assert signal.readout is signal.retained is signal.state is None


def test_signals_of_another_text_or_teacher_are_refused_at_once(folders: Folders) -> None:
    texts = {pair_id: text_of(pair_id) for pair_id in TOLD}
    folders.tell({**texts, "q": text_of("q") + " more"})
    with pytest.raises(CkdEhrError, match=r"another text or teacher; rerun stage signals"):
        folders.loader()
    folders.tell({name: text for name, text in texts.items() if name != "q"})
    with pytest.raises(CkdEhrError, match=r"index\.parquet: 1 pairs have no narrative"):
        folders.loader()
    folders.tell(texts)
    assert len(folders.loader()) == 0
    other = build_config({
        **folders.config.model_dump(mode="json"), "signals": {"orders": 1},
    })  # fmt: skip
    with pytest.raises(CkdEhrError, match="another text or teacher"):
        folders.loader(config=other)
    save_file({"weight": torch.ones(2)}, folders.teacher / "fold_1" / "head.safetensors")
    with pytest.raises(CkdEhrError, match="another text or teacher"):
        folders.loader()


@pytest.mark.parametrize("harm", ["missing", "cut short", "of another pair"])
def test_a_shard_that_is_not_whole_is_named_with_its_remedy(folders: Folders, harm: str) -> None:
    loader = folders.loader([Example("q", encoded_of([1, 0], [1, 0], "a"))])
    path = folders.signals / shard_name(1, 1)
    if harm == "missing":
        path.unlink()
    elif harm == "cut short":
        path.write_bytes(path.read_bytes()[:-8])
    else:
        shutil.copy(folders.signals / shard_name(1, 0), path)
    with pytest.raises(CkdEhrError, match=rf"{path.name}: .*damaged.*rerun stage signals"):
        loader.signal("q")


def test_the_shards_used_longest_ago_are_closed(folders: Folders) -> None:
    process = psutil.Process()

    def mapped() -> list[str]:
        paths = [Path(one.path) for one in process.memory_maps()]
        return sorted(path.name for path in paths if path.parent == folders.signals)

    shards = Shards(folders.signals, limit=2)
    names = [shard_name(1, number) for number in range(3)]
    for pair_id, name in (("p", 0), ("q", 1), ("p", 0), ("none", 2)):
        last = shards.read(names[name], pair_id, "attention")
    assert mapped() == [names[0], names[2]]
    again = shards.read(names[1], "q", "attention")
    assert mapped() == [names[1], names[2]]
    np.testing.assert_array_equal(again, folders.tensors["q"]["attention"].float().numpy())
    assert last.tolist() == [[1], [1]]


def test_a_folder_is_verified_pair_by_pair(folders: Folders) -> None:
    def verify() -> int:
        return verify_signals(
            folders.signals,
            teacher=folders.teacher,
            knowledge=folders.knowledge,
            config=folders.config,
        ).pairs

    assert verify() == 3
    for name, factor, message in (
        ("attention", 1.1, "attention does not sum to 1"),
        ("state", float("inf"), "state of a pair is not finite"),
    ):
        kept = folders.tensors["q"]
        harmed = {**kept, name: kept[name] * factor}
        path = folders.signals / shard_name(1, 1)
        save_file({f"q/{one}": value for one, value in harmed.items()}, path)
        with pytest.raises(CkdEhrError, match=message):
            verify()
