"""Stage `cohort`: MEDS events → visits and labelled visit pairs, split by patient.

In: the events stage's dataset; `cohort`, `labels`, `splits` and `engine` settings. Out:
`visits.parquet`, `pairs.parquet`, `subject_splits.parquet` (MEDS), `flow.json` (what was left out,
what each split holds), `coverage.json` (how the diagnosis codes were mapped), `dataset.json` (what
the report says of the data). Ignores: text and models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ibis.expr.types as ir
import meds
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ckd_ehr.contracts.config import CohortConfig, RunConfig, SampleConfig, SplitsConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.records import PAIRS, VISITS, with_label_names
from ckd_ehr.contracts.runs import StageContext, read_json, read_table, write_json
from ckd_ehr.data.audit.cohort import cohort_findings
from ckd_ehr.data.audit.findings import refuse
from ckd_ehr.data.description import describe_cohort
from ckd_ehr.data.engine import Engine, open_engine
from ckd_ehr.data.pairs import (
    PAIR_ORDER,
    PairRules,
    forward_pairs,
    label_pairs,
    labels_of_codes,
    later_visits,
    pair_visits,
    place_visits,
    sample_pairs,
    split_pairs,
    usable_pairs,
    visit_labels,
)
from ckd_ehr.data.phenotypes import CodeMatch, coverage_lines, coverage_report, match_codes
from ckd_ehr.data.sources.dataset import event_files, has_synthetic_times
from ckd_ehr.data.sources.extraction import ROWS
from ckd_ehr.data.splits import SPLIT_NAMES, assign_splits, read_splits
from ckd_ehr.data.visits import (
    AdmissionTypes,
    assemble_visits,
    count_diagnoses,
    count_items,
    count_shared_visits,
    count_stays,
    gather_items,
    gather_people,
    gather_stays,
    mark_stays,
    roles_of,
)

Counts = dict[str, int]


@dataclass(frozen=True)
class BuiltVisits:
    """The `visits` table, how often each diagnosis occurs in it, and what was left out."""

    visits: ir.Table
    diagnoses: pa.Table
    counts: Counts


@dataclass(frozen=True)
class BuiltPairs:
    """The pairs of a cohort, also before sampling, the splits, and what was left out."""

    pairs: ir.Table
    unsampled: ir.Table
    assigned: ir.Table
    counts: Counts


def write_cohort(context: StageContext) -> None:
    """Build the cohort, refuse one that cannot be learned from, audit it, write it."""
    config, events, folder = context.config, context.inputs["events"], context.folder
    phenotypes = config.labels.selected
    names = [phenotype.name for phenotype in phenotypes]
    with open_engine(config.engine, context.work) as engine:
        codes = pq.read_table(events / meds.code_metadata_filepath)
        built = build_visits(engine, engine.read(event_files(events)), codes, config.cohort)
        engine.write(built.visits, folder / "visits.parquet", with_label_names(VISITS, names))
        _refuse_no_visits(built.counts, read_rows=folder / "visits.parquet")
        matches = match_codes(_occurrences(built.diagnoses), phenotypes)
        visits = engine.read([folder / "visits.parquet"])
        listed = _listed_splits(config.splits, events)
        rules = pair_rules(config.cohort, synthetic_times=has_synthetic_times(events))
        paired = build_pairs(engine, visits, matches, config, rules=rules, listed=listed)
        schema = with_label_names(PAIRS, names)
        engine.write(paired.pairs.order_by(PAIR_ORDER), folder / "pairs.parquet", schema)
        unsampled = engine.fetch(paired.unsampled.select("subject_id", "split", "fold", "labels"))
        assigned = engine.fetch(paired.assigned.order_by("subject_id"))
    pairs = read_table(folder / "pairs.parquet", PAIRS)
    refuse_without_positives(pairs, matches)
    refuse_unusable(pairs, config.splits, config.cohort.sample, unsampled=unsampled)
    _write_splits(assigned, folder / "subject_splits.parquet")
    _audit(context, events, rules)
    counts = built.counts | paired.counts
    _describe(context, events, pairs, matches, counts=counts, names=names, rules=rules)
    _say_unread_facts(context, counts)
    _say_summary(context, pairs, names)


def build_visits(
    engine: Engine, events: ir.Table, codes: pa.Table, cohort: CohortConfig
) -> BuiltVisits:
    """Events → visits, on any engine.

    Args:
        events: subject_id, time, code, numeric_value, visit_id.
        codes: the dataset's distinct codes with their descriptions.
    """
    shared = _row(engine.fetch(count_shared_visits(events)))["shared"]
    if shared:
        raise CkdEhrError(
            f"events: {shared} stays (column 'visit_id') stand under two patients (column "
            "'subject_id'); a stay belongs to one patient: correct the ids in the source's tables"
        )
    roles = engine.upload(roles_of(codes))
    stays = engine.keep(gather_stays(events, roles))
    people = engine.keep(gather_people(events, roles, stays))
    types = AdmissionTypes(cohort.admission_types, cohort.exclude_admission_types)
    marked = engine.keep(mark_stays(stays, people, types))
    items = engine.keep(gather_items(events, roles, marked))
    counts = _row(engine.fetch(count_stays(events, marked, people)))
    counts |= _row(engine.fetch(count_items(items)))
    return BuiltVisits(
        visits=assemble_visits(marked, items),
        diagnoses=engine.fetch(count_diagnoses(items)),
        counts=counts,
    )


def pair_rules(cohort: CohortConfig, *, synthetic_times: bool) -> PairRules:
    """The settings that decide on pairs.

    Raises:
        CkdEhrError: a rule in days is set for a source whose times only give an order.
    """
    gaps = {
        "min_gap_days": cohort.min_gap_days or None,
        "max_gap_days": cohort.max_gap_days,
        "label_window_days": cohort.label_window_days,
    }
    given = [name for name, days in gaps.items() if days is not None]
    if synthetic_times and given:
        raise CkdEhrError(
            f"cohort.{given[0]} is set, but this source has no dates: its times only give the "
            "order of visits; leave it out"
        )
    return PairRules(
        min_age_years=cohort.min_age_years,
        min_history_visits=cohort.min_history_visits,
        max_history_visits=cohort.max_history_visits,
        min_gap_days=cohort.min_gap_days,
        max_gap_days=cohort.max_gap_days,
        label_window_days=cohort.label_window_days,
        synthetic_times=synthetic_times,
    )


def build_pairs(
    engine: Engine,
    visits: ir.Table,
    matches: Sequence[CodeMatch],
    config: RunConfig,
    *,
    rules: PairRules,
    listed: pa.Table | None = None,
) -> BuiltPairs:
    """Visits → labelled, split and sampled pairs, on any engine.

    Args:
        listed: subject_id and split, where the splits come from a file.
    """
    placed = engine.keep(place_visits(visits))
    later = engine.keep(later_visits(placed, rules))
    paired = pair_visits(placed, later, rules)
    found = visit_labels(visits, engine.upload(labels_of_codes(matches)))
    n_labels = len(config.labels.selected)
    labelled = label_pairs(paired, later, found, n_labels=n_labels, rules=rules)
    labelled = engine.keep(labelled)
    patients = placed.group_by("subject_id").agg(first_admit_time=placed.admit_time.min())
    patients = engine.keep(patients)
    given = None if listed is None else engine.upload(listed)
    assigned = engine.keep(assign_splits(patients, config.splits, given))
    divided = split_pairs(labelled, assigned)
    known = divided.filter(divided.split.notnull())
    if config.splits.method == "temporal":
        known = forward_pairs(known, patients, assigned)
    known = engine.keep(known)
    usable = engine.keep(usable_pairs(known))
    sampled = engine.keep(sample_pairs(usable, config.cohort.sample.model_dump()))
    steps = {
        "visits": visits, "labelled": labelled, "divided": divided, "known": known,
        "usable": usable, "sampled": sampled,
    }  # fmt: skip
    counts = _count_pairs(engine, steps)
    return BuiltPairs(sampled, usable, assigned, counts)


def _count_pairs(engine: Engine, steps: Mapping[str, ir.Table]) -> Counts:
    """What each step from visits to sampled pairs left out."""
    labelled, divided = steps["labelled"], steps["divided"]
    followed = labelled.next_visit_id.notnull()
    sized = [
        steps[name].agg(**{name: steps[name].count()})
        for name in ("visits", "known", "usable", "sampled")
    ]
    counted = labelled.agg(
        paired=labelled.count(),
        followed=labelled.count(where=followed),
        uncoded=labelled.count(where=followed & labelled.labels.isnull()),
    ).cross_join(divided.agg(unlisted=divided.count(where=divided.split.isnull())), *sized)
    n = _row(engine.fetch(counted))
    return {
        "visits_without_pair": n["visits"] - n["paired"],
        "pairs_of_one_history": n["paired"],
        "pairs_with_next_visit": n["followed"],
        "next_visits_without_diagnoses": n["uncoded"],
        "pairs_of_patients_without_split": n["unlisted"],
        "pairs_after_held_out_began": n["paired"] - n["unlisted"] - n["known"],
        "pairs_unlabelled_outside_train": n["known"] - n["usable"],
        "pairs_cut_by_sampling": n["usable"] - n["sampled"],
    }


def _row(table: pa.Table) -> Counts:
    return {name: int(value) for name, value in table.to_pylist()[0].items()}


def _occurrences(diagnoses: pa.Table) -> dict[tuple[str, str], int]:
    return {(row["system"], row["code"]): row["occurrences"] for row in diagnoses.to_pylist()}


def _refuse_no_visits(counts: Mapping[str, int], *, read_rows: Path) -> None:
    if not pq.read_metadata(read_rows).num_rows:
        raise CkdEhrError(
            f"empty cohort: none of {counts['visits_read']} visits has an admission, a later "
            "discharge and no earlier death, and is of an admission type that is kept; check the "
            "source's times (see 'Cohort' in docs/data.md)"
        )


def _listed_splits(splits: SplitsConfig, events: Path) -> pa.Table | None:
    """The splits of a file, or those that the source's dataset came with."""
    if splits.method == "file":
        assert splits.file is not None
        return read_splits(splits.file)
    if splits.method != "source":
        return None
    path = events / meds.subject_splits_filepath
    if not path.is_file():
        raise CkdEhrError(
            "splits.method=source: this source brings no splits (metadata/subject_splits.parquet); "
            "choose random, temporal or file"
        )
    return read_splits(path)


def _write_splits(assigned: pa.Table, path: Path) -> None:
    known = assigned.filter(pc.is_valid(assigned["split"])).select(["subject_id", "split"])
    pq.write_table(meds.SubjectSplitSchema.align(known), path, compression="zstd")


def _audit(context: StageContext, events: Path, rules: PairRules) -> None:
    findings = cohort_findings(
        context.folder,
        events,
        temporal_split=context.config.splits.method == "temporal",
        synthetic_times=rules.synthetic_times,
        phenotypes=context.config.labels.selected,
    )
    refuse(findings, "cohort")


def _describe(
    context: StageContext,
    events: Path,
    pairs: pa.Table,
    matches: Sequence[CodeMatch],
    *,
    counts: Counts,
    names: Sequence[str],
    rules: PairRules,
) -> None:
    """Write what the report says of the data, and say how the codes were mapped."""
    folder = context.folder
    rows = events / ROWS
    flow = describe_flow(folder / "visits.parquet", pairs, counts, names)
    write_json(folder / "flow.json", flow | {"rows": read_json(rows) if rows.is_file() else {}})
    coverage = coverage_report(matches, names)
    write_json(folder / "coverage.json", coverage)
    described = describe_cohort(
        folder,
        labels_of_codes(matches),
        label_names=names,
        synthetic_times=rules.synthetic_times,
    )
    write_json(folder / "dataset.json", described)
    for line in coverage_lines(coverage):
        context.say(line)


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
    visits_file: Path, pairs: pa.Table, counts: Mapping[str, int], label_names: Sequence[str]
) -> dict[str, object]:
    """What was read, left out and kept, and what each split holds."""
    visits = pq.read_table(visits_file, columns=["diagnoses", "died"])
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
