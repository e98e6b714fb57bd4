"""The student: a small BERT with label attention, trained twice on the same pairs.

In: pairs, the student's narratives, the teacher's signals. Out: the student on hard labels alone
(the comparison), the distilled student, and the calibrated predictions of both. Ignores: how
good they are; the evaluation stage says that.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.special import expit
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast, set_seed

from ckd_ehr.contracts.config import StudentConfig
from ckd_ehr.contracts.files import read_table, sha256_of, write_json, write_table
from ckd_ehr.contracts.fitted import FITTED, FittedOn, fitted_on, read_fitted, write_fitted
from ckd_ehr.contracts.processes import is_leader
from ckd_ehr.contracts.records import PAIRS, PREDICTIONS, with_label_names
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.knowledge.sources import iter_narratives
from ckd_ehr.knowledge.vocabulary import STUDENT_TOKENIZER
from ckd_ehr.learning.batches import Batch, Example, PairDataset, collator
from ckd_ehr.learning.concept_tokens import extend_embeddings
from ckd_ehr.learning.distillation import Lessons, Teaching, lessons_of, read_teaching
from ckd_ehr.learning.distiller import Distiller
from ckd_ehr.learning.examples import PairTable, TextReader, read_pairs
from ckd_ehr.learning.gang import meet
from ckd_ehr.learning.layers import select_layers
from ckd_ehr.learning.reading import (
    attention_kernel,
    check_positions,
    pick_device,
    predict_logits,
)
from ckd_ehr.learning.readout import READOUT, why_unrecorded
from ckd_ehr.learning.sampling import EpochSampler, Unlabelled
from ckd_ehr.learning.scoring import Floats, fit_platt
from ckd_ehr.learning.student_model import StudentModel, encoder_config
from ckd_ehr.learning.tracking import Tracking
from ckd_ehr.learning.training import fit, hard_terms
from ckd_ehr.learning.warm_up import warm_up
from ckd_ehr.learning.weights import load_tokenizer, resolve_model

Variant = Literal["hard", "distilled"]
VARIANTS: tuple[Variant, ...] = ("hard", "distilled")
PREDICTOR = "predictor.json"
TOKENIZER = "tokenizer.json"
BALANCED_ON = 8  # batches
NO_GRADIENT = "no gradient where the terms were balanced"


@dataclass(frozen=True)
class _Training:
    """What both variants have in common."""

    context: StageContext
    pairs: PairTable
    reader: TextReader
    examples: Sequence[Example]  # one a pair, in the order of `pairs`
    device: str
    settings: StudentConfig
    history: Mapping[str, object]  # of what came before the labels
    fitted: Sequence[FittedOn]

    @property
    def seed(self) -> int:
        """Of weights, dropout and the order of pairs."""
        own = self.settings.seed
        return self.context.config.seed if own is None else own

    def of(self, split: str, *, labelled: bool | None = None) -> list[Example]:
        """The examples of a split."""
        return [self.examples[row] for row in self.pairs.rows(split=split, labelled=labelled)]


def write_students(context: StageContext) -> None:
    """Train both variants, calibrate them on tuning, predict tuning and held_out."""
    pairs = read_pairs(context.inputs["cohort"])
    reader = student_reader(context.config.student, context.inputs["knowledge"])
    texts = iter_narratives(context.inputs["knowledge"], "student")
    examples = reader.read(pairs, texts, range(len(pairs.pair_ids)))
    device, settings = pick_device(context.config.device), context.config.student
    check_positions(
        encoder_config(settings.model, dropout=settings.dropout),
        max_tokens=context.config.knowledge.student.max_tokens,
        setting="knowledge.student.max_tokens",
    )
    training = _Training(context, pairs, reader, examples, device, settings, {}, [])
    if settings.concept_vocabulary.enabled:
        training = _with_concepts(training)
    if settings.domain_epochs > 0:
        training = _warmed_up(training)
    teaching = read_teaching(context, pairs, examples, seed=training.seed)
    for variant in VARIANTS:
        if not (context.work / variant / PREDICTOR).is_file():
            _train_hard(training) if variant == "hard" else _train_distilled(training, teaching)
        meet()
    if not is_leader():
        return
    tables = [read_table(context.work / f"{name}.parquet", PREDICTIONS) for name in VARIANTS]
    for variant in VARIANTS:
        (context.work / variant).rename(context.folder / variant)
    schema = with_label_names(PREDICTIONS, pairs.label_names)
    write_table(pa.concat_tables(tables), context.folder / "predictions.parquet", schema)
    records = [read_fitted(context.folder / variant / FITTED) for variant in VARIANTS]
    write_fitted(
        context.folder / FITTED,
        [record for part in (training.fitted, *records) for record in part],
    )


def student_reader(settings: StudentConfig, knowledge: Path) -> TextReader:
    """How the student reads; with a concept vocabulary by the knowledge stage's tokenizer."""
    extended = knowledge / STUDENT_TOKENIZER if settings.concept_vocabulary.enabled else None
    return TextReader(settings.model, "first", extended)


def _with_concepts(training: _Training) -> _Training:
    """The same with an encoder that has an embedding for each concept of the vocabulary."""
    folder, model = training.context.work / "encoder", training.settings.model
    if is_leader() and not folder.is_dir():
        partial = folder.with_suffix(".partial")
        backbone = AutoModel.from_pretrained(resolve_model(model), dtype=torch.float32)
        extend_embeddings(backbone, training.reader.tokenizer, load_tokenizer(model))
        backbone.save_pretrained(partial)
        special = AutoTokenizer.from_pretrained(resolve_model(model)).special_tokens_map
        # of no class that would build it anew from its words
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=training.reader.tokenizer, **special)
        tokenizer.save_pretrained(partial)
        partial.rename(folder)
    meet()
    settings = training.settings.model_copy(update={"model": str(folder)})
    return replace(training, settings=settings)


def _warmed_up(training: _Training) -> _Training:
    """The same with an encoder that has read all train narratives, labelled or not."""
    context, folder = training.context, training.context.work / "domain"
    train, tuning = training.of("train"), training.of("tuning")
    facts = warm_up(
        training.settings,
        train=[tuple(example.encoded.input_ids.tolist()) for example in train],
        tuning=[tuple(example.encoded.input_ids.tolist()) for example in tuning],
        pad_token=training.reader.pad_token,
        folder=folder,
        seed=training.seed,
        device=training.device,
        say=context.say,
    )
    settings = training.settings.model_copy(update={"model": str(folder)})
    fitted = [fitted_on("domain", _ids(train), split="train")]
    return replace(training, settings=settings, history={"domain": facts}, fitted=fitted)


def _train_hard(training: _Training) -> None:
    """The student that others are compared with, and that decides what a teacher may teach."""
    model, train = _fresh(training), training.of("train", labelled=True)
    history = fit(
        model,
        train=train,
        tuning=training.of("tuning"),
        loss=hard_terms,
        settings=training.settings,
        pad_token=training.reader.pad_token,
        labels=len(training.pairs.label_names),
        checkpoints=training.context.work / "checkpoints_hard",
        seed=training.seed,
        device=training.device,
        title="student (hard)",
        say=training.context.say,
        tracking=Tracking.of(training.context),
    )
    if is_leader():
        _finish(training, "hard", model, history, train)


def _train_distilled(training: _Training, teaching: Teaching) -> None:
    context, settings = training.context, training.settings
    hard_on_tuning = _on_tuning(context.work / "hard.parquet")
    model = _fresh(training)
    lessons = lessons_of(
        context,
        training.pairs,
        teaching,
        hard_on_tuning=hard_on_tuning,
        unrecorded=why_unrecorded(model.backbone.config),
    )
    if lessons.recipe.wants("layers"):
        model.set_attn_implementation(READOUT)
    distiller = Distiller(model, lessons.recipe, teacher_layers=lessons.teacher_layers)
    distiller.to(training.device)
    sampling = Unlabelled(settings.unlabelled_ratio, settings.unlabelled_sampling == "each_epoch")
    norms = distiller.balance(_some_batches(training, lessons, sampling))
    off = {name: NO_GRADIENT for name in lessons.recipe.shares if not distiller.scales[name]}
    context.say(f"    student (distilled): {_described(lessons, off)}")
    history = fit(
        distiller,
        train=lessons.examples,
        tuning=training.of("tuning"),
        loss=distiller.terms,
        settings=settings,
        pad_token=training.reader.pad_token,
        labels=len(training.pairs.label_names),
        checkpoints=context.work / "checkpoints_distilled",
        seed=training.seed,
        device=training.device,
        title="student (distilled)",
        say=context.say,
        signal_of=lessons.signal_of,
        tracking=Tracking.of(context),
        unlabelled=sampling,
    )
    model.set_attn_implementation(attention_kernel(training.device))
    scales = {name: distiller.scales[name] for name in lessons.recipe.shares}
    facts = {"gradient_norms_at_start": norms, "scales": scales, **lessons.facts}
    facts["terms_off"] = {**lessons.missing, **off}
    if is_leader():
        _finish(training, "distilled", model, {**history, **facts}, lessons.examples)


def _fresh(training: _Training) -> StudentModel:
    """The untrained student: the same for both variants."""
    set_seed(training.seed)
    pairs = training.pairs
    model = new_student(training.settings, labels=pairs.label_names, device=training.device)
    model.head.start_at(torch.tensor(pairs.prevalence()))
    return model


def _some_batches(training: _Training, lessons: Lessons, sampling: Unlabelled) -> Sequence[Batch]:
    """Batches of the first epoch, evenly spaced: its first ones would be of the longest texts."""
    dataset = PairDataset(lessons.examples, signal_of=lessons.signal_of)
    sampler = EpochSampler(
        dataset,
        lengths=[len(example.encoded.input_ids) for example in lessons.examples],
        batch_size=training.settings.batch_size,
        seed=training.seed,
        labelled=[example.labels is not None for example in lessons.examples],
        unlabelled=sampling,
    )
    size, rows = training.settings.batch_size, list(sampler)
    starts = np.arange(0, len(rows), size)
    chosen = starts[:: max(1, len(starts) // BALANCED_ON)][:BALANCED_ON]
    collate = collator(pad_token=training.reader.pad_token, labels=len(training.pairs.label_names))
    batches = (collate([dataset[row] for row in rows[at : at + size]]) for at in chosen)
    return [{name: value.to(training.device) for name, value in batch.items()} for batch in batches]


def _described(lessons: Lessons, off: Collection[str]) -> str:
    """What is distilled, in one line."""
    facts, pairs = lessons.facts, len(lessons.examples)
    shares = lessons.recipe.shares.items()
    terms = ", ".join(f"{name} {share:g}" for name, share in shares if name not in off)
    without = f" ({', '.join(off)} off: {NO_GRADIENT})" if off else ""
    return (
        f"soft labels of {facts['soft_labels']}, {facts['gate_closed']} of "
        f"{len(lessons.recipe.gate)} labels behind a closed gate; terms "
        f"{terms or 'none'}{without}; "
        f"{facts['pairs_without_signals']} of {pairs} pairs without signals"
    )


def _on_tuning(predictions: Path) -> Floats:
    """A student's probabilities (tuning pairs, labels), in the order of the pairs."""
    table = read_table(predictions, PREDICTIONS)
    tuning = np.asarray(table["split"].to_pylist()) == "tuning"
    values: Floats = np.array(table["probabilities"].to_pylist(), dtype=np.float64)
    return np.asarray(values[tuning], dtype=np.float64)


def _ids(examples: Sequence[Example]) -> list[str]:
    return [example.pair_id for example in examples]


def new_student(settings: StudentConfig, *, labels: Sequence[str], device: str) -> StudentModel:
    """The pretrained encoder, or some of its layers, with a fresh head."""
    backbone = AutoModel.from_pretrained(
        resolve_model(settings.model),
        config=encoder_config(settings.model, dropout=settings.dropout),
        dtype=torch.float32,
        attn_implementation=attention_kernel(device),
    )
    select_layers(backbone, settings.layers)
    return StudentModel.of(backbone, labels)


def _finish(
    training: _Training,
    variant: Variant,
    model: StudentModel,
    history: Mapping[str, object],
    trained_on: Sequence[Example],
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
    table = _prediction_table(training, rows, probabilities, model=f"student_{variant}")
    write_table(table, context.work / f"{variant}.parquet", PREDICTIONS)
    folder = context.work / variant
    _save(folder, training, model, {**history, **training.history})
    write_fitted(folder / FITTED, _fitted(training, variant, trained_on))
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
        "seed": training.seed,
        "tokenizer_sha256": sha256_of(folder / TOKENIZER),
    }
    write_json(folder / PREDICTOR, facts)


def _fitted(training: _Training, variant: Variant, trained_on: Sequence[Example]) -> list[FittedOn]:
    """What of this student was fitted on which pairs."""
    tuning, labelled = (_ids(training.of(split, labelled=True)) for split in ("tuning", "train"))
    chosen = ["early_stopping", "platt", *(["gate"] if variant == "distilled" else [])]
    return [
        fitted_on(f"{variant}/prevalence", labelled, split="train"),
        fitted_on(f"{variant}/weights", _ids(trained_on), split="train"),
        *(fitted_on(f"{variant}/{name}", tuning, split="tuning") for name in chosen),
    ]


def _save(
    folder: Path, training: _Training, model: StudentModel, history: Mapping[str, object]
) -> None:
    """What it takes to read with the student again, and how it was trained."""
    folder.mkdir(exist_ok=True)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(training.settings.model))
    tokenizer.save_pretrained(folder)
    write_json(folder / "training.json", history)


def _prediction_table(
    training: _Training,
    rows: NDArray[np.intp],
    probabilities: NDArray[np.float64],
    *,
    model: str,
) -> pa.Table:
    cohort = training.context.inputs["cohort"]
    source = read_table(cohort / "pairs.parquet", PAIRS).take(rows)
    return pa.table(
        {
            "pair_id": source.column("pair_id"),
            "subject_id": source.column("subject_id"),
            "prediction_time": source.column("prediction_time"),
            "split": source.column("split"),
            "model": [model] * len(rows),
            "seed": [training.seed] * len(rows),
            "probabilities": probabilities.astype(np.float32).tolist(),
            "labels": training.pairs.labels[rows].tolist(),
        }
    )
