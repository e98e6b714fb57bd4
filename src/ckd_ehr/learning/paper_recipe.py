"""Learning to write: the diseases' names (the paper's recipe), or narratives; then a linear head.

In: prompts with answers. Out: an adapted backbone, and a head on the state of the last prompt
token. Ignores: how well the model writes; the head is what predicts. Source: arXiv 2506.15118.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from ckd_ehr.contracts.config import PaperConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.learning.batches import Example, batches_by_tokens
from ckd_ehr.learning.heads import LabelAttentionHead
from ckd_ehr.learning.losses import hard_loss
from ckd_ehr.learning.prefix import Prefix
from ckd_ehr.learning.reading import reading
from ckd_ehr.learning.training import Reporter, on_one_device, share_of_batch, usable_checkpoint

IGNORED = -100  # PyTorch's cross-entropy passes over it
FEATURE_TOKENS = 4096
SCALES = ("logit_scale", "logits_scaling", "final_logit_softcapping")


@dataclass(frozen=True)
class Answered:
    """A prompt and the tokens of its answer."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


class AnswerModel(nn.Module):
    """A decoder and its language-model head; only the answer's tokens are scored.

    Args:
        backbone: adapted decoder, whose trained parameters alone enter checkpoints.
        vocabulary: (tokens of the vocabulary, size), the head's weights, frozen.
    """

    def __init__(self, backbone: nn.Module, vocabulary: Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("vocabulary", vocabulary, persistent=False)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """Mean cross-entropy of the answers' tokens.

        Args:
            input_ids, attention_mask: (batch, tokens).
            labels: (batch, tokens), the token itself in an answer, else -100.
        """
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        wanted = labels[:, 1:]
        scored = wanted != IGNORED
        logits = hidden[:, :-1][scored].float() @ self.vocabulary.float().T
        return {"loss": F.cross_entropy(logits, wanted[scored])}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The trained parameters."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        trained = {name for name, value in self.named_parameters() if value.requires_grad}
        return {name: value for name, value in state.items() if name in trained}

    def load_state_dict(self, state_dict: Mapping[str, Any], *_: Any, **__: Any) -> Any:
        """Load what `state_dict` gave; frozen parameters are not missed."""
        found = super().load_state_dict(state_dict, strict=False)
        return type(found)([], found.unexpected_keys)


class _Answers(Dataset[Answered]):
    def __init__(self, answered: Sequence[Answered]) -> None:
        self.answered = answered

    def __len__(self) -> int:
        return len(self.answered)

    def __getitem__(self, index: int) -> Answered:
        return self.answered[index]


def collate(answered: Sequence[Answered], *, pad_token: int) -> dict[str, Tensor]:
    """A batch for `AnswerModel`, padded on the right.

    >>> batch = collate([Answered((5, 6), (7,)), Answered((8,), (9,))], pad_token=0)
    >>> batch["input_ids"].tolist(), batch["labels"].tolist()
    ([[5, 6, 7], [8, 9, 0]], [[-100, -100, 7], [-100, 9, -100]])
    """
    length = max(len(one.prompt) + len(one.answer) for one in answered)
    ids = torch.full((len(answered), length), pad_token)
    mask = torch.zeros(len(answered), length, dtype=torch.long)
    labels = torch.full((len(answered), length), IGNORED)
    for row, one in enumerate(answered):
        whole = (*one.prompt, *one.answer)
        ids[row, : len(whole)] = torch.tensor(whole)
        mask[row, : len(whole)] = 1
        labels[row, len(one.prompt) : len(whole)] = torch.tensor(one.answer)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def language_model(folder: Path, options: Mapping[str, Any]) -> tuple[Any, Tensor]:
    """A decoder, and the weights of its language-model head.

    Raises:
        CkdEhrError: the folder has a decoder alone.
    """
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, **options
    )
    if any(name.startswith("lm_head") for name in report["missing_keys"]):
        raise CkdEhrError(
            f"{folder} has no language-model head; take a causal language model, or "
            "teacher.recipe=joint and teacher.domain_epochs=0"
        )
    output = model.get_output_embeddings()
    scaled = [name for name in SCALES if getattr(model.config, name, None) not in (None, 1.0)]
    if scaled or getattr(output, "bias", None) is not None:
        raise CkdEhrError(
            f"{folder}: its language-model head has a {', '.join(scaled) or 'bias'}, which is not "
            "computed here; take another model, or teacher.recipe=joint and teacher.domain_epochs=0"
        )
    weights: Tensor = output.weight.detach()
    return model.get_decoder(), weights


def fit_answers(
    model: AnswerModel,
    answered: Sequence[Answered],
    *,
    epochs: float,
    learning_rate: float,
    batch_size: int,
    checkpoint_steps: int,
    pad_token: int,
    checkpoints: Path,
    seed: int,
    device: str,
    bf16: bool,
    title: str,
    say: Callable[[str], None],
) -> dict[str, object]:
    """Tune on writing the answers; resumes at the last checkpoint. Returns steps and loss."""
    steps = max(1, round(-(-len(answered) // batch_size) * epochs))
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=share_of_batch(batch_size),
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(0.1 * steps),
        bf16=bf16,
        use_cpu=device == "cpu",
        save_strategy="steps",
        save_steps=checkpoint_steps,
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
    trainer = Trainer(
        model=model,
        args=on_one_device(arguments),
        train_dataset=_Answers(answered),
        data_collator=lambda batch: collate(batch, pad_token=pad_token),
        callbacks=[Reporter(title, checkpoint_steps, say)],
    )
    trainer.remove_callback(PrinterCallback)
    result = trainer.train(resume_from_checkpoint=usable_checkpoint(checkpoints))
    if not np.isfinite(result.training_loss):
        raise CkdEhrError(f"{title}: the loss is not finite; lower the learning rate")
    return {"steps": steps, "loss": round(float(result.training_loss), 5)}


def reading_states(
    backbone: nn.Module,
    examples: Sequence[Example],
    *,
    beginning: Sequence[int],
    pad_token: int,
    device: str,
    precision: str,
) -> Tensor:
    """States of the last prompt tokens, (examples, size), of the frozen model.

    Args:
        beginning: tokens that all prompts begin with; they are read once.
    """
    backbone.eval()
    with reading(device, precision):
        prefix = Prefix(backbone, beginning, device=device)
    examples = [prefix.rest(example) for example in examples]
    lengths = [len(example.encoded.input_ids) for example in examples]
    states: list[Tensor] = [torch.empty(0)] * len(examples)
    for rows in batches_by_tokens(lengths, FEATURE_TOKENS):
        prompts = [Answered(examples[row].encoded.input_ids, ()) for row in rows]
        batch = collate(prompts, pad_token=pad_token)
        where = torch.tensor([lengths[row] - 1 for row in rows])
        with reading(device, precision):
            hidden = backbone(
                input_ids=batch["input_ids"].to(device),
                attention_mask=prefix.mask(batch["attention_mask"].to(device)),
                past_key_values=prefix.cache(len(rows)),
            ).last_hidden_state
        chosen = hidden[torch.arange(len(rows)), where].float().cpu()
        for place, row in enumerate(rows):
            states[row] = chosen[place].clone()
    return torch.stack(states)


def fit_head(
    head: LabelAttentionHead, states: Tensor, labels: Tensor, *, settings: PaperConfig, seed: int
) -> float:
    """Fit the linear head on frozen states (pairs, size), labels (pairs, labels); the last loss."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=settings.head_learning_rate)
    everywhere = torch.ones(settings.batch_size, 1, dtype=torch.bool)
    loss = torch.zeros(())
    for _ in range(settings.head_epochs):
        order = torch.randperm(len(states), generator=generator)
        for start in range(0, len(states), settings.batch_size):
            rows = order[start : start + settings.batch_size]
            output = head(states[rows, None], everywhere[: len(rows)])
            loss = hard_loss(output.logits, labels[rows], everywhere[: len(rows), 0])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    return round(float(loss.detach()), 5)
