"""Visits → visit pairs: a history, what came next, its labels, its split.

In: the `visits` table as an Ibis table. Out: expressions of the `pairs` table, step by step, that
any Ibis backend computes alike. Ignores: files and settings.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa

from ckd_ehr.data.phenotypes import CodeMatch
from ckd_ehr.data.visits import DAY_SECONDS

PAIR_ORDER = ("subject_id", "prediction_time", "pair_id")


@dataclass(frozen=True)
class PairRules:
    """Which visits make a history, and which later ones count; days and years as named."""

    min_age_years: float = 0.0
    min_history_visits: int = 1
    max_history_visits: int = 16
    min_gap_days: float = 0.0
    max_gap_days: float | None = None
    label_window_days: float | None = None
    synthetic_times: bool = False


def place_visits(visits: ir.Table) -> ir.Table:
    """Visits in order within their patient: `place` from 0; ids decide only between equal times.

    `overlaps`: an earlier stay ended later than this one, so that its codes are not yet known.
    """
    order = ibis.window(
        group_by="subject_id", order_by=["admit_time", "discharge_time", "visit_id"]
    )
    before = ibis.window(
        group_by="subject_id",
        order_by=["admit_time", "discharge_time", "visit_id"],
        preceding=(None, 1),
    )
    latest = visits.discharge_time.max().over(before)
    return visits.select(
        "visit_id",
        "subject_id",
        "admit_time",
        "discharge_time",
        "age_years",
        "died",
        coded=visits.diagnoses.length() > 0,
        overlaps=(latest > visits.discharge_time).fill_null(False),
        place=ibis.row_number().over(order),
    )


def known_histories(placed: ir.Table, *, longest: int) -> ir.Table:
    """visit_id → history: the visits admitted no later and discharged by its discharge.

    Oldest first; of more than `longest`, the last ones. Without an overlap these are simply the
    visits just before, which keeps a patient of a thousand visits cheap.
    """
    this, earlier = placed, placed.view()
    known = this.join(
        earlier,
        [
            this.subject_id == earlier.subject_id,
            earlier.place <= this.place,
            (earlier.place > this.place - longest) | this.overlaps,
            earlier.discharge_time <= this.discharge_time,
        ],
    ).select(this.visit_id, earlier_id=earlier.visit_id, place=earlier.place)
    from_last = ibis.window(group_by="visit_id", order_by=ibis.desc("place"))
    ranked = known.mutate(rank=ibis.row_number().over(from_last))
    recent = ranked.filter(ranked.rank < longest)
    entry = ibis.struct({"place": recent.place, "id": recent.earlier_id})
    histories = recent.group_by("visit_id").agg(entries=entry.collect())
    ids = histories.entries.sort().map(lambda entry: entry["id"])
    return histories.select("visit_id", history=ids)


def next_visits(placed: ir.Table, rules: PairRules) -> ir.Table:
    """Each visit with the first one admitted from its discharge on, if any.

    One nearer than `min_gap_days` is passed over.

    Returns:
        visit_id, later_id, coded (has the later visit diagnoses?), discharge_time (its own),
        gap_days.
    """
    this, later = placed, placed.view()
    places = this.join(later, _comes_after(this, later, rules)).select(
        this.visit_id, this.subject_id, known_time=this.discharge_time, place=later.place
    )
    first = places.group_by("visit_id", "subject_id", "known_time").agg(place=places.place.min())
    nearest = first.join(placed.view(), ["subject_id", "place"], rname="later_{name}")
    return nearest.select(
        nearest.visit_id,
        later_id=nearest.later_visit_id,
        coded=nearest.coded,
        discharge_time=nearest.discharge_time,
        gap_days=_days_between(nearest.admit_time, nearest.known_time),
    )


def within_gap(following: ir.Table, rules: PairRules) -> ir.Table:
    """Of `next_visits`, those not beyond `max_gap_days`: a later one counts as none."""
    if rules.max_gap_days is None:
        return following
    return following.filter(following.gap_days <= rules.max_gap_days)


def window_visits(placed: ir.Table, rules: PairRules, *, window_days: float) -> ir.Table:
    """Each visit with all that were admitted within `window_days`; columns as `next_visits`."""
    this, later = placed, placed.view()
    gap_days = _days_between(later.admit_time, this.discharge_time)
    return this.join(later, [*_comes_after(this, later, rules), gap_days <= window_days]).select(
        this.visit_id,
        later_id=later.visit_id,
        coded=later.coded,
        discharge_time=later.discharge_time,
        gap_days=gap_days,
    )


def _comes_after(this: ir.Table, later: ir.Table, rules: PairRules) -> list[ir.BooleanValue]:
    after = [
        this.subject_id == later.subject_id,
        later.place > this.place,
        later.admit_time >= this.discharge_time,
    ]
    if rules.min_gap_days > 0:
        after.append(_days_between(later.admit_time, this.discharge_time) >= rules.min_gap_days)
    return after


def _days_between(end: ir.TimestampValue, start: ir.TimestampValue) -> ir.FloatingValue:
    seconds = end.truncate("s").epoch_seconds() - start.truncate("s").epoch_seconds()
    return seconds.cast("float64") / DAY_SECONDS


def pair_visits(placed: ir.Table, following: ir.Table, rules: PairRules) -> ir.Table:
    """One pair per visit: the visits known at its discharge, and the next one, if any.

    `prediction_time` is the discharge of the last history visit; `following` is as `next_visits`
    gives it. Stays that ended in death make no pair. `gap_days` is null for synthetic times.

    Returns:
        pair_id, subject_id, history, prediction_time, next_visit_id, gap_days, visit_id.
    """
    nearest = following.select("visit_id", "gap_days", next_visit_id=following.later_id)
    histories = known_histories(placed, longest=rules.max_history_visits)
    joined = placed.join(histories, "visit_id").left_join(nearest, "visit_id")
    usable = (joined.history.length() >= rules.min_history_visits) & ~joined.died
    if rules.min_age_years > 0:
        # As the column holds it: an age of 17.9 is not below a limit of 17.9.
        limit = float(np.float32(rules.min_age_years))
        usable &= (joined.age_years.cast("float64") >= limit).fill_null(False)
    kept = joined.filter(usable)
    key = (kept.subject_id.cast("string") + ":" + kept.visit_id).hexdigest("sha256")
    gap = ibis.null("float32") if rules.synthetic_times else kept.gap_days.cast("float32")
    return kept.select(
        "subject_id",
        "history",
        "next_visit_id",
        "visit_id",
        pair_id=key.left(16),
        prediction_time=kept.discharge_time,
        gap_days=gap,
    )


def labels_of_codes(matches: Sequence[CodeMatch]) -> pa.Table:
    """One row for each label that a code sets: system, code, label (its position)."""
    hits = [(match, label) for match in matches for label in match.labels]
    return pa.table(
        {
            "system": pa.array([match.system for match, _ in hits], pa.string()),
            "code": pa.array([match.code for match, _ in hits], pa.string()),
            "label": pa.array([label for _, label in hits], pa.int64()),
        }
    )


def visit_labels(visits: ir.Table, codes: ir.Table) -> ir.Table:
    """The labels that each visit's diagnoses set: visit_id, label; codes as `labels_of_codes`."""
    diagnoses = visits.select("visit_id", entry=visits.diagnoses.unnest())
    named = diagnoses.select(
        "visit_id", system=diagnoses.entry["system"], code=diagnoses.entry["code"]
    )
    return named.join(codes, ["system", "code"]).select("visit_id", "label").distinct()


def label_pairs(
    pairs: ir.Table,
    outcomes: ir.Table,
    found: ir.Table,
    *,
    n_labels: int,
    window_days: float | None = None,
) -> ir.Table:
    """Add `labels` (n_labels booleans), `outcome_time` and `has_outcome`.

    `outcome_time` is when the last label was known: with a window, not before it closes.
    `has_outcome` says that a visit counts, coded or not.

    The labels are the phenotypes that the diagnoses of a pair's `outcomes` have: the next visit,
    or all those of a label window. Null without a next visit, and where no such stay has a
    diagnosis: it was not coded, which says nothing about diseases.
    """
    known = outcomes.group_by("visit_id").agg(
        coded=outcomes.coded.any(), outcome_time=outcomes.discharge_time.max()
    )
    hits = outcomes.join(found, outcomes.later_id == found.visit_id)
    hits = hits.select(outcomes.visit_id, "label")
    columns = {f"label_{k}": (hits.label == k).any() for k in range(n_labels)}
    present = hits.group_by("visit_id").agg(**columns)
    joined = pairs.left_join(known, "visit_id").drop("visit_id_right")
    joined = joined.left_join(present, "visit_id")
    labels = ibis.array([joined[name].fill_null(False) for name in columns])
    is_labelled = joined.next_visit_id.notnull() & joined.coded.fill_null(False)
    outcome_time = joined.outcome_time
    if window_days is not None:
        seconds = math.ceil(window_days * DAY_SECONDS)
        closes = joined.prediction_time + ibis.interval(seconds=seconds)
        outcome_time = outcome_time.notnull().ifelse(ibis.greatest(outcome_time, closes), closes)
    return joined.select(
        *pairs.columns,
        outcome_time=outcome_time,
        has_outcome=joined.coded.notnull(),
        labels=is_labelled.ifelse(labels, ibis.null("array<boolean>")),
    )


def split_pairs(pairs: ir.Table, assigned: ir.Table) -> ir.Table:
    """Add `split`, `fold` (-1 outside train) and `sample_key` from a row per patient."""
    joined = pairs.join(assigned, "subject_id")
    fold = (joined.split == "train").ifelse(joined.fold, -1).cast("int8")
    return joined.mutate(fold=fold)


def usable_pairs(pairs: ir.Table) -> ir.Table:
    """Leave out the unlabelled pairs of tuning and held_out: nothing can be scored on them."""
    return pairs.filter(pairs.labels.notnull() | (pairs.split == "train"))


def forward_pairs(pairs: ir.Table, patients: ir.Table, assigned: ir.Table) -> ir.Table:
    """For a temporal split: leave out train and tuning pairs not known before it all began.

    That is the first admission of a patient who is held out; what is learned is then older than
    every pair it is scored on.
    """
    held_out = assigned.filter(assigned.split == "held_out").select("subject_id")
    begin = patients.semi_join(held_out, "subject_id").agg(begin=lambda t: t.first_admit_time.min())
    joined = pairs.cross_join(begin)
    known = joined.labels.notnull().ifelse(joined.outcome_time, joined.prediction_time)
    return joined.filter((joined.split == "held_out") | (known <= joined.begin)).drop("begin")


def sample_pairs(pairs: ir.Table, limits: Mapping[str, int | None]) -> ir.Table:
    """Keep whole patients, in hash order, while their pairs fit under each limit.

    Args:
        limits: pairs at most of `train` (labelled), `unlabelled`, `tuning`, `held_out`; None for
            all.
    """
    bounds = {group: bound for group, bound in limits.items() if bound is not None}
    if not bounds:
        return pairs
    group = pairs.labels.isnull().ifelse("unlabelled", pairs.split)
    grouped = pairs.mutate(group_=group)
    sizes = grouped.group_by("group_", "subject_id", "sample_key").agg(n=grouped.count())
    in_order = ibis.cumulative_window(group_by="group_", order_by=["sample_key", "subject_id"])
    filled = sizes.mutate(pairs_so_far=sizes.n.sum().over(in_order))
    bound = filled.group_.cases(*bounds.items(), else_=ibis.null("int64"))
    fitting = filled.filter((filled.pairs_so_far <= bound).fill_null(True))
    return grouped.semi_join(fitting, ["group_", "subject_id"]).drop("group_")
