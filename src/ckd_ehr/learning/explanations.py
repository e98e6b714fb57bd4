"""Evidence as explanations: the parts of calibrated log-odds, in words.

In: evidence of the concepts of one narrative. Out: `LabelExplanation`s. Ignores: which model gave
it, how it is shown, and whether it is faithful. Never imports torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import expit

from ckd_ehr.contracts.records import ConceptEvidence, LabelExplanation, Narrative
from ckd_ehr.learning.scoring import Floats, PlattScaling


@dataclass(frozen=True)
class Evidence:
    """Of each label: the parts of its log-odds (labels, 1 + concepts), and the base (labels,)."""

    parts: Floats
    base: Floats


def calibrated_evidence(evidence: Floats, bias: Floats, scaling: PlattScaling) -> Evidence:
    """Evidence of raw log-odds as parts of the calibrated ones."""
    return Evidence(scaling.slope[:, None] * evidence, scaling.slope * bias + scaling.intercept)


def label_explanations(
    evidence: Evidence,
    narrative: Narrative,
    *,
    labels: Sequence[str],
    prevalence: Floats,
    citations: Mapping[str, str],
    spread: Floats | None = None,
) -> tuple[LabelExplanation, ...]:
    """One explanation a label; `spread` (labels,) is that of several opinions, if there are."""
    return tuple(
        LabelExplanation(
            label=label,
            probability=float(expit(evidence.parts[k].sum() + evidence.base[k])),
            prevalence=float(prevalence[k]),
            base_log_odds=float(evidence.base[k]),
            reading_state_log_odds=float(evidence.parts[k, 0]),
            concepts=_concepts(evidence.parts[k, 1:], narrative, citations),
            spread=None if spread is None else float(spread[k]),
        )
        for k, label in enumerate(labels)
    )


def _concepts(
    parts: Floats, narrative: Narrative, citations: Mapping[str, str]
) -> tuple[ConceptEvidence, ...]:
    return tuple(
        ConceptEvidence(
            concept_id=span.concept_id,
            text=narrative.text[span.start : span.end],
            kind=span.kind,
            visit_index=span.visit_index,
            log_odds=float(value),
            citation=citations.get(span.concept_id, ""),
        )
        for span, value in zip(narrative.spans, parts, strict=True)
    )
