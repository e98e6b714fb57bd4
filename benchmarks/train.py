"""How fast a student trains: ours against the paper's loop, same student, loss and machine.

The paper's loop: every text padded to 512 tokens, batches in random order. Ours: batches of similar
length, padded to their longest. Both as many passes over the same UCI pairs, scored on the same
held-out pairs. MIMIC-length narratives of a simulated hospital beside it, some steps of each: read
as word pieces, and by the concept vocabulary.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import get_cosine_schedule_with_warmup, set_seed

from _cohorts import run
from ckd_ehr.contracts.config import RunConfig, build_config
from ckd_ehr.contracts.files import write_json
from ckd_ehr.contracts.machine import commit, machine_facts
from ckd_ehr.knowledge.sources import read_narratives
from ckd_ehr.learning.batches import MODEL_INPUTS, Batch, Example, PairDataset, collator
from ckd_ehr.learning.concept_tokens import extend_embeddings
from ckd_ehr.learning.examples import PairTable, read_pairs
from ckd_ehr.learning.losses import hard_loss
from ckd_ehr.learning.precision import resolve_precision
from ckd_ehr.learning.reading import predict_logits
from ckd_ehr.learning.scoring import label_ranking, macro
from ckd_ehr.learning.student import new_student, student_reader
from ckd_ehr.learning.student_model import StudentModel
from ckd_ehr.learning.training import fit, hard_terms
from ckd_ehr.learning.weights import load_tokenizer
from label import REAL_DATA, UCI_LABELS

PADDED = 512
SEED = 1
UCI: dict[str, object] = {
    "data": {"source": "uci_diabetes", "root": str(REAL_DATA / "uci-diabetes130")},
    "labels": {"only_ccs": UCI_LABELS},
    "cohort": {"sample": {"train": 1500, "unlabelled": 0, "tuning": 100, "held_out": 2000}},
    "student": {"epochs": 2, "dropout": 0.0},
}
MIMIC: dict[str, object] = {
    "data": {"source": "simulated", "simulator": {"patients": 4000, "replayed_patients": 0}},
    "cohort": {"sample": {"train": 320, "unlabelled": 0, "tuning": 20, "held_out": 20}},
    "knowledge": {"student": {"max_tokens": 512}},
    "student": {"epochs": 1, "dropout": 0.0},
}
PIECES = {"concept_vocabulary": {"enabled": False}}
CONCEPTS = {"concept_vocabulary": {"enabled": True}}


class Cohort:
    """A data set as the student reads it, up to the knowledge stage."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        path = folder / "config.yaml"
        path.write_text(json.dumps(config.model_dump(mode="json")), encoding="utf-8")
        run("run", str(path), "--out", f"{folder}/run", "--until", "knowledge")
        self.config = config
        self.knowledge = folder / "run" / "03_knowledge"
        self.pairs: PairTable = read_pairs(folder / "run" / "02_cohort")
        narratives = read_narratives(self.knowledge, "student")
        self.reader = student_reader(config.student, self.knowledge)
        rows = range(len(self.pairs.pair_ids))
        self.examples = self.reader.examples(self.pairs, narratives, rows)

    def of(self, split: str) -> list[Example]:
        """The labelled examples of a split."""
        return [self.examples[row] for row in self.pairs.rows(split=split, labelled=True)]

    def model(self) -> StudentModel:
        """A fresh student."""
        set_seed(SEED)
        settings = self.config.student
        model = new_student(settings, labels=self.pairs.label_names, device="cpu")
        if settings.concept_vocabulary.enabled:
            extend_embeddings(model.backbone, self.reader.tokenizer, load_tokenizer(settings.model))
        return model

    def score(self, model: StudentModel) -> float:
        """macro-AUPRC on held_out."""
        logits = predict_logits(
            model.eval(), self.of("held_out"), pad_token=self.reader.pad_token, device="cpu"
        )
        labels = self.pairs.labels[self.pairs.rows(split="held_out", labelled=True)]
        return float(macro(label_ranking(logits, labels).auprc)[0])


def main() -> None:
    """Measure; print a table and, with `--json`, write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, metavar="FILE")
    out = parser.parse_args().json
    precision = resolve_precision("auto", device="cpu")
    figures = of_uci(precision)
    for name, vocabulary in (("pieces", PIECES), ("concepts", CONCEPTS)):
        figures |= {f"mimic_length_{name}_{key}": v for key, v in of_mimic(vocabulary).items()}
    for name, value in figures.items():
        print(f"{name:<48} {value:>12,.5g}")
    if out:
        about = {"name": "train", "commit": commit(), "machine": machine_facts()}
        data = f"UCI Diabetes-130 narratives and simulated MIMIC-length ones, {precision}"
        write_json(out, {**about, "data": data, "seed": SEED, "figures": figures})


def of_uci(precision: str) -> dict[str, float]:
    """Both loops on the same pairs."""
    with tempfile.TemporaryDirectory() as folder:
        cohort = Cohort(settings_of("uci", UCI), Path(folder))
        ours, per_second = train_ours(cohort)
        padded, padded_per_second = train_padded(cohort, precision)
        return {
            "samples_per_second": per_second,
            "tokens": mean_tokens(cohort.of("train")),
            "padded_512_samples_per_second": padded_per_second,
            "speedup_vs_padded_512": per_second / padded_per_second,
            "macro_auprc": cohort.score(ours),
            "macro_auprc_padded_512": cohort.score(padded),
        }


def of_mimic(vocabulary: Mapping[str, object]) -> dict[str, float]:
    """Our loop on long narratives."""
    student = {**MIMIC["student"], **vocabulary}  # type: ignore[dict-item]
    with tempfile.TemporaryDirectory() as folder:
        cohort = Cohort(settings_of("mimic", {**MIMIC, "student": student}), Path(folder))
        _, per_second = train_ours(cohort)
        return {"samples_per_second": per_second, "tokens": mean_tokens(cohort.of("train"))}


def settings_of(name: str, settings: Mapping[str, object]) -> RunConfig:
    """A config of these settings."""
    return build_config({"name": name, "seed": SEED, **settings})


def mean_tokens(examples: Sequence[Example]) -> float:
    """Tokens of a narrative."""
    return float(np.mean([len(example.encoded.input_ids) for example in examples]))


def train_ours(cohort: Cohort) -> tuple[StudentModel, float]:
    """As the stage trains on hard labels; tuning scores and checkpoints are in its time."""
    model = cohort.model()
    with tempfile.TemporaryDirectory() as folder:
        history = fit(
            model,
            train=cohort.of("train"),
            tuning=cohort.of("tuning"),
            loss=hard_terms,
            settings=cohort.config.student.model_copy(update={"checkpoint_steps": 10**6}),
            pad_token=cohort.reader.pad_token,
            labels=len(cohort.pairs.label_names),
            checkpoints=Path(folder),
            seed=SEED,
            device="cpu",
            title="ours",
            say=lambda _: None,
        )
    pairs = cohort.config.student.epochs * len(cohort.of("train"))
    return model, pairs / float(str(history["seconds"]))


def train_padded(cohort: Cohort, precision: str) -> tuple[StudentModel, float]:
    """Every text padded to 512 tokens, batches in random order, nothing else in the time."""
    settings, model = cohort.config.student, cohort.model().train()
    backbone = list(model.backbone.parameters())
    groups = [
        {"params": backbone, "lr": settings.learning_rate},
        {"params": list(model.head.parameters()), "lr": settings.head_learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
    batches = list(padded_batches(cohort, epochs=round(settings.epochs)))
    warmup = round(settings.warmup_ratio * len(batches))
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, len(batches))
    started = perf_counter()
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            output = model(**{name: batch[name] for name in MODEL_INPUTS})
        hard_loss(output.logits, batch["labels"], batch["labelled"]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model, sum(len(batch["labels"]) for batch in batches) / (perf_counter() - started)


def padded_batches(cohort: Cohort, *, epochs: int) -> Iterator[Batch]:
    """All passes' batches, each text with padding up to 512 tokens."""
    labels = len(cohort.pairs.label_names)
    collate: Callable[..., Batch] = collator(pad_token=cohort.reader.pad_token, labels=labels)
    loader = DataLoader(
        PairDataset(cohort.of("train")),
        batch_size=cohort.config.student.batch_size,
        shuffle=True,
        collate_fn=collate,
        generator=torch.Generator().manual_seed(SEED),
    )
    filling = {"input_ids": cohort.reader.pad_token, "attention_mask": 0, "concept_index": 0}
    for _ in range(epochs):
        for batch in loader:
            for name, value in filling.items():
                missing = PADDED - batch[name].shape[1]
                batch[name] = nn.functional.pad(batch[name], (0, missing), value=value)
            yield batch


if __name__ == "__main__":
    main()
