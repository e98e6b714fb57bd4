"""How much memory the student's reading of a 7B teacher's signals takes, and how fast it is.

100,000 pairs of 40 to 120 concepts: random signals of 28 layers, 3,584 hidden values and 25 labels,
in the files that the stages write. A process of its own does what the stage `student` does before
and between its steps: it encodes the narratives, opens the signals, and makes batches of 16 pairs
in the order of an epoch. The student's own weights are not loaded.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from itertools import islice
from pathlib import Path
from time import perf_counter, sleep

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save_file

from ckd_ehr.contracts.config import EMBEDDED_STUDENT, RunConfig, build_config
from ckd_ehr.contracts.files import write_json, write_table
from ckd_ehr.contracts.machine import commit, machine_facts
from ckd_ehr.contracts.phenotype import PHENOTYPES_25
from ckd_ehr.contracts.records import NARRATIVES, SOFT_LABELS
from ckd_ehr.knowledge.sources import iter_narratives
from ckd_ehr.learning.batches import Example, PairDataset, collator
from ckd_ehr.learning.examples import PairTable, TextReader
from ckd_ehr.learning.labelling import CHUNK, PairSignals, save_shard
from ckd_ehr.learning.sampling import EpochSampler
from ckd_ehr.learning.signal_loader import SignalLoader
from ckd_ehr.learning.signal_store import INDEX, INDEX_FILE, FoldTeacher, shard_name
from ckd_ehr.learning.soft_labels import SoftLabels, read_soft_labels, soft_label_table

PAIRS = 100_000
LABELS, LAYERS, HIDDEN = 25, 28, 3584  # Qwen2.5-7B
CONCEPTS = (40, 120)
CODES = 5_000
WORDS = (
    "acute", "chronic", "renal", "heart", "failure", "sepsis", "disease", "of", "with", "pressure",
    "lung", "liver", "unspecified", "diabetes", "mellitus", "complication", "pneumonia",
    "infection", "disorder", "other",
)  # fmt: skip
BATCH = 16
SECONDS = 30
SEED = 1
LIMIT = 2 * 1024**3


def main() -> None:
    """Write signals, measure their reading; a table and, with `--json`, a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--pairs", type=int, default=PAIRS, metavar="N")
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help="read one that was written")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.pairs)))
        return
    with tempfile.TemporaryDirectory() as folder:
        written = write(Path(folder), arguments.pairs)
        command = [sys.executable, __file__, "--measure", folder, "--pairs", str(arguments.pairs)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        figures = {**written, **json.loads(done.stdout)}
    for name, value in figures.items():
        print(f"{name:<28} {value:>15,}")
    if figures["peak_rss_bytes"] >= LIMIT:
        raise SystemExit("the student's reading took 2 GiB or more")
    if arguments.json:
        about = {"name": "signals", "commit": commit(), "machine": machine_facts()}
        data = f"{arguments.pairs:,} pairs of random signals of Qwen2.5-7B's geometry"
        write_json(arguments.json, {**about, "data": data, "seed": SEED, "figures": figures})


def settings() -> RunConfig:
    """The defaults; the texts are not told by them."""
    return build_config({"name": "signals", "seed": SEED})


def pairs_of(count: int) -> PairTable:
    """Train pairs of one fold, every fifth with labels."""
    labelled = np.arange(count) % 5 == 0
    return PairTable(
        pair_ids=tuple(f"{number:016x}" for number in range(count)),
        subject_ids=np.arange(count),
        split=np.full(count, "train"),
        fold=np.zeros(count, dtype=np.int8),
        labelled=labelled,
        labels=np.zeros((count, LABELS), dtype=bool),
        label_names=tuple(phenotype.name for phenotype in PHENOTYPES_25),
    )


def write(folder: Path, count: int) -> dict[str, float]:
    """The folders of knowledge, teacher, signals and committee that the student reads."""
    rng, pairs = np.random.default_rng(SEED), pairs_of(count)
    write_teacher(folder / "teacher" / "fold_0")
    teacher = FoldTeacher.of(settings(), folder / "teacher", 0)
    signals = folder / "signals"
    signals.mkdir()
    texts, indices = [], []
    for start in range(0, count, CHUNK):
        told = [narrative(rng, pair_id) for pair_id in pairs.pair_ids[start : start + CHUNK]]
        texts.append(pa.Table.from_pylist(told, NARRATIVES))
        indices.append(write_chunk(rng, texts[-1], signals / shard_name(0, start), teacher))
        if start % (40 * CHUNK) == 0:
            print(f"written: {start:,}/{count:,} pairs", file=sys.stderr)
    write_table(pa.concat_tables(indices), signals / INDEX_FILE, INDEX)
    for reader in ("teacher", "student"):
        path = folder / "knowledge" / f"{reader}.parquet"
        write_table(pa.concat_tables(texts), path, NARRATIVES)
    soft = SoftLabels("committee", rng.normal(size=(count, LABELS)), rng.random((count, LABELS)))
    path = folder / "committee" / "soft_labels.parquet"
    write_table(soft_label_table(soft, pairs), path, SOFT_LABELS)
    size = sum(path.stat().st_size for path in signals.glob("signals-*"))
    return {"pairs": count, "shards": len(indices), "bytes_per_pair": round(size / count)}


def write_chunk(
    rng: np.random.Generator, texts: pa.Table, path: Path, teacher: FoldTeacher
) -> pa.Table:
    """A shard of random signals of these narratives, and its rows of the index."""
    shard: dict[str, torch.Tensor] = {}
    index = []
    for row in texts.to_pylist():
        ids = [span["concept_id"] for span in row["spans"]]
        known = random_signals(rng, len(ids))
        shard |= {f"{row['pair_id']}/{name}": value for name, value in known.items()}
        place = {"fold": 0, "shard": path.name, "concept_ids": ids}
        index.append({"pair_id": row["pair_id"], "key": teacher.key(row["text"]), **place})
    save_shard(shard, path)
    return pa.Table.from_pylist(index, INDEX)


def write_teacher(folder: Path) -> None:
    """What a fold teacher is known by; nobody reads with it."""
    folder.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "head.safetensors"):
        save_file({"weight": torch.zeros(1)}, folder / name)
    for name in ("adapter_config.json", "head.json"):
        write_json(folder / name, {})
    write_json(folder / "training.json", {"precision": "bf16"})


def narrative(rng: np.random.Generator, pair_id: str) -> dict[str, object]:
    """A row of narratives: codes of a few visits, each in words of its own."""
    text, spans = "Visit 1:", []
    for place, number in enumerate(rng.choice(CODES, rng.integers(*CONCEPTS), replace=False)):
        words = [WORDS[number // 20**power % 20] for power in range(3)]
        start = len(text) + 1
        text += f" {' '.join(words)};"
        visit, code = place // 20, f"{number:05d}"
        concept_id = f"{visit}/diagnosis/ICD9CM/{code}/0"
        spans.append({
            "start": start, "end": len(text) - 1, "concept_id": concept_id, "kind": "diagnosis",
            "system": "ICD9CM", "code": code, "visit_index": visit, "from_knowledge": False,
        })  # fmt: skip
    cut = {"concepts_cut": 0, "knowledge_cut": 0}
    return {"pair_id": pair_id, "reader": "teacher", "text": text, "spans": spans, **cut}


def random_signals(rng: np.random.Generator, concepts: int) -> dict[str, torch.Tensor]:
    """A pair's signals as they are kept."""

    def some(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.random(shape, dtype=np.float32))

    attention, readout = some(LABELS, 1 + concepts), some(LAYERS, concepts)
    known = PairSignals(
        attention=attention / attention.sum(-1, keepdim=True),
        evidence=torch.zeros(0),
        readout=readout / readout.sum(-1, keepdim=True),
        retained=some(LAYERS),
        state=some(HIDDEN),
    ).tensors(divided_by=1)
    known.pop("evidence")
    return known


def measure(folder: Path, count: int) -> dict[str, float]:
    """Read as the student does; seconds and the most memory that was in use."""
    highest = watch_anonymous_memory()
    started = perf_counter()
    examples = encoded(folder, pairs_of(count))
    ready = perf_counter()
    loader = SignalLoader(
        folder / "signals",
        teacher=folder / "teacher",
        knowledge=folder / "knowledge",
        config=settings(),
        examples=examples,
        layers=True,
        states=True,
    )
    opened = perf_counter()
    per_second = rate(PairDataset(examples, signal_of=loader.signal))
    return {
        "tokens": round(float(np.mean([len(one.encoded.input_ids) for one in examples])), 1),
        "seconds_encode": round(ready - started, 1),
        "seconds_open": round(opened - ready, 1),
        "pairs_per_second": round(per_second, 1),
        "peak_anonymous_bytes": highest[0],
        "peak_rss_bytes": memory("VmHWM"),
    }


def encoded(folder: Path, pairs: PairTable) -> list[Example]:
    """The student's examples with their soft labels."""
    reader = TextReader(EMBEDDED_STUDENT, "first")
    texts = iter_narratives(folder / "knowledge", "student")
    examples = reader.read(pairs, texts, range(len(pairs.pair_ids)))
    soft = read_soft_labels(folder / "committee", "committee", pairs)
    logits, spread = soft.logits.astype(np.float32), soft.spread.astype(np.float32)
    return [
        replace(example, teacher_logits=logits[row], teacher_spread=spread[row])
        for row, example in enumerate(examples)
    ]


def rate(dataset: PairDataset) -> float:
    """Pairs a second in batches of an epoch's order, for a while."""
    collate = collator(pad_token=0, labels=LABELS)
    lengths = [len(example.encoded.input_ids) for example in dataset.examples]
    order = iter(EpochSampler(dataset, lengths=lengths, batch_size=BATCH, seed=SEED))
    started, done = perf_counter(), 0
    while perf_counter() - started < SECONDS and (rows := list(islice(order, BATCH))):
        batch = collate([dataset[row] for row in rows])
        assert batch["shared"][:, 1:].any()
        done += len(rows)
    return done / (perf_counter() - started)


def watch_anonymous_memory() -> list[int]:
    """The highest so far, as the one element; a thread looks ten times a second."""
    highest = [0]

    def watch() -> None:
        while True:
            highest[0] = max(highest[0], memory("RssAnon"))
            sleep(0.1)

    threading.Thread(target=watch, daemon=True).start()
    return highest


def memory(name: str) -> int:
    """This process's memory in bytes; ru_maxrss would be the parent's where that is greater."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    [line] = [line for line in lines if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
