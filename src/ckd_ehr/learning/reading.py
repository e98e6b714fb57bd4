"""Running a label attention model over narratives, without training it.

In: a model and encoded narratives. Out: head outputs on the CPU. Ignores: which model it is.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.learning.batches import MODEL_INPUTS, Example, batches_by_tokens, make_batch
from ckd_ehr.learning.heads import HeadOutput, LabelModel
from ckd_ehr.learning.precision import uses_bf16

BATCH_TOKENS = 8192
OFFSET = ("roberta", "mpnet")


def pick_device(wanted: str) -> str:
    """`auto` becomes what the machine has."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise CkdEhrError("device=cuda: PyTorch finds no CUDA device; use device=cpu or auto")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def check_positions(config: Any, *, max_tokens: int, setting: str) -> None:
    """Refuse a token budget that a model of this configuration has no positions for."""
    limit = int(config.max_position_embeddings)
    if any(name in str(config.model_type) for name in OFFSET):
        limit -= 2  # its positions start behind the padding token
    if max_tokens > limit:
        raise CkdEhrError(
            f"{setting}={max_tokens}: the model reads at most {limit} tokens; lower it"
        )


def attention_kernel(device: str) -> str | None:
    """The attention implementation to load a backbone with; None for the library's choice.

    On a CPU the plain one: PyTorch's fused kernel has no fast backward pass there (measured on
    MiniLM at 80 tokens: 24 against 20 ms per training pair).
    """
    return "eager" if device == "cpu" else None


@contextmanager
def reading(device: str, precision: str) -> Iterator[None]:
    """No gradients, and autocast where training had it: same numbers as in evaluation."""
    bf16 = uses_bf16(precision, device=device)
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bf16):
        yield


def read_batch(
    model: LabelModel, examples: Sequence[Example], *, pad_token: int, device: str
) -> HeadOutput:
    """One forward pass over examples, outputs as fp32 on the CPU."""
    batch = make_batch(examples, pad_token=pad_token, labels=len(model.head.bias))
    output: HeadOutput = model(**{name: batch[name].to(device) for name in MODEL_INPUTS})
    return on_cpu(output)


def on_cpu(output: HeadOutput) -> HeadOutput:
    """The output as fp32 on the CPU."""
    return HeadOutput(*(value.float().cpu() for value in output if value is not None))


def predict_logits(
    model: LabelModel,
    examples: Sequence[Example],
    *,
    pad_token: int,
    device: str,
) -> NDArray[np.float64]:
    """Uncalibrated logits (examples, labels), in batches of similar length.

    Always in fp32: in bf16 a patient's risk would depend on who shares the batch.
    """
    logits = np.zeros((len(examples), len(model.head.bias)))
    lengths = [len(example.encoded.input_ids) for example in examples]
    for rows in batches_by_tokens(lengths, BATCH_TOKENS):
        with reading(device, "fp32"):
            batch = [examples[row] for row in rows]
            logits[rows] = read_batch(model, batch, pad_token=pad_token, device=device).logits
    return logits
