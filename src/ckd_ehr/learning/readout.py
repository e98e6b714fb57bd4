"""What the reading position looks at, layer by layer, without keeping any attention.

In: a backbone loaded with the attention `READOUT`, run within `recording`. Out: for each layer the
share of the reading position's attention on each concept, mean of heads. One row of each layer's
attention is computed beside the layer's own pass: memory grows with tokens, not with their square.
Ignores: what the rows are used for; models that do not take their attention from Transformers'
registry.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

READOUT = "ckd_ehr_readout"


@dataclass
class Readout:
    """The rows of one forward pass, in the order of the layers."""

    concept_index: Tensor  # (batch, tokens), 0 for none
    reading_index: Tensor  # (batch,)
    concepts: int
    rows: list[Tensor] = field(default_factory=list)  # (batch, 1 + concepts) each

    def retained(self) -> Tensor:
        """Share of each layer's attention that falls on concepts: (batch, layers)."""
        return self._masses()[..., 1:].sum(-1)

    def shares(self) -> Tensor:
        """Of that, the share of each concept: (batch, layers, concepts), zeros where none."""
        on_concepts = self._masses()[..., 1:]
        return on_concepts / on_concepts.sum(-1, keepdim=True).clamp(min=1e-12)

    def _masses(self) -> Tensor:
        return torch.stack(self.rows, dim=1)

    def add(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> None:
        """Add a layer.

        Args:
            query: (batch, heads, tokens, size). key: (batch, key heads, all tokens, size), those
                of a cached beginning first.
            mask: (batch, 1, tokens, all tokens), added to the scores.
        """
        with torch.autocast(query.device.type, enabled=False):  # its products would be in bf16
            self._add(query, key, mask, scaling)

    def _add(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> None:
        batch, heads, _, size = query.shape
        items = torch.arange(batch, device=query.device)
        reading = query[items, :, self.reading_index].float()
        grouped = reading.view(batch, key.shape[1], heads // key.shape[1], size)
        scores = torch.einsum("bkgd,bktd->bkgt", grouped, key.float()) * scaling
        if mask is not None:
            scores = scores + mask[items, 0, self.reading_index][:, None, None, :].float()
        row = scores.softmax(-1).mean((1, 2))
        masses = row.new_zeros(batch, 1 + self.concepts)
        before = row.shape[1] - self.concept_index.shape[1]  # tokens of a cached beginning
        index = nn.functional.pad(self.concept_index, (before, 0))
        self.rows.append(masses.scatter_add_(1, index, row))


_recorder: ContextVar[Readout | None] = ContextVar("recorder", default=None)


@contextmanager
def recording(concept_index: Tensor, reading_index: Tensor, *, concepts: int) -> Iterator[Readout]:
    """Record the layers of the one forward pass inside.

    Args:
        concept_index: (batch, tokens), 0 for none. reading_index: (batch,).
        concepts: how many there are, at most, in a narrative of the batch.
    """
    readout = Readout(concept_index, reading_index, concepts)
    token = _recorder.set(readout)
    try:
        yield readout
    finally:
        _recorder.reset(token)


def _attend(  # noqa: PLR0917  # what Transformers calls an attention with
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """PyTorch's fused attention, and the recorder's row beside it."""
    recorder = _recorder.get()
    if recorder is not None:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        recorder.add(query, key, attention_mask, scale)
    output, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **options
    )
    return output, None


def why_unreadable(config: Any) -> str | None:
    """Why a teacher's attention cannot be recorded; None if it can.

    Args:
        config: of Transformers; it is not changed.
    """
    if getattr(config, "is_encoder_decoder", False) or "bert" in str(config.model_type):
        return None  # refused as no decoder
    return why_unrecorded(config)


def why_unrecorded(config: Any) -> str | None:
    """Why a model's attention cannot be recorded, found out on one of its layers; None if it can.

    Args:
        config: of Transformers; it is not changed.
    """
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "its attention is capped, which PyTorch's fused attention leaves out"
    small = copy.deepcopy(config)
    small.num_hidden_layers, small.vocab_size = 1, 8
    small.pad_token_id, small.bos_token_id, small.eos_token_id = 1, None, None
    if getattr(small, "layer_types", None):
        small.layer_types = small.layer_types[:1]
    nothing = torch.zeros(1, 3, dtype=torch.long)
    try:
        model = AutoModel.from_config(small, attn_implementation=READOUT).eval()
        with torch.inference_mode(), recording(nothing, nothing[:, 0], concepts=0) as readout:
            model(input_ids=nothing)
    except Exception as error:
        return f"its attention cannot be recorded ({type(error).__name__})"
    return None if len(readout.rows) == 1 else "its attention is not taken from Transformers' own"


AttentionInterface.register(READOUT, _attend)
AttentionMaskInterface.register(READOUT, eager_mask)
