"""The label attention head, the same in form for teacher and student.

In: hidden states of tokens, and which concept each token belongs to. Out: one logit per label,
the attention of each label over the concepts, and signed evidence that sums to the logit.
Ignores: where hidden states come from.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ckd_ehr.contracts.config import Pooling
from ckd_ehr.contracts.files import write_json

ConceptState = Literal["mean", "last"]


class HeadOutput(NamedTuple):
    """What a label reads, and where. State 0 is the reading state, 1…C are the concepts."""

    logits: Tensor  # (batch, labels)
    scores: Tensor  # (batch, labels, 1 + concepts), before the softmax; -inf where masked
    attention: Tensor  # (batch, labels, 1 + concepts), rows sum to 1
    evidence: Tensor  # (batch, labels, 1 + concepts), sums to logit - bias
    state: Tensor  # (batch, size), the reading state, normalised
    readout: Tensor | None = None  # (batch, layers, concepts), see readout.py; where recorded
    layer_map: Tensor | None = None  # (layers, teacher layers), of a student in training


def pool_concepts(
    hidden: Tensor, concept_index: Tensor, concepts: int, pooling: ConceptState
) -> Tensor:
    """The state of each concept: mean of its tokens, or its last token.

    Args:
        hidden: (batch, tokens, size).
        concept_index: (batch, tokens), 0 for none, c for concept c (from 1).
        concepts: how many concepts to return; one without tokens gets zeros.

    Returns:
        (batch, concepts, size).

    >>> hidden = torch.tensor([[[1.0], [3.0], [9.0]]])
    >>> index = torch.tensor([[1, 1, 2]])
    >>> pool_concepts(hidden, index, 2, "mean").flatten().tolist()
    [2.0, 9.0]
    >>> pool_concepts(hidden, index, 2, "last").flatten().tolist()
    [3.0, 9.0]
    """
    numbers = torch.arange(1, concepts + 1, device=hidden.device)
    member = concept_index.unsqueeze(1) == numbers[None, :, None]  # (batch, concepts, tokens)
    if pooling == "mean":
        counts = member.sum(-1, keepdim=True).clamp(min=1)
        return (member.to(hidden.dtype) / counts.to(hidden.dtype)) @ hidden
    places = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
    last = (member * places).amax(-1)  # (batch, concepts), 0 where it has no token
    index = (last - 1).clamp(min=0).unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
    return hidden.gather(1, index) * (last > 0).unsqueeze(-1)


class LabelAttentionHead(nn.Module):
    """Label attention over concepts and a reading state.

    With h the layer-normalised states: α_kc = softmax_c(q_k · tanh(W h_c)),
    e_kc = α_kc (w_k · h_c), z_k = Σ_c e_kc + b_k. Related: Mullenbach et al. 2018 (CAML),
    Vu et al. 2020 (LAAT). The states are normalised because decoders' last states differ in scale
    by orders of magnitude, which would saturate the tanh.

    With another `pooling` than "label_attention" α is not learnt: all on the reading state
    ("last"), or the same on all states ("mean").
    """

    def __init__(
        self,
        hidden_size: int,
        labels: int,
        attention_size: int = 128,
        pooling: Pooling = "label_attention",
    ) -> None:
        super().__init__()
        self.pooling: Pooling = pooling
        self.norm = nn.LayerNorm(hidden_size, elementwise_affine=False)
        if pooling == "label_attention":
            self.project = nn.Linear(hidden_size, attention_size)
            queries = torch.randn(labels, attention_size) / math.sqrt(attention_size)
            self.queries = nn.Parameter(queries)
        self.weights = nn.Parameter(torch.randn(labels, hidden_size) * 0.1 / math.sqrt(hidden_size))
        self.bias = nn.Parameter(torch.zeros(labels))

    def start_at(self, prevalence: Tensor) -> None:
        """Set the biases to the logits of the train prevalences (labels,)."""
        with torch.no_grad():
            self.bias.copy_(torch.logit(prevalence.clamp(1e-4, 1 - 1e-4)))

    def forward(self, states: Tensor, mask: Tensor) -> HeadOutput:
        """Read the states.

        Args:
            states: (batch, 1 + concepts, size), the reading state first.
            mask: (batch, 1 + concepts), False where a concept is absent.
        """
        states = self.norm(states.float())
        scores = self._scores(states).masked_fill(~mask.unsqueeze(1), -torch.inf)
        attention = scores.softmax(-1)
        evidence = attention * torch.einsum("kd,bcd->bkc", self.weights, states)
        logits = evidence.sum(-1) + self.bias
        return HeadOutput(logits, scores, attention, evidence, states[:, 0])

    def _scores(self, states: Tensor) -> Tensor:
        """Where the labels look, before the softmax: (batch, labels, 1 + concepts)."""
        if self.pooling == "label_attention":
            looked_at = torch.tanh(self.project(states))
            return torch.einsum("ka,bca->bkc", self.queries, looked_at)
        scores = states.new_zeros(len(states), len(self.bias), states.shape[1])
        if self.pooling == "last":
            scores[..., 1:] = -torch.inf
        return scores


def read_hidden(
    head: LabelAttentionHead,
    hidden: Tensor,
    concept_index: Tensor,
    concept_mask: Tensor,
    reading_index: Tensor | None,
    *,
    pooling: ConceptState,
) -> HeadOutput:
    """What the head reads of a backbone's last states, in fp32.

    Args:
        hidden: (batch, tokens, size).
        concept_index: (batch, tokens), 0 for none, c for concept c (from 1).
        concept_mask: (batch, concepts), False where a concept is absent.
        reading_index: (batch,), None for the first token.
    """
    if reading_index is None:
        reading = hidden[:, :1]
    else:
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        reading = hidden[rows, reading_index].unsqueeze(1)
    concepts = pool_concepts(hidden, concept_index, concept_mask.shape[1], pooling)
    always = concept_mask.new_ones(hidden.shape[0], 1)
    with torch.autocast(hidden.device.type, enabled=False):
        output: HeadOutput = head(
            torch.cat([reading, concepts], dim=1), torch.cat([always, concept_mask], dim=1)
        )
    return output


class LabelModel(Protocol):
    """A backbone with a label attention head, whether a teacher or a student."""

    backbone: nn.Module
    head: LabelAttentionHead

    def __call__(self, **inputs: Tensor) -> HeadOutput:
        """The head's output for a batch of `batches.MODEL_INPUTS`."""


class LabelAttentionModel(nn.Module):
    """A Transformer backbone with the label attention head: the teacher.

    Only parameters that are trained enter `state_dict`, so that a checkpoint of a LoRA teacher
    holds its adapter and head, not the frozen backbone.
    """

    def __init__(
        self, backbone: nn.Module, head: LabelAttentionHead, pooling: ConceptState
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.pooling: ConceptState = pooling

    def forward(
        self,
        input_ids: Tensor,  # (batch, tokens)
        attention_mask: Tensor,  # (batch, tokens)
        concept_index: Tensor,  # (batch, tokens)
        concept_mask: Tensor,  # (batch, concepts)
        reading_index: Tensor,  # (batch,)
        *,
        past_key_values: Any = None,
    ) -> HeadOutput:
        """Logits, attention and evidence of a batch of encoded narratives.

        With the cache of a beginning, `attention_mask` is (batch, beginning + tokens).
        """
        cached = {} if past_key_values is None else {"past_key_values": past_key_values}
        hidden = self.backbone(
            input_ids=input_ids, attention_mask=attention_mask, **cached
        ).last_hidden_state
        return read_hidden(
            self.head, hidden, concept_index, concept_mask, reading_index, pooling=self.pooling
        )

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The trained parameters."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        prefix, trained = str(kwargs.get("prefix", "")), self._trained()
        return {name: state[name] for name in state if name.removeprefix(prefix) in trained}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load what `state_dict` gave; frozen parameters are not missed."""
        found = super().load_state_dict(state_dict, strict=False, assign=assign)
        missing = [name for name in found.missing_keys if name in self._trained()]
        if strict and (missing or found.unexpected_keys):
            raise RuntimeError(f"missing {missing}, unexpected {found.unexpected_keys}")
        return type(found)(missing, found.unexpected_keys)

    def _trained(self) -> set[str]:
        return {name for name, value in self.named_parameters() if value.requires_grad}


def save_head(folder: Path, head: LabelAttentionHead, labels: Sequence[str]) -> None:
    """Write the head and what its outputs are called; `head.json` last."""
    save_file({name: value.contiguous() for name, value in head.state_dict().items()},
              folder / "head.safetensors")  # fmt: skip
    facts: dict[str, object] = {"labels": list(labels), "pooling": head.pooling}
    facts["hidden_size"] = head.weights.shape[1]
    if head.pooling == "label_attention":
        facts["attention_size"] = head.queries.shape[1]
    write_json(folder / "head.json", facts)


def load_head(folder: Path) -> LabelAttentionHead:
    """Read a head that `save_head` wrote."""
    facts = json.loads((folder / "head.json").read_text())
    labels = len(facts.pop("labels"))
    head = LabelAttentionHead(labels=labels, **facts)
    head.load_state_dict(load_file(folder / "head.safetensors"))
    return head
