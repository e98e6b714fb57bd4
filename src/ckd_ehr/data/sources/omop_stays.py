"""OMOP visits, persons and deaths → stays and the events of people.

In: visit_occurrence, person and, if there, death, of a `Cdm`. Out: its tables `stays`, `people` and
`deaths`, and events: admission, discharge, sex, ethnicity, birth, death. Ignores: visits that are
no stays and persons without one, which are counted; and what was diagnosed or done.
"""

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.records import ADMISSION, BIRTH, DEATH, DISCHARGE, ETHNICITY, SEX
from ckd_ehr.data.sources.omop_rows import Cdm, time_of
from ckd_ehr.data.sources.stay_tables import ETHNICITY_GROUP
from ckd_ehr.data.sources.tables import quoted

EMERGENCY_ROOM_AND_INPATIENT = "262"
# What visit_source_value may say of an admission; other values may be ids, and are not kept.
ADMISSION_TYPES = (
    "EMERGENCY", "URGENT", "ELECTIVE", "NEWBORN", "TRAUMA", "OBSERVATION",
    "EW EMER.", "DIRECT EMER.", "OBSERVATION ADMIT", "EU OBSERVATION", "DIRECT OBSERVATION",
    "AMBULATORY OBSERVATION", "SURGICAL SAME DAY ADMISSION",
)  # fmt: skip
# 4216643 Patient died; 32218 Expired (UB04); 4306655 Death.
DIED_CONCEPTS = ("4216643", "32218", "4306655")
DIED_WORDS = r"\b(DEAD|DIED|DEATH|DECEASED|EXPIRED)\b"
SHOWN_CONCEPTS = 20
LAST_SECOND = "INTERVAL '23:59:59'"
MALE, FEMALE = "8507", "8532"
SEX_OF_PERSON = f"""CASE gender_concept_id WHEN '{MALE}' THEN 'M' WHEN '{FEMALE}' THEN 'F'
    ELSE CASE upper(gender_source_value) WHEN 'MALE' THEN 'M' WHEN 'FEMALE' THEN 'F'
        ELSE upper(gender_source_value) END END"""
# What the source says, where it names a group; race may stand in numbers of the hospital's own.
ETHNICITY_OF_PERSON = r"""CASE
    WHEN ethnicity_concept_id = '38003563' THEN 'HISPANIC'
    WHEN named IN ('WHITE', 'BLACK', 'HISPANIC', 'ASIAN') THEN named
    WHEN race_concept_id = '8527' THEN 'WHITE'
    WHEN race_concept_id = '8516' THEN 'BLACK'
    WHEN race_concept_id = '8515' THEN 'ASIAN'
    WHEN race_concept_id <> '0' OR (named = 'OTHER' AND regexp_matches(ethnicity, '\p{L}{3}'))
        THEN 'OTHER'
    ELSE 'UNKNOWN' END"""
_BIRTH_PARTS = "try_cast(concat_ws('-', year_of_birth, {month}, {day}) AS TIMESTAMP)"
BIRTH_DATE = f"""coalesce(CAST(birth_datetime AS TIMESTAMP), {
    ", ".join(
        f"CASE WHEN {known} IS NOT NULL THEN {_BIRTH_PARTS.format(month=month, day=day)} END"
        for known, month, day in (
            ("day_of_birth", "month_of_birth", "day_of_birth"),
            ("month_of_birth", "month_of_birth", "15"),
            ("year_of_birth", "7", "1"),
        )
    )
})"""


def load_stays(cdm: Cdm) -> None:
    """Make the table `stays`; visits of other kinds are counted by their concept."""
    name, concepts = "visit_occurrence", cdm.extraction.settings.omop.visit_concepts
    is_stay = f"try_cast(visit_concept_id AS BIGINT) IN ({', '.join(map(str, concepts))})"
    kept = ", ".join(
        f"CASE WHEN {is_stay} THEN {column} END AS {column}"
        for column in cdm.wanted[name].columns
        if column != "visit_concept_id"
    )
    cdm.load(name, f"SELECT {kept}, visit_concept_id, count(*) AS copies FROM plain GROUP BY ALL")
    _leave_out_other_visits(cdm, is_stay)
    kinds = ("visit_start", "visit_end")
    cdm.rows.require_times(
        name, [f"{kind}_{part}" for kind in kinds for part in ("datetime", "date")]
    )
    cdm.rows.leave_out(
        name,
        "without person, visit or time",
        unless="person_id IS NOT NULL AND visit_occurrence_id IS NOT NULL "
        "AND coalesce(visit_start_datetime, visit_start_date) IS NOT NULL "
        "AND coalesce(visit_end_datetime, visit_end_date) IS NOT NULL",
    )
    cdm.rows.refuse_no_rows(name)
    _make_stays(cdm, name)
    shared = cdm.count(
        "SELECT count(*) FROM (SELECT visit_id FROM stays GROUP BY visit_id HAVING count(*) > 1)"
    )
    if shared:
        raise cdm.shared(name, shared)
    differing = cdm.count("SELECT count(*) FROM stays WHERE differing")
    if differing:
        cdm.say(
            name,
            f"{differing:,} visits stand in several rows that differ: first start and last end "
            "were taken",
        )


def _make_stays(cdm: Cdm, name: str) -> None:
    start, end = time_of("visit_start"), _end_of_stay(cdm)
    cdm.connection.execute(f"""
        CREATE TABLE stays AS
        SELECT CAST(person_id AS BIGINT) AS subject_id, visit_occurrence_id AS visit_id,
            min({start}) AS admit_time, max({end}) AS discharge_time,
            min(CASE WHEN upper(visit_source_value) IN ({", ".join(map(quoted, ADMISSION_TYPES))})
                THEN upper(visit_source_value) WHEN visit_concept_id =
                '{EMERGENCY_ROOM_AND_INPATIENT}' THEN 'EMERGENCY' END) AS admission_type,
            min(upper(place)) AS place,
            bool_or(coalesce(to_concept IN ({", ".join(map(quoted, DIED_CONCEPTS))})
                OR regexp_matches(upper(place), '{DIED_WORDS}'), false)) AS discharged_dead,
            min({start}) <> max({start}) OR min({end}) <> max({end}) AS differing
        FROM (SELECT *, coalesce(discharged_to_source_value, discharge_to_source_value) AS place,
            coalesce(discharged_to_concept_id, discharge_to_concept_id) AS to_concept FROM {name})
        GROUP BY ALL""")


def _leave_out_other_visits(cdm: Cdm, is_stay: str) -> None:
    name, concepts = "visit_occurrence", cdm.extraction.settings.omop.visit_concepts
    others = cdm.connection.execute(
        f"SELECT visit_concept_id, CAST(sum(copies) AS BIGINT) AS n FROM {name} "
        f"WHERE ({is_stay}) IS NOT TRUE GROUP BY ALL ORDER BY n DESC, visit_concept_id"
    ).fetchall()
    if others and not cdm.count(f"SELECT count(*) FROM {name} WHERE {is_stay}"):
        found = ", ".join(f"{c or 'none'}: {n:,}" for c, n in others[:SHOWN_CONCEPTS])
        raise CkdEhrError(
            f"{cdm.label(name)}: no visit has one of data.omop.visit_concepts "
            f"({', '.join(map(str, concepts))}); visit_concept_id and rows are {found}; name those "
            "that are stays with data.omop.visit_concepts=[…]"
        )
    for concept, _ in others[:SHOWN_CONCEPTS]:
        reason = f"of visit_concept_id {concept}" if concept else "without a visit_concept_id"
        cdm.rows.leave_out(
            name,
            reason,
            unless=f"visit_concept_id IS DISTINCT FROM {quoted(concept) if concept else 'NULL'}",
        )
    cdm.rows.leave_out(name, "of other visit_concept_ids", unless=is_stay)


def _end_of_stay(cdm: Cdm) -> str:
    """The end in SQL: a date alone means the end of its day."""
    date_end = f"date_trunc('day', {time_of('visit_end')}) + {LAST_SECOND}"
    timed = "CAST(visit_end_datetime AS TIMESTAMP)"
    hours = cdm.count(
        f"SELECT count(*) FROM visit_occurrence WHERE {timed} <> date_trunc('day', {timed})"
    )
    if not hours:
        cdm.say("visit_occurrence", "visits end on dates without hours: read as 23:59:59")
        return date_end
    return f"coalesce({timed}, {date_end})"


def load_people(cdm: Cdm) -> None:
    """Make the table `people` of persons with a stay, and insert their sex and birth."""
    name = "person"
    _load_persons(cdm, name)
    if not cdm.count(f"SELECT count(*) FROM {name}"):
        raise CkdEhrError(
            f"{cdm.label(name)}: no row is a person with a stay in visit_occurrence (column "
            "'person_id'); export both tables from the same database"
        )
    cdm.rows.require_times(name, ("birth_datetime",))
    cdm.connection.execute(f"""
        CREATE TABLE people AS
        SELECT CAST(person_id AS BIGINT) AS subject_id, min({SEX_OF_PERSON}) AS sex,
            min({BIRTH_DATE}) AS birth, min({ETHNICITY_OF_PERSON}) AS ethnicity,
            bool_and(birth_datetime IS NULL AND day_of_birth IS NULL) AS rounded,
            min({SEX_OF_PERSON}) <> max({SEX_OF_PERSON})
                OR min({BIRTH_DATE}) <> max({BIRTH_DATE}) AS differing
        FROM (SELECT *, {ETHNICITY_GROUP} AS named
            FROM (SELECT *, upper(race_source_value) AS ethnicity FROM {name}))
        GROUP BY ALL""")
    _say_of_people(cdm, name)
    cdm.connection.execute(f"""
        INSERT INTO events
        SELECT subject_id, NULL, '{SEX}//' || sex, NULL, NULL FROM people WHERE sex IS NOT NULL
        UNION ALL
        SELECT subject_id, birth, '{BIRTH}', NULL, NULL FROM people WHERE birth IS NOT NULL""")


def _say_of_people(cdm: Cdm, name: str) -> None:
    """Say what is unsure about sex and birth: how many persons, never who."""
    differing = cdm.count("SELECT count(*) FROM people WHERE differing")
    if differing:
        cdm.say(
            name,
            f"{differing:,} persons stand in several rows that differ in sex or birth: the first "
            "sex by the alphabet and the earliest birth were taken",
        )
    rounded = cdm.count("SELECT count(*) FROM people WHERE rounded AND birth IS NOT NULL")
    if rounded:
        cdm.say(name, f"{rounded:,} births without a day: put in the middle of month or year")
    unknown = cdm.count(
        "SELECT count(DISTINCT subject_id) FROM stays ANTI JOIN people USING (subject_id)"
    )
    if unknown:
        cdm.say(name, f"lacks {unknown:,} persons with a stay: their sex and age are unknown")


def load_deaths(cdm: Cdm) -> None:
    """Make the table `deaths` of persons with a stay; empty without the table death."""
    if _load_persons(cdm, "death"):
        cdm.rows.require_times("death", ("death_datetime", "death_date"))
        cdm.rows.leave_out(
            "death", "without a time", unless="coalesce(death_datetime, death_date) IS NOT NULL"
        )
        rows = f"SELECT CAST(person_id AS BIGINT), min({time_of('death')}) FROM death GROUP BY ALL"
    else:
        rows = "SELECT NULL::BIGINT, NULL::TIMESTAMP WHERE false"
    cdm.connection.execute(f"CREATE TABLE deaths AS SELECT * FROM ({rows}) AS t(subject_id, death)")
    cdm.connection.execute(
        f"INSERT INTO events SELECT subject_id, death, '{DEATH}', NULL, NULL FROM deaths"
    )


def _load_persons(cdm: Cdm, name: str) -> bool:
    """Load a table of persons; those without a stay are folded while they are read, and counted."""
    # An id that is no number is kept, so that it is refused.
    has_stay = (
        "(try_cast(person_id AS BIGINT) IN (SELECT subject_id FROM stays)) IS DISTINCT FROM false"
    )
    kept = ", ".join(f"CASE WHEN {has_stay} THEN {c} END AS {c}" for c in cdm.wanted[name].columns)
    folded = f"SELECT {kept}, {has_stay} AS has_stay, count(*) AS copies FROM plain GROUP BY ALL"
    if not cdm.load(name, folded):
        return False
    cdm.rows.leave_out(name, "of persons without a stay", unless="has_stay")
    cdm.rows.leave_out(name, "without a person", unless="person_id IS NOT NULL")
    return True


def insert_stays(cdm: Cdm) -> None:
    """Insert admission, discharge and ethnicity of every stay."""
    # A death without an hour counts if its day is surely before the stay's last.
    cdm.connection.execute(f"""
        INSERT INTO events
        WITH ended AS (
            SELECT stays.*, coalesce(ethnicity, 'UNKNOWN') AS ethnicity,
                discharged_dead OR coalesce(CASE WHEN death = date_trunc('day', death)
                    THEN death >= date_trunc('day', admit_time)
                        AND death < date_trunc('day', discharge_time)
                    ELSE death > admit_time AND death <= discharge_time END, false) AS died
            FROM stays LEFT JOIN people USING (subject_id) LEFT JOIN deaths USING (subject_id))
        SELECT subject_id, admit_time, concat_ws('//', '{ADMISSION}', admission_type), NULL,
            visit_id
        FROM ended
        UNION ALL
        SELECT subject_id, discharge_time,
            concat_ws('//', '{DISCHARGE}', CASE WHEN died THEN 'DIED' ELSE place END), NULL,
            visit_id
        FROM ended
        UNION ALL
        SELECT subject_id, admit_time, '{ETHNICITY}//' || ethnicity, NULL, visit_id FROM ended""")
