"""Learning to write or to guess tokens: Hugging Face Trainer around a model that scores tokens.

In: a model whose forward pass gives a loss, and texts with the tokens to score. Out: the trained
model; a killed training resumes at its last checkpoint. Ignores: what the texts are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.learning.training import (
    Epochs,
    Reporter,
    on_one_device,
    share_of_batch,
    usable_checkpoint,
)

IGNORED = -100  # PyTorch's cross-entropy passes over it


@dataclass(frozen=True)
class Scored:
    """Tokens of a text, and for each the token that is scored there, or IGNORED."""

    ids: tuple[int, ...]
    wanted: tuple[int, ...]


class Texts(Dataset[Scored]):
    """Texts to learn from; `remake` gives a row's text as it is read in an epoch."""

    def __init__(
        self,
        texts: Sequence[Scored],
        remake: Callable[[Scored, int, int], Scored] | None = None,
    ) -> None:
        self.texts = list(texts)
        self.remake = remake
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, row: int) -> Scored:
        text = self.texts[row]
        return text if self.remake is None else self.remake(text, row, self.epoch)


def pad_scored(texts: Sequence[Scored], *, pad_token: int) -> dict[str, Tensor]:
    """A batch for a model that scores tokens, padded on the right.

    >>> batch = pad_scored([Scored((5, 6), (-100, 6)), Scored((8,), (8,))], pad_token=0)
    >>> batch["input_ids"].tolist(), batch["labels"].tolist()
    ([[5, 6], [8, 0]], [[-100, 6], [8, -100]])
    """
    length = max(len(text.ids) for text in texts)
    ids = torch.full((len(texts), length), pad_token)
    mask = torch.zeros(len(texts), length, dtype=torch.long)
    labels = torch.full((len(texts), length), IGNORED)
    for row, text in enumerate(texts):
        ids[row, : len(text.ids)] = torch.tensor(text.ids)
        mask[row, : len(text.ids)] = 1
        labels[row, : len(text.wanted)] = torch.tensor(text.wanted)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class TokenScorer(nn.Module):
    """A model of tokens, of which checkpoints hold the trained parameters, shared ones once."""

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The trained parameters."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        trained = {name for name, value in self.named_parameters() if value.requires_grad}
        return {name: value for name, value in state.items() if name in trained}

    def load_state_dict(self, state_dict: Mapping[str, Any], *_: Any, **__: Any) -> Any:
        """Load what `state_dict` gave; what it leaves out is not missed."""
        found = super().load_state_dict(state_dict, strict=False)
        return type(found)([], found.unexpected_keys)


class _LanguageTrainer(Trainer):  # type: ignore[misc]  # Transformers ships no types
    """Trainer with an order of its own for the texts, if there is one."""

    def __init__(self, *, sampler: Sampler[int] | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sampler = sampler

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.sampler or super()._get_train_sampler(train_dataset)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train, and in which arithmetic."""

    epochs: float
    learning_rate: float
    batch_size: int
    checkpoint_steps: int
    bf16: bool


def fit_language(
    model: TokenScorer,
    texts: Texts,
    schedule: Schedule,
    *,
    pad_token: int,
    checkpoints: Path,
    seed: int,
    device: str,
    title: str,
    say: Callable[[str], None],
    sampler: Sampler[int] | None = None,
) -> dict[str, object]:
    """Train on the tokens that are scored; resumes at the last checkpoint.

    Args:
        sampler: the order of the texts; None for a random one.

    Returns:
        Steps and mean loss.
    """
    arguments = _arguments(schedule, len(texts), checkpoints, seed=seed, device=device)
    trainer = _LanguageTrainer(
        sampler=sampler,
        model=model,
        args=arguments,
        train_dataset=texts,
        data_collator=lambda batch: pad_scored(batch, pad_token=pad_token),
        callbacks=[Reporter(title, schedule.checkpoint_steps, say), Epochs(texts)],
    )
    trainer.remove_callback(PrinterCallback)
    result = trainer.train(resume_from_checkpoint=usable_checkpoint(checkpoints))
    if not np.isfinite(result.training_loss):
        raise CkdEhrError(f"{title}: the loss is not finite; lower the learning rate")
    return {"steps": arguments.max_steps, "loss": round(float(result.training_loss), 5)}


def _arguments(schedule: Schedule, texts: int, checkpoints: Path, *, seed: int, device: str) -> Any:
    steps = max(1, round(-(-texts // schedule.batch_size) * schedule.epochs))
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=share_of_batch(schedule.batch_size),
        learning_rate=schedule.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(0.1 * steps),
        bf16=schedule.bf16,
        use_cpu=device == "cpu",
        save_strategy="steps",
        save_steps=schedule.checkpoint_steps,
        save_total_limit=1,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        ddp_broadcast_buffers=False,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        seed=seed,
        dataloader_pin_memory=False,
    )
    return on_one_device(arguments)
