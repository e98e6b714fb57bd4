"""Stage `events`: whatever the source, one MEDS dataset.

In: `data` settings. Out: a MEDS 0.4 dataset in the stage folder: `data/*.parquet`,
`metadata/codes.parquet`, `metadata/dataset.json`, `metadata/subject_splits.parquet`. Ignores: how
a source is read. Sources are found through the entry-point group `ckd_ehr.sources`, so that a
hospital adds one in a package of its own.
"""

import difflib
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Protocol, cast

import meds
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ckd_ehr.contracts.config import DataConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.runs import StageContext, read_json, sha256_of
from ckd_ehr.data.sources.dataset import event_files, subject_ids
from ckd_ehr.data.splits import assign_splits

SOURCES = "ckd_ehr.sources"


class Source(Protocol):
    """What a module named under the entry-point group `ckd_ehr.sources` must have."""

    def files(self, settings: DataConfig) -> list[Path]:
        """The files that a run reads, in a fixed order; an error where one is missing."""
        ...

    def extract(self, settings: DataConfig, folder: Path, say: Callable[[str], None]) -> None:
        """Write a MEDS dataset into `folder`, without its subject splits.

        Equal input must give equal bytes. Events may carry a `visit_id`; only those that do
        become visits. `say` is for counts of what was dropped.
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
    missing = [part for part in ("files", "extract") if not callable(getattr(source, part, None))]
    if missing:
        raise CkdEhrError(
            f"data.source = '{name}': its module lacks {' and '.join(missing)}(); see docs/data.md"
        )
    return cast(Source, source)


def source_digests(settings: DataConfig) -> Mapping[str, str]:
    """SHA-256 of every file that the source reads, keyed by the file's name."""
    return {path.name: sha256_of(path) for path in find_source(settings.source).files(settings)}


def write_events(context: StageContext) -> None:
    """Have the source write its dataset, add the splits, and check the whole against MEDS."""
    settings = context.config.data
    find_source(settings.source).extract(settings, context.folder, context.say)
    assigned = assign_splits(subject_ids(context.folder), context.config.splits)
    splits = meds.SubjectSplitSchema.align(assigned.select(["subject_id", "split"]))
    pq.write_table(splits, context.folder / meds.subject_splits_filepath, compression="zstd")
    check_dataset(context.folder, name=settings.source)
    context.say(f"{splits.num_rows:,} patients")


def check_dataset(folder: Path, *, name: str) -> None:
    """Refuse a dataset that breaks MEDS: schemas, order, patients spread over files."""
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
