"""The teacher: a decoder LLM with LoRA and label attention, one for each patient fold.

In: pairs and the teacher's narratives. Out: an adapter and a head for each fold; the teacher of
fold f has seen no patient of fold f, so its labels for them are out of fold. Ignores: what the
soft labels are used for.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BitsAndBytesConfig, set_seed

from ckd_ehr.contracts.config import LoraConfig, RunConfig, TeacherConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json, write_json
from ckd_ehr.contracts.fitted import FITTED, FittedOn, fitted_on, read_fitted, write_fitted
from ckd_ehr.contracts.processes import is_leader
from ckd_ehr.contracts.records import Narrative
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.knowledge.sources import read_narratives
from ckd_ehr.learning.batches import Example
from ckd_ehr.learning.examples import PairTable, TextReader, read_pairs
from ckd_ehr.learning.gang import meet
from ckd_ehr.learning.heads import (
    LabelAttentionHead,
    LabelAttentionModel,
    load_head,
    save_head,
)
from ckd_ehr.learning.language import Schedule, Texts, fit_language
from ckd_ehr.learning.layers import blocks_of
from ckd_ehr.learning.orders import generator_of, shuffled
from ckd_ehr.learning.paper_recipe import (
    AnswerModel,
    answered,
    fit_head,
    language_model,
    reading_states,
)
from ckd_ehr.learning.precision import Arithmetic, resolve_precision, uses_bf16
from ckd_ehr.learning.prompts import PromptReader
from ckd_ehr.learning.reading import attention_kernel, check_positions, pick_device
from ckd_ehr.learning.readout import READOUT, why_unreadable
from ckd_ehr.learning.tracking import Tracking
from ckd_ehr.learning.training import fit, hard_terms
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
    refuse_unreadable(context.config.teacher.model)
    reader = teacher_reader(context.config, pairs.label_names)
    tuning = reader.examples(pairs, narratives, pairs.rows(split="tuning").tolist())
    device = pick_device(context.config.device)
    training = _Training(context, pairs, narratives, reader, tuning, device)
    folds = range(context.config.splits.folds)
    for fold in folds:
        if not (context.work / f"fold_{fold}" / "head.json").is_file():
            _train_fold(training, fold)
        meet()
    if not is_leader():
        return
    history = {f"fold_{fold}": read_json(context.work / f"fold_{fold}" / HISTORY) for fold in folds}
    for fold in folds:
        (context.work / f"fold_{fold}").rename(context.folder / f"fold_{fold}")
    write_json(context.folder / HISTORY, history)
    records = [read_fitted(context.folder / f"fold_{fold}" / FITTED) for fold in folds]
    write_fitted(context.folder / FITTED, [record for part in records for record in part])


def refuse_unreadable(model: str) -> None:
    """Refuse a model whose attention cannot be recorded, before hours of training it.

    Raises:
        CkdEhrError: names the model and what is wrong.
    """
    config = AutoConfig.from_pretrained(resolve_model(model))
    if reason := why_unreadable(config):
        raise CkdEhrError(
            f"teacher.model={model}: {config.model_type}: {reason}; take a decoder of the Llama, "
            "Qwen2, Qwen3 or SmolLM family"
        )


def teacher_reader(config: RunConfig, labels: Sequence[str]) -> TextReader:
    """How the teacher reads narratives: alone, or within the prompt that it was tuned on."""
    settings = config.teacher
    if settings.recipe == "paper":
        return PromptReader(settings.model, labels, max_tokens=settings.paper.max_tokens)
    return TextReader(settings.model, "last")


def _train_fold(training: _Training, fold: int) -> None:
    context, pairs = training.context, training.pairs
    settings, seed = context.config.teacher, context.config.seed + fold
    labelled = pairs.rows(split="train", labelled=True)
    seen = labelled[pairs.fold[labelled] != fold]
    set_seed(seed)
    train = training.reader.examples(pairs, training.narratives, seen.tolist())
    model, vocabulary = _untrained(settings, labels=len(pairs.label_names), device=training.device)
    paper = settings.recipe == "paper"
    check_positions(
        model.backbone.config,
        max_tokens=settings.paper.max_tokens if paper
        else context.config.knowledge.teacher.max_tokens,
        setting="teacher.paper.max_tokens" if paper else "knowledge.teacher.max_tokens",
    )  # fmt: skip
    model.head.start_at(torch.tensor(pairs.prevalence(seen)))
    if vocabulary is not None and settings.domain_epochs > 0:
        _fit_domain(training, model, vocabulary=vocabulary, fold=fold)
    if vocabulary is not None and paper:
        history = _fit_as_the_paper(training, model, train, vocabulary=vocabulary, fold=fold)
    else:
        history = fit(
            model,
            train=train,
            tuning=training.tuning,
            loss=hard_terms,
            settings=settings,
            pad_token=training.reader.pad_token,
            labels=len(pairs.label_names),
            checkpoints=context.work / f"checkpoints_{fold}",
            seed=seed,
            device=training.device,
            title=f"teacher without fold {fold}",
            say=context.say,
            retell=_retelling(training) if settings.shuffle else None,
            tracking=Tracking.of(context),
        )
    if not is_leader():
        return
    done = context.work / f"fold_{fold}"
    model.backbone.save_pretrained(done)  # type: ignore[operator]
    write_json(done / HISTORY, history)
    write_fitted(done / FITTED, _fitted(training, fold, train))
    save_head(done, model.head, pairs.label_names)


def _fit_domain(
    training: _Training, model: LabelAttentionModel, *, vocabulary: Tensor, fold: int
) -> None:
    """Next-token training on the narratives of the other folds, labelled or not."""
    context, pairs = training.context, training.pairs
    settings = context.config.teacher
    rows = _rows_of_others(pairs, fold)
    reader = TextReader(settings.model, "last")  # the records alone, whatever the recipe
    texts = reader.examples(pairs, training.narratives, rows)
    tokens = [example.encoded.input_ids.tolist() for example in texts]
    fit_language(
        AnswerModel(model.backbone, vocabulary),
        Texts([answered(ids[:1], ids[1:]) for ids in tokens]),
        Schedule(
            epochs=settings.domain_epochs,
            learning_rate=settings.learning_rate,
            batch_size=settings.batch_size,
            checkpoint_steps=settings.checkpoint_steps,
            bf16=uses_bf16(settings.precision, device=training.device),
        ),
        pad_token=training.reader.pad_token,
        checkpoints=context.work / f"domain_{fold}",
        seed=context.config.seed + fold,
        device=training.device,
        title=f"teacher without fold {fold}, reading narratives",
        say=context.say,
    )


def _fit_as_the_paper(
    training: _Training,
    model: LabelAttentionModel,
    train: Sequence[Example],
    *,
    vocabulary: Tensor,
    fold: int,
) -> dict[str, object]:
    """Generative tuning, then the head on frozen states."""
    context, reader, started = training.context, training.reader, time.monotonic()
    assert isinstance(reader, PromptReader)
    settings, seed = context.config.teacher, context.config.seed + fold
    precision = resolve_precision(settings.precision, device=training.device)
    labels = np.array([example.labels for example in train])
    names = training.pairs.label_names
    answers = [reader.answer(row, names) for row in labels]
    prompts = [example.encoded.input_ids.tolist() for example in train]
    history = fit_language(
        AnswerModel(model.backbone, vocabulary),
        Texts([answered(*one) for one in zip(prompts, answers, strict=True)]),
        Schedule(
            epochs=settings.paper.epochs,
            learning_rate=settings.paper.learning_rate,
            batch_size=settings.paper.batch_size,
            checkpoint_steps=settings.checkpoint_steps,
            bf16=precision == "bf16",
        ),
        pad_token=reader.pad_token,
        checkpoints=context.work / f"checkpoints_{fold}",
        seed=seed,
        device=training.device,
        title=f"teacher without fold {fold}, generative",
        say=context.say,
    )
    states = reading_states(
        model.backbone,
        train,
        beginning=reader.before,
        pad_token=reader.pad_token,
        device=training.device,
        precision=precision,
    )
    model.head.cpu()
    loss = fit_head(
        model.head, states, torch.from_numpy(labels), settings=settings.paper, seed=seed
    )
    seconds = round(time.monotonic() - started, 1)
    facts = {"precision": precision, "pairs": len(train), "head_loss": loss, "seconds": seconds}
    return {**history, **facts}


def _retelling(training: _Training) -> Callable[[Example, int], Example]:
    """A pair with its codes in another order in each epoch: their order is arbitrary."""

    def retell(example: Example, epoch: int) -> Example:
        rng = generator_of(example.pair_id, order=1 + epoch, seed=training.context.config.seed)
        told = shuffled(training.narratives[example.pair_id], rng)
        encoded = training.reader.example(example.pair_id, told).encoded
        return replace(example, encoded=encoded)

    return retell


def _fitted(training: _Training, fold: int, train: Sequence[Example]) -> list[FittedOn]:
    """What the teacher without this fold has seen."""
    others = [other for other in range(training.context.config.splits.folds) if other != fold]
    seen = [example.pair_id for example in train]
    tuning = [example.pair_id for example in training.tuning]
    records = [
        fitted_on(f"fold_{fold}/weights", seen, split="train", folds=others),
        fitted_on(f"fold_{fold}/early_stopping", tuning, split="tuning"),
    ]
    if training.context.config.teacher.domain_epochs > 0:
        read = [training.pairs.pair_ids[row] for row in _rows_of_others(training.pairs, fold)]
        records.append(fitted_on(f"fold_{fold}/domain", read, split="train", folds=others))
    return records


def _rows_of_others(pairs: PairTable, fold: int) -> list[int]:
    """All train pairs of the other folds, labelled or not."""
    rows = pairs.rows(split="train")
    other: list[int] = rows[pairs.fold[rows] != fold].tolist()
    return other


def new_teacher(settings: TeacherConfig, *, labels: int, device: str) -> LabelAttentionModel:
    """The pretrained backbone, frozen, with fresh LoRA weights and a fresh head."""
    return _untrained(settings, labels=labels, device=device)[0]


def _untrained(
    settings: TeacherConfig, *, labels: int, device: str
) -> tuple[LabelAttentionModel, Tensor | None]:
    """A new teacher, and the language-model head if the recipe needs it."""
    vocabulary = None
    if settings.recipe == "paper" or settings.domain_epochs > 0:
        options = _loading(settings, device=device)
        backbone, vocabulary = language_model(resolve_model(settings.model), options)
    else:
        backbone = load_backbone(settings, device=device)
    if settings.gradient_checkpointing:
        backbone.gradient_checkpointing_enable({"use_reentrant": False})
    adapted = get_peft_model(backbone, _peft_config(settings.lora, backbone))
    head = LabelAttentionHead(backbone.config.hidden_size, labels, pooling=settings.head_pooling)
    return LabelAttentionModel(adapted, head, pooling="last"), vocabulary


def load_teacher(
    settings: TeacherConfig, folder: Path, *, device: str, readout: bool = False
) -> LabelAttentionModel:
    """A trained fold teacher, ready to read; `readout` lets its layers' attention be recorded."""
    kernel = READOUT if readout else None
    backbone = load_backbone(settings, device=device, kernel=kernel)
    adapted = _adapted(backbone, folder)
    if readout and settings.quantize == "none" and not uses_bf16(settings.precision, device=device):
        adapted = adapted.merge_and_unload()  # rounding in bf16 would change what it says
    model = LabelAttentionModel(adapted, load_head(folder), pooling="last")
    return model.to(device).eval()


def _adapted(backbone: nn.Module, folder: Path) -> Any:
    """The backbone with a fold's LoRA weights; an error if they are not all there."""
    try:
        adapted = PeftModel.from_pretrained(backbone, folder)
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            found = set(file.keys())
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CkdEhrError(
            f"{folder}: its adapter is missing or damaged ({type(error).__name__}); "
            "delete the folder of stage teacher and run again"
        ) from None
    if other := get_peft_model_state_dict(adapted).keys() ^ found:
        raise CkdEhrError(
            f"{folder}: its adapter is damaged or of another model ({len(other)} of its weights "
            "have no counterpart); delete the folder of stage teacher and run again"
        )
    return adapted


def trained_in(folder: Path) -> Arithmetic:
    """What a fold teacher was trained in, on whatever machine: it labels in the same."""
    return "bf16" if read_json(folder / HISTORY)["precision"] == "bf16" else "fp32"


def load_backbone(settings: TeacherConfig, *, device: str, kernel: str | None = None) -> Any:
    """A decoder without its language-model head, causal or not."""
    options = _loading(settings, device=device, kernel=kernel)
    return AutoModel.from_pretrained(resolve_model(settings.model), **options)


def _loading(settings: TeacherConfig, *, device: str, kernel: str | None = None) -> dict[str, Any]:
    """What Transformers loads the model with."""
    folder = resolve_model(settings.model)
    config = AutoConfig.from_pretrained(folder)
    if getattr(config, "is_encoder_decoder", False) or "bert" in str(config.model_type):
        raise CkdEhrError(
            f"teacher.model={settings.model}: a decoder is needed, this is {config.model_type}"
        )
    config.use_cache = False
    if settings.bidirectional:
        config.is_causal = False
    dtype = torch.bfloat16 if uses_bf16(settings.precision, device=device) else torch.float32
    options: dict[str, Any] = {"config": config, "dtype": dtype}
    options["attn_implementation"] = kernel or attention_kernel(device)
    if settings.quantize == "nf4":
        options["quantization_config"] = four_bits(device)
    return options


def four_bits(device: str) -> Any:
    """NF4 with double quantisation (QLoRA, Dettmers et al. 2023); an error where it cannot run."""
    if not device.startswith("cuda"):
        raise CkdEhrError(
            f"teacher.quantize=nf4: needs a CUDA GPU, this run is on {device}; "
            "set teacher.quantize=none"
        )
    try:
        import_module("bitsandbytes")
    except ImportError:
        raise CkdEhrError(
            "teacher.quantize=nf4: bitsandbytes is not installed; pip install bitsandbytes, "
            "or set teacher.quantize=none"
        ) from None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _peft_config(settings: LoraConfig, backbone: nn.Module) -> PeftLoraConfig:
    return PeftLoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_dora=settings.dora,
        use_rslora=settings.rslora,
        target_modules="all-linear" if settings.layers == 1 else _top_linears(backbone, settings),
    )


def _top_linears(backbone: nn.Module, settings: LoraConfig) -> list[str]:
    """Names of the linear layers in the top share of the decoder's blocks."""
    name, blocks = blocks_of(backbone)
    depth = len(blocks)
    linears = [
        f"{name}.{number}.{inner}"
        for number in range(depth - max(1, round(depth * settings.layers)), depth)
        for inner, part in blocks[number].named_modules()
        if isinstance(part, nn.Linear)
    ]
    if not linears:
        raise CkdEhrError(
            f"teacher.lora.layers={settings.layers}: no blocks of linear layers are found in "
            f"{type(backbone).__name__}; take another model"
        )
    return linears
