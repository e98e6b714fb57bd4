"""What the command line shows of an explanation and of a report; text in the terminal only.

In: an `Explanation`, what the student's folder says of it. Out: Rich renderables. Ignores: how
risks are computed. Shows patient text: for commands that a user called for one pair.
"""

import difflib
from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.records import ConceptEvidence, Explanation, LabelExplanation
from ckd_ehr.doctor import Finding, Forecast, Speed, show_bytes

WEAK_SHARE = 0.5
CAVEAT = (
    "Risks are for the patient's next hospital visit, at any later time, given that there is one. "
    "They are associations found in past records, not causes. "
    "They support a clinician's judgement and do not replace it."
)


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
    folded = {name.casefold(): name for name in known}
    if wanted.casefold() in folded:
        return folded[wanted.casefold()]
    parts = [name for key, name in folded.items() if wanted.casefold() in key]
    if len(parts) == 1:
        return parts[0]
    if len(parts) > 1:
        raise CkdEhrError(f"label '{wanted}' is part of several: {'; '.join(parts)}")
    near = difflib.get_close_matches(wanted.casefold(), folded, n=1, cutoff=0.0)
    suggestion = folded[near[0]] if near else "none"
    raise CkdEhrError(f"no label '{wanted}' in this run; did you mean '{suggestion}'?")


def _headline(explanation: Explanation, facts: Mapping[str, object]) -> Text:
    narrative = explanation.narrative
    visits = len({span.visit_index for span in narrative.spans if span.visit_index >= 0})
    read = f"{len(narrative.spans)} concepts of {visits} visit{'' if visits == 1 else 's'}"
    cut = f" ({narrative.concepts_cut} more cut by the token budget)"
    return Text.assemble(
        (f"Pair {explanation.pair_id}", "bold"),
        f"  {explanation.model} of run '{facts.get('run', '?')}' reads {read}"
        f"{cut if narrative.concepts_cut else ''}:",
    )


def _show_label(label: LabelExplanation, *, top: int) -> RenderableType:
    title = Text.assemble(
        (label.label, "bold"),
        f"  {label.probability:.1%}",
        (f"  (in the training records {label.prevalence:.1%})", "dim"),
    )
    ranked = sorted(label.concepts, key=lambda concept: -abs(concept.log_odds))
    rest = sum(concept.log_odds for concept in ranked[top:])
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right")
    for concept in ranked[:top]:
        table.add_row(_signed(concept.log_odds), Text(concept.text), Text(_place(concept), "dim"))
    if ranked[top:]:
        table.add_row(_signed(rest), f"{len(ranked) - top} other concepts", "")
    table.add_row(
        _signed(label.reading_state_log_odds),
        "the text as a whole",
        Text(f"{label.reading_state_share:.0%} of all evidence", "dim"),
    )
    table.add_row(_signed(label.base_log_odds), "base", Text("log-odds without evidence", "dim"))
    warning = [Padding(_weakness(label), (0, 2))] if label.reading_state_share > WEAK_SHARE else []
    return Group(title, Padding(table, (0, 2)), *warning, Text())


def _weakness(label: LabelExplanation) -> Text:
    return Text(
        f"Weak explanation: {label.reading_state_share:.0%} of the evidence rests on the text as "
        "a whole and cannot be attributed to a concept.",
        style="yellow",
    )


def _place(concept: ConceptEvidence) -> str:
    return (
        concept.kind
        if concept.visit_index < 0
        else f"visit {concept.visit_index + 1}, " + (concept.kind)
    )


def _signed(log_odds: float) -> Text:
    return Text(f"{log_odds:+.2f}", style="red" if log_odds > 0 else "blue")


def _basis(facts: Mapping[str, object]) -> str:
    return (
        "Signed numbers are parts of the calibrated log-odds; with the base they add up to the "
        f"risk. Trained on {facts.get('train_pairs', '?')} pairs of source "
        f"'{facts.get('data_source', '?')}', calibrated on {facts.get('calibration_pairs', '?')} "
        "tuning pairs."
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
