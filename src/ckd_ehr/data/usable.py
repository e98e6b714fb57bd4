"""Cohorts that nothing could be learned from: each is refused, with the remedy.

In: the pairs of a cohort, before and after sampling. Out: nothing, or one clear error. Ignores:
leaks, which are the audit's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ckd_ehr.contracts.config import SampleConfig, SplitsConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.data.flow import labelled_of
from ckd_ehr.data.phenotypes import CodeMatch
from ckd_ehr.data.splits import SPLIT_NAMES


def refuse_no_visits(visits_file: Path, counts: Mapping[str, int]) -> None:
    """An error for a cohort without visits."""
    if not pq.read_metadata(visits_file).num_rows:
        raise CkdEhrError(
            f"empty cohort: none of {counts['visits_read']} visits has an admission, a later "
            "discharge and no earlier death, and is of an admission type that is kept; check the "
            "source's times (see 'Cohort' in docs/data.md)"
        )


def refuse_without_positives(pairs: pa.Table, matches: Sequence[CodeMatch]) -> None:
    """An error for diagnoses that label nothing: training on them would teach nothing."""
    train = labelled_of(pairs.filter(pc.equal(pairs["split"], "train")))
    found = pc.any(pc.list_flatten(train["labels"])).as_py()
    if any(match.labels for match in matches) and (found or not train.num_rows):
        return
    systems = sorted({match.system for match in matches})
    coverage = "; ".join(
        _describe_coverage(system, [match for match in matches if match.system == system])
        for system in systems
    )
    raise CkdEhrError(
        f"DIAGNOSES: no positive for any label among {train.num_rows:,} labelled train pairs: "
        f"nothing can be learned ({coverage or 'the visits hold no diagnosis code'}); "
        "check that the source's table of diagnoses has rows, that its code column holds the "
        "codes (data.columns) in the code system named, and labels.phenotypes"
    )


def _describe_coverage(system: str, matches: Sequence[CodeMatch]) -> str:
    """How often a system's codes occur, have a CCS category, and set a label."""
    read = sum(match.occurrences for match in matches)
    mapped = sum(match.occurrences for match in matches if match.ccs is not None)
    labelling = sum(match.occurrences for match in matches if match.labels)
    return f"{system}: {read:,} codes, {mapped:,} with a CCS category, {labelling:,} of a label"


def refuse_unusable(
    pairs: pa.Table, splits: SplitsConfig, sample: SampleConfig, *, unsampled: pa.Table
) -> None:
    """Errors for a cohort on which teacher, student or scores would fail later."""
    patients = len(labelled_of(unsampled)["subject_id"].unique())
    if patients < 2:
        raise CkdEhrError(
            f"empty cohort: {patients} patients have a visit pair (two stays, one after the "
            "other), and training needs many; check the source, cohort.min_age_years and "
            "cohort.min_history_visits"
        )
    remedy = (
        f"{patients} patients have pairs; try another splits.seed (now {splits.seed}), or change "
        f"splits.tuning ({splits.tuning}) or splits.held_out ({splits.held_out})"
    )
    for split in SPLIT_NAMES:
        if not _holds(pairs, "split", split):
            cut = _holds(unsampled, "split", split)
            why = _sampled_out(split, sample) if cut else remedy
            raise CkdEhrError(f"no labelled pair in split '{split}': {why}")
    for fold in range(splits.folds):
        if not _holds(pairs, "fold", fold):
            cut = _holds(unsampled, "fold", fold)
            why = _sampled_out("train", sample) if cut else f"{remedy}, or splits.folds"
            raise CkdEhrError(f"no labelled train pair in fold {fold} of {splits.folds}: {why}")


def _holds(pairs: pa.Table, column: str, value: str | int) -> bool:
    """Whether a labelled pair has a value (fold is -1 outside train)."""
    return bool(pc.any(pc.equal(labelled_of(pairs)[column], value)).as_py())


def _sampled_out(split: str, sample: SampleConfig) -> str:
    return (
        f"cohort.sample.{split} ({sample.model_dump()[split]}) leaves none of them, since whole "
        "patients are kept while their pairs fit; raise it, or set it to null"
    )
