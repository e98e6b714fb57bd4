"""The student: a small BERT with label attention, trained twice on the same pairs.

In: pairs, the student's narratives, the teacher's signals. Out: the student on hard labels alone
(the comparison), the distilled student, and the calibrated predictions of both. Ignores: how
good they are; the evaluation stage says that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.special import expit
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, set_seed

from ckd_ehr.contracts.config import StudentConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_table, write_json, write_table
from ckd_ehr.contracts.fitted import FITTED, FittedOn, fitted_on, read_fitted, write_fitted
from ckd_ehr.contracts.processes import is_leader
from ckd_ehr.contracts.records import PAIRS, PREDICTIONS, with_label_names
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.knowledge.sources import read_narratives
from ckd_ehr.learning.batches import Batch, Example
from ckd_ehr.learning.examples import PairTable, TextReader, read_pairs
from ckd_ehr.learning.gang import meet
from ckd_ehr.learning.heads import (
    HeadOutput,
    LabelAttentionHead,
    LabelAttentionModel,
    load_head,
    save_head,
)
from ckd_ehr.learning.losses import attention_decay, concept_loss, hard_loss, soft_loss
from ckd_ehr.learning.reading import (
    attention_kernel,
    check_positions,
    pick_device,
    predict_logits,
)
from ckd_ehr.learning.scoring import fit_platt
from ckd_ehr.learning.signal_store import ConceptAttention, SignalStore, soft_logits
from ckd_ehr.learning.training import fit
from ckd_ehr.learning.weights import resolve_model

Variant = Literal["hard", "distilled"]
VARIANTS: tuple[Variant, ...] = ("hard", "distilled")
PREDICTOR = "predictor.json"
# What the BERT family calls its dropout rates.
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")


@dataclass(frozen=True)
class _Training:
    """What both variants have in common."""

    context: StageContext
    pairs: PairTable
    reader: TextReader
    examples: Sequence[Example]  # one a pair, in the order of `pairs`
    device: str


def write_students(context: StageContext) -> None:
    """Train both variants, calibrate them on tuning, predict tuning and held_out."""
    pairs = read_pairs(context.inputs["cohort"])
    narratives = read_narratives(context.inputs["knowledge"], "student")
    reader = TextReader(context.config.student.model, "first")
    rows = range(len(pairs.pair_ids))
    examples = reader.examples(pairs, narratives, rows)
    training = _Training(context, pairs, reader, examples, pick_device(context.config.device))
    for variant in VARIANTS:
        if not (context.work / variant / PREDICTOR).is_file():
            _train(training, variant)
        meet()
    if not is_leader():
        return
    tables = [read_table(context.work / f"{name}.parquet", PREDICTIONS) for name in VARIANTS]
    for variant in VARIANTS:
        (context.work / variant).rename(context.folder / variant)
    schema = with_label_names(PREDICTIONS, pairs.label_names)
    write_table(pa.concat_tables(tables), context.folder / "predictions.parquet", schema)
    records = [read_fitted(context.folder / variant / FITTED) for variant in VARIANTS]
    write_fitted(context.folder / FITTED, [record for part in records for record in part])


def _train(training: _Training, variant: Variant) -> None:
    context, pairs, reader = training.context, training.pairs, training.reader
    settings, seed = context.config.student, context.config.seed
    set_seed(seed)
    model = new_student(settings, labels=len(pairs.label_names), device=training.device)
    check_positions(
        model.backbone,
        max_tokens=context.config.knowledge.student.max_tokens,
        setting="knowledge.student.max_tokens",
    )
    model.head.start_at(torch.tensor(pairs.prevalence()))
    hard = [training.examples[row] for row in pairs.rows(split="train", labelled=True)]
    train = hard if variant == "hard" else _taught(training)
    tuning = [training.examples[row] for row in pairs.rows(split="tuning")]
    history = fit(
        model,
        train=train,
        tuning=tuning,
        loss=_hard_only if variant == "hard" else _distillation(settings),
        settings=settings,
        pad_token=reader.pad_token,
        labels=len(pairs.label_names),
        checkpoints=context.work / f"checkpoints_{variant}",
        seed=seed,
        device=training.device,
        title=f"student ({variant})",
        say=context.say,
    )
    if not is_leader():
        return
    fitted = [
        fitted_on(f"{variant}/prevalence", _ids(hard), split="train"),
        fitted_on(f"{variant}/weights", _ids(train), split="train"),
        fitted_on(f"{variant}/early_stopping", _ids(tuning), split="tuning"),
    ]
    _finish(training, variant, model, history, fitted)


def _ids(examples: Sequence[Example]) -> list[str]:
    return [example.pair_id for example in examples]


def _hard_only(output: HeadOutput, batch: Batch, _progress: float) -> Tensor:
    return hard_loss(output.logits, batch["labels"], batch["labelled"])


def _distillation(settings: StudentConfig) -> Any:
    """(1−λ)·hard + λ·soft + s(t)·λ_concept·KL on α."""

    def loss(output: HeadOutput, batch: Batch, progress: float) -> Tensor:
        hard = hard_loss(output.logits, batch["labels"], batch["labelled"])
        soft = soft_loss(
            output.logits,
            batch["teacher_logits"],
            batch["taught"],
            temperature=settings.temperature,
        )
        total = (1 - settings.soft_weight) * hard + settings.soft_weight * soft
        share = attention_decay(progress, settings.attention_until) * settings.concept_weight
        if share > 0:
            attention = concept_loss(output.scores, batch["teacher_attention"], batch["shared"])
            total = total + share * attention
        return total

    return loss


def _taught(training: _Training) -> list[Example]:
    """All train pairs, labelled or not, with what the teacher that has not seen them says."""
    context, pairs = training.context, training.pairs
    config, folders = context.config, context.inputs
    store = SignalStore(folders["signals"], teacher=folders["teacher"], config=config)
    texts = read_narratives(folders["knowledge"], "teacher")
    logits = soft_logits(folders["committee"], config.student.soft_labels)
    pooling = config.teacher.head_pooling
    attends = pooling == "label_attention"
    if not attends:
        context.say(f"    no concept attention to distil: the teacher's pooling is '{pooling}'")
    taught, without = [], 0
    for row in pairs.rows(split="train"):
        example = training.examples[row]
        example = replace(example, teacher_logits=logits[example.pair_id])
        signal = store.attention(example.pair_id, texts[example.pair_id].text) if attends else None
        if signal is None:
            without += 1
        else:
            attention, shared = align_attention(example, signal)
            example = replace(example, teacher_attention=attention, shared=shared)
        taught.append(example)
    if attends and without:
        context.say(f"    {without:,} pairs have soft labels alone, no concept attention")
    return taught


def align_attention(
    example: Example, signal: ConceptAttention
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The teacher's attention on this reader's concepts, joined by concept id.

    Returns:
        (labels, 1 + concepts) attention, zero where not shared, and (1 + concepts,) shared:
        the reading state, and each concept of which both models saw at least one token.
    """
    places = {name: place for place, name in enumerate(signal.concept_ids, start=1)}
    seen = set(example.encoded.concept_index)
    states = 1 + len(example.encoded.concept_ids)
    attention = np.zeros((len(signal.attention), states), dtype=np.float32)
    shared = np.zeros(states, dtype=bool)
    attention[:, 0], shared[0] = signal.attention[:, 0], True
    for state, name in enumerate(example.encoded.concept_ids, start=1):
        place = places.get(name)
        if place is not None and state in seen and signal.attention[:, place].any():
            attention[:, state], shared[state] = signal.attention[:, place], True
    return attention, shared


def new_student(settings: StudentConfig, *, labels: int, device: str) -> LabelAttentionModel:
    """The pretrained encoder with a fresh head."""
    folder = resolve_model(settings.model)
    config = AutoConfig.from_pretrained(folder)
    for name in DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, settings.dropout)
    if "bert" not in str(config.model_type):
        raise CkdEhrError(
            f"student.model={settings.model}: a BERT-family encoder is needed, "
            f"this is {config.model_type}"
        )
    backbone = _load_backbone(folder, config, device)
    head = LabelAttentionHead(backbone.config.hidden_size, labels)
    return LabelAttentionModel(backbone, head, pooling="mean")


def load_student(folder: Path, *, device: str) -> LabelAttentionModel:
    """A trained student of `write_students`, ready to read."""
    backbone = _load_backbone(folder, AutoConfig.from_pretrained(folder), device)
    model = LabelAttentionModel(backbone, load_head(folder), pooling="mean")
    return model.to(device).eval()


def _load_backbone(folder: Path, config: Any, device: str) -> Any:
    options = {"config": config, "dtype": torch.float32}
    options["attn_implementation"] = attention_kernel(device)
    try:
        return AutoModel.from_pretrained(folder, add_pooling_layer=False, **options)
    except TypeError:  # DistilBERT, which has no pooling layer to leave out
        return AutoModel.from_pretrained(folder, **options)


def _finish(
    training: _Training,
    variant: Variant,
    model: LabelAttentionModel,
    history: Mapping[str, object],
    fitted: Sequence[FittedOn],
) -> None:
    """Calibrate on tuning, predict, save; `predictor.json` last."""
    context, pairs = training.context, training.pairs
    rows = np.concatenate([pairs.rows(split="tuning"), pairs.rows(split="held_out")])
    logits = predict_logits(
        model.eval().to(training.device),
        [training.examples[row] for row in rows],
        pad_token=training.reader.pad_token,
        device=training.device,
    )
    tuning, ridge = pairs.split[rows] == "tuning", context.config.student.calibration_ridge
    scaling = fit_platt(logits[tuning], pairs.labels[rows[tuning]], ridge)
    probabilities = expit(scaling.apply(logits))
    table = _prediction_table(context, pairs, rows, probabilities, model=f"student_{variant}")
    write_table(table, context.work / f"{variant}.parquet", PREDICTIONS)
    folder = context.work / variant
    _save(folder, training, model, history)
    calibration = _ids([training.examples[row] for row in rows[tuning]])
    platt = fitted_on(f"{variant}/platt", calibration, split="tuning")
    write_fitted(folder / FITTED, [*fitted, platt])
    facts = {
        "variant": variant,
        "data_source": context.config.data.source,
        "labels": list(pairs.label_names),
        "prevalence": pairs.prevalence().tolist(),
        "train_pairs": history["pairs"],
        "slope": scaling.slope.tolist(),
        "intercept": scaling.intercept.tolist(),
        "calibration_pairs": int(tuning.sum()),
        "max_tokens": context.config.knowledge.student.max_tokens,
        "knowledge": context.config.knowledge.model_dump(mode="json"),
        "phenotypes": [p.model_dump(mode="json") for p in context.config.labels.selected],
        "max_history_visits": context.config.cohort.max_history_visits,
        "seed": context.config.seed,
    }
    write_json(folder / PREDICTOR, facts)


def _save(
    folder: Path, training: _Training, model: LabelAttentionModel, history: Mapping[str, object]
) -> None:
    """What it takes to read with the student again, and how it was trained."""
    folder.mkdir(exist_ok=True)
    model.backbone.save_pretrained(folder)  # type: ignore[operator]
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(training.context.config.student.model))
    tokenizer.save_pretrained(folder)
    save_head(folder, model.head, training.pairs.label_names)
    write_json(folder / "training.json", history)


def _prediction_table(
    context: StageContext,
    pairs: PairTable,
    rows: NDArray[np.intp],
    probabilities: NDArray[np.float64],
    *,
    model: str,
) -> pa.Table:
    source = read_table(context.inputs["cohort"] / "pairs.parquet", PAIRS).take(rows)
    return pa.table(
        {
            "pair_id": source.column("pair_id"),
            "subject_id": source.column("subject_id"),
            "prediction_time": source.column("prediction_time"),
            "split": source.column("split"),
            "model": [model] * len(rows),
            "seed": [context.config.seed] * len(rows),
            "probabilities": probabilities.astype(np.float32).tolist(),
            "labels": pairs.labels[rows].tolist(),
        }
    )
