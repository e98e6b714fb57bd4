"""One way to train: Hugging Face Trainer around a label attention model.

In: a model, examples, a loss. Out: the model at its best tuning score, and what happened.
Training resumes from its last checkpoint after a kill. Ignores: whether it trains a teacher or a
student.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from ckd_ehr.contracts.config import TrainingConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.machine import peak_memory_bytes
from ckd_ehr.contracts.processes import is_leader, world_size
from ckd_ehr.learning.batches import MODEL_INPUTS, Batch, Example, PairDataset, Signal, collator
from ckd_ehr.learning.gang import meet
from ckd_ehr.learning.heads import HeadOutput
from ckd_ehr.learning.losses import hard_loss
from ckd_ehr.learning.precision import Arithmetic, resolve_precision
from ckd_ehr.learning.sampling import ALL, Epoched, EpochSampler, Unlabelled
from ckd_ehr.learning.scoring import label_ranking, macro
from ckd_ehr.learning.terms import Term, Terms, gradient_norms, total_of
from ckd_ehr.learning.tracking import UNTRACKED, Tracking

Loss = Callable[[HeadOutput, Batch, float], Terms]
SELECTION = "eval_selection"
STEPS_A_LOOK = 100  # between two looks at the terms' gradients, each of which costs some steps
CHECKPOINT_FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt")


def hard_terms(output: HeadOutput, batch: Batch, _progress: float) -> Terms:
    """Hard labels alone: what a teacher learns from, and the student that others compare with."""
    return {"hard": Term(hard_loss(output.logits, batch["labels"], batch["labelled"]), 1.0)}


class LossTrainer(Trainer):  # type: ignore[misc]  # Transformers ships no types
    """Trainer whose terms are a function of (head output, batch, progress from 0 to 1)."""

    def __init__(
        self,
        *,
        loss: Loss,
        title: str,
        settings: TrainingConfig,
        unlabelled: Unlabelled,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.loss = loss
        self.title = title
        self.settings = settings
        self.unlabelled = unlabelled

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW, with a rate of its own for the head; made when the model is where it will run."""
        if self.optimizer is None:
            groups = _parameter_groups(model or self.model, self.settings)
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, fused=True)
        return self.optimizer

    def _get_train_sampler(self, train_dataset: PairDataset | None = None) -> "EpochSampler":
        dataset = train_dataset or self.train_dataset
        return EpochSampler(
            dataset,
            lengths=[len(example.encoded.input_ids) for example in dataset.examples],
            batch_size=self.args.train_batch_size,
            seed=self.args.seed,
            labelled=[example.labels is not None for example in dataset.examples],
            unlabelled=self.unlabelled,
        )

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, **_: object
    ) -> Any:
        """The loss at the present step."""
        output: HeadOutput = model(**{name: inputs[name] for name in MODEL_INPUTS})
        progress = self.state.global_step / max(1, self.state.max_steps)
        terms = self.loss(output, inputs, progress)
        loss = total_of(terms)
        if len(terms) > 1 and self.state.global_step % STEPS_A_LOOK == 0:
            self._note(terms)
        if not torch.isfinite(loss):
            raise CkdEhrError(
                f"{self.title}: the loss is not finite at step {self.state.global_step + 1}; "
                "lower learning_rate or head_learning_rate, or set precision=fp32"
            )
        return (loss, {"logits": output.logits}) if return_outputs else loss

    def _note(self, terms: Terms) -> None:
        """Write each term's value, weight and gradient into the log that checkpoints carry."""
        norms = gradient_norms({name: term.value for name, term in terms.items()}, self.model)
        for name, (value, weight) in terms.items():
            facts = {"value": float(value.detach()), "weight": weight, "gradient": norms[name]}
            self.state.log_history.append({"step": self.state.global_step, "term": name, **facts})

    def prediction_step(
        self, model: nn.Module, inputs: Batch, *_: object, **__: object
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss on hard labels (whatever is trained on), logits and labels of one batch."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            output: HeadOutput = model(**{name: inputs[name] for name in MODEL_INPUTS})
            loss = hard_loss(output.logits, inputs["labels"], inputs["labelled"])
        return loss, output.logits, inputs["labels"]


class Reporter(TrainerCallback):  # type: ignore[misc]  # Transformers ships no types
    """Checkpoints every few steps and says how far training is, with the time left."""

    def __init__(self, title: str, checkpoint_steps: int, say: Callable[[str], None]) -> None:
        self.title = title
        self.checkpoint_steps = checkpoint_steps
        self.say = say
        self.started: float | None = None
        self.first_step = 0
        self.last_said = 0.0

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        self.started, self.first_step = time.monotonic(), state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.checkpoint_steps == 0:
            control.should_save = True
        if state.global_step >= state.max_steps:
            control.should_save = True
            control.should_evaluate = args.eval_strategy != "no"
        now = time.monotonic()
        if self.started is not None and now - self.last_said >= 20:
            rate = (state.global_step - self.first_step) / (now - self.started)
            left = (state.max_steps - state.global_step) / rate
            pairs = rate * args.per_device_train_batch_size * world_size()
            self.say(
                f"    {self.title}: step {state.global_step}/{state.max_steps}, "
                f"{pairs:.1f} pairs/s, {left:.0f} s left"
            )
            self.last_said = now

    def on_evaluate(self, _args: Any, state: Any, _control: Any, metrics: Any, **_: Any) -> None:
        self.say(
            f"    {self.title}: epoch {state.epoch:.2g}, tuning macro-AUPRC "
            f"{metrics['eval_macro_auprc']:.3f}, loss {metrics['eval_loss']:.3f}"
        )


def fit(
    model: nn.Module,
    *,
    train: Sequence[Example],
    tuning: Sequence[Example],
    loss: Loss,
    settings: TrainingConfig,
    pad_token: int,
    labels: int,
    checkpoints: Path,
    seed: int,
    device: str,
    title: str,
    say: Callable[[str], None],
    retell: Callable[[Example, int], Example] | None = None,
    signal_of: Callable[[str], Signal | None] | None = None,
    unlabelled: Unlabelled = ALL,
    tracking: Tracking = UNTRACKED,
) -> dict[str, object]:
    """Train with early stopping on tuning macro-AUPRC; leaves the best weights in the model.

    Args:
        model: with a `backbone`, to which `settings.learning_rate` applies; what else is trained
            takes the head's rate.
        checkpoints: where checkpoints are kept; an earlier, killed run is resumed from there.
        retell: the example as it is read in an epoch.
        signal_of: a train pair's signal, asked for as a batch is made.
        unlabelled: how many of the unlabelled pairs take part in an epoch.
        tracking: who else is told of losses and scores.

    Returns:
        Steps, pairs, tuning scores by step, and what it took: the arithmetic in use, seconds,
        pairs trained on in a second, and the most memory that the process has had.
    """
    precision = resolve_precision(settings.precision, device=device)
    pairs = unlabelled.pairs([example.labels is not None for example in train])
    arguments = _arguments(
        settings, pairs, checkpoints, seed=seed, device=device, bf16=precision == "bf16",
        reports=tracking.arguments(title),
    )  # fmt: skip
    dataset = PairDataset(train, retell, signal_of)
    reporter = Reporter(title, settings.checkpoint_steps, say)
    with tracking.place(title):
        trainer = LossTrainer(
            model=model,
            args=arguments,
            loss=loss,
            title=title,
            settings=settings,
            unlabelled=unlabelled,
            train_dataset=dataset,
            eval_dataset=PairDataset(tuning),
            data_collator=collator(pad_token=pad_token, labels=labels),
            compute_metrics=lambda found: _selection(found.predictions, found.label_ids),
            callbacks=[reporter, _Patience(settings.patience), Epochs(dataset)],
        )
    trainer.remove_callback(PrinterCallback)
    set_seed(seed)
    resumed = usable_checkpoint(checkpoints)
    if resumed is not None:
        say(f"    {title}: resuming from {Path(resumed).name}")
    seconds = _train_or_take_up(trainer, resumed, patience=settings.patience)
    history = _history(trainer, pairs=pairs)
    history |= _effort(trainer, seconds, done=reporter.first_step, precision=precision)
    say(f"    {title}: {history['steps']} steps, {described_effort(history)}")
    return history


def _train_or_take_up(trainer: LossTrainer, resumed: str | None, *, patience: int) -> float:
    """Train, from a checkpoint if there is one; the seconds it took.

    A training that had run out of patience before it was killed is at its end: to train on would
    give another model. Its best weights are taken up.
    """
    if resumed is not None:
        state = TrainerState.load_from_json(f"{resumed}/trainer_state.json")
        if out_of_patience(state.log_history, patience):
            trainer.state = state
            trainer._load_best_model()
            return 0.0
    return float(trainer.train(resume_from_checkpoint=resumed).metrics["train_runtime"])


def _effort(
    trainer: LossTrainer, seconds: float, *, done: int, precision: Arithmetic
) -> dict[str, object]:
    """What training took since it began at step `done`; evaluations are included."""
    pairs = (trainer.state.global_step - done) * trainer.settings.batch_size if seconds else 0
    return {
        "precision": precision,
        "seconds": round(seconds, 1),
        "pairs_per_second": round(pairs / max(seconds, 1e-9), 2),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def described_effort(effort: Mapping[str, Any]) -> str:
    """What training took, for people.

    >>> described_effort({"precision": "bf16", "seconds": 61.5, "pairs_per_second": 8.25,
    ...     "peak_memory_bytes": 1_240_000_000})
    '62 s, 8.2 pairs/s in bf16, at most 1.24 GB of memory'
    """
    return (
        f"{effort['seconds']:.0f} s, {effort['pairs_per_second']:.1f} pairs/s in "
        f"{effort['precision']}, at most {effort['peak_memory_bytes'] / 1e9:.2f} GB of memory"
    )


def _history(trainer: LossTrainer, *, pairs: int) -> dict[str, object]:
    scores = {
        str(entry["step"]): _rounded(entry["eval_macro_auprc"])
        for entry in trainer.state.log_history
        if "eval_macro_auprc" in entry
    }
    return {
        "steps": trainer.state.global_step,
        "pairs": pairs,
        "tuning_macro_auprc": scores,
        "best_step": trainer.state.best_global_step,
        "terms": _term_history(trainer.state.log_history),
    }


def _term_history(log: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, float]]]:
    """By term, what was noted at some steps; nothing of a loss of one term."""
    history: dict[str, list[dict[str, float]]] = {}
    for entry in log:
        if "term" in entry:
            kept = {name: entry[name] for name in ("step", "value", "weight", "gradient")}
            history.setdefault(entry["term"], []).append(kept)
    return history


def _rounded(score: float) -> float | None:
    """JSON has no NaN: a score that no label has is null."""
    return round(float(score), 5) if np.isfinite(score) else None


class Epochs(TrainerCallback):  # type: ignore[misc]  # Transformers ships no types
    """Tells the dataset which epoch it is, after a resumption too."""

    def __init__(self, dataset: Epoched) -> None:
        self.dataset = dataset

    def on_epoch_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        self.dataset.epoch = int((state.epoch or 0) + 1e-6)


class _Patience(TrainerCallback):  # type: ignore[misc]  # Transformers ships no types
    """Stops after so many evaluations without a better selection score."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_evaluate(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        if out_of_patience(state.log_history, self.patience):
            control.should_training_stop = True


def out_of_patience(log: Sequence[Mapping[str, Any]], patience: int) -> bool:
    """Whether so many evaluations have brought no better selection score.

    >>> out_of_patience([{SELECTION: 0.4}, {"step": 3}, {SELECTION: 0.3}], patience=1)
    True
    """
    scores = [entry[SELECTION] for entry in log if SELECTION in entry]
    return bool(scores) and len(scores) - 1 - int(np.argmax(scores)) >= patience


def _arguments(
    settings: TrainingConfig, pairs: int, checkpoints: Path, *, seed: int, device: str, bf16: bool,
    reports: Mapping[str, object],
) -> Any:  # fmt: skip
    steps_per_epoch = max(1, -(-pairs // settings.batch_size))
    every = max(1, steps_per_epoch // settings.evaluations_per_epoch)
    total = max(1, round(steps_per_epoch * settings.epochs))
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=total,
        per_device_train_batch_size=share_of_batch(settings.batch_size),
        per_device_eval_batch_size=settings.batch_size * 2,
        warmup_steps=round(settings.warmup_ratio * total),
        lr_scheduler_type="cosine",
        max_grad_norm=1.0,
        bf16=bf16,
        use_cpu=device == "cpu",
        eval_strategy="steps",
        eval_steps=min(every, total),
        save_strategy="steps",
        save_steps=min(every, total),
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=SELECTION,
        greater_is_better=True,
        label_names=["labels"],
        remove_unused_columns=False,
        disable_tqdm=True,
        seed=seed,
        dataloader_pin_memory=False,
        **reports,
    )
    return on_one_device(arguments)


def on_one_device(arguments: Any) -> Any:
    """TrainingArguments that leave further GPUs to further processes (torchrun)."""
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def share_of_batch(batch_size: int) -> int:
    """Pairs of a step for each process, so that a step means the same for any number of them."""
    if batch_size % world_size():
        raise CkdEhrError(
            f"batch_size={batch_size} cannot be shared by {world_size()} processes; "
            "take a multiple of their number"
        )
    return batch_size // world_size()


def _parameter_groups(model: nn.Module, settings: TrainingConfig) -> list[dict[str, Any]]:
    """The backbone's trained weights, and all others, each with a rate of its own."""
    inside = {id(parameter) for parameter in model.backbone.parameters()}  # type: ignore[union-attr]
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[id(parameter) in inside].append(parameter)
    rates = {True: settings.learning_rate, False: settings.head_learning_rate}
    return [
        {"params": found, "lr": rates[within], "weight_decay": settings.weight_decay}
        for within, found in groups.items()
    ]


def _selection(logits: NDArray[np.float32], labels: NDArray[np.float32]) -> dict[str, float]:
    """macro-AUPRC; where no label can be scored, the negative loss chooses instead."""
    score = float(macro(label_ranking(logits, labels > 0.5).auprc)[0])
    if np.isfinite(score):
        return {"selection": score, "macro_auprc": score}
    losses = np.logaddexp(0, logits) - labels * logits
    return {"selection": -float(losses.mean()), "macro_auprc": float("nan")}


def usable_checkpoint(checkpoints: Path) -> str | None:
    """The newest checkpoint that was written to its end; half-written ones are deleted."""
    for folder in checkpoints.glob("checkpoint-*") if is_leader() else ():
        whole = all((folder / name).is_file() for name in CHECKPOINT_FILES)
        try:
            json.loads((folder / "trainer_state.json").read_text())
        except (FileNotFoundError, ValueError):
            whole = False
        if not whole:
            shutil.rmtree(folder, ignore_errors=True)
    meet()
    last: str | None = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    return last
