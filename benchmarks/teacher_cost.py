"""What one patient costs a Qwen2.5-7B: its geometry with random weights, one forward pass.

28 layers of 3,584, 28 heads, 4 of them keys, 18,944 within, 152,064 words; bf16 weights, 15 GB.
Random weights take as long as real ones and say nothing. Where the processor has no bf16 units each
layer is read into fp32 before it is run, as bf16 would be emulated a hundred times slower. Skipped,
with a message, where there is too little memory.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import psutil
import torch
from torch import nn
from transformers import Qwen2Config, Qwen2Model

from ckd_ehr.contracts.files import write_json
from ckd_ehr.contracts.machine import commit, machine_facts
from ckd_ehr.learning.precision import resolve_precision

GEOMETRY = {
    "num_hidden_layers": 28,
    "hidden_size": 3584,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152_064,
    "max_position_embeddings": 32_768,
}
BYTES_NEEDED = 17 * 10**9
TOKENS = (128, 512)
RUNS = 3
BLOCK = 1 << 20


def main() -> None:
    """Measure both lengths; print a table and, with `--json`, write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS))
    chosen = parser.parse_args()
    free = psutil.virtual_memory().available
    if free < BYTES_NEEDED:
        print(
            f"skipped: {BYTES_NEEDED / 1e9:.0f} GB of memory are needed, {free / 1e9:.0f} GB free"
        )
        return
    precision = resolve_precision("auto", device="cpu")
    model = geometry()
    if precision == "fp32":
        read_layers_into_fp32(model)
    figures: dict[str, float] = {"parameters": float(sum(p.numel() for p in model.parameters()))}
    for tokens in chosen.tokens:
        milliseconds = time_forward(model, tokens)
        figures[f"teacher7b_ms_{tokens}_tokens"] = float(np.median(milliseconds))
        print(f"{tokens:>5} tokens: {np.median(milliseconds):>10,.0f} ms", flush=True)
    if chosen.json:
        about = {"name": "teacher_cost", "commit": commit(), "machine": machine_facts()}
        data = f"random weights of Qwen2.5-7B's geometry, bf16 weights, {precision} arithmetic"
        write_json(chosen.json, {**about, "data": data, "seed": 0, "figures": figures})


def geometry() -> Qwen2Model:
    """The backbone without a language-model head, filled by copies of one random block."""
    config = Qwen2Config(**GEOMETRY)
    config.use_cache = False
    with torch.device("meta"):
        model = Qwen2Model(config)
    rotary = type(model.rotary_emb)(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu").eval()
    model.rotary_emb = rotary
    noise = (torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    for parameter in model.parameters():
        flat = parameter.data.view(-1)
        for start in range(0, len(flat), BLOCK):
            flat[start : start + BLOCK] = noise[: len(flat) - start]
    return model


def read_layers_into_fp32(model: Qwen2Model) -> None:
    """Each layer into fp32 before it runs, and back to its bf16 weights afterwards."""
    for layer in (*model.layers, model.norm):
        kept = [parameter.data for parameter in layer.parameters()]
        layer.register_forward_pre_hook(widening(layer), with_kwargs=True)
        layer.register_forward_hook(restoring(layer, kept))


def widening(layer: nn.Module) -> Callable[..., Any]:
    """A hook that makes a layer's weights and inputs fp32."""

    def widen(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        for parameter in layer.parameters():
            parameter.data = parameter.data.float()
        return tuple(map(as_fp32, args)), {name: as_fp32(value) for name, value in kwargs.items()}

    return widen


def as_fp32(value: Any) -> Any:
    """Floating tensors, alone or in a tuple, in fp32; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(map(as_fp32, value))
    is_floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.float() if is_floating else value


def restoring(layer: nn.Module, kept: list[torch.Tensor]) -> Callable[..., None]:
    """A hook that gives a layer its bf16 weights back."""

    def restore(*_: Any) -> None:
        for parameter, data in zip(layer.parameters(), kept, strict=True):
            parameter.data = data

    return restore


def time_forward(model: Qwen2Model, tokens: int) -> list[float]:
    """Milliseconds of forward passes of one patient, after one to warm up."""
    ids = torch.randint(0, GEOMETRY["vocab_size"], (1, tokens))
    milliseconds = []
    with torch.inference_mode():
        for _ in range(1 + RUNS):
            started = perf_counter()
            state = model(input_ids=ids).last_hidden_state
            assert torch.isfinite(state).all()
            milliseconds.append(1000 * (perf_counter() - started))
    return milliseconds[1:]


if __name__ == "__main__":
    main()
