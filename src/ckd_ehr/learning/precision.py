"""Which arithmetic a model runs in: the setting, or what the processor is made for.

In: the setting and the device. Out: whether bf16 is used. Ignores: models.
"""

import torch


def uses_bf16(precision: str, *, device: str) -> bool:
    """Whether to compute in bf16; `auto` does so only where the hardware has it.

    A CPU without bf16 units emulates it, a hundred times slower than fp32.

    >>> uses_bf16("fp32", device="cpu"), uses_bf16("bf16", device="cpu")
    (False, True)
    """
    if precision != "auto":
        return precision == "bf16"
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    units = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in units)
