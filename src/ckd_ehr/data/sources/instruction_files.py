"""Files of instruction pairs: which they are, the split each is for, their records one by one.

In: a file or folder. Out: JSON values with their places. Both layouts are read: a pair a line, or
one array, whatever the name's ending (`.jsonl`, `.json`, either gzipped). Ignores: what a pair
says. No error quotes a file's content.
"""

import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.records import Split
from ckd_ehr.data.sources.tables import explain_unreadable, open_bytes

ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
DATASET_INFO = "dataset_info.json"  # LLaMA-Factory's list of data sets stands beside them
_SPLIT_WORDS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "tuning": ("tun", "val", "dev", "eval"),
    "held_out": ("held", "test"),
}


@dataclass(frozen=True, slots=True)
class PairFile:
    """A file of pairs, and the split that its name says it is for, if any."""

    path: Path
    split: Split | None


def find_files(root: Path | None) -> list[PairFile]:
    """The files to read, in order of their names; splits only where the names tell several.

    Raises:
        CkdEhrError: there is none, or some names tell a split and others do not.
    """
    if root is None:
        raise CkdEhrError("data.root is not set; give a file or folder of pairs as data.root=PATH")
    if root.is_file():
        return [PairFile(root, None)]
    if not root.is_dir():
        raise CkdEhrError(f"{root}: no such file or folder; give the pairs as data.root=PATH")
    paths = [path for path in sorted(root.iterdir()) if _may_hold_pairs(path)]
    if not paths:
        raise CkdEhrError(
            f"{root}: holds no {', '.join(ENDINGS)}; point data.root at the file or folder of pairs"
        )
    files = [PairFile(path, split_of_name(path.name)) for path in paths]
    told = {file.split for file in files}
    if told == {None} or len(files) == 1:
        return [PairFile(file.path, None) for file in files]
    if None in told:
        silent = ", ".join(file.path.name for file in files if file.split is None)
        raise CkdEhrError(
            f"{root}: these names tell no single split, while others do: {silent}; rename them to "
            "have train, val or test in their names, or move them away"
        )
    return files


def split_of_name(name: str) -> Split | None:
    """The one split that a file's name tells.

    >>> [split_of_name(name) for name in ("name_train.json", "val.jsonl", "held_out.jsonl.gz")]
    ['train', 'tuning', 'held_out']
    >>> split_of_name("pairs.jsonl") is split_of_name("train_test.json") is None
    True
    """
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name.partition(".")[0])]
    found = {
        split
        for split, beginnings in _SPLIT_WORDS.items()
        if any(word.startswith(beginnings) for word in words)
    }
    return found.pop() if len(found) == 1 else None


def read_records(path: Path) -> Iterator[tuple[str, object]]:
    """Every JSON value of a file with its place ("line 7", "entry 7"); blank lines are none.

    Raises:
        CkdEhrError: the file is empty, cut off, not UTF-8 or not JSON.
    """
    try:
        with open_bytes(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="\n") as text:
            yield from _parsed(text, path.name)
    except (UnicodeDecodeError, OSError, EOFError, zlib.error):
        raise explain_unreadable(path) from None


def _parsed(text: io.TextIOWrapper, name: str) -> Iterator[tuple[str, object]]:
    lines = ((number, line) for number, line in enumerate(text, start=1) if line.strip())
    first = next(lines, None)
    if first is None:
        raise CkdEhrError(f"{name}: the file is empty; export the pairs again")
    if first[1].lstrip().startswith("["):
        whole = first[1] + "".join(line for _, line in lines)
        entries = _load(whole, f"{name}: not a whole JSON array; export it again, or a pair a line")
        assert isinstance(entries, list)
        for number, entry in enumerate(entries, start=1):
            yield f"entry {number}", entry
        return
    for number, line in chain([first], lines):
        problem = f"{name}: line {number} is not JSON; write one pair a line, or one array"
        yield f"line {number}", _load(line, problem)


def _load(text: str, problem: str) -> object:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):  # what is wrong would quote a patient's text
        raise CkdEhrError(problem) from None
    return value


def _may_hold_pairs(path: Path) -> bool:
    name = path.name.casefold()
    return path.is_file() and name.endswith(ENDINGS) and name != DATASET_INFO and name[0] != "."
