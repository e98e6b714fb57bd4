"""The data behind a run, for people: cohort flow, Table 1, visits, prevalence, code coverage.

In: metrics.json's content. Out: rows of text and drawings for the report's section
"The data". Ignores: models and the page around.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ckd_ehr.metrics.dataset_facts import (
    CategoryFacts,
    Dataset,
    NumberFacts,
    PhenotypeFacts,
    Rate,
    SystemCoverage,
    Tally,
)
from ckd_ehr.metrics.figures import prevalence_figure, visits_figure
from ckd_ehr.metrics.results import Metrics

# The counts of flow.json that the drawing shows: what each says, and whether it was left out.
FLOW = {
    "visits_read": ("visits read", False),
    "visits_without_admission_or_discharge": ("no admission or discharge time", True),
    "visits_discharged_before_admission": ("discharged before admission", True),
    "visits_admitted_after_death": ("admitted after death", True),
    "visits_of_other_admission_types": ("of admission types that the config leaves out", True),
    "visits_kept": ("visits kept", False),
    "visits_without_pair": ("ended in death, or outside the age or history limits", True),
    "pairs_of_one_history": ("visits that end a history: one pair each", False),
    "pairs_of_patients_without_split": ("of patients that the list of splits does not name", True),
    "pairs_after_held_out_began": ("not known before the held-out time began", True),
    "pairs_unlabelled_outside_train": ("no coded next visit, of tuning or held-out patients", True),
    "pairs_cut_by_sampling": ("beyond the sample limits of the config", True),
    "pairs": ("pairs", False),
    "pairs_labelled": ("of these with a coded next visit: labelled", False),
}
# The other counts, beside the drawing; one without an entry is told by its name.
ALSO_COUNTED = {
    "patients_read": "patients read",
    "patients_with_visits": "patients with a visit",
    "visits_without_diagnoses": "kept visits without any diagnosis",
    "visits_ended_in_death": "kept visits that ended in death",
    "visits_with_birth_after_admission": "kept visits before their patient’s birth: age left out",
    "visits_with_age_below_zero": "kept visits with an age below zero: age left out",
    "patients_with_sex_not_read": "patients with a sex other than F or M: sex left out",
    "codes_read": "codes of kept visits",
    "codes_after_discharge": "codes later than their stay’s discharge: left out",
    "next_visits_before_exclusions": "next visits before any exclusion",
    "next_visits_beyond_max_gap": "next visits later than the config lets count",
    "next_visits_outside_label_window": "next visits after the label window",
    "next_visits_without_diagnoses": "next visits without any diagnosis: not coded, so no labels",
    "pairs_with_next_visit": "visits that end a history and have a next visit",
    "pairs_unlabelled": "pairs without labels, used in training only",
}
COLUMNS = {
    "train": "train",
    "tuning": "tuning",
    "held_out": "held-out",
    "all": "all",
    "train_unlabelled": "train, unlabelled",
}
MEASURED = {
    "age_years": "Age, years: mean (SD)",
    "history_visits": "Visits of the history, the last one included",
    "diagnoses": "Diagnoses at the last visit",
    "medications": "Drugs at the last visit",
    "procedures": "Procedures at the last visit",
    "stay_days": "Length of the last stay, days",
    "gap_days": "Days to the next visit",
}
CATEGORIES = {"ethnicity": "Ethnicity", "admission_type": "Admission type, last visit"}
MAPPED = {
    "exact": "mapped",
    "prefix": "by prefix",
    "majority": "by majority",
    "override": "by table of truncated codes",
    "ambiguous": "ambiguous",
    "unmapped": "unmapped",
}

SPLIT = {
    "random": "Split by patient (hash seed {seed})",
    "temporal": "Split by patient: those first admitted last are held out",
    "file": "Split by patient, as a file of the site says",
    "source": "Split by patient, as the source says",
}


@dataclass(frozen=True)
class FlowStep:
    """A box of the cohort flow: what remains, or (`excluded`) what was left out on the way."""

    text: str
    count: int
    excluded: bool


@dataclass(frozen=True)
class Cell:
    """A table's cell: its text, and what stands small below it."""

    text: str
    below: str = ""


@dataclass(frozen=True)
class Row:
    """A table's row; `part` of the row with a heading above it."""

    heading: str
    cells: list[Cell]
    part: bool = False


@dataclass(frozen=True)
class Table:
    """A table ready to be written down: the heads of the columns after the first, and the rows."""

    heads: list[str]
    rows: list[Row]


@dataclass(frozen=True)
class DataPage:
    """Everything that the section shows."""

    flow: list[FlowStep]
    also_counted: list[Row]
    source_rows: Table | None
    table_one: Table
    times_known: bool
    split_said: str
    visits: Markup
    visits_said: str
    prevalence: Markup
    phenotypes: Table
    coverage: Table
    missed: list[Row]
    sets_labels: Table | None


def data_page(metrics: Metrics) -> DataPage:
    """The section's tables and drawings."""
    data = metrics.dataset
    ordered = dict(sorted(data.phenotypes.items(), key=lambda item: -item[1].next.count))
    return DataPage(
        flow=flow_steps(metrics.flow),
        also_counted=also_counted(metrics.flow),
        source_rows=_source_rows(data) if data.source_rows else None,
        table_one=_table_one(data),
        times_known=any(column.numbers["stay_days"] for column in data.table_one.values()),
        split_said=_split_said(metrics),
        visits=Markup(visits_figure(data.visits_per_patient)),
        visits_said=", ".join(f"{n}: {count:,}" for n, count in data.visits_per_patient.items()),
        prevalence=Markup(prevalence_figure(ordered)),
        phenotypes=_phenotypes(ordered),
        coverage=_coverage(data.coverage),
        missed=_missed(data.coverage),
        sets_labels=_sets_labels(data.coverage, list(ordered)),
    )


def _split_said(metrics: Metrics) -> str:
    splits = metrics.config["splits"]
    method = splits.get("method", "random") if isinstance(splits, dict) else "random"
    return SPLIT[method].format(seed=metrics.split_seed)


def flow_steps(counts: Mapping[str, int]) -> list[FlowStep]:
    """The boxes of the cohort flow, in order; what left nobody out is not drawn.

    >>> [step.text for step in flow_steps({"visits_read": 9, "visits_kept": 9})]
    ['visits read', 'visits kept']
    """
    known = dict(counts)
    if {"visits_kept", "pairs_of_one_history"} <= known.keys():
        known["visits_without_pair"] = known["visits_kept"] - known["pairs_of_one_history"]
    return [
        FlowStep(text=text, count=known[name], excluded=excluded)
        for name, (text, excluded) in FLOW.items()
        if name in known and (known[name] or not excluded)
    ]


def also_counted(counts: Mapping[str, int]) -> list[Row]:
    """Every count that the flow does not draw, the known ones first: no reason stays untold.

    >>> [row.heading for row in also_counted({"visits_read": 9, "visits_of_ghosts": 2})]
    ['visits of ghosts']
    """
    names = [name for name in ALSO_COUNTED if name in counts]
    names += sorted(set(counts) - set(ALSO_COUNTED) - set(FLOW))
    return [
        Row(ALSO_COUNTED.get(name, name.replace("_", " ")), [Cell(f"{counts[name]:,}")])
        for name in names
    ]


def _source_rows(data: Dataset) -> Table:
    """A row for each source table, and one for each reason to leave its rows out."""
    rows = []
    for name, table in data.source_rows.items():
        rows.append(Row(name, [Cell(f"{table.read:,}"), Cell(f"{table.used:,}"), Cell("")]))
        rows += [
            Row(reason.replace("_", " "), [Cell(""), Cell(""), Cell(f"{count:,}")], part=True)
            for reason, count in table.left_out.items()
            if count
        ]
    return Table(["rows read", "used", "left out"], rows)


def _table_one(data: Dataset) -> Table:
    columns = {
        name: column for name, column in data.table_one.items() if column.pairs or name == "all"
    }
    facts = list(columns.values())
    rows = [
        Row("Patients", [Cell(f"{column.patients:,}") for column in facts]),
        Row("Pairs", [Cell(f"{column.pairs:,}") for column in facts]),
        _measured_row("age_years", [column.numbers["age_years"] for column in facts]),
        Row("Women", [_rate_cell(column.women, missing=column.sex_missing) for column in facts]),
    ]
    for name, heading in CATEGORIES.items():
        rows += _category_rows(heading, [getattr(column, name) for column in facts])
    rows += [
        _measured_row(name, [column.numbers[name] for column in facts])
        for name in MEASURED
        if name != "age_years" and any(column.numbers[name] for column in facts)
    ]
    return Table([COLUMNS.get(name, name) for name in columns], rows)


def _measured_row(name: str, facts: Sequence[NumberFacts | None]) -> Row:
    """Median and quartiles; of the age also mean and deviation."""
    cells = []
    for fact in facts:
        if fact is None or fact.median is None:
            cells.append(Cell("–", _missing(fact.missing if fact else 0)))
            continue
        middle = f"{_short(fact.median)} [{_short(fact.q1)}, {_short(fact.q3)}]"
        if name == "age_years":
            mean = f"{_short(fact.mean)} ({_short(fact.sd)})"
            cells.append(Cell(mean, "; ".join(filter(None, [middle, _missing(fact.missing)]))))
        else:
            cells.append(Cell(middle, _missing(fact.missing)))
    return Row(MEASURED[name], cells)


def _short(value: float | None) -> str:
    """A number with one decimal at most.

    >>> _short(3.0), _short(61.25), _short(None)
    ('3', '61.2', '–')
    """
    return "–" if value is None else f"{value:,.1f}".removesuffix(".0")


def _missing(count: int) -> str:
    return f"{count:,} missing" if count else ""


def _percent(count: int, of: int) -> str:
    return f"{100 * count / of:.1f} %" if of else "–"


def _rate_cell(rate: Rate | None, *, missing: int = 0, total: bool = False) -> Cell:
    """A share, and below it the count (of the total) and what is missing."""
    if rate is None:
        return Cell("–", _missing(missing))
    counted = f"{rate.count:,} of {rate.of:,}" if total else f"{rate.count:,}"
    return Cell(
        _percent(rate.count, rate.of), "; ".join(filter(None, [counted, _missing(missing)]))
    )


def _category_rows(heading: str, facts: Sequence[CategoryFacts]) -> list[Row]:
    """A row with what is missing, and a row a category that occurs: its share of the known."""
    rows = [Row(heading, [Cell("", _missing(fact.missing)) for fact in facts])]
    for category in dict.fromkeys(name for fact in facts for name in fact.counts):
        counts = [(fact.counts.get(category, 0), sum(fact.counts.values())) for fact in facts]
        if any(count for count, _ in counts):
            cells = [Cell(_percent(count, of), f"{count:,}") for count, of in counts]
            rows.append(Row(category, cells, part=True))
    return rows


def _phenotypes(phenotypes: Mapping[str, PhenotypeFacts]) -> Table:
    heads = ["at the last visit", "at the next visit", "new onset", "persistence"]
    splits = list(next(iter(phenotypes.values())).next_by_split) if phenotypes else []
    rows = []
    for name, facts in phenotypes.items():
        overall = (facts.now, facts.next, facts.new_onset, facts.persistence)
        cells = [_rate_cell(rate, total=True) for rate in overall]
        cells += [_rate_cell(facts.next_by_split[split]) for split in splits]
        rows.append(Row(name, cells))
    return Table([*heads, *(f"next, {COLUMNS.get(split, split)}" for split in splits)], rows)


def _coverage(coverage: Mapping[str, SystemCoverage]) -> Table:
    """A row a code system: shares of its diagnoses, and the distinct codes below."""
    shown = [
        how
        for how in MAPPED
        if how in ("exact", "prefix", "ambiguous", "unmapped")
        or any(system.codes.get(how) for system in coverage.values())
    ]
    rows = []
    for name, system in coverage.items():
        total = sum(system.occurrences.values())
        cells = [Cell(f"{total:,}", _codes(sum(system.codes.values())))]
        cells += [
            Cell(_percent(system.occurrences.get(how, 0), total), _codes(system.codes.get(how, 0)))
            for how in shown
        ]
        cells.append(_tally_cell(system.labelling, total))
        rows.append(Row(name, cells))
    return Table(["diagnoses", *(MAPPED[how] for how in shown), "set a label"], rows)


def _codes(count: int) -> str:
    return f"{count:,} code{'' if count == 1 else 's'}"


def _tally_cell(tally: Tally, total: int) -> Cell:
    return Cell(_percent(tally.occurrences, total), _codes(tally.codes))


def _missed(coverage: Mapping[str, SystemCoverage]) -> list[Row]:
    """Per system the most frequent codes without a category, as one cell."""
    rows = []
    for name, system in coverage.items():
        for said, missed in (
            ("unmapped", system.most_frequent_unmapped),
            ("ambiguous", system.most_frequent_ambiguous),
        ):
            codes = ", ".join(f"{code.code} × {code.occurrences:,}" for code in missed)
            if codes:
                rows.append(Row(f"{name}, {said}", [Cell(codes)]))
    return rows


def _sets_labels(coverage: Mapping[str, SystemCoverage], names: Iterable[str]) -> Table | None:
    """A row a disease: how many diagnoses set it, by system, and by how many codes."""
    if not any(system.phenotypes for system in coverage.values()):
        return None
    none = Tally(codes=0, occurrences=0)
    rows = []
    for name in names:
        tallies = [system.phenotypes.get(name, none) for system in coverage.values()]
        cells = [Cell(f"{tally.occurrences:,}", _codes(tally.codes)) for tally in tallies]
        rows.append(Row(name, cells))
    return Table(list(coverage), rows)
