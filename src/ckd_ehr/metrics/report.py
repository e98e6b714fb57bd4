"""metrics.json → report.html: one file that opens anywhere, prints, and needs no network.

In: the metrics and, for simulated patients only, one explained prediction. Out: HTML and Markdown
text, and the drawings as files. Every figure comes from the metrics, and where patients are
simulated, every caption says so. Ignores: models, and any identifier of a patient.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import yaml
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.records import ConceptEvidence, Explanation, LabelExplanation, Narrative
from ckd_ehr.metrics.dataset_page import data_page
from ckd_ehr.metrics.drawings import ERASED, Drawn, drawings
from ckd_ehr.metrics.figures import NAMES, RECORD, TRUE_STATE, as_file, ceiling_figure
from ckd_ehr.metrics.flags import STUDENT, flags_of
from ckd_ehr.metrics.label_facts import cell_prevalence
from ckd_ehr.metrics.results import (
    FEWEST_PATIENTS,
    MODELS,
    PRIMARY,
    Ceiling,
    Difference,
    Distance,
    Metrics,
    Reference,
)
from ckd_ehr.metrics.shown import leader_said, show, show_interval, verdict

EXPLAINED_LABELS = 3
EXPLAINED_CONCEPTS = 6
FIGURES = "figures"


@dataclass(frozen=True)
class Piece:
    """A stretch of a narrative; `log_odds` is None outside concepts, `strength` is in [0, 1]."""

    text: str
    log_odds: float | None = None
    strength: float = 0.0


@dataclass(frozen=True)
class CeilingTable:
    """A reference with the rows below it: what each is called, and its distance."""

    name: str
    reference: Reference
    rows: list[tuple[str, Distance]]


@dataclass(frozen=True)
class ExplainedLabel:
    """One risk of the explained example, ready to be drawn."""

    explanation: LabelExplanation
    pieces: list[Piece]
    strongest: list[ConceptEvidence]
    concept_log_odds: float
    reading_share: float


def write_report(folder: Path, metrics: Metrics, example: Explanation | None) -> None:
    """Write report.html, report.md, and each drawing as a file in figures/."""
    drawn = drawings(metrics)
    (folder / "report.html").write_text(render_report(metrics, example, drawn), encoding="utf-8")
    (folder / "report.md").write_text(render_markdown(metrics, drawn), encoding="utf-8")
    (folder / FIGURES).mkdir(exist_ok=True)
    page = data_page(metrics)
    svgs = {name: one.svg for name, one in drawn.items()}
    svgs |= {"visits": page.visits, "prevalence": page.prevalence}
    if metrics.ceiling is not None:
        svgs["ceiling"] = Markup(draw_ceiling(metrics.ceiling))
    for name, svg in svgs.items():
        (folder / FIGURES / f"{name}.svg").write_text(as_file(str(svg)), encoding="utf-8")


def render_report(
    metrics: Metrics,
    example: Explanation | None = None,
    drawn: Mapping[str, Drawn] | None = None,
) -> str:
    """The report as HTML text, with these drawings or, by default, those of the metrics.

    Raises:
        CkdEhrError: an example of patients that are not simulated is refused.
    """
    if example is not None and not metrics.simulated:
        raise CkdEhrError(
            f"report of '{metrics.data_set}': a patient's text is shown of simulated data only; "
            "look at one pair with: ckd-ehr explain RUN --pair ID"
        )
    return _rendered(
        "report_template.html",
        metrics,
        drawn=drawn or drawings(metrics),
        labels=sorted(metrics.labels, key=lambda name: -(metrics.labels[name].prevalence or 0)),
        prevalence=cell_prevalence(
            metrics.labels, metrics.counts[metrics.scored_split].labelled_pairs
        ),
        page=data_page(metrics),
        of_simulated=" (simulated patients)" if metrics.simulated else "",
        simulated="Simulated patients. " if metrics.simulated else "",
        ceiling=Markup(draw_ceiling(metrics.ceiling)),
        record_name=RECORD,
        ceilings=ceiling_tables(metrics.ceiling),
        example=explain_labels(example) if example else [],
        erased=ERASED,
        config=yaml.safe_dump(metrics.config, sort_keys=False, allow_unicode=True),
    )


def render_markdown(metrics: Metrics, drawn: Mapping[str, Drawn] | None = None) -> str:
    """The report's main tables as Markdown, with links to the drawings' files."""
    drawn = drawn or drawings(metrics)
    return _rendered("report_template.md", metrics, drawn=drawn, folder=FIGURES)


def _rendered(template: str, metrics: Metrics, **more: object) -> str:
    """A template filled with the metrics and what both kinds of report say of them."""
    environment = Environment(
        autoescape=template.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(_template),
    )
    environment.filters.update(
        show=show, interval=show_interval, verdict=verdict, leader=leader_said
    )
    return environment.get_template(template).render(
        metrics=metrics,
        models=[name for name in MODELS if name in metrics.models],
        names=NAMES,
        fewest_patients=FEWEST_PATIENTS,
        best=best_model(metrics),
        distillation=distillation_sentence(metrics.differences),
        flags=flags_of(metrics),
        chance=mean_prevalence(metrics),
        speedup=speedup(metrics),
        **more,
    )


def draw_ceiling(ceiling: Ceiling | None) -> str:
    """The drawing of models and the best possible, if that is known."""
    if ceiling is None:
        return ""
    return ceiling_figure(ceiling, MODELS, chance=ceiling.true_state.chance[PRIMARY])


def ceiling_tables(ceiling: Ceiling | None) -> list[CeilingTable]:
    """The best from the record first: it is the one that a model can come close to."""
    if ceiling is None:
        return []
    tables = []
    for name, reference in ((RECORD, ceiling.record), (TRUE_STATE, ceiling.true_state)):
        if reference is not None:
            rows = [(NAMES[model], reference.models[model]) for model in MODELS]
            if name == RECORD and ceiling.true_state_there is not None:
                rows.insert(0, (TRUE_STATE, ceiling.true_state_there))
            tables.append(CeilingTable(name, reference, rows))
    return tables


def _template(name: str) -> str:
    """A template of this package."""
    return resources.files(__package__ or "").joinpath(name).read_text(encoding="utf-8")


def mean_prevalence(metrics: Metrics) -> float | None:
    """The mean prevalence of the scored labels: the macro-AUPRC of chance."""
    scored = [fact.prevalence or 0.0 for fact in metrics.labels.values() if fact.scored]
    return sum(scored) / len(scored) if scored else None


def best_model(metrics: Metrics) -> str | None:
    """The model with the highest macro-AUPRC, if any has one."""
    scored = {
        name: value
        for name, model in metrics.models.items()
        if (value := model.overall[PRIMARY].value) is not None
    }
    return max(scored, key=lambda name: scored[name]) if scored else None


def distillation_sentence(differences: Sequence[Difference]) -> str:
    """Whether distillation helped, from the paired interval of distilled − hard alone."""
    found = [d for d in differences if (d.model, d.minus) == ("student_distilled", "student_hard")]
    figure = found[0].figures.get(PRIMARY) if found else None
    if figure is None or figure.value is None:
        return "Whether distillation helps cannot be said: no label could be scored."
    size = f"macro-AUPRC {figure.value:+.3f} {show_interval(figure)}".rstrip()
    if figure.low is None or figure.high is None:
        return f"Whether distillation helps cannot be said without an interval ({size})."
    if figure.low > 0:
        return f"Distillation helps the student here: {size} over the same BERT on hard labels."
    if figure.high < 0:
        return f"Distillation harms the student here: {size} against the same BERT on hard labels."
    return (
        f"Distillation is not shown to help the student here: {size} against the same BERT on "
        "hard labels, an interval that includes zero."
    )


def speedup(metrics: Metrics) -> float | None:
    """How many student predictions fit into one of the teacher (medians)."""
    times = [metrics.latency.get(name, {}).get("p50_ms") for name in ("teacher", STUDENT)]
    return times[0] / times[1] if times[0] and times[1] else None


def explain_labels(example: Explanation) -> list[ExplainedLabel]:
    """The labels with the highest risks, each with the narrative marked by its evidence."""
    ranked = sorted(example.labels, key=lambda label: -label.probability)
    return [_explain_label(label, example.narrative) for label in ranked[:EXPLAINED_LABELS]]


def _explain_label(label: LabelExplanation, narrative: Narrative) -> ExplainedLabel:
    by_strength = sorted(label.concepts, key=lambda concept: -abs(concept.log_odds))
    total = sum(abs(concept.log_odds) for concept in label.concepts)
    reading = abs(label.reading_state_log_odds)
    return ExplainedLabel(
        explanation=label,
        pieces=mark_narrative(narrative, {c.concept_id: c.log_odds for c in label.concepts}),
        strongest=by_strength[:EXPLAINED_CONCEPTS],
        concept_log_odds=sum(concept.log_odds for concept in label.concepts),
        reading_share=reading / (reading + total) if reading + total > 0 else 0.0,
    )


def mark_narrative(narrative: Narrative, log_odds: Mapping[str, float]) -> list[Piece]:
    """Cut the text at its concepts; each one's strength is relative to the strongest."""
    strongest = max((abs(value) for value in log_odds.values()), default=0.0) or 1.0
    pieces, position = [], 0
    for span in sorted(narrative.spans, key=lambda span: span.start):
        value = log_odds.get(span.concept_id)
        if value is None or span.start < position:
            continue
        pieces.append(Piece(narrative.text[position : span.start]))
        text = narrative.text[span.start : span.end]
        pieces.append(Piece(text, log_odds=value, strength=round(abs(value) / strongest, 2)))
        position = span.end
    pieces.append(Piece(narrative.text[position:]))
    return [piece for piece in pieces if piece.text]
