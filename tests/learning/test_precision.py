"""Which arithmetic a model runs in: as set, or what the processor has units for."""

import pytest
import torch

from ckd_ehr.learning.precision import resolve_precision, uses_bf16

CPU_UNITS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


def pretend_cpu(monkeypatch: pytest.MonkeyPatch, *present: str) -> None:
    for name in CPU_UNITS:
        monkeypatch.setattr(torch.cpu, name, lambda has=name in present: has, raising=False)


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, capability: int) -> None:
    """A CUDA device of a generation, which, as all are, is able to emulate bf16."""
    properties = type("Properties", (), {"major": capability})
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)


@pytest.mark.parametrize(
    ("present", "expected"),
    [((), "fp32"), (CPU_UNITS[:1], "bf16"), (CPU_UNITS[1:], "bf16")],
)
def test_auto_on_a_cpu_is_bf16_only_if_it_has_units_for_it(
    monkeypatch: pytest.MonkeyPatch, present: tuple[str, ...], expected: str
) -> None:
    pretend_cpu(monkeypatch, *present)
    assert resolve_precision("auto", device="cpu") == expected


def test_auto_on_a_cpu_is_fp32_if_pytorch_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CPU_UNITS:
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert resolve_precision("auto", device="cpu") == "fp32"


@pytest.mark.parametrize(
    ("capability", "expected"),
    [(7, "fp32"), (8, "bf16"), (9, "bf16")],  # Turing emulates; Ampere and Hopper have units
)
def test_auto_on_a_gpu_is_bf16_only_if_it_need_not_emulate_it(
    monkeypatch: pytest.MonkeyPatch, capability: int, expected: str
) -> None:
    pretend_cpu(monkeypatch)
    pretend_gpu(monkeypatch, capability)
    assert resolve_precision("auto", device="cuda") == expected


def test_a_gpu_is_not_judged_by_its_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cpu(monkeypatch, *CPU_UNITS)
    pretend_gpu(monkeypatch, 7)
    assert not uses_bf16("auto", device="cuda:0")
    assert uses_bf16("auto", device="cpu")


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_is_set_is_used_whatever_the_machine_has(
    monkeypatch: pytest.MonkeyPatch, precision: str, device: str
) -> None:
    pretend_cpu(monkeypatch, *(CPU_UNITS if precision == "fp32" else ()))
    pretend_gpu(monkeypatch, 9 if precision == "fp32" else 7)
    assert resolve_precision(precision, device=device) == precision
