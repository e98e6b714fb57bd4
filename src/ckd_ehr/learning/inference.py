"""A trained student at work: risks for new histories, and what they rest on.

In: a student's folder and visits, or a pair of a run. Out: calibrated probabilities and
explanations. Ignores: how the student was trained.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from ckd_ehr.contracts.config import RunConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.records import (
    ConceptEvidence,
    Explanation,
    LabelExplanation,
    Narrative,
    Visit,
)
from ckd_ehr.knowledge.narrative import tell
from ckd_ehr.learning.examples import TextReader, read_narratives
from ckd_ehr.learning.heads import HeadOutput
from ckd_ehr.learning.reading import pick_device, predict_logits, read_batch, reading
from ckd_ehr.learning.scoring import PlattScaling
from ckd_ehr.learning.student import PREDICTOR, Variant, load_student
from ckd_ehr.learning.weights import token_counter


class StudentPredictor:
    """A student, its tokenizer and its calibration, loaded from one folder."""

    def __init__(self, folder: Path, *, device: str = "cpu") -> None:
        try:
            facts = json.loads((folder / PREDICTOR).read_text())
        except FileNotFoundError:
            raise CkdEhrError(f"{folder}: no trained student ({PREDICTOR} is missing)") from None
        self.facts: Mapping[str, object] = facts
        self.labels: tuple[str, ...] = tuple(facts["labels"])
        self.prevalence = np.asarray(facts["prevalence"])
        self.scaling = PlattScaling(np.asarray(facts["slope"]), np.asarray(facts["intercept"]))
        self.max_tokens = int(facts["max_tokens"])
        self.max_history_visits = int(facts["max_history_visits"])
        self.device = pick_device(device)
        self.model = load_student(folder, device=self.device)
        self.reader = TextReader(str(folder), "first")
        self._count_tokens = token_counter(str(folder))

    @classmethod
    def load(cls, run: Path, variant: Variant = "distilled") -> "StudentPredictor":
        """The student of a run directory."""
        return cls(run / "06_student" / variant)

    def narrate(self, history: Sequence[Visit]) -> Narrative:
        """The text the student reads of a history (oldest visit first)."""
        recent = history[-self.max_history_visits :]
        return tell(recent, count_tokens=self._count_tokens, max_tokens=self.max_tokens)

    def predict(self, histories: Sequence[Sequence[Visit]]) -> NDArray[np.float64]:
        """Calibrated probabilities (histories, labels), given that there is a next visit."""
        narratives = [self.narrate(history) for history in histories]
        examples = [self.reader.example(str(n), text) for n, text in enumerate(narratives)]
        logits = predict_logits(
            self.model,
            examples,
            pad_token=self.reader.pad_token,
            device=self.device,
        )
        return np.asarray(expit(self.scaling.apply(logits)))

    def explain(self, pair_id: str, narrative: Narrative) -> Explanation:
        """The risks of one narrative, and each concept's part in their log-odds."""
        example = self.reader.example(pair_id, narrative)
        with reading(self.device, "fp32"):
            output = read_batch(
                self.model, [example], pad_token=self.reader.pad_token, device=self.device
            )
        labels = tuple(self._explain_label(output, narrative, k) for k in range(len(self.labels)))
        return Explanation(
            pair_id=pair_id,
            model=f"student_{self.facts['variant']}",
            narrative=narrative,
            labels=labels,
        )

    def _explain_label(self, output: HeadOutput, narrative: Narrative, k: int) -> LabelExplanation:
        slope, intercept = self.scaling.slope[k], self.scaling.intercept[k]
        evidence = slope * output.evidence[0, k].double().numpy()
        bias = slope * self.model.head.bias[k].item() + intercept
        concepts = tuple(
            ConceptEvidence(
                concept_id=span.concept_id,
                text=narrative.text[span.start : span.end],
                kind=span.kind,
                visit_index=span.visit_index,
                log_odds=float(value),
            )
            for span, value in zip(narrative.spans, evidence[1:], strict=True)
        )
        return LabelExplanation(
            label=self.labels[k],
            probability=float(expit(evidence.sum() + bias)),
            prevalence=float(self.prevalence[k]),
            base_log_odds=float(bias),
            reading_state_log_odds=float(evidence[0]),
            concepts=concepts,
        )


def explain_pair(inputs: Mapping[str, Path], pair_id: str, config: RunConfig) -> Explanation:
    """Explain the distilled student's risks for one pair of a run.

    Args:
        inputs: the folders of the stages `cohort`, `knowledge` and `student`.
    """
    narratives = read_narratives(inputs["knowledge"], "student")
    if pair_id not in narratives:
        raise CkdEhrError(
            f"pair {pair_id} is not in this run; its pairs are in {inputs['cohort']}/pairs.parquet"
        )
    predictor = StudentPredictor(inputs["student"] / "distilled", device=config.device)
    return predictor.explain(pair_id, narratives[pair_id])
