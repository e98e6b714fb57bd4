"""The student as a Hugging Face model: a BERT-family encoder and the label attention head.

In: token ids, and which concept each token belongs to. Out: what the head reads; folders that
`AutoModel` loads, with the label names in `config.json`. Ignores: training and calibration.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.learning.heads import HeadOutput, LabelAttentionHead, read_hidden
from ckd_ehr.learning.reading import attention_kernel
from ckd_ehr.learning.weights import resolve_model

# What the BERT family calls its dropout rates.
DROPOUTS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout",
    "mlp_dropout", "embedding_dropout",
)  # fmt: skip
FAMILIES = (
    "bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "mpnet", "modernbert",
    "albert", "mobilebert", "deberta", "deberta-v2", "convbert", "rembert",
)  # fmt: skip
REMEDY = "run stage student again"


class StudentModelConfig(PretrainedConfig):  # type: ignore[misc]  # Transformers ships no types
    """An encoder's configuration, the labels' names in order, and how the head reads.

    Args:
        backbone_config: of the encoder; as a mapping, with its `model_type`.
        labels: what the outputs are called; kept as `id2label` and `label2id`.
        attention_size: of the head's projection.
    """

    model_type = "ckd_ehr_student"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012  # as Transformers declares it

    def __init__(
        self,
        backbone_config: PretrainedConfig | dict[str, Any] | None = None,
        labels: Sequence[str] | None = None,
        attention_size: int = 128,
        **further: Any,
    ) -> None:
        given = {} if backbone_config is None else backbone_config
        if isinstance(given, dict):
            given = AutoConfig.for_model(**{"model_type": "bert", **given})
        if labels is not None:
            further["id2label"] = dict(enumerate(labels))
            further["label2id"] = {label: number for number, label in enumerate(labels)}
        self.attention_size = attention_size
        super().__init__(**further)
        # Only now: Transformers' constructor unsets the attention kernel of the parts it finds, and
        # an encoder that is already loaded would attend to padding.
        self.backbone_config: PretrainedConfig = given

    @property
    def label_names(self) -> tuple[str, ...]:
        """What the outputs are called, in their order."""
        return tuple(self.id2label[number] for number in range(len(self.id2label)))


class StudentModel(PreTrainedModel):  # type: ignore[misc]  # Transformers ships no types
    """An encoder with the label attention head.

    Args:
        config: what it is made of.
        backbone: the pretrained encoder; without it one with fresh weights is made.
    """

    config_class = StudentModelConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, config: StudentModelConfig, backbone: nn.Module | None = None) -> None:
        super().__init__(config)
        inner = config.backbone_config
        self.backbone: nn.Module = AutoModel.from_config(inner) if backbone is None else backbone
        if hasattr(self.backbone, "pooler"):
            self.backbone.pooler = None  # nothing reads it
        self.head = LabelAttentionHead(inner.hidden_size, config.num_labels, config.attention_size)
        self.post_init()

    @classmethod
    def of(cls, backbone: PreTrainedModel, labels: Sequence[str]) -> "StudentModel":
        """A student on a pretrained encoder, with a fresh head."""
        config = StudentModelConfig(backbone.config, labels)
        config._attn_implementation = backbone.config._attn_implementation
        return cls(config, backbone)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the encoder comes with its weights, the head makes its own."""

    def forward(
        self,
        input_ids: Tensor,  # (batch, tokens)
        attention_mask: Tensor,  # (batch, tokens)
        concept_index: Tensor,  # (batch, tokens)
        concept_mask: Tensor | None = None,  # (batch, concepts)
        reading_index: Tensor | None = None,  # (batch,)
    ) -> HeadOutput:
        """Logits, attention and evidence of a batch of encoded narratives.

        Without a `concept_mask` there are as many concepts as tokens, of which those with a token
        are seen: a graph with this in it has no size that depends on the values. Without a
        `reading_index` the first token is read.
        """
        if concept_mask is None:
            concept_mask = seen_concepts(concept_index)
        encoded = self.backbone(input_ids=input_ids, attention_mask=attention_mask)
        return read_hidden(
            self.head,
            encoded.last_hidden_state,
            concept_index,
            concept_mask,
            reading_index,
            pooling="mean",
        )


AutoConfig.register(StudentModelConfig.model_type, StudentModelConfig)
AutoModel.register(StudentModelConfig, StudentModel)


def seen_concepts(concept_index: Tensor) -> Tensor:
    """Which of the concepts 1 … tokens have a token: (batch, tokens) of both.

    >>> seen_concepts(torch.tensor([[0, 1, 1, 3]])).tolist()
    [[True, False, True, False]]
    """
    tokens = concept_index.shape[1]
    if not torch.compiler.is_exporting() and int(concept_index.max()) > tokens:
        raise ValueError("more concepts than tokens: give a concept_mask")
    numbers = torch.arange(1, tokens + 1, device=concept_index.device)
    return (concept_index.unsqueeze(1) == numbers[None, :, None]).any(-1)


def encoder_config(model: str, *, dropout: float) -> PretrainedConfig:
    """The configuration of a BERT-family encoder, with this dropout rate.

    Raises:
        CkdEhrError: the model is something else.
    """
    config = AutoConfig.from_pretrained(resolve_model(model))
    if config.model_type not in FAMILIES:
        raise CkdEhrError(
            f"student.model={model}: a BERT-family encoder is needed, this is {config.model_type}"
        )
    for name in DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, dropout)
    return config


def load_student(folder: Path, *, device: str, labels: Sequence[str] | None = None) -> StudentModel:
    """A trained student, ready to read.

    Args:
        labels: what it must predict, in this order; None for whatever it does.

    Raises:
        CkdEhrError: files that are missing or damaged, or a student of other labels.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if not isinstance(config, StudentModelConfig):
            raise CkdEhrError(f"{folder}: its config.json is no student's; {REMEDY}")
        model, report = StudentModel.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation=attention_kernel(device),
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CkdEhrError(
            f"{folder}: its config.json or model.safetensors is missing or damaged "
            f"({type(error).__name__}); {REMEDY}"
        ) from None
    if unlike := {*report["missing_keys"], *report["unexpected_keys"]}:
        raise CkdEhrError(
            f"{folder}: its model.safetensors is damaged or of another model ({len(unlike)} of "
            f"its weights have no counterpart); {REMEDY}"
        )
    if labels is not None:
        refuse_other_labels(folder, model.config.label_names, labels)
    student: StudentModel = model.to(device).eval()
    return student


def refuse_other_labels(folder: Path, found: Sequence[str], wanted: Sequence[str]) -> None:
    """Refuse a student of another label set, or of another order of the same.

    Raises:
        CkdEhrError: names both sets where they first differ.
    """
    if tuple(found) == tuple(wanted):
        return
    place = next(
        (n for n, (one, other) in enumerate(zip(found, wanted, strict=False)) if one != other),
        min(len(found), len(wanted)),
    )
    one, other = (
        f"'{names[place]}'" if place < len(names) else "none" for names in (found, wanted)
    )
    raise CkdEhrError(
        f"{folder}: this student predicts {len(found)} labels, wanted are {len(wanted)}; "
        f"its label {place + 1} is {one}, the wanted one {other}; take the student of these "
        f"labels, or {REMEDY}"
    )
