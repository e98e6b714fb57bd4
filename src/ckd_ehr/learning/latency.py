"""How long one prediction takes on this machine: text in, probabilities out, one at a time.

In: a run's models and narratives. Out: milliseconds. Ignores: batching and servers.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

from ckd_ehr.contracts.records import Narrative
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.knowledge.sources import read_narratives
from ckd_ehr.learning.examples import TextReader, read_pairs
from ckd_ehr.learning.heads import LabelModel
from ckd_ehr.learning.reading import pick_device, read_batch, reading
from ckd_ehr.learning.student_model import load_student
from ckd_ehr.learning.teacher import load_teacher, teacher_reader

WARM_UP = 3


def measure_latency(context: StageContext) -> dict[str, dict[str, float]]:
    """Batch-1 latency of one fold teacher (LoRA merged) and of the distilled student.

    Tokenisation is included. Each reads its own narrative of the pair, so token counts differ.
    """
    config = context.config
    device = pick_device(config.device)
    pairs = read_pairs(context.inputs["cohort"])
    held_out = [pairs.pair_ids[row] for row in pairs.rows(split="held_out")]
    chosen = held_out[: config.evaluation.latency_pairs]
    teacher = load_teacher(config.teacher, context.inputs["teacher"] / "fold_0", device=device)
    teacher.backbone = teacher.backbone.merge_and_unload()  # type: ignore[operator]
    prompts = teacher_reader(config, pairs.label_names)
    folder = context.inputs["student"] / "distilled"
    student = load_student(folder, device=device, labels=pairs.label_names)
    student_reader = TextReader(str(folder), "first")
    teacher_texts = read_narratives(context.inputs["knowledge"], "teacher")
    student_texts = read_narratives(context.inputs["knowledge"], "student")
    return {
        "teacher": _time(
            _predictor(teacher, prompts, device, config.teacher.precision),
            [teacher_texts[pair_id] for pair_id in chosen],
        ),
        "student_distilled": _time(
            _predictor(student, student_reader, device, "fp32"),
            [student_texts[pair_id] for pair_id in chosen],
        ),
    }


def _predictor(
    model: LabelModel, reader: TextReader, device: str, precision: str
) -> Callable[[Narrative], int]:
    """A function that predicts from one narrative and returns its number of tokens."""

    def predict(narrative: Narrative) -> int:
        example = reader.example("", narrative)
        with reading(device, precision):
            read_batch(model, [example], pad_token=reader.pad_token, device=device)
        return len(example.encoded.input_ids)

    return predict


def _time(predict: Callable[[Narrative], int], narratives: Sequence[Narrative]) -> dict[str, float]:
    for narrative in narratives[:WARM_UP]:
        predict(narrative)
    milliseconds, tokens = [], []
    for narrative in narratives:
        started = time.perf_counter()
        tokens.append(predict(narrative))
        milliseconds.append((time.perf_counter() - started) * 1000)
    return {
        "p50_ms": float(np.percentile(milliseconds, 50)),
        "p95_ms": float(np.percentile(milliseconds, 95)),
        "pairs": float(len(narratives)),
        "tokens_mean": float(np.mean(tokens)),
    }
