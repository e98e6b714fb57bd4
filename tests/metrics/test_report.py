"""The report stands alone, says what the figures say, and shows no real patient."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import synthetic_run
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json
from ckd_ehr.metrics.evaluation import write_evaluation
from ckd_ehr.metrics.report import (
    distillation_sentence,
    explain_labels,
    mark_narrative,
    render_report,
)
from ckd_ehr.metrics.results import Difference, Figure, Metrics
from ckd_ehr.metrics.shown import verdict

VOID = {"meta", "link", "br", "img", "hr", "input", "use", "path"}


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> Metrics:
    patch = pytest.MonkeyPatch()
    synthetic_run.stub_models(patch)
    context = synthetic_run.write_run(
        tmp_path_factory.mktemp("run"), synthetic_run.config_of(), held_out=40
    )
    write_evaluation(context)
    patch.undo()
    return Metrics.model_validate(read_json(context.folder / "metrics.json"))


class Page(HTMLParser):
    """Collects ids, references, and whether tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.references.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_report_needs_nothing_from_outside(metrics: Metrics) -> None:
    text = render_report(metrics)
    page = Page(text)
    assert page.open == []
    assert all(reference.startswith("#") for reference in page.references)
    assert {reference[1:] for reference in page.references} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "http" not in text
    assert "<script" not in text
    assert not re.search(r"@import|url\((?!#)", text)


def test_report_holds_the_table_of_models(metrics: Metrics) -> None:
    text = render_report(metrics)
    for model in metrics.models.values():
        figure = model.overall["macro_auprc"]
        cell = f"<td>{figure.value:.3f}<small>[{figure.low:.3f}, {figure.high:.3f}]</small></td>"
        assert cell in text
    assert "given that there is" in text
    assert len(re.findall(r'<figure [^>]*role="img" aria-label="', text)) == 4
    assert text.count("<svg") == 4
    assert "ccs table 4." in text
    assert "prefers-color-scheme: dark" in text


def test_report_shows_a_dash_for_labels_of_one_class(metrics: Metrics) -> None:
    row = re.search(r'<th scope="row">Shock</th>.*?</tr>', render_report(metrics), re.DOTALL)
    assert row is not None
    assert row.group().count("<td>–<small>–</small></td>") == 6


def test_report_refuses_to_explain_a_real_patient(metrics: Metrics) -> None:
    with pytest.raises(CkdEhrError, match="simulated data only"):
        render_report(metrics, synthetic_run.example_of())


def test_report_explains_a_simulated_patient(metrics: Metrics) -> None:
    simulated = metrics.model_copy(update={"simulated": True, "no_ceiling": "x"})
    text = render_report(simulated, synthetic_run.example_of())
    assert '<mark class="up" style="--strength: 1.0" title="+1.50 log-odds">' in text
    assert (
        '<mark class="down" style="--strength: 0.5" title="-0.75 log-odds">Diabetes</mark>' in text
    )
    assert "Heart &lt;failure&gt;" in text
    assert "Heart <failure>" not in text
    assert text.count("More than half of the evidence") == 2
    assert synthetic_run.example_of().pair_id not in text


def test_explained_labels_are_the_highest_risks_with_the_strongest_concepts_first() -> None:
    first, second, third = explain_labels(synthetic_run.example_of())
    assert [item.explanation.probability for item in (first, second, third)] == [0.6, 0.2, 0.1]
    assert [concept.text for concept in first.strongest][:2] == ["Heart <failure>", "Diabetes"]
    assert first.concept_log_odds == pytest.approx(0.75)
    assert first.reading_share == pytest.approx(0.1 / 2.35)


def test_marked_narrative_is_the_narrative() -> None:
    narrative = synthetic_run.example_of().narrative
    pieces = mark_narrative(narrative, {"c0": 1.0, "c1": -0.5})
    assert "".join(piece.text for piece in pieces) == narrative.text
    marked = [(p.text, p.log_odds, p.strength) for p in pieces if p.log_odds is not None]
    assert marked == [("Heart <failure>", 1.0, 1.0), ("Diabetes", -0.5, 0.5)]


@pytest.mark.parametrize(
    ("figure", "says"),
    [
        (Figure(value=0.02, low=0.01, high=0.03), "Distillation helps"),
        (Figure(value=-0.02, low=-0.03, high=-0.01), "Distillation harms"),
        (Figure(value=0.01, low=-0.01, high=0.03), "is not shown to help"),
        (Figure(value=0.01), "cannot be said without an interval"),
        (Figure(value=None), "cannot be said: no label"),
    ],
)
def test_the_report_says_whether_distillation_helps(figure: Figure, says: str) -> None:
    paired = Difference(
        model="student_distilled", minus="student_hard", figures={"macro_auprc": figure}
    )
    assert says in distillation_sentence([paired])


def test_verdict_of_an_interval_with_zero_claims_nothing() -> None:
    figures = {"macro_auprc": Figure(value=0.01, low=-0.01, high=0.03)}
    paired = Difference(model="a", minus="b", figures=figures)
    assert verdict(paired, names={"a": "A"}) == (
        "A is not shown to differ from b: macro-AUPRC +0.010 [-0.010, +0.030] includes zero."
    )


def test_template_is_package_data() -> None:
    import tomllib

    root = Path(__file__).parents[2]
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["ckd_ehr"]
    assert "**/*.html" in patterns
