"""How fast a teacher labels: ours against the paper's loop, same model, arithmetic and machine.

The paper's loop: one patient at a time, the chat template with an instruction that lists its 25
diseases, a causal language model with all hidden states, the last token's state. Ours: the record
alone, batches of similar length, no language-model head, concept attention and its rows of every
layer written down besides. UCI's narratives and, without a target, MIMIC-length ones of a
simulated hospital. Weights are the embedded teacher's, its head is untrained: that costs the same.
"""

import argparse
import json
import os
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from scipy.special import expit
from transformers import AutoModelForCausalLM

from _cohorts import run
from ckd_ehr.contracts.config import EMBEDDED_TEACHER, RunConfig, build_config
from ckd_ehr.contracts.files import write_json
from ckd_ehr.contracts.machine import commit, machine_facts
from ckd_ehr.contracts.phenotype import PHENOTYPES_25
from ckd_ehr.contracts.records import Narrative
from ckd_ehr.knowledge.sources import read_narratives
from ckd_ehr.learning.batches import MODEL_INPUTS, Example, batches_by_tokens, make_batch
from ckd_ehr.learning.examples import TextReader
from ckd_ehr.learning.heads import LabelAttentionModel
from ckd_ehr.learning.precision import resolve_precision
from ckd_ehr.learning.prompts import PromptReader
from ckd_ehr.learning.reading import attention_kernel, reading
from ckd_ehr.learning.readout import READOUT, recording
from ckd_ehr.learning.teacher import new_teacher
from ckd_ehr.learning.weights import resolve_model

REAL_DATA = Path(os.environ.get("CKD_EHR_REAL_DATA", "../shared/data"))
PLAIN = {"efficacy": False, "guidelines": False}
UCI_LABELS = [2, 49, 50, 53, 55, 98, 99, 100, 101, 105, 106, 108, 109, 122, 127, 130, 157, 158, 238]
DATA = {
    "uci": {
        "data": {"source": "uci_diabetes", "root": str(REAL_DATA / "uci-diabetes130")},
        "labels": {"only_ccs": UCI_LABELS},
        "cohort": {"sample": {"train": 300, "unlabelled": 0, "tuning": 20, "held_out": 20}},
        "knowledge": {"teacher": {"max_tokens": 192, **PLAIN}},
    },
    "mimic_length": {
        "data": {"source": "simulated", "simulator": {"patients": 600, "replayed_patients": 0}},
        "knowledge": {"teacher": {"max_tokens": 512, **PLAIN}},
    },
}
OURS = {"uci": 192, "mimic_length": 24}  # narratives timed
THEIRS = {"uci": 24, "mimic_length": 8}
BATCH_TOKENS = 2048
SEED = 1


@dataclass(frozen=True)
class Rate:
    """Narratives a second, and their mean tokens."""

    per_second: float
    tokens: float


def main() -> None:
    """Measure both data sets; print a table and, with `--json`, write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, metavar="FILE")
    out = parser.parse_args().json
    precision = resolve_precision("auto", device="cpu")
    figures: dict[str, float] = {}
    for name, settings in DATA.items():
        measured = measure(name, build_config({"name": name, "seed": SEED, **settings}), precision)
        figures |= measured if name == "uci" else {f"{name}_{k}": v for k, v in measured.items()}
    for name, value in figures.items():
        print(f"{name:<42} {value:>12,.5g}")
    if out:
        about = {"name": "label", "commit": commit(), "machine": machine_facts()}
        data = f"UCI Diabetes-130 narratives and simulated MIMIC-length ones, {precision}"
        write_json(out, {**about, "data": data, "seed": SEED, "figures": figures})


def measure(name: str, config: RunConfig, precision: str) -> dict[str, float]:
    """Both ways on narratives of one data set."""
    texts = narratives_of(config)
    random.Random(SEED).shuffle(texts)
    labels = [phenotype.name for phenotype in config.labels.selected]
    torch.manual_seed(SEED)
    settings = config.teacher.model_copy(update={"precision": precision})
    model = new_teacher(settings, labels=len(labels), device="cpu").eval()
    model.backbone = model.backbone.merge_and_unload()  # type: ignore[operator]
    model.backbone.set_attn_implementation(READOUT)  # type: ignore[operator]
    reader = TextReader(EMBEDDED_TEACHER, "last")
    examples = [reader.example(str(n), text) for n, text in enumerate(texts[: OURS[name]])]
    label(model, examples[:8], reader.pad_token, precision)
    started = perf_counter()
    batched = label(model, examples, reader.pad_token, precision)
    ours = Rate(len(examples) / (perf_counter() - started), tokens_of(examples))
    few = examples[: THEIRS[name]]
    singly = np.concatenate([label(model, [one], reader.pad_token, precision) for one in few])
    del model
    listed = [phenotype.name for phenotype in PHENOTYPES_25]
    theirs = the_papers_loop(texts[: THEIRS[name]], listed, precision)
    return {
        "samples_per_second": ours.per_second,
        "tokens": ours.tokens,
        "paper_loop_samples_per_second": theirs.per_second,
        "paper_loop_tokens": theirs.tokens,
        "speedup_vs_paper_loop": ours.per_second / theirs.per_second,
        "max_probability_difference": float(
            np.abs(expit(batched[: len(few)]) - expit(singly)).max()
        ),
    }


def narratives_of(config: RunConfig) -> list[Narrative]:
    """The teacher's narratives of the data set's train pairs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_text(json.dumps(config.model_dump(mode="json")), encoding="utf-8")
        run("run", str(path), "--out", f"{folder}/run", "--until", "knowledge")
        return list(read_narratives(Path(folder, "run", "03_knowledge"), "teacher").values())


def tokens_of(examples: Sequence[Example]) -> float:
    """Mean tokens of what is read."""
    return float(np.mean([len(example.encoded.input_ids) for example in examples]))


def label(
    model: LabelAttentionModel, examples: Sequence[Example], pad_token: int, precision: str
) -> np.ndarray:
    """As the stage signals reads: logits (narratives, labels), attention recorded besides."""
    logits = np.zeros((len(examples), len(model.head.bias)))
    lengths = [len(example.encoded.input_ids) for example in examples]
    for rows in batches_by_tokens(lengths, BATCH_TOKENS):
        batch = make_batch([examples[row] for row in rows], pad_token=pad_token,
                           labels=len(model.head.bias))  # fmt: skip
        inputs = {name: batch[name] for name in MODEL_INPUTS}
        index, where = inputs["concept_index"], inputs["reading_index"]
        with (
            reading("cpu", precision),
            recording(index, where, concepts=inputs["concept_mask"].shape[1]) as readout,
        ):
            output = model(**inputs)
            readout.shares()
        logits[rows] = output.logits.float().numpy()
    return logits


def the_papers_loop(texts: Sequence[Narrative], labels: Sequence[str], precision: str) -> Rate:
    """One at a time, instruction and chat template, language-model head, all hidden states."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(
        resolve_model(EMBEDDED_TEACHER), dtype=dtype, attn_implementation=attention_kernel("cpu")
    ).eval()
    reader = PromptReader(EMBEDDED_TEACHER, labels, max_tokens=2048)
    examples = [reader.example(str(n), text) for n, text in enumerate(texts)]
    inputs = [torch.from_numpy(example.encoded.input_ids)[None].long() for example in examples]
    with torch.inference_mode():
        model(inputs[0], output_hidden_states=True)
        started = perf_counter()
        for ids in inputs:
            model(ids, output_hidden_states=True, use_cache=False).hidden_states[-1][:, -1]
        seconds = perf_counter() - started
    return Rate(len(texts) / seconds, tokens_of(examples))


if __name__ == "__main__":
    main()
