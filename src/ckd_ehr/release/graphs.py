"""The graphs of a student that are good enough to be published.

In: a run's student, and the pairs it was scored on. Out: the files of the graphs that pass every
gate, and how far each is from the student. Ignores: what else a bundle holds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pyarrow.compute as pc
from numpy.typing import NDArray

from ckd_ehr.contracts.files import read_table
from ckd_ehr.contracts.records import PAIRS, PREDICTIONS
from ckd_ehr.knowledge.sources import read_narratives
from ckd_ehr.learning.alignment import encode
from ckd_ehr.learning.inference import StudentPredictor
from ckd_ehr.learning.scoring import Bools, Floats, best_f1_thresholds
from ckd_ehr.release.export import export_student
from ckd_ehr.release.gates import (
    LabelGate,
    compare_with_student,
    failures,
    gate_table,
    refuse_failing,
    refuse_variance,
    thresholds_between,
)
from ckd_ehr.release.manifest import GraphFacts, Precision
from ckd_ehr.release.packing import write_graphs
from ckd_ehr.release.quantise import quantise
from ckd_ehr.release.session import FUSED, INT8, Session, runtime_operators

CALIBRATION_TEXTS = 128  # train narratives, on which the ranges of int8 are fitted
INVARIANCE_TEXTS = 24


@dataclass(frozen=True)
class Scored:
    """Tuning and held_out pairs as the run scored them, in fp32 PyTorch."""

    pair_ids: Sequence[str]
    split: NDArray[np.str_]
    probabilities: Floats  # (pairs, labels)
    labels: Bools

    @classmethod
    def read(cls, student: Path, model: str) -> "Scored":
        """From the folder of the stage `student`."""
        table = read_table(student / "predictions.parquet", PREDICTIONS)
        table = table.filter(pc.equal(table["model"], model))
        return cls(
            pair_ids=table["pair_id"].to_pylist(),
            split=np.asarray(table["split"].to_pylist()),
            probabilities=np.array(table["probabilities"].to_pylist(), dtype=np.float64),
            labels=np.array(table["labels"].to_pylist(), dtype=bool),
        )

    def thresholds(self) -> Floats:
        """Of best F1 on tuning pairs (labels,)."""
        tuning = self.split == "tuning"
        best = best_f1_thresholds(self.probabilities[tuning], self.labels[tuning])
        return thresholds_between(self.probabilities[tuning], best)


def write_passing_graphs(
    student: StudentPredictor,
    scored: Scored,
    folders: Mapping[str, Path],
    out: Path,
    *,
    precisions: Sequence[Precision],
    say: Callable[[str], None],
) -> dict[Precision, tuple[GraphFacts, tuple[LabelGate, ...]]]:
    """Write the graphs that pass; fp32 must, and int8 where it is asked for.

    Args:
        student: as trained.
        scored: what it said of tuning and held_out pairs.
        folders: of the stages `cohort` and `knowledge`.
        out: where.
        precisions: all of which must pass; none: fp32, and int8 if it passes.
        say: told of a graph that is left out.
    """
    models = _models(student, folders, precisions or ("fp32", "int8"))
    write_graphs(models, out)
    narratives = read_narratives(folders["knowledge"], "student")
    tokenizer = student.reader.tokenizer
    texts = [encode(narratives[pair], tokenizer, reading="first") for pair in scored.pair_ids]
    passing: dict[Precision, tuple[GraphFacts, tuple[LabelGate, ...]]] = {}
    for name, model in models.items():
        session = Session(
            out / f"{name}.onnx",
            pad_token=student.reader.pad_token,
            most_tokens=student.max_tokens,
        )
        found = np.array([output.probabilities for output in session.run(texts)])
        gates = compare_with_student(
            scored.probabilities,
            found,
            scored.labels,
            names=student.labels,
            thresholds=scored.thresholds(),
        )
        if name == "int8" and failures(gates) and not precisions:
            say(f"int8 is left out: {failures(gates)} labels beyond a limit\n{gate_table(gates)}")
            continue
        refuse_failing(name, gates)
        refuse_variance(name, session, texts[:INVARIANCE_TEXTS])
        passing[name] = _graph_facts(model), gates
    if len(passing) < len(models):
        (out / "int8.onnx").unlink()
        write_graphs({name: models[name] for name in passing}, out)
    return passing


def _models(
    student: StudentPredictor, folders: Mapping[str, Path], precisions: Sequence[Precision]
) -> dict[Precision, onnx.ModelProto]:
    fp32 = export_student(student.model, student.scaling, most_tokens=student.max_tokens)
    if "int8" not in precisions:
        return {"fp32": fp32}
    train = _some_train_pairs(folders["cohort"])
    narratives = read_narratives(folders["knowledge"], "student")
    tokenizer = student.reader.tokenizer
    texts = [encode(narratives[pair_id], tokenizer, reading="first") for pair_id in train]
    return {"fp32": fp32, "int8": quantise(fp32, texts)}


def _some_train_pairs(cohort: Path) -> list[str]:
    """Evenly spaced in the order of their ids, which is none of time."""
    pairs = read_table(cohort / "pairs.parquet", PAIRS)
    train: list[str] = pairs.filter(pc.equal(pairs["split"], "train"))["pair_id"].to_pylist()
    return sorted(train)[:: max(1, len(train) // CALIBRATION_TEXTS)][:CALIBRATION_TEXTS]


def _graph_facts(model: onnx.ModelProto) -> GraphFacts:
    operators = runtime_operators(model)
    return GraphFacts(
        opset=next(entry.version for entry in model.opset_import if not entry.domain),
        ir_version=model.ir_version,
        fused_attention=operators[FUSED],
        int8_products=operators[INT8],
    )
