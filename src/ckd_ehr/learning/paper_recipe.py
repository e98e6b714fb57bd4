"""Learning to write: the diseases' names (the paper's recipe), or narratives; then a linear head.

In: prompts with answers. Out: an adapted backbone, and a head on the state of the last prompt
token. Ignores: how well the model writes; the head is what predicts. Source: arXiv 2506.15118.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from ckd_ehr.contracts.config import PaperConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.learning.batches import Example, batches_by_tokens
from ckd_ehr.learning.heads import LabelAttentionHead
from ckd_ehr.learning.language import IGNORED, Scored, TokenScorer, pad_scored
from ckd_ehr.learning.losses import hard_loss
from ckd_ehr.learning.prefix import Prefix
from ckd_ehr.learning.reading import reading

FEATURE_TOKENS = 4096
SCALES = ("logit_scale", "logits_scaling", "final_logit_softcapping")


def answered(prompt: Sequence[int], answer: Sequence[int]) -> Scored:
    """A prompt and its answer, of which the answer alone is scored.

    >>> answered((5, 6), (7,))
    Scored(ids=(5, 6, 7), wanted=(-100, -100, 7))
    """
    return Scored((*prompt, *answer), (*[IGNORED] * len(prompt), *answer))


class AnswerModel(TokenScorer):
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
        prompts = [answered(examples[row].encoded.input_ids.tolist(), ()) for row in rows]
        batch = pad_scored(prompts, pad_token=pad_token)
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
