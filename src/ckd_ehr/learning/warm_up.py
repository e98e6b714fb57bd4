"""The student's encoder reads narratives before it learns labels: it guesses masked tokens.

In: a pretrained encoder, and the tokens of train pairs' narratives, labelled or not. Out: the
encoder as a model folder, and how well it guessed before and after. Ignores: labels.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer, set_seed
from transformers.modeling_outputs import BaseModelOutput

from ckd_ehr.contracts.config import StudentConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json, write_json
from ckd_ehr.contracts.processes import is_leader
from ckd_ehr.learning.batches import batches_by_tokens
from ckd_ehr.learning.gang import meet
from ckd_ehr.learning.language import (
    IGNORED,
    Schedule,
    Scored,
    Texts,
    TokenScorer,
    fit_language,
    pad_scored,
)
from ckd_ehr.learning.layers import select_layers
from ckd_ehr.learning.precision import uses_bf16
from ckd_ehr.learning.reading import BATCH_TOKENS, attention_kernel, reading
from ckd_ehr.learning.sampling import EpochSampler
from ckd_ehr.learning.student_model import encoder_config
from ckd_ehr.learning.weights import resolve_model

Tokens = tuple[int, ...]
SHARE = 0.15  # of a text's tokens that are guessed
MASKED, KEPT = 0.8, 0.1  # of these; the others are replaced by any token (Devlin et al. 2019)
SCORED_TEXTS = 1000  # tuning narratives that are guessed before and after, at most
FACTS = "domain.json"
TITLE = "student, reading narratives"


@dataclass(frozen=True)
class Masking:
    """How one tokenizer's texts are masked: alike for the same seed, row and epoch."""

    mask_token: int
    special: tuple[int, ...]
    vocabulary: int
    seed: int

    def __call__(self, text: Scored, row: int, epoch: int) -> Scored:
        """The text as it is read in an epoch."""
        return self.masked(text.ids, np.random.default_rng([self.seed, epoch, row]))

    def masked(self, ids: Tokens, rng: Generator) -> Scored:
        """Some real tokens, never special ones, to be guessed.

        >>> masking = Masking(mask_token=9, special=(0, 1), vocabulary=10, seed=0)
        >>> masking.masked((0, 5, 1), np.random.default_rng(0)).wanted
        (-100, 5, -100)
        """
        read, wanted = np.array(ids), np.full(len(ids), IGNORED)
        real = np.flatnonzero(~np.isin(read, self.special))
        chosen = rng.permutation(real)[: max(1, round(SHARE * len(real)))]
        wanted[chosen] = read[chosen]
        fate = rng.random(len(chosen))
        read[chosen[fate < MASKED]] = self.mask_token
        swapped = chosen[fate >= MASKED + KEPT]
        read[swapped] = rng.integers(self.vocabulary, size=len(swapped))
        return Scored(tuple(read.tolist()), tuple(wanted.tolist()))


class MaskedModel(TokenScorer):
    """A masked-language model that computes its vocabulary's logits only where they are scored.

    At 400 tokens a text those of all tokens would cost more than MiniLM itself.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """Mean cross-entropy of the tokens that are scored, and their number.

        Args:
            input_ids, attention_mask: (batch, tokens).
            labels: (batch, tokens), the token to guess, else -100.
        """
        scored = labels != IGNORED

        def only_scored(_module: object, _inputs: object, output: Any) -> BaseModelOutput:
            return BaseModelOutput(last_hidden_state=output.last_hidden_state[scored][None])

        hook = self.model.base_model.register_forward_hook(only_scored)
        try:
            logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits[0]
        finally:
            hook.remove()
        return {"loss": F.cross_entropy(logits.float(), labels[scored]), "tokens": scored.sum()}


def warm_up(
    settings: StudentConfig,
    *,
    train: Sequence[Tokens],
    tuning: Sequence[Tokens],
    pad_token: int,
    folder: Path,
    seed: int,
    device: str,
    say: Callable[[str], None],
) -> dict[str, object]:
    """Train the encoder on masked tokens, once; `folder/domain.json` is written last.

    Args:
        train, tuning: the tokens of narratives; those of tuning are only scored.
        folder: where the encoder stands afterwards, and checkpoints until then.

    Returns:
        Loss (nats a token) and perplexity on tuning, before and after; texts, steps, seconds.
    """
    if not (folder / FACTS).is_file():
        facts = _warm_up(
            settings, train, tuning, pad_token=pad_token, folder=folder, seed=seed, device=device,
            say=say,
        )  # fmt: skip
        if is_leader():
            write_json(folder / FACTS, facts)
    meet()
    return read_json(folder / FACTS)


def _warm_up(
    settings: StudentConfig,
    train: Sequence[Tokens],
    tuning: Sequence[Tokens],
    *,
    pad_token: int,
    folder: Path,
    seed: int,
    device: str,
    say: Callable[[str], None],
) -> dict[str, object]:
    started = time.monotonic()
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(settings.model))
    masking = masking_of(tokenizer, seed=seed, model=settings.model)
    model = MaskedModel(masked_language_model(settings, device=device))
    guessed = [masking(Scored(ids, ()), row, 0) for row, ids in enumerate(tuning[:SCORED_TEXTS])]
    before = guessing_loss(model, guessed, pad_token=pad_token, device=device)
    texts = Texts([Scored(ids, ()) for ids in train], masking)
    history = fit_language(
        model.train(),
        texts,
        _schedule(settings, device=device),
        pad_token=pad_token,
        checkpoints=folder / "checkpoints",
        seed=seed,
        device=device,
        title=TITLE,
        say=say,
        sampler=EpochSampler(
            texts, lengths=[len(ids) for ids in train], batch_size=settings.batch_size, seed=seed
        ),
    )
    after = guessing_loss(model, guessed, pad_token=pad_token, device=device)
    if is_leader():
        model.model.base_model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    facts = _facts(before, after, seconds=time.monotonic() - started, say=say)
    return {**history, "texts": len(train), **facts}


def _schedule(settings: StudentConfig, *, device: str) -> Schedule:
    return Schedule(
        epochs=settings.domain_epochs,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        checkpoint_steps=settings.checkpoint_steps,
        bf16=uses_bf16(settings.precision, device=device),
    )


def _facts(
    before: float, after: float, *, seconds: float, say: Callable[[str], None]
) -> dict[str, object]:
    perplexities = [math.exp(before), math.exp(after)]
    say(
        f"    {TITLE}: {before:.3f} → {after:.3f} nats a masked token of tuning (perplexity "
        f"{perplexities[0]:,.1f} → {perplexities[1]:,.1f}), {seconds:.0f} s"
    )
    return {
        "tuning_loss": [round(before, 5), round(after, 5)],
        "tuning_perplexity": [round(value, 2) for value in perplexities],
        "seconds": round(seconds, 1),
    }


def masked_language_model(settings: StudentConfig, *, device: str) -> Any:
    """The pretrained encoder, or some of its layers, with its masked-token head or a fresh one."""
    config = encoder_config(settings.model, dropout=settings.dropout)
    model = AutoModelForMaskedLM.from_pretrained(
        resolve_model(settings.model),
        config=config,
        dtype=torch.float32,
        attn_implementation=attention_kernel(device),
    )
    select_layers(model.base_model, settings.layers)
    return model.to(device)


def masking_of(tokenizer: Any, *, seed: int, model: str) -> Masking:
    """How a tokenizer's texts are masked.

    Raises:
        CkdEhrError: it has no mask token.
    """
    if tokenizer.mask_token_id is None:
        raise CkdEhrError(
            f"student.model={model}: its tokenizer has no mask token; set student.domain_epochs=0"
        )
    special = tuple(int(token) for token in tokenizer.all_special_ids)
    return Masking(int(tokenizer.mask_token_id), special, len(tokenizer), seed)


def guessing_loss(
    model: MaskedModel, texts: Sequence[Scored], *, pad_token: int, device: str
) -> float:
    """Mean cross-entropy of the masked tokens of these texts, in fp32."""
    model.eval()
    total, tokens = 0.0, 0
    for rows in batches_by_tokens([len(text.ids) for text in texts], BATCH_TOKENS):
        batch = pad_scored([texts[row] for row in rows], pad_token=pad_token)
        with reading(device, "fp32"):
            output = model(**{name: value.to(device) for name, value in batch.items()})
        total += float(output["loss"]) * int(output["tokens"])
        tokens += int(output["tokens"])
    return total / max(1, tokens)
