"""The teacher: a decoder LLM with LoRA and label attention, one for each patient fold.

In: pairs and the teacher's narratives. Out: an adapter and a head for each fold; the teacher of
fold f has seen no patient of fold f, so its labels for them are out of fold. Ignores: what the
soft labels are used for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, set_seed

from ckd_ehr.contracts.config import LoraConfig, TeacherConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json, write_json
from ckd_ehr.contracts.fitted import FITTED, FittedOn, fitted_on, read_fitted, write_fitted
from ckd_ehr.contracts.records import Narrative
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.knowledge.sources import read_narratives
from ckd_ehr.learning.batches import Batch, Example
from ckd_ehr.learning.examples import PairTable, TextReader, read_pairs
from ckd_ehr.learning.heads import (
    HeadOutput,
    LabelAttentionHead,
    LabelAttentionModel,
    load_head,
    save_head,
)
from ckd_ehr.learning.losses import hard_loss
from ckd_ehr.learning.precision import Arithmetic, uses_bf16
from ckd_ehr.learning.reading import attention_kernel, check_positions, pick_device
from ckd_ehr.learning.training import fit
from ckd_ehr.learning.weights import resolve_model

HISTORY = "training.json"


@dataclass(frozen=True)
class _Training:
    """What the fold teachers have in common."""

    context: StageContext
    pairs: PairTable
    narratives: Mapping[str, Narrative]
    reader: TextReader
    tuning: Sequence[Example]
    device: str


def write_teacher(context: StageContext) -> None:
    """Train one teacher per fold; a killed run resumes at its last checkpoint."""
    pairs = read_pairs(context.inputs["cohort"])
    narratives = read_narratives(context.inputs["knowledge"], "teacher")
    reader = TextReader(context.config.teacher.model, "last")
    tuning = reader.examples(pairs, narratives, pairs.rows(split="tuning").tolist())
    device = pick_device(context.config.device)
    training = _Training(context, pairs, narratives, reader, tuning, device)
    folds = range(context.config.splits.folds)
    for fold in folds:
        if not (context.work / f"fold_{fold}" / "head.json").is_file():
            _train_fold(training, fold)
    history = {f"fold_{fold}": read_json(context.work / f"fold_{fold}" / HISTORY) for fold in folds}
    for fold in folds:
        (context.work / f"fold_{fold}").rename(context.folder / f"fold_{fold}")
    write_json(context.folder / HISTORY, history)
    records = [read_fitted(context.folder / f"fold_{fold}" / FITTED) for fold in folds]
    write_fitted(context.folder / FITTED, [record for part in records for record in part])


def _train_fold(training: _Training, fold: int) -> None:
    context, pairs = training.context, training.pairs
    settings, seed = context.config.teacher, context.config.seed + fold
    labelled = pairs.rows(split="train", labelled=True)
    seen = labelled[pairs.fold[labelled] != fold]
    set_seed(seed)
    model = new_teacher(settings, labels=len(pairs.label_names), device=training.device)
    check_positions(
        model.backbone,
        max_tokens=context.config.knowledge.teacher.max_tokens,
        setting="knowledge.teacher.max_tokens",
    )
    model.head.start_at(torch.tensor(pairs.prevalence(seen)))
    train = training.reader.examples(pairs, training.narratives, seen.tolist())
    history = fit(
        model,
        train=train,
        tuning=training.tuning,
        loss=_loss,
        settings=settings,
        pad_token=training.reader.pad_token,
        labels=len(pairs.label_names),
        checkpoints=context.work / f"checkpoints_{fold}",
        seed=seed,
        device=training.device,
        title=f"teacher without fold {fold}",
        say=context.say,
    )
    done = context.work / f"fold_{fold}"
    model.backbone.save_pretrained(done)  # type: ignore[operator]
    write_json(done / HISTORY, history)
    write_fitted(done / FITTED, _fitted(training, fold, train))
    save_head(done, model.head, pairs.label_names)


def _fitted(training: _Training, fold: int, train: Sequence[Example]) -> list[FittedOn]:
    """What the teacher without this fold has seen."""
    others = [other for other in range(training.context.config.splits.folds) if other != fold]
    seen = [example.pair_id for example in train]
    tuning = [example.pair_id for example in training.tuning]
    return [
        fitted_on(f"fold_{fold}/weights", seen, split="train", folds=others),
        fitted_on(f"fold_{fold}/early_stopping", tuning, split="tuning"),
    ]


def _loss(output: HeadOutput, batch: Batch, _progress: float) -> Tensor:
    return hard_loss(output.logits, batch["labels"], batch["labelled"])


def new_teacher(settings: TeacherConfig, *, labels: int, device: str) -> LabelAttentionModel:
    """The pretrained backbone, frozen, with fresh LoRA weights and a fresh head."""
    backbone = load_backbone(settings.model, precision=settings.precision, device=device)
    adapted = get_peft_model(backbone, _peft_config(settings.lora, backbone))
    head = LabelAttentionHead(backbone.config.hidden_size, labels)
    return LabelAttentionModel(adapted, head, pooling="last")


def load_teacher(settings: TeacherConfig, folder: Path, *, device: str) -> LabelAttentionModel:
    """A trained fold teacher, ready to read."""
    backbone = load_backbone(settings.model, precision=settings.precision, device=device)
    adapted = PeftModel.from_pretrained(backbone, folder)
    model = LabelAttentionModel(adapted, load_head(folder), pooling="last")
    return model.to(device).eval()


def trained_in(folder: Path) -> Arithmetic:
    """What a fold teacher was trained in, on whatever machine: it labels in the same."""
    return "bf16" if read_json(folder / HISTORY)["precision"] == "bf16" else "fp32"


def load_backbone(model: str, *, precision: str, device: str) -> Any:
    """A decoder without its language-model head."""
    folder = resolve_model(model)
    config = AutoConfig.from_pretrained(folder)
    if getattr(config, "is_encoder_decoder", False) or "bert" in str(config.model_type):
        raise CkdEhrError(
            f"teacher.model={model}: a decoder is needed, this is {config.model_type}"
        )
    config.use_cache = False
    dtype = torch.bfloat16 if uses_bf16(precision, device=device) else torch.float32
    return AutoModel.from_pretrained(
        folder, config=config, dtype=dtype, attn_implementation=attention_kernel(device)
    )


def _peft_config(settings: LoraConfig, backbone: nn.Module) -> PeftLoraConfig:
    return PeftLoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear" if settings.layers == 1 else _top_linears(backbone, settings),
    )


def _top_linears(backbone: nn.Module, settings: LoraConfig) -> list[str]:
    """Names of the linear layers in the top share of the decoder's blocks."""
    blocks = [(name, part) for name, part in backbone.named_modules() if name.endswith(".layers")
              or name == "layers"]  # fmt: skip
    name, stack = blocks[0]
    assert isinstance(stack, nn.ModuleList)
    first = len(stack) - max(1, round(len(stack) * settings.layers))
    return [
        f"{name}.{number}.{inner}"
        for number in range(first, len(stack))
        for inner, part in stack[number].named_modules()
        if isinstance(part, nn.Linear)
    ]


def out_of_fold(pairs: PairTable, fold: int) -> NDArray[np.intp]:
    """Rows that the teacher of this fold labels: its fold's train pairs, and all later splits."""
    return np.nonzero((pairs.fold == fold) | (pairs.split != "train"))[0]
