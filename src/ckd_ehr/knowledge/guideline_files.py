"""The files of guideline digests: which there are, their texts, what a site's say of themselves.

In: a folder. Out: paths, texts, front matter; a digest of all bytes. Ignores: what statements say.
"""

import difflib
import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import yaml
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, field_validator

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.knowledge.condition_tables import category_of
from ckd_ehr.knowledge.markdown import split_front_matter

MAX_BYTES = 1 << 20
REGISTRY = "registry.json"
SUFFIXES = (".md", ".markdown")
PACK, SITE_FOLDER = "knowledge.guidelines.pack", "knowledge.guidelines.folder"
SITE_KEYS = ("id", "title", "doi", "conditions")


@dataclass(frozen=True, slots=True)
class Guideline:
    """What a digest is of; `conditions` are CCS categories."""

    guideline_id: str
    title: str
    doi: str | None
    conditions: tuple[int, ...]


NotBlank = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class _FrontMatter(BaseModel):
    """What a site's own file says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: NotBlank
    title: NotBlank
    doi: str = ""
    conditions: tuple[int | str, ...]

    @field_validator("conditions")
    @classmethod
    def _are_known(cls, written: tuple[int | str, ...]) -> tuple[int, ...]:
        if not written:
            raise ValueError("is empty; list CCS categories by number or name")
        return tuple(sorted({category_of(value) for value in written}))


def markdown_files(folder: Path, setting: str) -> list[Path]:
    """Those of a folder and the folders in it, linked ones too, hidden ones not.

    Args:
        folder: where they are.
        setting: that names the folder, for errors.
    """
    if not folder.is_dir():
        kind = "this is a file; give its folder" if folder.exists() else "no such folder"
        raise CkdEhrError(f"{setting}: {folder}: {kind}; mend the path, or set it to null")
    paths, seen = [], set()

    def cannot_list(error: OSError) -> NoReturn:
        raise CkdEhrError(
            f"{setting}: {error.filename}: cannot be listed ({error.strerror}); allow reading it"
        )

    for inner, folders, names in os.walk(folder, followlinks=True, onerror=cannot_list):
        if (real := os.path.realpath(inner)) in seen:  # by another link, or one that holds it
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        folders.sort(key=lambda name: Path(inner, name).is_symlink())
        for name in names:
            path = Path(inner, name)
            if path.is_symlink() and not path.exists():
                raise CkdEhrError(f"{path}: is a link to nothing; mend or delete it")
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                paths.append(path)
    if not paths:
        raise CkdEhrError(f"{setting}: {folder}: holds no Markdown file ({', '.join(SUFFIXES)})")
    for path in paths:
        if not (name := str(path)).isprintable():  # bytes that are not UTF-8 are not printable
            raise CkdEhrError(
                f"{ascii(name)[1:-1]}: its name is not UTF-8 or has control characters; rename it"
            )
    return sorted(paths)


def folder_digest(folder: Path, setting: str) -> str:
    """SHA-256 over the paths and bytes of a folder's Markdown files, and its registry if any."""
    digest = hashlib.sha256()
    for path in [*markdown_files(folder, setting), *sorted(folder.glob(REGISTRY))]:
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        digest.update(hashlib.sha256(_bytes(path)).digest())
    return digest.hexdigest()


def read_file(path: Path) -> str:
    """The text of a digest."""
    try:
        return _bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CkdEhrError(
            f"{path}: not UTF-8 (byte {error.start}); save it in that encoding"
        ) from None


def _bytes(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise CkdEhrError(f"{path}: has disappeared, or is no file; put it back")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise CkdEhrError(
                f"{path}: {size:,} bytes, more than the {MAX_BYTES:,} of a digest; split it, or "
                "keep only what bears on the course of the disease"
            )
        return path.read_bytes()
    except OSError as error:
        raise CkdEhrError(f"{path}: cannot be read ({error.strerror}); allow reading it") from None


def read_site_file(path: Path) -> tuple[Guideline | None, int, str]:
    """What a site's file says of itself (None if nothing), the lines of that, and what follows."""
    front_matter, lines, body = split_front_matter(read_file(path))
    if lines and front_matter is None:
        raise CkdEhrError(f"{path}: its front matter has no end; close it with a line ---")
    if front_matter is None:
        return None, lines, body
    try:
        written = _yaml(front_matter)
    except RecursionError:
        raise CkdEhrError(f"{path}: its front matter is nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 2})" if mark else ""
        raise CkdEhrError(f"{path}: its front matter is not valid YAML{place}") from None
    except ValueError as error:
        raise CkdEhrError(f"{path}: its front matter: {error}") from None
    if not isinstance(written, dict):
        raise CkdEhrError(f"{path}: its front matter must have {', '.join(SITE_KEYS)}")
    try:
        found = _FrontMatter.model_validate(written)
    except ValidationError as error:
        raise CkdEhrError(f"{path}: front matter: {_explain(error)}") from None
    conditions = tuple(ccs for ccs in found.conditions if isinstance(ccs, int))
    return Guideline(found.id, found.title, found.doi.strip() or None, conditions), lines, body


def _yaml(text: str) -> object:
    """The value of a YAML text, numbers and dates as they are written.

    YAML 1.1 would read 0100 as 64. A key that stands twice is an error, not the last of its values.
    """
    root = yaml.compose(text, yaml.BaseLoader)
    if isinstance(root, yaml.MappingNode):
        keys = Counter(key.value for key, _ in root.value if isinstance(key, yaml.ScalarNode))
        if doubled := [key for key, times in keys.items() if times > 1]:
            raise ValueError(f"'{doubled[0]}' stands there twice; leave one out")
    return yaml.load(text, yaml.BaseLoader)


def _explain(error: ValidationError) -> str:
    problems = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
    problem = problems[0]  # a misspelt key first: what it lacks for that is no other mistake
    key = str(problem["loc"][0]) if problem["loc"] else "all of it"
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, SITE_KEYS, n=1)
        remedy = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(SITE_KEYS)}"
        return f"unknown key '{key}'; {remedy}"
    if problem["type"] == "missing":
        return f"'{key}' is missing; it must have {', '.join(SITE_KEYS)} (doi may be left out)"
    if problem["type"] == "value_error":
        return f"{key}: {str(problem['msg']).removeprefix('Value error, ')}"
    if key == "conditions":
        return f"{key}: write a list of CCS categories, each by number or name, as [108, 158]"
    return f"{key}: write some text"
