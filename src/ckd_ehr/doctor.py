"""Is this machine ready, and how long will the demo take here?

In: nothing but the machine. Out: findings, each with a remedy where something is lacking, and a
forecast of the demo's time, disk and download. Touches no network and no patient data.

The forecast: seconds = fixed + bf16 work / bf16 rate + fp32 work / fp32 rate, with the two rates
measured here as matrix products and the constants of `DEMO` measured once, as said there. It is
good to about a factor of 1.5.
"""

import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Literal

import psutil
from packaging.requirements import Requirement

from ckd_ehr.contracts.config import RunConfig
from ckd_ehr.contracts.wheels import cache_folder
from ckd_ehr.learning.weights import download_bytes, is_cached

Status = Literal["ok", "note", "missing"]

OLDEST_PYTHON = (3, 11)
LEAST_MEMORY = 4 * 2**30
MATRIX = (512, 576, 1536)  # tokens × width × inner width of a SmolLM2-135M block
MEASURE_SECONDS = 0.5


@dataclass(frozen=True)
class DemoCost:
    """What `ckd-ehr demo` costs; gigaflops count what the two matrix products below reach."""

    fixed_seconds: float
    bf16_gigaflop: float
    fp32_gigaflop: float
    run_bytes: int
    unpacked_weights_bytes: int


# The shipped demo.yaml on two x86-64 cores with bf16 matrix units: teacher and signals took 248 s,
# the students 166 s and the rest 12 s, where `measure_speed` gave 408 and 182 gigaflops a second.
# Small models at batch size 8 spend their time beside the products, as fp32 does: hence the split.
DEMO = DemoCost(
    fixed_seconds=12.0,
    bf16_gigaflop=101_000.0,
    fp32_gigaflop=30_200.0,
    run_bytes=250 * 2**20,
    unpacked_weights_bytes=450 * 2**20,
)


@dataclass(frozen=True)
class Finding:
    """One thing looked at, and what to do about it."""

    topic: str
    status: Status
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Speed:
    """Matrix products of this machine, in 10⁹ floating-point operations a second."""

    bf16_gigaflops: float
    fp32_gigaflops: float


@dataclass(frozen=True)
class Forecast:
    """What the demo will take on this machine; the download is None where it cannot be told."""

    seconds: float
    disk_bytes: int
    download_bytes: int | None


def examine(config: RunConfig, *, runs: Path) -> list[Finding]:
    """Look at everything that a run of `config` below the folder `runs` needs."""
    findings = [_python(), *_packages(), _torch(), _processor(), _memory()]
    findings += [_fetched(topic, name) for topic, name in _downloads(config).items()]
    forecast = forecast_demo(config, None)
    cache = cache_folder()
    unpacked = DEMO.unpacked_weights_bytes if forecast.download_bytes != 0 else 0
    needs = {"runs": (runs, DEMO.run_bytes), "cache": (cache, unpacked)}
    return [*findings, *(_disk(name, place, need) for name, (place, need) in needs.items())]


def measure_speed() -> Speed:
    """Time products of the teacher's shapes; takes about a second. Needs torch."""
    import torch

    return Speed(_gigaflops(torch.bfloat16), _gigaflops(torch.float32))


def forecast_demo(config: RunConfig, speed: Speed | None) -> Forecast:
    """Time, disk and download of the demo; without a speed the time is NaN."""
    sizes = [download_bytes(name) for name in dict.fromkeys(_downloads(config).values())]
    download = None if None in sizes else sum(size for size in sizes if size is not None)
    seconds = float("nan")
    if speed is not None:
        seconds = DEMO.fixed_seconds + DEMO.bf16_gigaflop / max(
            speed.bf16_gigaflops, speed.fp32_gigaflops
        )
        seconds += DEMO.fp32_gigaflop / speed.fp32_gigaflops
    unpacked = DEMO.unpacked_weights_bytes if download != 0 else 0
    return Forecast(seconds, DEMO.run_bytes + unpacked, download)


def unmet_requirements(requirements: Sequence[str], *, extra: str) -> Iterator[Finding]:
    """The requirements (with those of `extra`) that are absent or of another version.

    >>> [finding.found for finding in unmet_requirements(["no-such-thing>=2"], extra="train")]
    ['no-such-thing is not installed (wanted: >=2)']
    """
    remedy = f"pip install 'ckd-ehr[{extra}]', or in a clone: make setup"
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name, wanted = requirement.name, requirement.specifier
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = f"{name} is not installed (wanted: {wanted})"
            yield Finding("packages", "missing", found, remedy)
            continue
        if not wanted.contains(version, prereleases=True):
            yield Finding("packages", "missing", f"{name} {version} (wanted: {wanted})", remedy)


def show_bytes(count: int) -> str:
    """Bytes for people.

    >>> show_bytes(92_871_040), show_bytes(5 * 2**30)
    ('93 MB', '5.4 GB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < OLDEST_PYTHON:
        return Finding("Python", "missing", found, "install Python 3.11 or later")
    return Finding("Python", "ok", found)


def _packages() -> list[Finding]:
    requirements = metadata.requires("ckd-ehr") or []
    unmet = list(unmet_requirements(requirements, extra="train"))
    if unmet:
        return unmet
    version = metadata.version("ckd-ehr")
    return [Finding("packages", "ok", f"ckd-ehr {version}, and all it needs for training")]


def _torch() -> Finding:
    try:
        import torch
    except ImportError as error:
        remedy = "pip install 'ckd-ehr[train]', or in a clone: make setup"
        return Finding("torch", "missing", f"cannot be imported: {error}", remedy)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU, CPU only"
    return Finding("torch", "ok", f"{torch.__version__}, {device}")


def _processor() -> Finding:
    affinity = getattr(os, "sched_getaffinity", None)
    usable = len(affinity(0)) if affinity else os.cpu_count() or 1
    if usable < 2:
        remedy = "one core works, at about half the speed"
        return Finding("cores", "note", f"{usable} usable", remedy)
    return Finding("cores", "ok", f"{usable} usable of {os.cpu_count()}")


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    found = f"{show_bytes(memory.available)} free of {show_bytes(memory.total)}"
    if memory.available < LEAST_MEMORY:
        remedy = f"free at least {show_bytes(LEAST_MEMORY)}, or lower teacher.batch_size"
        return Finding("memory", "note", found, remedy)
    return Finding("memory", "ok", found)


def _downloads(config: RunConfig) -> dict[str, str]:
    names = {"teacher weights": config.teacher.model, "student weights": config.student.model}
    pack = config.knowledge.guidelines.pack
    if config.knowledge.uses_guidelines and pack is not None:
        names["guideline digests"] = pack
    return names


def _fetched(topic: str, name: str) -> Finding:
    if is_cached(name):
        return Finding(topic, "ok", "in the cache" if "://" in name else f"in {name}")
    size = download_bytes(name)
    shown = "an unknown size" if size is None else show_bytes(size)
    remedy = f"the first run downloads them into {cache_folder()}"
    return Finding(topic, "note", f"not here yet, {shown} to download", remedy)


def _disk(name: str, place: Path, need: int) -> Finding:
    existing = next(p for p in (place.absolute(), *place.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    found = f"{show_bytes(free)} free at {place}, {show_bytes(need)} needed"
    if free < need:
        setting = "--out" if name == "runs" else "CKD_EHR_CACHE"
        remedy = f"free some space, or choose another disk with {setting}"
        return Finding(f"disk ({name})", "missing", found, remedy)
    return Finding(f"disk ({name})", "ok", found)


def _gigaflops(dtype: object) -> float:
    import torch

    assert isinstance(dtype, torch.dtype)
    rows, inner, columns = MATRIX
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
    torch.mm(left, right)
    count, started = 0, perf_counter()
    while (elapsed := perf_counter() - started) < MEASURE_SECONDS:
        torch.mm(left, right)
        count += 1
    return 2 * rows * inner * columns * count / elapsed / 1e9
