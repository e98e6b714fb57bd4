"""What the command line shows of an explanation and of a report; text in the terminal only.

In: an `Explanation`, what the student's folder says of it. Out: Rich renderables. Ignores: how
risks are computed. Shows patient text: for commands that a user called for one pair.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.records import ConceptEvidence, Explanation, LabelExplanation, Narrative
from ckd_ehr.doctor import Finding, Forecast, Speed, show_bytes

if TYPE_CHECKING:
    from ckd_ehr.metrics.results import Figure
    from ckd_ehr.metrics.run_comparison import RunComparison
    from ckd_ehr.metrics.sources import SourceScores

WEAK_SHARE = 0.5
CAVEAT = (
    "Risks are for the patient's next hospital visit, at any later time, given that there is one. "
    "They are associations found in past records, not causes. "
    "They support a clinician's judgement and do not replace it."
)
FURTHER_KNOWLEDGE = 3  # pieces shown although other concepts weigh more
TOLD = " •"  # marks a treatment that stands out
EFFICACY_CAVEAT = (
    "Counted on train patients with the disease at one visit who came back: is it no longer coded? "
    "Adjusted for age, sex, numbers of diagnoses, earlier visits and other drugs, the stay, an old "
    "disease, the other diseases, and the other drugs that stand out. These are associations in "
    "past records, not effects: who is given a drug differs from who is not."
)
SMALLEST_SHOWN = 0.001


def show(renderable: object) -> None:
    """Print to the terminal."""
    from rich.console import Console

    Console(highlight=False, soft_wrap=False).print(renderable)


def show_explanation(
    explanation: Explanation, facts: Mapping[str, object], labels: Sequence[str], *, top: int
) -> RenderableType:
    """A pair's narrative and what the risks of `labels` rest on.

    Args:
        facts: the student's `predictor.json`.
        top: concepts shown for each risk.
    """
    chosen = {label.label: label for label in explanation.labels}
    return Group(
        _headline(explanation, facts),
        Padding(Text(explanation.narrative.text, style="italic"), (1, 2)),
        *(_show_label(chosen[name], top=top) for name in labels),
        Text(_basis(facts), style="dim"),
        Text(CAVEAT, style="dim"),
    )


def highest_risks(explanation: Explanation, count: int) -> list[str]:
    """The labels with the highest probabilities, highest first."""
    ranked = sorted(explanation.labels, key=lambda label: -label.probability)
    return [label.label for label in ranked[:count]]


def find_label(wanted: str, known: Sequence[str]) -> str:
    """The label of this name, whatever its case; a part of one name will do.

    >>> find_label("shock", ["Shock", "Pneumonia"])
    'Shock'
    """
    wanted = wanted.strip().strip("\"'")
    folded = {name.casefold(): name for name in known}
    if not wanted:
        raise CkdEhrError(f"a label without a name; this run has: {'; '.join(known)}")
    if wanted.casefold() in folded:
        return folded[wanted.casefold()]
    parts = [name for key, name in folded.items() if wanted.casefold() in key]
    if len(parts) == 1:
        return parts[0]
    if len(parts) > 1:
        raise CkdEhrError(f"label '{wanted}' is part of several: {'; '.join(parts)}")
    near = difflib.get_close_matches(wanted.casefold(), folded, n=1)
    remedy = f"did you mean '{folded[near[0]]}'?" if near else f"it has: {'; '.join(known)}"
    raise CkdEhrError(f"no label '{wanted}' in this run; {remedy}")


def _headline(explanation: Explanation, facts: Mapping[str, object]) -> Text:
    narrative = explanation.narrative
    visits = len({span.visit_index for span in narrative.spans if span.visit_index >= 0})
    pieces = sum(span.from_knowledge for span in narrative.spans)
    read = f"{len(narrative.spans) - pieces} concepts of {visits} visit{'' if visits == 1 else 's'}"
    cut = f" ({narrative.concepts_cut} more cut by the token budget)"
    known = f" and {pieces} pieces of knowledge ({narrative.knowledge_cut} more cut)"
    return Text.assemble(
        (f"Pair {explanation.pair_id}", "bold"),
        f"  {explanation.model} of run '{facts.get('run', '?')}' reads {read}"
        f"{cut if narrative.concepts_cut else ''}"
        f"{known if pieces or narrative.knowledge_cut else ''}:",
    )


def _show_label(label: LabelExplanation, *, top: int) -> RenderableType:
    title = Text.assemble(
        (label.label, "bold"),
        f"  {label.probability:.1%}",
        (f"  (in the training records {label.prevalence:.1%})", "dim"),
        "" if label.spread is None else f"  opinions differ by {label.spread:.2f} in log-odds",
    )
    ranked = sorted(label.concepts, key=lambda concept: -abs(concept.log_odds))
    rest = sum(concept.log_odds for concept in ranked[top:])
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right")
    for concept in ranked[:top]:
        table.add_row(_signed(concept.log_odds), Text(concept.text), Text(_place(concept), "dim"))
        if concept.citation:
            table.add_row("", Text(f"  {concept.citation}", "dim"), "")
    if ranked[top:]:
        table.add_row(_signed(rest), f"{len(ranked) - top} other concepts", "")
    table.add_row(
        _signed(label.reading_state_log_odds),
        "the text as a whole",
        Text(f"{label.reading_state_share:.0%} of all evidence", "dim"),
    )
    table.add_row(_signed(label.base_log_odds), "base", Text("log-odds without evidence", "dim"))
    if label.knowledge_share:
        share = f"{label.knowledge_share:.0%} of all evidence"
        table.add_row("", "of all this, medical knowledge", Text(share, "dim"))
    for concept in [concept for concept in ranked[top:] if concept.citation][:FURTHER_KNOWLEDGE]:
        table.add_row(
            _signed(concept.log_odds), Text(f"  {concept.text}"), Text("one of the others", "dim")
        )
        table.add_row("", Text(f"  {concept.citation}", "dim"), "")
    warning = [Padding(_weakness(label), (0, 2))] if label.reading_state_share > WEAK_SHARE else []
    return Group(title, Padding(table, (0, 2)), *warning, Text())


def _weakness(label: LabelExplanation) -> Text:
    return Text(
        f"Weak explanation: {label.reading_state_share:.0%} of the evidence rests on the text as "
        "a whole and cannot be attributed to a concept.",
        style="yellow",
    )


def _place(concept: ConceptEvidence) -> str:
    if concept.visit_index >= 0:
        return f"visit {concept.visit_index + 1}, {concept.kind}"
    return f"knowledge, {concept.kind}" if concept.citation else concept.kind


def _signed(log_odds: float) -> Text:
    return Text(f"{log_odds:+.2f}", style="red" if log_odds > 0 else "blue")


def _basis(facts: Mapping[str, object]) -> str:
    return (
        "Signed numbers are parts of the calibrated log-odds; with the base they add up to the "
        f"risk. Trained on {facts.get('train_pairs', '?')} pairs of source "
        f"'{facts.get('data_source', '?')}', calibrated on {facts.get('calibrated_on', '?')}."
    )


def show_findings(findings: Sequence[Finding]) -> RenderableType:
    """What `doctor` found, one line each, with remedies."""
    styles = {"ok": "green", "note": "yellow", "missing": "bold red"}
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        found = Text(finding.found)
        if finding.remedy:
            found.append(f"\n→ {finding.remedy}", style="dim")
        table.add_row(Text(finding.status, styles[finding.status]), finding.topic, found)
    return table


def show_forecast(forecast: Forecast, speed: Speed) -> RenderableType:
    """What the demo will take on this machine."""
    size = forecast.download_bytes
    download = "of unknown size" if size is None else show_bytes(size) if size else "nothing"
    return Text(
        f"\nMatrix products: {speed.bf16_gigaflops:,.0f} GFLOP/s in bf16, "
        f"{speed.fp32_gigaflops:,.0f} in fp32\n"
        f"ckd-ehr demo here: about {max(1, round(forecast.seconds / 60))} minutes, "
        f"{show_bytes(forecast.disk_bytes)} of disk, download: {download}"
    )


def show_efficacy(rows: Sequence[Mapping[str, Any]], label: str, *, top: int) -> RenderableType:
    """The treatments of one disease, the best first; rows of the efficacy table."""
    table = Table(box=None, padding=(0, 1), title=Text(label, "bold"), title_justify="left")
    table.add_column("treatment", overflow="fold", min_width=12)
    for heading in ("gone with", "gone without", "odds ratio*", "q"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows[:top]:
        ratio, low, high = (math.exp(row[key]) for key in ("shrunk_log_odds", "low", "high"))
        table.add_row(
            Text(f"{row['treatment']}{TOLD if row['low'] > 0 else ''}"),
            _share(row["treated_resolved"], row["treated"]),
            _share(row["untreated_resolved"], row["untreated"]),
            f"{ratio:.2f} [{low:.2f}, {high:.2f}]",
            "all/none" if row["separated"] else _q_value(row["q_value"]),
        )
    hidden = f"{len(rows) - top} more treatments are not shown. " if len(rows) > top else ""
    stand_out = any(row["low"] > 0 for row in rows)
    none = f"{TOLD.strip()} stands out, and may be told. " if stand_out else "None stands out. "
    scale = "* adjusted and shrunk, 95 % interval. "
    return Group(table, Text(f"\n{scale}{none}{hidden}{EFFICACY_CAVEAT}", style="dim"))


def _q_value(value: float) -> str:
    return "<0.001" if value < SMALLEST_SHOWN else f"{value:.3f}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%} of {whole:,}"


def show_statements(statements: Sequence[tuple[str, str]], *, of: int) -> RenderableType:
    """Guideline statements, each with its citation; `of` says how many there are in all."""
    parts = [
        Group(Text(text), Padding(Text(cited, "dim"), (0, 0, 1, 4))) for text, cited in statements
    ]
    said = f"{len(statements)} of {of} statements. Digests are not the guidelines themselves."
    return Group(*parts, Text(said, style="dim"))


def show_sources(narrative: Narrative, citations: Mapping[str, str]) -> RenderableType:
    """A narrative, and under it each piece of knowledge with its source."""
    table = Table.grid(padding=(0, 2))
    for span in narrative.spans:
        if span.from_knowledge:
            table.add_row(Text(span.kind, "dim"), Text(narrative.text[span.start : span.end]))
            table.add_row("", Text(citations[span.concept_id], "dim"))
    cut = (
        f"Cut by the token budget: {narrative.knowledge_cut} pieces of knowledge, "
        f"{narrative.concepts_cut} concepts of the record."
    )
    return Group(
        Padding(Text(narrative.text, style="italic"), (0, 2, 1, 2)), table, Text(cut, style="dim")
    )


def show_committee(facts: Mapping[str, Any]) -> RenderableType:
    """Members with their mean weights and tuning scores, and the weights of each label."""
    members = facts["committee"]["members"]
    table = Table(box=None, padding=(0, 2))
    table.add_column("member", no_wrap=True)
    for heading in ("weight", "AUPRC", "AUROC", "ECE", "before"):
        table.add_column(heading, justify="right", no_wrap=True)
    for member in members:
        tuning = facts[member]["tuning"]
        scores = [tuning["after"].get(name) for name in ("macro_auprc", "macro_auroc", "ece")]
        scores.append(tuning["before"].get("ece"))
        shown = ["–" if score is None else f"{score:.3f}" for score in scores]
        table.add_row(member, f"{facts['committee']['mean_weights'][member]:.2f}", *shown)
    weights = Table(box=None, padding=(0, 2))
    for heading in ("label", *members):
        weights.add_column(heading, justify="left" if heading == "label" else "right")
    for label, row in facts["committee"]["weights"].items():
        weights.add_row(label, *(f"{row[member]:.2f}" for member in members))
    said = "Mean weights; macro scores of tuning pairs; ECE after calibration, and before."
    return Group(table, Text(f"\n{said}\n", style="dim"), weights)


def show_sources_scored(scores: "SourceScores") -> RenderableType:
    """Every source of soft labels, and what the committee gains on it."""
    table = Table(box=None, padding=(0, 2))
    for heading in ("source", "weight", "AUPRC", "AUROC", "ECE", "committee less it"):
        table.add_column(heading, justify="left" if heading == "source" else "right")
    for name, figures in scores.sources.items():
        weight = scores.mean_weights.get(name)
        gain = scores.committee_less.get(name, {}).get("macro_auprc")
        table.add_row(
            name,
            "" if weight is None else f"{weight:.2f}",
            *(_with_interval(figures[score]) for score in ("macro_auprc", "macro_auroc")),
            _with_interval(figures["ece"]),
            "" if gain is None else _with_interval(gain, signed=True),
        )
    said = (
        f"{scores.data_set}: {scores.pairs['held_out']:,} held_out pairs, {scores.labels} labels, "
        f"{scores.pairs['train']:,} labelled train pairs; 95 % intervals over patients, "
        f"{scores.bootstrap_draws:,} draws; scores are macro; committee less it: paired difference "
        "in macro-AUPRC."
    )
    return Group(table, Text(f"\n{said}", style="dim"))


def show_comparison(comparison: "RunComparison", *, names: tuple[str, str]) -> RenderableType:
    """Two runs model by model: the scores of each, and the paired difference."""
    table = Table(box=None, padding=(0, 2))
    for heading in ("model", "A", "B", "A less B", "p", "AUROC, A less B", "Brier, A less B"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for name, one in comparison.models.items():
        table.add_row(
            name,
            *(_with_interval(side["macro_auprc"]) for side in (one.a, one.b)),
            _with_interval(one.difference["macro_auprc"], signed=True),
            "–" if one.p_holm is None else f"{one.p_holm:.3f}",
            *(
                _with_interval(one.difference[score], signed=True)
                for score in ("macro_auroc", "brier")
            ),
        )
    left_out = "; ".join(comparison.labels_not_shared) or "none"
    seeds = len(comparison.seeds)
    said = (
        f"A: {names[0]}\nB: {names[1]}\n{comparison.pairs:,} pairs of {comparison.patients:,} "
        f"patients held out in every run ({comparison.not_shared['a']:,} more in A, "
        f"{comparison.not_shared['b']:,} in B); {len(comparison.labels)} labels, left out: "
        f"{left_out}.\nA, B, A less B: macro-AUPRC; p two-sided, by Holm over the models. 95 % "
        f"intervals over patients{' and seeds' if seeds > 1 else ''}, "
        f"{comparison.bootstrap_draws:,} draws, in {comparison.degenerate_draws:,} of which a "
        f"label shows one class and is left out. {seeds} training seed{'s' if seeds > 1 else ''}"
        f"{'; a claim needs three' if seeds < 3 else ''}."
    )
    return Group(table, Text(f"\n{said}", style="dim"))


def _with_interval(figure: "Figure", *, signed: bool = False) -> str:
    if figure.value is None:
        return "–"
    shown = f"{figure.value:+.3f}" if signed else f"{figure.value:.3f}"
    if figure.low is None or figure.high is None:
        return shown
    sign = "+" if signed else ""
    return f"{shown} [{figure.low:{sign}.3f}, {figure.high:{sign}.3f}]"
