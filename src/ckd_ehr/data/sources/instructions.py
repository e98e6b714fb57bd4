"""The paper's instruction pairs (arXiv 2506.15118; LLaMA-Factory's `alpaca` layout) → MEDS.

In: files of pairs with `instruction`, `input` and `output`: a history in the paper's phrases, and
the names of the diseases that came next. Out: a MEDS dataset with synthetic times, in which every
pair is a history of one or more stays and a next stay whose diagnoses are the labels; the splits
that the files' names tell. Ignores: hints on treatments, all other sentences, other keys.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import meds
import pyarrow as pa
import pyarrow.parquet as pq

from ckd_ehr.contracts.config import DataConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.records import Split
from ckd_ehr.data.sources.dataset import open_events, write_dataset
from ckd_ehr.data.sources.extraction import Extraction, TableStatus
from ckd_ehr.data.sources.instruction_codes import Coder, PairCodes
from ckd_ehr.data.sources.instruction_files import PairFile, find_files, read_records
from ckd_ehr.data.sources.instruction_labels import LabelNames
from ckd_ehr.data.sources.instruction_stays import add_pairs
from ckd_ehr.data.sources.instruction_text import ANSWER, read_answer, read_history
from ckd_ehr.data.sources.tables import COLUMN_NAME, check_renames, connect, file_digests

NAME = "instruction pairs"
TABLE = "pairs"
PROMPT_KEYS = ("instruction", "input")
ANSWER_KEY = "output"
KEYS = (*PROMPT_KEYS, ANSWER_KEY)
LOOKED_AT = 20  # records whose keys are looked at before any work
SHOWN_KEYS = 6
LARGEST_ID = 2**63 - 1

NO_OBJECT = "that are no JSON object"
NO_TEXT = f"without text under '{ANSWER_KEY}', or under '{PROMPT_KEYS[0]}' and '{PROMPT_KEYS[1]}'"
NO_ANSWER = f"without a list after '{ANSWER}'"
NO_HISTORY = "without a history in the phrases that are known"
NO_ID = "with a patient id that is neither text nor a whole number"
IN_TWO_SPLITS = "of patients who also stand in a file for tuning or testing"


@dataclass(frozen=True, slots=True)
class _Pair:
    """A record that can be used, and whose it is."""

    subject_id: int
    file: str
    split: Split | None
    codes: PairCodes


@dataclass(frozen=True, slots=True)
class _UnknownLabel:
    place: str
    form: str
    nearest: str


def tables(settings: DataConfig) -> list[TableStatus]:
    """Which files of pairs are there."""
    try:
        files = find_files(settings.root)
    except CkdEhrError:
        return [TableStatus("*.jsonl, *.json", NAME, required=True, found=None)]
    return [
        TableStatus(
            name=file.path.name,
            purpose=NAME if file.split is None else f"{NAME}, split {file.split}",
            required=True,
            found=file.path.name,
            size_bytes=file.path.stat().st_size,
        )
        for file in files
    ]


def digests(settings: DataConfig) -> dict[str, str]:
    """SHA-256 of the files; one without the keys is an error."""
    keys = _keys(settings)
    files = find_files(settings.root)
    for file in files:
        _require_keys(file.path, keys)
    return file_digests([file.path for file in files], files[0].path.parent)


def extract(extraction: Extraction) -> None:
    """Write the pairs as a MEDS dataset, with the splits that file names tell."""
    settings = extraction.settings
    files = find_files(settings.root)
    coder = Coder(LabelNames(settings.instructions.labels))
    read = [pair for file in files for pair in _read_pairs(file, coder, extraction)]
    kept = _keep_apart(read, extraction)
    owned: dict[int, list[PairCodes]] = defaultdict(list)
    for pair in kept:
        owned[pair.subject_id].append(pair.codes)
    patients = {subject: _distinct(pairs) for subject, pairs in owned.items()}
    if folded := len(kept) - sum(map(len, patients.values())):
        extraction.say(f"{folded:,} equal pairs of one patient folded")
    with connect(extraction.folder, extraction.memory_limit) as connection:
        open_events(connection)
        add_pairs(connection, patients)
        write_dataset(connection, extraction, name=NAME, synthetic_times=True)
    if any(file.split for file in files):
        _write_splits(kept, extraction)


def _distinct(pairs: Sequence[PairCodes]) -> list[PairCodes]:
    """The first of equal pairs."""
    first: dict[object, PairCodes] = {}
    for pair in pairs:
        first.setdefault(pair.content, pair)
    return [*first.values()]


def _keys(settings: DataConfig) -> dict[str, str]:
    """The files' own name of each key."""
    check_renames(settings.columns, {TABLE: KEYS})
    given = {
        key.casefold(): actual
        for columns in settings.columns.values()
        for key, actual in columns.items()
    }
    keys = {key: given.get(key, key) for key in KEYS}
    return {**keys, "subject_id": settings.instructions.subject_id}


def _require_keys(path: Path, keys: Mapping[str, str]) -> None:
    """An error where none of the first records has an answer, or none a prompt."""
    first = [record for _, record in islice(read_records(path), LOOKED_AT)]
    present = Counter(key for record in first if isinstance(record, dict) for key in record)
    wanted = {ANSWER_KEY: [keys[ANSWER_KEY]], "input": [keys[key] for key in PROMPT_KEYS]}
    for key, actual in wanted.items():
        if not any(name in present for name in actual):
            shown = [name for name in present if COLUMN_NAME.fullmatch(name)][:SHOWN_KEYS]
            found = ", ".join(shown) or "none"
            raise CkdEhrError(
                f"{path.name}: key '{actual[-1]}' is missing (found: {found}); "
                f"map it with data.columns.{TABLE}.{key}=NAME, or move the file away if it holds "
                "no pairs"
            )


def _read_pairs(file: PairFile, coder: Coder, extraction: Extraction) -> list[_Pair]:
    """The pairs of a file; what cannot be used is counted, an unknown label refused."""
    keys, names = _keys(extraction.settings), coder.names
    pairs: list[_Pair] = []
    unknown: list[_UnknownLabel] = []
    left_out: Counter[str] = Counter()
    without_id = 0
    for place, record in read_records(file.path):
        parts = _parts_of(record, keys)
        if isinstance(parts, str):
            left_out[parts] += 1
            continue
        prompt, listed, given_id = parts
        history = read_history(prompt, names.split)
        if not history:
            left_out[NO_HISTORY] += 1
            continue
        labels = names.split(listed)
        unknown += [_unknown(label, place, names) for label in labels if not names.ours(label)]
        codes = coder.pair(history, labels)
        subject_id = given_id if given_id is not None else _subject_of(codes, file, place)
        without_id += given_id is None
        pairs.append(_Pair(subject_id, file.path.name, file.split, codes))
    extraction.ledger.read(file.path.name, len(pairs) + left_out.total())
    for reason, rows in left_out.items():
        extraction.ledger.leave_out(file.path.name, reason, rows)
    _refuse_unknown(unknown, file)
    if without_id:
        extraction.say(_note_on_patients(file, without_id, keys["subject_id"]))
    return pairs


def _parts_of(record: object, keys: Mapping[str, str]) -> tuple[str, str, int | None] | str:
    """Prompt, listed labels and patient id of a record, or why it cannot be used."""
    if not isinstance(record, dict):
        return NO_OBJECT
    answer = record.get(keys[ANSWER_KEY])
    parts = [record.get(keys[key]) for key in PROMPT_KEYS]
    prompt = "\n".join(part for part in parts if isinstance(part, str))
    if not isinstance(answer, str) or not prompt.strip():
        return NO_TEXT
    listed = read_answer(_printable(answer))
    if listed is None:
        return NO_ANSWER
    written = _written_id(record.get(keys["subject_id"]))
    if written is None:
        return NO_ID
    return _printable(prompt), listed, _number_of(written) if written else None


def _written_id(given: object) -> str | None:
    """A patient id as text, empty where there is none; None for what names nobody.

    >>> [_written_id(given) for given in (" a7 ", 12, 12.0, None)]
    ['a7', '12', '12', '']
    >>> [_written_id(given) for given in (1.5, float("nan"), True, [12], chr(0xD800))]
    [None, None, None, None, None]
    """
    if given is None:
        return ""
    if isinstance(given, float) and given.is_integer():
        return str(int(given))
    if isinstance(given, bool) or not isinstance(given, (str, int)):
        return None
    written = str(given).strip()
    # Half of a character's two UTF-16 units is no text, and has no bytes to hash.
    return None if any("\ud800" <= c <= "\udfff" for c in written) else written


def _printable(text: str) -> str:
    """The text with blanks for what no table can hold; lines stay lines."""
    if all(line.isprintable() for line in text.split("\n")):
        return text
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def _number_of(written: str) -> int:
    """A patient's 64-bit number: a whole number (`12`, `12.0`) is itself, other text hashed."""
    whole = re.fullmatch(r"([0-9]{1,19})(?:\.0*)?", written)
    if whole and int(whole[1]) <= LARGEST_ID:
        return int(whole[1])
    return _hashed("subject", written)


def _hashed(kind: str, text: str) -> int:
    return int(hashlib.sha256(f"{kind}:{text}".encode()).hexdigest()[:16], 16) >> 1


def _subject_of(codes: PairCodes, file: PairFile, place: str) -> int:
    """Whose a pair without a patient id is: histories that begin alike are one patient's.

    An empty beginning says nothing: such a pair is a patient of its own.
    """
    first = sorted(code for code, _ in codes.history[0])
    return _hashed("history", json.dumps(first or [file.path.name, place]))


def _unknown(label: str, place: str, names: LabelNames) -> _UnknownLabel:
    form = "".join("a" if c.isalpha() else "9" if c.isdigit() else c for c in label)
    return _UnknownLabel(place, form[:24], names.nearest(label))


def _refuse_unknown(unknown: Sequence[_UnknownLabel], file: PairFile) -> None:
    if unknown:
        first = unknown[0]
        raise CkdEhrError(
            f"{file.path.name}: {len(unknown)} labels are unknown, the first at {first.place} "
            f"(form '{first.form}'; nearest known name: '{first.nearest}'); correct them, or add "
            "their names to data.instructions.labels"
        )


def _note_on_patients(file: PairFile, without_id: int, key: str) -> str:
    return (
        f"WARNING: {file.path.name}: {without_id:,} pairs name no patient (key '{key}'): histories "
        "that begin alike count as one patient's, but other pairs of one patient may stand on both "
        "sides of a split, which makes scores look better than they are"
    )


def _keep_apart(pairs: Sequence[_Pair], extraction: Extraction) -> list[_Pair]:
    """Leave out pairs of a patient who stands in a file further from training, too."""
    order: list[Split | None] = [None, "train", "tuning", "held_out"]
    furthest: dict[int, int] = {}
    for pair in pairs:
        place = order.index(pair.split)
        furthest[pair.subject_id] = max(place, furthest.get(pair.subject_id, 0))
    kept = [pair for pair in pairs if order.index(pair.split) == furthest[pair.subject_id]]
    dropped = Counter(p.file for p in pairs) - Counter(p.file for p in kept)
    for file, rows in dropped.items():
        extraction.ledger.leave_out(file, IN_TWO_SPLITS, rows)
    return kept


def _write_splits(pairs: Iterable[_Pair], extraction: Extraction) -> None:
    splits = {pair.subject_id: pair.split for pair in pairs}
    assigned = pa.table(
        {
            "subject_id": pa.array(sorted(splits), pa.int64()),
            "split": pa.array([splits[subject] for subject in sorted(splits)], pa.string()),
        }
    )
    path = extraction.folder / meds.subject_splits_filepath
    pq.write_table(meds.SubjectSplitSchema.align(assigned), path, compression="zstd")
    counts = Counter(splits.values())
    extraction.say(
        "patients by the files' names: "
        + ", ".join(f"{split} {counts[split]:,}" for split in ("train", "tuning", "held_out"))
        + "; splits.method=source uses them"
    )
