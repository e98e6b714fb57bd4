"""What is in a bundle, and whether it is still what was published.

In: a bundle's folder. Out: its facts, if every byte is as it was. Ignores: what the graphs compute;
never imports torch.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ckd_ehr.contracts.config import KnowledgeConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json, sha256_of, write_json
from ckd_ehr.contracts.phenotype import Phenotype

SCHEMA_VERSION = 1
MANIFEST, FACTS, TOKENIZER, KNOWN_CODES = (
    "manifest.json",
    "bundle.json",
    "tokenizer.json",
    "known_codes.json",
)
KNOWLEDGE = "knowledge"
AGAIN = "take the bundle again from where it was published"
Precision = Literal["fp32", "int8"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GraphFacts(_Part):
    """One graph of a bundle."""

    opset: int
    ir_version: int
    fused_attention: int = Field(description="Operators, one a layer.")
    int8_products: int = Field(description="0 in fp32.")


class BundleFacts(_Part):
    """What it takes to predict with a bundle, beside its graphs and its tokenizer."""

    name: str = Field(description="Of the run.")
    model: str
    data_source: str
    commit: str | None
    labels: tuple[str, ...]
    prevalence: tuple[float, ...] = Field(description="Among train pairs.")
    thresholds: tuple[float, ...] = Field(description="Of best F1 on tuning pairs.")
    base_log_odds: tuple[float, ...] = Field(description="Calibrated log-odds without evidence.")
    pad_token: int
    max_tokens: int
    max_history_visits: int
    unknown_share_limit: float = Field(description="Beyond it no risk is told.")
    knowledge: KnowledgeConfig
    phenotypes: tuple[Phenotype, ...]
    graphs: dict[Precision, GraphFacts]
    calibrated_on: str
    packages: dict[str, str] = Field(description="Whose tables and code the outputs rest on.")


class FileFacts(_Part):
    """A file of a bundle."""

    sha256: str
    bytes: int


class BundleManifest(_Part):
    """The files of a bundle, without the manifest itself."""

    schema_version: int
    files: dict[str, FileFacts]


def write_manifest(folder: Path) -> None:
    """List every file of the folder, with its hash."""
    files = {
        path.relative_to(folder).as_posix(): {
            "sha256": sha256_of(path),
            "bytes": path.stat().st_size,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_json(folder / MANIFEST, {"schema_version": SCHEMA_VERSION, "files": files})


def is_bundle(folder: Path) -> bool:
    """Whether a folder says that it is a bundle."""
    return (folder / FACTS).is_file() and (folder / MANIFEST).is_file()


def read_facts(folder: Path) -> BundleFacts:
    """The facts of a bundle whose files are all as they were published.

    Raises:
        CkdEhrError: no bundle, one of a newer version, or files that are missing, further or
            changed.
    """
    if not is_bundle(folder):
        raise CkdEhrError(
            f"{folder}: no bundle here ({MANIFEST} or {FACTS} is missing); make one with: "
            "ckd-ehr bundle build RUN --out FOLDER"
        )
    listed = read_json(folder / MANIFEST)
    version = listed.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise CkdEhrError(
            f"{folder / MANIFEST}: a bundle of version {version}, this ckd-ehr reads up to "
            f"{SCHEMA_VERSION}; install a newer ckd-ehr"
        )
    try:
        _refuse_changed(folder, BundleManifest.model_validate(listed))
        return BundleFacts.model_validate(read_json(folder / FACTS))
    except ValidationError as error:
        places = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors()[:3])
        raise CkdEhrError(f"{folder}: damaged ({places} as not expected); {AGAIN}") from None


def _refuse_changed(folder: Path, manifest: BundleManifest) -> None:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    further = sorted(found - manifest.files.keys() - {MANIFEST})
    if further:
        raise CkdEhrError(f"{folder / further[0]}: not of this bundle; delete it, or {AGAIN}")
    for name, facts in manifest.files.items():
        path = folder / name
        if name not in found:
            raise CkdEhrError(f"{path}: missing; {AGAIN}")
        if path.stat().st_size != facts.bytes or sha256_of(path) != facts.sha256:
            raise CkdEhrError(f"{path}: not as it was published (its hash differs); {AGAIN}")
