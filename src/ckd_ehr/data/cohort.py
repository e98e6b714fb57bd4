"""Stage `cohort`: MEDS events → visits and labelled visit pairs, split by patient.

In: the events stage's dataset; `cohort`, `labels`, `splits` and `engine` settings. Out:
`visits.parquet`, `pairs.parquet`, `subject_splits.parquet` (MEDS), `flow.json` (what was left out,
what each split holds), `coverage.json` (how the diagnosis codes were mapped), `dataset.json` (what
the report says of the data). Ignores: text and models.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ibis.expr.types as ir
import meds
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ckd_ehr.contracts.config import CohortConfig, RunConfig, SplitsConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json, read_table, write_batches, write_json, write_table
from ckd_ehr.contracts.records import PAIRS, VISITS, with_label_names
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.data.audit.cohort import cohort_findings
from ckd_ehr.data.audit.findings import refuse
from ckd_ehr.data.description import describe_cohort
from ckd_ehr.data.engine import Engine, open_engine
from ckd_ehr.data.flow import describe_flow, say_summary, say_unread_facts
from ckd_ehr.data.pairs import (
    PAIR_ORDER,
    PairRules,
    forward_pairs,
    label_pairs,
    labels_of_codes,
    next_visits,
    pair_visits,
    place_visits,
    sample_pairs,
    split_pairs,
    usable_pairs,
    visit_labels,
    window_visits,
    within_gap,
)
from ckd_ehr.data.phenotypes import CodeMatch, coverage_lines, coverage_report, match_codes
from ckd_ehr.data.sources.dataset import event_files, has_shifted_times, has_synthetic_times
from ckd_ehr.data.sources.extraction import ROWS
from ckd_ehr.data.splits import assign_splits, read_splits
from ckd_ehr.data.usable import refuse_no_visits, refuse_unusable, refuse_without_positives
from ckd_ehr.data.visits import (
    admission_types,
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
    with_codes,
)

Counts = dict[str, int]
SHIFTED = (
    "splits.method=temporal on records whose dates were moved patient by patient: the order of two "
    "patients means nothing, and this is no validation forward in time"
)


@dataclass(frozen=True)
class BuiltVisits:
    """The visits with numbers for codes, how often each diagnosis occurs, what was left out."""

    numbered: ir.Table
    roles: pa.Table
    diagnoses: pa.Table
    counts: Counts

    def batches(self, engine: Engine) -> Iterator[pa.RecordBatch]:
        """The rows of the `visits` table."""
        return (with_codes(batch, self.roles) for batch in engine.batches(self.numbered))


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
        visits_file, visits_schema = folder / "visits.parquet", with_label_names(VISITS, names)
        write_batches(built.batches(engine), visits_file, visits_schema)
        refuse_no_visits(folder / "visits.parquet", built.counts)
        matches = match_codes(_occurrences(built.diagnoses), phenotypes)
        visits = engine.read([folder / "visits.parquet"])
        listed = _listed_splits(config.splits, events)
        if config.splits.method == "temporal" and has_shifted_times(events):
            context.say(f"warning: {SHIFTED}")
        rules = pair_rules(config, synthetic_times=has_synthetic_times(events))
        paired = build_pairs(engine, visits, matches, config, rules=rules, listed=listed)
        schema = with_label_names(PAIRS, names)
        ordered = engine.batches(paired.pairs.order_by(PAIR_ORDER))
        write_batches(ordered, folder / "pairs.parquet", schema)
        unsampled = engine.fetch(paired.unsampled.select("subject_id", "split", "fold", "labels"))
        assigned = engine.fetch(paired.assigned.order_by("subject_id"))
    pairs = read_table(folder / "pairs.parquet", PAIRS)
    refuse_without_positives(pairs, matches)
    refuse_unusable(pairs, config.splits, config.cohort.sample, unsampled=unsampled)
    _write_splits(assigned, folder / "subject_splits.parquet")
    _audit(context, events, rules)
    counts = built.counts | paired.counts
    _describe(context, events, pairs, matches, counts=counts, names=names, rules=rules)
    say_unread_facts(context.say, counts)
    say_summary(context.say, pairs, names)


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
    described = roles_of(codes)
    roles = engine.upload(described)
    stays = engine.keep(gather_stays(events, roles))
    people = engine.keep(gather_people(events, roles, stays))
    types = admission_types(
        described, kept=cohort.admission_types, excluded=cohort.exclude_admission_types
    )
    marked = engine.keep(mark_stays(stays, people, types))
    items = engine.keep(gather_items(events, roles, marked))
    counts = _row(engine.fetch(count_stays(events, marked, people)))
    counts |= _row(engine.fetch(count_items(items)))
    return BuiltVisits(
        numbered=assemble_visits(marked, items),
        roles=described,
        diagnoses=engine.fetch(count_diagnoses(items, roles)),
        counts=counts,
    )


def pair_rules(config: RunConfig, *, synthetic_times: bool) -> PairRules:
    """The settings that decide on pairs.

    Raises:
        CkdEhrError: a setting in time is given for a source whose times only give an order.
    """
    cohort = config.cohort
    timed = {
        "cohort.min_gap_days": cohort.min_gap_days > 0,
        "cohort.max_gap_days": cohort.max_gap_days is not None,
        "cohort.label_window_days": cohort.label_window_days is not None,
        "splits.method=temporal": config.splits.method == "temporal",
    }
    given = [name for name, is_given in timed.items() if is_given]
    if synthetic_times and given:
        raise CkdEhrError(
            f"{given[0]} is set, but this source has no dates: its times only give the "
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
    followed = engine.keep(next_visits(placed, rules))
    following = within_gap(followed, rules)
    days = rules.label_window_days
    outcomes = following if days is None else window_visits(placed, rules, window_days=days)
    paired = pair_visits(placed, following, rules)
    found = visit_labels(visits, engine.upload(labels_of_codes(matches)))
    n_labels = len(config.labels.selected)
    labelled = engine.keep(
        label_pairs(paired, outcomes, found, n_labels=n_labels, window_days=days)
    )
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
        "visits": visits, "nearest": followed, "near": following, "labelled": labelled,
        "divided": divided, "known": known, "usable": usable, "sampled": sampled,
    }  # fmt: skip
    counts = _count_pairs(engine, steps)
    return BuiltPairs(sampled, usable, assigned, counts)


def _count_pairs(engine: Engine, steps: Mapping[str, ir.Table]) -> Counts:
    """What each step from visits to sampled pairs left out."""
    labelled, divided = steps["labelled"], steps["divided"]
    followed = labelled.next_visit_id.notnull()
    sized = [
        steps[name].agg(**{name: steps[name].count()})
        for name in ("visits", "nearest", "near", "known", "usable", "sampled")
    ]
    counted = labelled.agg(
        paired=labelled.count(),
        followed=labelled.count(where=followed),
        uncoded=labelled.count(where=followed & labelled.labels.isnull() & labelled.has_outcome),
        outside=labelled.count(where=followed & ~labelled.has_outcome),
    ).cross_join(divided.agg(unlisted=divided.count(where=divided.split.isnull())), *sized)
    n = _row(engine.fetch(counted))
    return {
        "visits_without_pair": n["visits"] - n["paired"],
        "pairs_of_one_history": n["paired"],
        "pairs_with_next_visit": n["followed"],
        "next_visits_beyond_max_gap": n["nearest"] - n["near"],
        "next_visits_outside_label_window": n["outside"],
        "next_visits_without_diagnoses": n["uncoded"],
        "pairs_of_patients_without_split": n["unlisted"],
        "pairs_after_held_out_began": n["paired"] - n["unlisted"] - n["known"],
        "pairs_unlabelled_outside_train": n["known"] - n["usable"],
        "pairs_cut_by_sampling": n["usable"] - n["sampled"],
    }


def _row(table: pa.Table) -> Counts:
    """The only row of a table of counts; Spark counts some rows of an empty table as null."""
    return {name: int(value or 0) for name, value in table.to_pylist()[0].items()}


def _occurrences(diagnoses: pa.Table) -> dict[tuple[str, str], int]:
    return {(row["system"], row["code"]): row["occurrences"] for row in diagnoses.to_pylist()}


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
    aligned = meds.SubjectSplitSchema.align(known)
    write_table(aligned.combine_chunks(), path, aligned.schema.remove_metadata())


def _audit(context: StageContext, events: Path, rules: PairRules) -> None:
    findings = cohort_findings(
        context.folder,
        events,
        shift_expected=context.config.splits.may_shift,
        synthetic_times=rules.synthetic_times,
        phenotypes=context.config.labels.selected,
        memory_limit=context.config.engine.memory_limit,
        shifted_times=has_shifted_times(events),
    )
    refuse(findings, "cohort", context.config.audit.accept, context.say)


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
        memory_limit=context.config.engine.memory_limit,
    )
    write_json(folder / "dataset.json", described)
    for line in coverage_lines(coverage):
        context.say(line)
