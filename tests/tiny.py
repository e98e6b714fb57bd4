"""Tiny random models of the real architectures, and a small cohort with a learnable pattern."""

import datetime
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2Model

from ckd_ehr.contracts.files import write_table
from ckd_ehr.contracts.records import (
    EFFICACY,
    GUIDELINES,
    NARRATIVES,
    PAIRS,
    VISITS,
    Span,
    concept_id_of,
    pair_id_of,
    with_label_names,
)
from ckd_ehr.learning.alignment import Encoded

LABELS = ("Shock", "Pneumonia", "Diabetes")
WORDS = ("woman", "man", "shock", "fever", "sugar", "aspirin", "visit", "insulin", "cough")


def _vocabulary(special: list[str]) -> dict[str, int]:
    characters = [chr(c) for c in range(33, 127)]
    pieces = [*special, *characters, *("##" + c for c in characters), *WORDS]
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}


def _tokenizer(special: list[str], unknown: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(_vocabulary(special), unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def tiny_bert(folder: Path, *, positions: int = 512, masks: bool = False) -> str:
    """A random 2-layer BERT with its tokenizer, as a model folder; masks: with a mask token."""
    mask = ["[MASK]"] if masks else []
    tokenizer = _tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *mask], "[UNK]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=positions,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        **({"mask_token": "[MASK]"} if masks else {}),
    ).save_pretrained(folder)
    return str(folder)


def tiny_qwen2(folder: Path, *, tied: bool = False) -> str:
    """A random 2-layer Qwen2 with its tokenizer, as a model folder; tied: it can write, too."""
    tokenizer = _tokenizer(["<|endoftext|>", "<unk>"], "<unk>")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=tied,
    )
    Qwen2Model(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<unk>",
    ).save_pretrained(folder)
    return str(folder)


def write_cohort(cohort: Path, knowledge: Path, *, patients: int = 60) -> None:
    """Pairs whose labels follow one word each: `shock`, `fever`, `sugar` in the last visit."""
    pairs, narratives, visits = [], [], []
    for subject in range(patients):
        split = ("train", "train", "train", "tuning", "held_out")[subject % 5]
        for visit in range(2):
            labels = [(subject >> bit) & 1 == 1 for bit in range(3)]
            labelled = visit == 0 or split != "train"
            pair_id = pair_id_of(subject, f"{subject}-{visit}")
            pairs.append(
                {
                    "pair_id": pair_id,
                    "subject_id": subject,
                    "history": [f"{subject}-{visit}"],
                    "prediction_time": datetime.datetime(2100, 1, 1 + visit),
                    "next_visit_id": f"{subject}-{visit + 1}" if labelled else None,
                    "gap_days": 1.0 if labelled else None,
                    "labels": labels if labelled else None,
                    "split": split,
                    "fold": (subject // 5) % 2 if split == "train" else -1,
                }
            )
            narratives.append(narrative_row(pair_id, labels))
            visits.append(_visit_row(subject, visit, labels))
    schema = with_label_names(PAIRS, LABELS)
    write_table(pa.Table.from_pylist(pairs, PAIRS), cohort / "pairs.parquet", schema)
    table = pa.Table.from_pylist(visits, VISITS)
    write_table(table, cohort / "visits.parquet", with_label_names(VISITS, LABELS))
    for name, empty in (("efficacy", EFFICACY), ("guidelines", GUIDELINES)):
        write_table(empty.empty_table(), knowledge / f"{name}.parquet", empty)
    for reader in ("teacher", "student"):
        table = pa.Table.from_pylist([{**row, "reader": reader} for row in narratives], NARRATIVES)
        write_table(table, knowledge / f"{reader}.parquet", NARRATIVES)


def _visit_row(subject: int, number: int, labels: list[bool]) -> dict[str, object]:
    """A visit with the codes that its narrative names."""
    day = datetime.datetime(2099, 12, 1 + number)
    titles = [word for word, on in zip(("shock", "fever", "sugar"), labels, strict=True) if on]
    return {
        "visit_id": f"{subject}-{number}",
        "subject_id": subject,
        "admit_time": day,
        "discharge_time": day + datetime.timedelta(days=1),
        "age_years": 60.0,
        "sex": "F",
        "ethnicity": None,
        "admission_type": None,
        "died": False,
        "diagnoses": [
            {"system": "ICD9CM", "code": code, "title": None} for code in [*titles, "aspirin"]
        ],
        "medications": [],
        "procedures": [],
    }


def narrative_row(pair_id: str, labels: list[bool]) -> dict[str, object]:
    """One visit that names a word for each label that comes true, and aspirin."""
    titles = [word for word, on in zip(("shock", "fever", "sugar"), labels, strict=True) if on]
    text, spans = "woman. visit:", []
    for title in [*titles, "aspirin"]:
        start = len(text) + 1
        text += f" {title};"
        code = {"visit_index": 0, "kind": "diagnosis", "system": "ICD9CM", "code": title}
        spans.append(
            {
                "start": start,
                "end": start + len(title),
                "concept_id": concept_id_of(**code, occurrence=0),
                **code,
                "from_knowledge": False,
            }
        )
    return {"pair_id": pair_id, "text": text, "spans": spans, "concepts_cut": 0, "knowledge_cut": 0}


def encoded_of(ids: Sequence[int], index: Sequence[int], concept_ids: Sequence[str]) -> Encoded:
    """Tokens read at the last, of concepts of the first visit."""
    spans = [Span(0, 0, name, "diagnosis", "S", name, 0) for name in concept_ids]
    return Encoded.of(ids, np.array(index), spans, reading_index=len(ids) - 1)
