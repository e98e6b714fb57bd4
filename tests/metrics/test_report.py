"""The report stands alone, says what the figures say, and shows no real patient."""

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

import synthetic_run
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json
from ckd_ehr.metrics.curve_figures import TERM_LOOKS
from ckd_ehr.metrics.drawings import drawings
from ckd_ehr.metrics.evaluation import write_evaluation
from ckd_ehr.metrics.figures import BAR, BEST, LOOKS
from ckd_ehr.metrics.report import (
    distillation_sentence,
    explain_labels,
    mark_narrative,
    render_markdown,
    render_report,
    write_report,
)
from ckd_ehr.metrics.results import MODELS, Difference, Figure, Metrics
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
    assert len(re.findall(r'<div class="drawing" role="img" aria-label="', text)) == 10
    assert text.count("<svg") == 10
    assert "ccs table 4." in text
    assert "prefers-color-scheme: dark" in text


def test_report_shows_a_dash_for_labels_of_one_class(metrics: Metrics) -> None:
    rows = re.findall(r'<th scope="row">Shock</th>.*?</tr>', render_report(metrics), re.DOTALL)
    assert max(row.count("<td>–<small>–</small></td>") for row in rows) == 6


def test_every_drawing_has_its_table_and_its_file(metrics: Metrics, tmp_path: Path) -> None:
    made = drawings(metrics)
    assert list(made) == [
        "models", "calibration", "precision-recall", "roc", "decisions", "diseases",
        "faithfulness", "terms",
    ]  # fmt: skip
    write_report(tmp_path, metrics, None)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("<summary>The same as a table</summary>") == len(made)
    for name, one in made.items():
        assert all(len(row.cells) == len(one.table.heads) for row in one.table.rows), name
        assert any(cell.text for row in one.table.rows for cell in row.cells), name
    files = {path.stem for path in (tmp_path / "figures").glob("*.svg")}
    assert files == {*made, "visits", "prevalence"}
    for path in (tmp_path / "figures").glob("*.svg"):
        root = ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_markdown_holds_the_headline_and_the_drawings(metrics: Metrics) -> None:
    text = render_markdown(metrics)
    figure = metrics.models["student_distilled"].overall["macro_auprc"]
    assert (
        f"| student, distilled | {figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}] |" in text
    )
    assert distillation_sentence(metrics.differences) in text
    assert "](figures/roc.svg)" in text
    assert text.index("Before you believe it") < text.index("## Models")
    assert synthetic_run.HIDDEN_TEXT not in text


def test_the_table_of_the_roc_curve_ends_where_all_are_called_ill(metrics: Metrics) -> None:
    rows = drawings(metrics)["roc"].table.rows
    assert [cell.text for cell in rows[-1].cells] == ["1.000"] * 6
    teacher = list(MODELS).index("teacher")
    assert rows[0].cells[teacher].text == "0.000"
    assert rows[1].cells[teacher].text == "1.000"  # the synthetic teacher is never wrong


def test_headings_do_not_skip_a_level(metrics: Metrics) -> None:
    simulated = metrics.model_copy(update={"simulated": True, "no_ceiling": "x"})
    text = render_report(simulated, synthetic_run.example_of())
    levels = [int(level) for level in re.findall(r"<h([1-6])", text)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


@pytest.mark.parametrize("page", ["#ffffff", "#14181d"])
def test_lines_stand_out_from_light_and_dark_pages(page: str) -> None:
    colours = {colour for colour, _ in LOOKS.values()} | {BEST, BAR, *TERM_LOOKS}
    assert {colour for colour in colours if contrast(colour, page) < 3} == set()


def contrast(first: str, second: str) -> float:
    """WCAG 2's ratio of the relative luminances."""
    lights = []
    for colour in (first, second):
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


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
    assert {"**/*.html", "**/*.md", "**/*.css"} <= set(patterns)
