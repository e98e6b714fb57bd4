"""The section on the data says what the cohort's files say, and leaves no reason out."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import synthetic_run
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json, write_json
from ckd_ehr.metrics.dataset_facts import Dataset, PhenotypeFacts, Rate, read_dataset
from ckd_ehr.metrics.dataset_page import (
    Row,
    Table,
    also_counted,
    data_page,
    flow_steps,
)
from ckd_ehr.metrics.evaluation import write_evaluation
from ckd_ehr.metrics.figures import prevalence_figure, visits_figure
from ckd_ehr.metrics.report import render_report
from ckd_ehr.metrics.results import Metrics

FAILURE, HYPERTENSION, SHOCK = synthetic_run.LABELS


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cohort's folder of an evaluated run."""
    patch = pytest.MonkeyPatch()
    synthetic_run.stub_models(patch)
    context = synthetic_run.write_run(tmp_path_factory.mktemp("run"), synthetic_run.config_of())
    write_evaluation(context)
    patch.undo()
    return context.inputs["cohort"]


@pytest.fixture(scope="module")
def metrics(cohort: Path) -> Metrics:
    return Metrics.model_validate(read_json(cohort.parent / "08_evaluation.partial/metrics.json"))


def changed(metrics: Metrics, **parts: object) -> Metrics:
    """The metrics with other facts on the data, in the form of the files."""
    facts = metrics.dataset.model_dump(mode="json") | parts
    return metrics.model_copy(update={"dataset": Dataset.model_validate(facts)})


def row(table: Table, heading: str) -> Row:
    (found,) = [row for row in table.rows if row.heading == heading]
    return found


def texts(row: Row) -> list[str]:
    return [f"{cell.text}|{cell.below}" for cell in row.cells]


class SectionText(HTMLParser):
    """The words of the section on the data."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.feed(page[page.index('<h2 id="data">') : page.index('<h2 id="explanations">')])
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_metrics_hold_the_facts_of_the_cohorts_files(metrics: Metrics, cohort: Path) -> None:
    described = read_json(cohort / "dataset.json")
    facts = metrics.dataset.model_dump(mode="json")
    assert {key: facts[key] for key in described} == described
    assert facts["coverage"] == read_json(cohort / "coverage.json")
    assert facts["source_rows"] == read_json(cohort / "flow.json")["rows"]


def test_table_one_stands_by_split(metrics: Metrics) -> None:
    table = data_page(metrics).table_one
    assert table.heads == ["train", "tuning", "held-out", "all", "train, unlabelled"]
    assert texts(row(table, "Patients")) == ["80|", "30|", "40|", "150|", "80|"]
    assert texts(row(table, "Women")) == [
        "100.0 %|80", "100.0 %|30", "100.0 %|40", "100.0 %|150", "100.0 %|80",
    ]  # fmt: skip
    assert texts(row(table, "Age, years: mean (SD)")) == ["60 (0)|60 [60, 60]"] * 5
    assert texts(row(table, "Ethnicity"))[:2] == ["|80 missing", "|30 missing"]
    assert texts(row(table, "Days to the next visit"))[3:] == ["–|150 missing", "–|"]


def test_table_one_shows_shares_of_the_known_and_what_is_missing(metrics: Metrics) -> None:
    table_one: dict[str, Any] = metrics.dataset.model_dump(mode="json")["table_one"]
    for column in table_one.values():
        column["ethnicity"] = {"counts": {"WHITE": 15, "other": 5}, "missing": 2}
        column["women"], column["sex_missing"] = {"count": 1, "of": 8, "share": 0.125}, 3
        column["numbers"]["age_years"] |= {"mean": 61.26, "sd": 14.04, "missing": 1}
    table = data_page(changed(metrics, table_one=table_one)).table_one
    white = row(table, "WHITE")
    assert white.part
    assert texts(white) == ["75.0 %|15"] * 5
    assert texts(row(table, "other")) == ["25.0 %|5"] * 5
    assert texts(row(table, "Women")) == ["12.5 %|1; 3 missing"] * 5
    assert texts(row(table, "Age, years: mean (SD)")) == ["61.3 (14)|60 [60, 60]; 1 missing"] * 5


def test_synthetic_times_leave_their_rows_out_and_say_so(metrics: Metrics) -> None:
    table_one = metrics.dataset.model_dump(mode="json")["table_one"]
    for column in table_one.values():
        column["numbers"] |= {"stay_days": None, "gap_days": None}
    synthetic = changed(metrics, table_one=table_one)
    headings = {row.heading for row in data_page(synthetic).table_one.rows}
    assert not headings & {"Length of the last stay, days", "Days to the next visit"}
    assert "no real times" in SectionText(render_report(synthetic)).text
    assert "no real times" not in SectionText(render_report(metrics)).text


def test_an_empty_split_has_no_column_and_a_small_one_no_summary(metrics: Metrics) -> None:
    table_one = metrics.dataset.model_dump(mode="json")["table_one"]
    table_one["train_unlabelled"] |= {"patients": 0, "pairs": 0}
    table_one["tuning"] |= {"patients": 3, "pairs": 3, "women": None}
    none = dict.fromkeys(("mean", "sd", "q1", "median", "q3"))
    table_one["tuning"]["numbers"] = {
        name: none | {"missing": 0} for name in table_one["tuning"]["numbers"]
    }
    table = data_page(changed(metrics, table_one=table_one)).table_one
    assert table.heads == ["train", "tuning", "held-out", "all"]
    assert [texts(row)[1] for row in table.rows[:4]] == ["3|", "3|", "–|", "–|"]


def test_phenotypes_stand_with_the_most_frequent_first(metrics: Metrics) -> None:
    table = data_page(metrics).phenotypes
    facts = metrics.dataset.phenotypes
    assert [row.heading for row in table.rows] == sorted(
        facts, key=lambda name: -facts[name].next.count
    )
    failure, shown = facts[FAILURE], texts(row(table, FAILURE))
    for cell, rate in zip(
        shown, (failure.now, failure.next, failure.new_onset, failure.persistence), strict=False
    ):
        assert cell == f"{100 * rate.count / rate.of:.1f} %|{rate.count} of {rate.of}"
    assert texts(row(table, SHOCK))[-1] == "0.0 %|0"
    assert table.heads[-3:] == ["next, train", "next, tuning", "next, held-out"]


def test_coverage_shows_shares_of_each_code_system_and_the_misses(metrics: Metrics) -> None:
    hows = ("exact", "prefix", "majority", "override", "ambiguous", "unmapped")
    system = {
        "codes": dict(zip(hows, (5, 2, 0, 0, 1, 3), strict=True)),
        "occurrences": dict(zip(hows, (900, 50, 0, 0, 20, 30), strict=True)),
        "most_frequent_unmapped": [{"code": "V9", "occurrences": 25}],
        "most_frequent_ambiguous": [{"code": "518", "occurrences": 20}],
        "labelling": {"codes": 1, "occurrences": 400},
        "phenotypes": {FAILURE: {"codes": 1, "occurrences": 400}},
    }
    other = system | {"most_frequent_unmapped": [], "most_frequent_ambiguous": []}
    coverage = {"ICD9CM": system, "NAME": other | {"phenotypes": {}}}
    page = data_page(changed(metrics, coverage=coverage))
    assert page.coverage.heads == [
        "diagnoses", "mapped", "by prefix", "ambiguous", "unmapped", "set a label",
    ]  # fmt: skip
    assert texts(row(page.coverage, "ICD9CM")) == [
        "1,000|11 codes", "90.0 %|5 codes", "5.0 %|2 codes", "2.0 %|1 code", "3.0 %|3 codes",
        "40.0 %|1 code",
    ]  # fmt: skip
    assert [(row.heading, texts(row)) for row in page.missed] == [
        ("ICD9CM, unmapped", ["V9 × 25|"]),
        ("ICD9CM, ambiguous", ["518 × 20|"]),
    ]
    assert page.sets_labels is not None
    assert texts(row(page.sets_labels, FAILURE)) == ["400|1 code", "0|0 codes"]
    truncated = system | {"codes": dict(zip(hows, (5, 2, 4, 0, 1, 3), strict=True))}
    heads = data_page(changed(metrics, coverage={"UCI_ICD9": truncated})).coverage.heads
    assert heads[3] == "by majority"


def test_flow_draws_what_was_left_out_in_order() -> None:
    counts = {
        "pairs": 5,
        "visits_read": 12,
        "visits_admitted_after_death": 2,
        "visits_discharged_before_admission": 0,
        "visits_kept": 10,
        "pairs_of_one_history": 9,
    }
    steps = [
        (step.text.split(" (")[0][:16], step.count, step.excluded) for step in flow_steps(counts)
    ]
    assert steps == [
        ("visits read", 12, False),
        ("admitted after d", 2, True),
        ("visits kept", 10, False),
        ("ended in death, ", 1, True),
        ("visits that end ", 9, False),
        ("pairs", 5, False),
    ]


def test_a_count_that_the_flow_does_not_draw_is_told_beside_it() -> None:
    counts = {"visits_read": 9, "codes_after_discharge": 1_200, "visits_of_no_ward": 2}
    assert [(row.heading, texts(row)) for row in also_counted(counts)] == [
        ("codes later than their stay’s discharge: left out", ["1,200|"]),
        ("visits of no ward", ["2|"]),
    ]


def test_rows_of_source_tables_stand_with_their_reasons(metrics: Metrics) -> None:
    table = data_page(metrics).source_rows
    assert table is not None
    assert [(row.heading, row.part, texts(row)) for row in table.rows] == [
        ("ADMISSIONS.csv", False, ["305|", "303|", "|"]),
        ("without a patient", True, ["|", "|", "2|"]),
    ]
    without = changed(metrics, source_rows={})
    assert data_page(without).source_rows is None
    assert "Rows of the source tables" not in SectionText(render_report(without)).text


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("random", "Split by patient (hash seed 0); no patient is in two splits"),
        ("temporal", "those first admitted last are held out; no patient"),
        ("file", "as a file of the site says; no patient"),
        ("source", "as the source says; no patient"),
    ],
)
def test_the_section_says_how_patients_were_split(metrics: Metrics, method: str, says: str) -> None:
    splits = metrics.config["splits"]
    assert isinstance(splits, dict)
    config = metrics.config | {"splits": splits | {"method": method}}
    page = render_report(metrics.model_copy(update={"config": config}))
    assert says in SectionText(page).text
    assert ("or later years is not measured" in page) == (method != "temporal")


def test_the_section_says_when_the_data_are_simulated(metrics: Metrics) -> None:
    simulated = metrics.model_copy(update={"simulated": True})
    assert "The data are simulated" in SectionText(render_report(simulated)).text
    assert "simulated" not in SectionText(render_report(metrics)).text


def test_the_section_shows_every_part(metrics: Metrics) -> None:
    text = SectionText(render_report(metrics)).text
    for heading in (
        "From records to pairs",
        "Rows of the source tables",
        "Table 1: the pairs by split",
        "How often each disease is coded",
        "How the diagnosis codes were mapped",
    ):
        assert heading in text
    assert "Shock 10.7 % 16 of 150" in text


def test_drawings_show_numbers_and_names_as_they_are() -> None:
    bars = visits_figure({"1": 38_983, "2": 5_160, "11+": 33})
    assert all(f">{text}</text>" in bars for text in ("38,983", "5,160", "33", "11+"))
    rate = Rate(count=1, of=4, share=0.25)
    facts = PhenotypeFacts(
        now=rate, next=rate, new_onset=rate, persistence=rate, next_by_split={"train": rate}
    )
    dots = prevalence_figure({"Fever <38 $C$": facts, "x" * 60: facts})
    assert "Fever &lt;38 $C$" in dots
    assert f">{'x' * 45}…</text>" in dots
    assert len(re.findall(r"<use ", dots)) >= 6


@pytest.mark.parametrize("name", ["dataset.json", "coverage.json"])
def test_a_cohort_of_another_version_is_refused(cohort: Path, tmp_path: Path, name: str) -> None:
    for file in ("dataset.json", "coverage.json", "flow.json"):
        write_json(tmp_path / file, read_json(cohort / file))
    assert read_dataset(tmp_path).visits_per_patient["2"] == 150
    write_json(tmp_path / name, {"ICD9CM": {"codes": {}}})
    with pytest.raises(CkdEhrError, match="rerun the stage cohort"):
        read_dataset(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CkdEhrError, match=name):
        read_dataset(tmp_path)
