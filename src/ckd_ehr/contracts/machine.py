"""What a figure measured here should be read against: machine, package versions, commit.

Ignores: what is measured.
"""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil

PACKAGES = (
    "ckd-ehr",
    "duckdb",
    "meds",
    "numpy",
    "peft",
    "pyarrow",
    "scikit-learn",
    "torch",
    "transformers",
)


def package_versions() -> dict[str, str]:
    """The installed versions of Python and of what results depend on."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def machine_facts() -> dict[str, object]:
    """What a figure measured here should be read against."""
    return {
        "system": platform.platform(),
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "python": sys.version.split()[0],
    }


def peak_memory_bytes() -> int:
    """The most memory this process has had at one time."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def commit() -> str | None:
    """The commit of this source tree; None where it is not a git checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except OSError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
