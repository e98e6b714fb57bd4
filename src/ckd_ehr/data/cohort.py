"""Stage `cohort`: MEDS events → visits and labelled visit pairs, split by patient.

In: the events stage's dataset; `cohort`, `labels` and `splits` settings. Out: `visits.parquet`,
`pairs.parquet`, `flow.json` (what was left out, what each split holds), `coverage.json` (how the
diagnosis codes were mapped). Ignores: text and models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import meds
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ckd_ehr.contracts.config import CohortConfig, RunConfig, SampleConfig, SplitsConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.records import PAIRS, VISITS, with_label_names
from ckd_ehr.contracts.runs import StageContext, write_json, write_table
from ckd_ehr.data.audit import audit_cohort
from ckd_ehr.data.pairs import (
    keep_labelled_and_train,
    label_pairs,
    pair_visits,
    sample_pairs,
    split_pairs,
)
from ckd_ehr.data.phenotypes import CodeMatch, coverage_report, match_codes
from ckd_ehr.data.sources.dataset import event_files, has_synthetic_times
from ckd_ehr.data.splits import SPLIT_NAMES, assign_splits
from ckd_ehr.data.visits import read_visits


@dataclass(frozen=True)
class BuiltPairs:
    """The pairs of a cohort, also before sampling, and the counts of those left out on the way."""

    pairs: pa.Table
    unsampled: pa.Table
    counts: dict[str, int]


def write_cohort(context: StageContext) -> None:
    """Build the cohort, refuse one that cannot be learned from, audit it, write it."""
    config, events = context.config, context.inputs["events"]
    visits, counts = read_visits(
        event_files(events), events / meds.code_metadata_filepath, context.folder
    )
    if not visits.num_rows:
        raise CkdEhrError(
            f"empty cohort: none of {counts['visits_read']} visits has an admission, a later "
            "discharge and no earlier death; check the source's times "
            "(see 'Cohort' in docs/data.md)"
        )
    phenotypes = config.labels.selected
    matches = match_codes(diagnosis_counts(visits), phenotypes)
    built = build_pairs(visits, matches, config, synthetic_times=has_synthetic_times(events))
    refuse_without_positives(built.pairs, matches)
    refuse_unusable(built.pairs, config.splits, config.cohort.sample, unsampled=built.unsampled)
    names = [phenotype.name for phenotype in phenotypes]
    pairs = built.pairs.select(PAIRS.names).cast(PAIRS)
    audit_cohort(visits, pairs)
    flow = describe_flow(visits, pairs, counts | built.counts, names)
    write_table(visits, context.folder / "visits.parquet", with_label_names(VISITS, names))
    write_table(pairs, context.folder / "pairs.parquet", with_label_names(PAIRS, names))
    write_json(context.folder / "flow.json", flow)
    write_json(context.folder / "coverage.json", coverage_report(matches))
    _say_unread_facts(context, counts)
    _say_summary(context, pairs, names)


def build_pairs(
    visits: pa.Table, matches: Sequence[CodeMatch], config: RunConfig, *, synthetic_times: bool
) -> BuiltPairs:
    """Visits → labelled, split and sampled pairs."""
    cohort: CohortConfig = config.cohort
    paired = pair_visits(
        visits,
        max_history_visits=cohort.max_history_visits,
        min_history_visits=cohort.min_history_visits,
        min_age_years=cohort.min_age_years,
        synthetic_times=synthetic_times,
    )
    labelled = label_pairs(paired, visits, matches, n_labels=len(config.labels.selected))
    subjects = sorted(labelled["subject_id"].unique().to_pylist())
    divided = split_pairs(labelled, assign_splits(subjects, config.splits))
    usable = keep_labelled_and_train(divided)
    sampled = sample_pairs(usable, cohort.sample.model_dump())
    counts = {
        "visits_without_pair": visits.num_rows - paired.num_rows,
        "pairs_of_one_history": paired.num_rows,
        "pairs_with_next_visit": paired.num_rows - paired["next_visit_id"].null_count,
        "next_visits_without_diagnoses": (
            labelled["labels"].null_count - paired["next_visit_id"].null_count
        ),
        "pairs_unlabelled_outside_train": divided.num_rows - usable.num_rows,
        "pairs_cut_by_sampling": usable.num_rows - sampled.num_rows,
    }
    return BuiltPairs(sampled, usable, counts)


def diagnosis_counts(visits: pa.Table) -> dict[tuple[str, str], int]:
    """How often each distinct (system, code) occurs among the diagnoses."""
    items = pc.list_flatten(visits["diagnoses"]).combine_chunks()
    table = pa.table({"system": items.field("system"), "code": items.field("code")})
    counted = table.group_by(["system", "code"]).aggregate([([], "count_all")])
    keys = zip(counted["system"].to_pylist(), counted["code"].to_pylist(), strict=True)
    found = dict(zip(keys, counted["count_all"].to_pylist(), strict=True))
    return dict(sorted(found.items()))


def refuse_without_positives(pairs: pa.Table, matches: Sequence[CodeMatch]) -> None:
    """An error for diagnoses that label nothing: training on them would teach nothing."""
    train = _labelled(pairs.filter(pc.equal(pairs["split"], "train")))
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
    patients = len(_labelled(unsampled)["subject_id"].unique())
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


def _labelled(pairs: pa.Table) -> pa.Table:
    return pairs.filter(pc.is_valid(pairs["labels"]))


def _holds(pairs: pa.Table, column: str, value: str | int) -> bool:
    """Whether a labelled pair has a value (fold is -1 outside train)."""
    return bool(pc.any(pc.equal(_labelled(pairs)[column], value)).as_py())


def _sampled_out(split: str, sample: SampleConfig) -> str:
    return (
        f"cohort.sample.{split} ({sample.model_dump()[split]}) leaves none of them, since whole "
        "patients are kept while their pairs fit; raise it, or set it to null"
    )


def describe_flow(
    visits: pa.Table, pairs: pa.Table, counts: Mapping[str, int], label_names: Sequence[str]
) -> dict[str, object]:
    """What was read, left out and kept, and what each split holds."""
    empty = pc.sum(pc.equal(pc.list_value_length(visits["diagnoses"]), 0)).as_py()
    return {
        "counts": {
            **counts,
            "visits_kept": visits.num_rows,
            "visits_without_diagnoses": empty,
            "visits_ended_in_death": pc.sum(visits["died"]).as_py(),
            "next_visits_before_exclusions": (
                counts["visits_read"] - counts["patients_with_visits"]
            ),
            "pairs": pairs.num_rows,
            "pairs_labelled": pairs.num_rows - pairs["labels"].null_count,
            "pairs_unlabelled": pairs["labels"].null_count,
        },
        "splits": {split: _describe_split(pairs, split, label_names) for split in SPLIT_NAMES},
    }


def _describe_split(pairs: pa.Table, split: str, label_names: Sequence[str]) -> dict[str, object]:
    mine = pairs.filter(pc.equal(pairs["split"], split))
    labelled = _labelled(mine)
    positives = _label_matrix(labelled, len(label_names)).sum(axis=0).tolist()
    return {
        "patients": len(mine["subject_id"].unique()),
        "pairs": mine.num_rows,
        "labelled": labelled.num_rows,
        "unlabelled": mine.num_rows - labelled.num_rows,
        "positives": dict(zip(label_names, positives, strict=True)),
        "prevalence": {
            name: round(float(n) / max(labelled.num_rows, 1), 6)
            for name, n in zip(label_names, positives, strict=True)
        },
    }


def _label_matrix(
    labelled: pa.Table, n_labels: int
) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    flat = pc.list_flatten(labelled["labels"]).combine_chunks()
    values: np.ndarray[tuple[int], np.dtype[np.bool_]] = flat.to_numpy(zero_copy_only=False)
    return values.astype(bool).reshape(labelled.num_rows, n_labels)


def _say_unread_facts(context: StageContext, counts: Mapping[str, int]) -> None:
    if born_later := counts["visits_with_birth_after_admission"]:
        context.say(f"{born_later:,} visits before their patient's birth: age left out")
    if unread := counts["patients_with_sex_not_read"]:
        context.say(f"{unread:,} patients with a sex other than F or M: sex left out")


def _say_summary(context: StageContext, pairs: pa.Table, label_names: Sequence[str]) -> None:
    unlabelled, labelled = pairs["labels"].null_count, _labelled(pairs)
    shares = ", ".join(
        f"{split} {pc.sum(pc.equal(labelled['split'], split)).as_py():,}" for split in SPLIT_NAMES
    )
    context.say(f"{labelled.num_rows:,} labelled pairs ({shares}), {unlabelled:,} unlabelled")
    train = labelled.filter(pc.equal(labelled["split"], "train"))
    positives = _label_matrix(train, len(label_names)).sum(axis=0).tolist()
    absent = [name for name, n in zip(label_names, positives, strict=True) if not n]
    if absent:
        context.say(
            f"warning: {len(absent)} of {len(label_names)} labels have no positive train pair, so "
            "that nothing can be learned for them; leave them out with labels.phenotypes or "
            f"labels.only_ccs: {' · '.join(absent)}"
        )
