"""MEDS events → one row per hospital stay, with counts of what was left out.

In: the events and distinct codes of a MEDS dataset, as Ibis tables. Out: expressions that any Ibis
backend computes alike. Ignores: files, labels, pairs, splits. A code later than its stay's
discharge is dropped: it was not known at prediction time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ckd_ehr.contracts.records import (
    ADMISSION,
    AGE,
    BIRTH,
    DEATH,
    DIAGNOSIS,
    DISCHARGE,
    ETHNICITY,
    MEDICATION,
    PROCEDURE,
    SEX,
)

CODED = {DIAGNOSIS: "diagnoses", MEDICATION: "medications", PROCEDURE: "procedures"}
STAY_FACTS = (ADMISSION, DISCHARGE, AGE, ETHNICITY)
PATIENT_FACTS = (SEX, ETHNICITY, BIRTH, DEATH)
DIED = f"{DISCHARGE}//DIED"
# Privacy law calls ages above 89 identifying; MIMIC-III moves those births 300 years back.
HIGHEST_AGE = 90.0
DAYS_PER_YEAR = 365.25
DAY_SECONDS = 86_400
SEXES = ("F", "M")
# Why a visit is left out; the first reason that holds is the one counted.
UNTIMED = "visits_without_admission_or_discharge"
BACKWARD = "visits_discharged_before_admission"
POSTHUMOUS = "visits_admitted_after_death"
OTHER_TYPE = "visits_of_other_admission_types"
EXCLUSIONS = (UNTIMED, BACKWARD, POSTHUMOUS, OTHER_TYPE)
LAST_PLACE = 1e300  # where a code without a position stands on the bill


@dataclass(frozen=True)
class AdmissionTypes:
    """Which types of admission count, as the events have them; None keeps all."""

    kept: Sequence[str] | None = None
    excluded: Sequence[str] = ()


def roles_of(codes: pa.Table) -> pa.Table:
    """`ROLE//SYSTEM//CODE` or `ROLE//DETAIL` of each distinct code, taken apart.

    Args:
        codes: `code` and `description`, as in a MEDS dataset's metadata.

    Returns:
        code, title, role, detail (the system of what was coded), value (its code), code_no (its
        place in the order of detail and value, from 0; also the row's own).

    >>> codes = pa.table({"code": ["DIAGNOSIS//ICD9CM//4280"], "description": ["Heart failure"]})
    >>> roles_of(codes).to_pylist()[0]["value"]
    '4280'
    """
    written = zip(codes["code"].to_pylist(), codes["description"].to_pylist(), strict=True)
    rows = [(code, title, *[*code.split("//", 2), "", ""][:3]) for code, title in written]
    rows.sort(key=lambda row: (row[3], row[4], row[0]))
    names = ("code", "title", "role", "detail", "value")
    columns = {
        name: pa.array([row[place] or None for row in rows], pa.string())
        for place, name in enumerate(names)
    }
    return pa.table({**columns, "code_no": pa.array(range(len(rows)), pa.int32())})


def admission_types(
    roles: pa.Table, *, kept: Sequence[str] | None, excluded: Sequence[str]
) -> AdmissionTypes:
    """The types that are asked for in any case of letters, as the events write them.

    Case is folded here, not in the engines, which do not agree on letters beyond ASCII.

    >>> roles = pa.table({"role": ["HOSPITAL_ADMISSION"], "detail": ["NEWBORN"]})
    >>> admission_types(roles, kept=None, excluded=["Newborn", "Elective"]).excluded
    ['NEWBORN']
    """
    pairs = zip(roles["role"].to_pylist(), roles["detail"].to_pylist(), strict=True)
    written = sorted({detail for role, detail in pairs if role == ADMISSION and detail})

    def found(names: Sequence[str]) -> list[str]:
        wanted = {name.casefold() for name in names}
        return [detail for detail in written if detail.casefold() in wanted]

    return AdmissionTypes(None if kept is None else found(kept), found(excluded))


def _number(events: ir.Table) -> ir.FloatingValue:
    """`numeric_value`; what is no number is none, where engines would take it for the highest."""
    return events.numeric_value.isnan().ifelse(ibis.null("float32"), events.numeric_value)


def day_of(time: ir.TimestampValue) -> ir.IntegerValue:
    """The number of a time's day, counted from 1970-01-01."""
    return time.truncate("D").epoch_seconds() // DAY_SECONDS


def count_shared_visits(events: ir.Table) -> ir.Table:
    """How many stays stand under two patients, as a table of one number."""
    owners = events.filter(events.visit_id.notnull()).select("visit_id", "subject_id").distinct()
    doubled = owners.group_by("visit_id").agg(owners=owners.count())
    return doubled.filter(doubled.owners > 1).agg(shared=lambda t: t.count())


def gather_stays(events: ir.Table, roles: ir.Table) -> ir.Table:
    """One row per stay with the times and facts its events tell."""
    known = events.join(roles, "code")
    known = known.filter(known.visit_id.notnull() & known.role.isin(STAY_FACTS))
    admission, discharge = known.role == ADMISSION, known.role == DISCHARGE
    return known.group_by("visit_id", "subject_id").agg(
        admit_time=known.time.min(where=admission),
        discharge_time=known.time.max(where=discharge),
        admission_type=known.detail.min(where=admission),
        discharged_dead=(known.code == DIED).any(),
        stated_age=_number(known).max(where=known.role == AGE).cast("float64"),
        ethnicity=known.detail.min(where=known.role == ETHNICITY),
    )


def gather_people(events: ir.Table, roles: ir.Table, stays: ir.Table) -> ir.Table:
    """One row per patient of whom anything is told: sex, ethnicity, birth, first death."""
    known = events.join(roles, "code")
    known = known.filter(known.role.isin(PATIENT_FACTS))
    spelled = known.detail.upper()
    sex = spelled.cases(("MALE", "M"), ("FEMALE", "F"), else_=spelled)
    facts = known.group_by("subject_id").agg(
        stated_sex=sex.min(where=known.role == SEX),
        ethnicity=known.detail.min(where=(known.role == ETHNICITY) & known.visit_id.isnull()),
        birth=known.time.min(where=known.role == BIRTH),
        recorded=known.time.min(where=known.role == DEATH),
    )
    deaths = stays.filter(stays.discharged_dead)
    deaths = deaths.group_by("subject_id").agg(in_hospital=deaths.discharge_time.min())
    people = facts.outer_join(deaths, "subject_id")
    recorded = people.recorded.coalesce(people.in_hospital)
    in_hospital = people.in_hospital.coalesce(people.recorded)
    # Of a death recorded as a date, the hospital knows the hour: nothing is admitted after it.
    has_hour = (recorded == recorded.truncate("D")) & (in_hospital.truncate("D") == recorded)
    return people.select(
        subject_id=people.subject_id.coalesce(people.subject_id_right),
        stated_sex=people.stated_sex,
        sex=people.stated_sex.isin(SEXES).ifelse(people.stated_sex, ibis.null("string")),
        group_=people.ethnicity,
        birth=people.birth,
        death=has_hour.ifelse(in_hospital, ibis.least(recorded, in_hospital)),
    )


def mark_stays(stays: ir.Table, people: ir.Table, types: AdmissionTypes) -> ir.Table:
    """Each stay with what is known of its patient, and `reason`: why it is left out, or null.

    A death at midnight is a date: the whole day. The stay that the death was in may be as short as
    a moment: its admission is not after the death.
    """
    joined = stays.left_join(people, "subject_id")
    admit, discharge, death = joined.admit_time, joined.discharge_time, joined.death
    is_date = death == death.truncate("D")
    died_here = (death > admit) & (death <= discharge) & ~is_date
    death_ends = is_date.ifelse(death + ibis.interval(days=1), death)
    gave_death = joined.discharged_dead & (discharge == death)
    reason = ibis.cases(
        (admit.isnull() | discharge.isnull(), UNTIMED),
        (discharge < admit, BACKWARD),
        ((admit >= death_ends) & ~gave_death, POSTHUMOUS),
        (~_is_kept(joined.admission_type, types), OTHER_TYPE),
        else_=ibis.null("string"),
    )
    age_days = day_of(admit) - day_of(joined.birth)
    impossible = (joined.stated_age < 0).fill_null(False)
    stated_age = impossible.ifelse(ibis.null("float64"), joined.stated_age)
    born_later = (stated_age.isnull() & (age_days < 0)).fill_null(False)
    from_birth = born_later.ifelse(ibis.null("float64"), age_days.cast("float64") / DAYS_PER_YEAR)
    age = stated_age.coalesce(from_birth)
    return joined.select(
        "visit_id",
        "subject_id",
        "admit_time",
        "discharge_time",
        "admission_type",
        "sex",
        age_years=age.clip(lower=0.0, upper=HIGHEST_AGE).cast("float32"),
        ethnicity=joined.ethnicity.coalesce(joined.group_),
        died=joined.discharged_dead | died_here.fill_null(False),
        born_later=born_later,
        impossible_age=impossible,
        reason=reason,
    )


def _is_kept(admission_type: ir.StringValue, types: AdmissionTypes) -> ir.BooleanValue:
    kept = ibis.literal(True)
    if types.kept is not None:
        kept = admission_type.isin(types.kept).fill_null(False) if types.kept else ~kept
    if types.excluded:
        kept = kept & ~admission_type.isin(types.excluded).fill_null(False)
    return kept


def count_stays(events: ir.Table, marked: ir.Table, people: ir.Table) -> ir.Table:
    """One row of counts: what was read, and what was left out under each reason."""
    kept = marked.reason.isnull()
    # Never null: Spark counts no rows at all as null where the condition is null throughout.
    reasons = {name: (marked.reason == name).fill_null(False) for name in EXCLUSIONS}
    of_visits = events.filter(events.visit_id.notnull())
    read = of_visits.agg(
        visits_read=of_visits.visit_id.nunique(),
        patients_with_visits=of_visits.subject_id.nunique(),
    )
    everyone = events.agg(patients_read=events.subject_id.nunique())
    stays = marked.agg(
        stays=marked.count(),
        visits_with_birth_after_admission=marked.count(where=kept & marked.born_later),
        visits_with_age_below_zero=marked.count(where=kept & marked.impossible_age),
        **{name: marked.count(where=is_so) for name, is_so in reasons.items()},
    )
    unread = people.agg(
        patients_with_sex_not_read=people.count(
            where=people.stated_sex.notnull() & people.sex.isnull()
        )
    )
    counts = read.cross_join(everyone).cross_join(stays).cross_join(unread)
    # A visit whose events name neither admission nor discharge never became a stay.
    untimed = counts[UNTIMED] + counts.visits_read - counts.stays
    return counts.mutate(**{UNTIMED: untimed}).drop("stays")


def gather_items(events: ir.Table, roles: ir.Table, marked: ir.Table) -> ir.Table:
    """The codes of the stays that are kept, by number; millions, so nothing else of them.

    `place` is the code's first position on the bill, `uses` the number of its events, `late_uses`
    of those after discharge.
    """
    kept = marked.filter(marked.reason.isnull()).select("visit_id", "discharge_time")
    coded = roles.filter(roles.role.isin(tuple(CODED)) & roles.value.notnull())
    known = events.join(coded.select("code", "role", "code_no"), "code").join(kept, "visit_id")
    late = (known.time > known.discharge_time).fill_null(False)
    return known.group_by("visit_id", "role", "code_no").agg(
        place=_number(known).min(where=~late),
        uses=known.count(),
        late_uses=known.count(where=late),
    )


def count_items(items: ir.Table) -> ir.Table:
    """One row of counts: coded events of the stays that are kept, and those dropped as late."""
    return items.agg(
        codes_read=items.uses.sum().coalesce(0),
        codes_after_discharge=items.late_uses.sum().coalesce(0),
    )


def count_diagnoses(items: ir.Table, roles: ir.Table) -> ir.Table:
    """How often each distinct diagnosis occurs: system, code, occurrences."""
    found = items.filter((items.role == DIAGNOSIS) & (items.uses > items.late_uses))
    counted = found.group_by("code_no").agg(occurrences=found.count())
    named = counted.join(roles, "code_no")
    return named.select("occurrences", system=named.detail, code=named.value).order_by(
        "system", "code"
    )


def assemble_visits(marked: ir.Table, items: ir.Table) -> ir.Table:
    """The stays that are kept with the numbers of their codes, in order of admission.

    The codes of a stay are in the order of the bill, then of system and code. `with_codes` makes
    the `visits` table of it.
    """
    used = items.filter(items.uses > items.late_uses)
    # Sorted by its first fields, none of them null: the same order on every backend.
    place = used.place.cast("float64").coalesce(LAST_PLACE)
    entry = ibis.struct({"place": place, "code_no": used.code_no})
    lists = used.group_by("visit_id").agg(
        **{column: entry.collect(where=used.role == role) for role, column in CODED.items()}
    )
    kept = marked.filter(marked.reason.isnull())
    visits = kept.left_join(lists, "visit_id")
    return visits.select(
        "visit_id",
        "subject_id",
        "admit_time",
        "discharge_time",
        "age_years",
        "sex",
        "ethnicity",
        "admission_type",
        "died",
        **{column: _numbers(visits[column]) for column in CODED.values()},
    ).order_by("subject_id", "admit_time", "discharge_time", "visit_id")


def _numbers(entries: ir.ArrayValue) -> ir.ArrayValue:
    numbers = entries.sort().map(lambda entry: entry["code_no"])
    return numbers.coalesce(ibis.literal([], type="array<int32>"))


def with_codes(batch: pa.RecordBatch, roles: pa.Table) -> pa.RecordBatch:
    """Rows of `assemble_visits` as rows of the `visits` table: numbers become codes.

    Args:
        roles: as `roles_of` gives them.
    """
    for column in CODED.values():
        place = batch.schema.get_field_index(column)
        batch = batch.set_column(place, column, _codes_of(batch.column(place), roles))
    return batch


def _codes_of(numbers: pa.ListArray, roles: pa.Table) -> pa.ListArray:
    chosen = roles.select(["detail", "value", "title"]).take(numbers.flatten()).combine_chunks()
    columns = [column.combine_chunks() for column in chosen.columns]
    ends = np.cumsum(pc.list_value_length(numbers).to_numpy(zero_copy_only=False), dtype=np.int32)
    offsets = np.concatenate([np.zeros(1, np.int32), ends])
    names = ["system", "code", "title"]
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(columns, names))
