"""Which arithmetic a model runs in: the setting, or what the processor is made for.

In: the setting and the device. Out: bf16 or fp32. Ignores: models; bf16 units of ARM processors,
which PyTorch does not tell of.
"""

from typing import Literal

import torch

Arithmetic = Literal["bf16", "fp32"]


def resolve_precision(precision: str, *, device: str) -> Arithmetic:
    """The arithmetic that a setting means on this machine: what is written down with results.

    >>> resolve_precision("fp32", device="cpu")
    'fp32'
    """
    return "bf16" if uses_bf16(precision, device=device) else "fp32"


def uses_bf16(precision: str, *, device: str) -> bool:
    """Whether to compute in bf16; `auto` does so only where the hardware has it.

    A CPU without bf16 units emulates it, a hundred times slower than fp32; so do GPUs before
    Ampere.

    >>> uses_bf16("fp32", device="cpu"), uses_bf16("bf16", device="cpu")
    (False, True)
    """
    if precision != "auto":
        return precision == "bf16"
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    units = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in units)
