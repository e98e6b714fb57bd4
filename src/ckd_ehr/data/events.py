"""Stage `events`: whatever the source, one MEDS dataset.

In: `data` settings. Out: a MEDS 0.4 dataset in the stage folder: `data/*.parquet`,
`metadata/codes.parquet`, `metadata/dataset.json`, and `rows.json`, which says where every row of
the source's tables went; `truth/` too, where the records are a simulated hospital's. Ignores: how
a source is read, and splits. Sources are found through the entry-point group `ckd_ehr.sources`, so
that a hospital adds one in a package of its own.
"""

import difflib
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Protocol, cast

import meds
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ckd_ehr.contracts.config import DataConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json, sha256_of
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.contracts.truth import EFFECTS, HOSPITAL, RISKS, TRUTH
from ckd_ehr.data.sources.dataset import event_files
from ckd_ehr.data.sources.extraction import Extraction, TableStatus, status_lines

SOURCES = "ckd_ehr.sources"


class Source(Protocol):
    """What a module named under the entry-point group `ckd_ehr.sources` must have."""

    def tables(self, settings: DataConfig) -> list[TableStatus]:
        """Which of its tables are there; looks at names and headers only, and refuses nothing."""
        ...

    def digests(self, settings: DataConfig) -> dict[str, str]:
        """What a run reads, named, each with a digest of its content.

        A table or column that is needed and absent is an error here, before any work.
        """
        ...

    def extract(self, extraction: Extraction) -> None:
        """Write a MEDS dataset into `extraction.folder`.

        Equal input must give equal bytes. Events may carry a `visit_id`; only those that do
        become visits. Rows that are left out are entered in `extraction.ledger`.
        """
        ...


def find_source(name: str) -> Source:
    """The installed source of this name; an unknown name is an error that gives the nearest."""
    entries = {entry.name: entry for entry in metadata.entry_points(group=SOURCES)}
    if name not in entries:
        near = difflib.get_close_matches(name, sorted(entries), n=1, cutoff=0.0)
        known = ", ".join(sorted(entries)) or "none; install the package again"
        raise CkdEhrError(
            f"data.source = '{name}': no such source; did you mean "
            f"'{near[0] if near else 'none'}'? (installed: {known})"
        )
    source: object = entries[name].load()
    missing = [
        part
        for part in ("tables", "digests", "extract")
        if not callable(getattr(source, part, None))
    ]
    if missing:
        raise CkdEhrError(
            f"data.source = '{name}': its module lacks {' and '.join(missing)}(); see docs/data.md"
        )
    return cast(Source, source)


def source_digests(settings: DataConfig) -> Mapping[str, str]:
    """A digest of everything that the source reads; what is missing is an error."""
    digests = find_source(settings.source).digests(settings)
    return {**digests, **{f"{TRUTH}/{path.name}": sha256_of(path) for path in _truth_of(settings)}}


def source_lines(settings: DataConfig) -> list[str]:
    """Which tables the source found, as text for the user."""
    return status_lines(find_source(settings.source).tables(settings))


def write_events(context: StageContext) -> None:
    """Have the source write its dataset, and check it against MEDS."""
    settings = context.config.data
    extraction = Extraction(
        settings=settings,
        folder=context.folder,
        say=context.say,
        memory_limit=context.config.engine.memory_limit,
    )
    find_source(settings.source).extract(extraction)
    for path in _truth_of(settings):
        (context.folder / TRUTH).mkdir(exist_ok=True)
        shutil.copyfile(path, context.folder / TRUTH / path.name)
    patients = check_dataset(context.folder, name=settings.source)
    context.say(f"{patients:,} patients")


def _truth_of(settings: DataConfig) -> list[Path]:
    """What a simulated hospital's folder tells beside its records; nothing in a real one's."""
    if settings.root is None or settings.source == "simulated":
        return []
    names = (HOSPITAL, RISKS, EFFECTS)
    return [path for name in names if (path := settings.root / TRUTH / name).is_file()]


def check_dataset(folder: Path, *, name: str) -> int:
    """Refuse a dataset that breaks MEDS: schemas, order, patients spread over files.

    Returns:
        How many patients it has.
    """
    try:
        meds.DatasetMetadataSchema.validate(read_json(folder / meds.dataset_metadata_filepath))
        codes = pq.read_table(folder / meds.code_metadata_filepath)
        meds.CodeMetadataSchema.validate(codes)
    except Exception as error:
        raise CkdEhrError(f"source '{name}': metadata is not MEDS 0.4: {error}") from None
    known = pa.array(codes["code"].unique())
    owner: dict[int, str] = {}
    for path in event_files(folder):
        events = pq.read_table(path)
        _check_events(events, known, label=f"source '{name}': {path.name}")
        for subject in events["subject_id"].unique().to_pylist():
            if owner.setdefault(subject, path.name) != path.name:
                raise CkdEhrError(
                    f"source '{name}': a patient stands in {owner[subject]} and in {path.name}; "
                    "MEDS keeps a patient in one file"
                )
    return len(owner)


def _check_events(events: pa.Table, known_codes: pa.Array, *, label: str) -> None:
    try:
        meds.DataSchema.validate(events)
    except Exception as error:
        raise CkdEhrError(f"{label}: not MEDS 0.4 data: {error}") from None
    keys = events.select(["subject_id", "time"]).combine_chunks()
    order = pc.sort_indices(
        keys,
        sort_keys=[("subject_id", "ascending", "at_start"), ("time", "ascending", "at_start")],
    )
    if not keys.take(order).equals(keys):
        raise CkdEhrError(f"{label}: events must be ordered by subject_id and time, nulls first")
    strange = pc.sum(pc.invert(pc.is_in(events["code"], value_set=known_codes))).as_py()
    if strange:
        raise CkdEhrError(f"{label}: {strange} events have a code that codes.parquet lacks")
