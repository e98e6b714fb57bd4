"""A trained student at work: risks for new histories, and what they rest on.

In: a student's folder and visits, or a pair of a run. Out: calibrated probabilities and
explanations. Ignores: how the student was trained.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from ckd_ehr.contracts.config import KnowledgeConfig, RunConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import sha256_of
from ckd_ehr.contracts.phenotype import Phenotype
from ckd_ehr.contracts.records import Explanation, Narrative, Visit
from ckd_ehr.knowledge.facts import KnowledgeBase
from ckd_ehr.knowledge.narrator import Narrator
from ckd_ehr.knowledge.sources import cite_narrative
from ckd_ehr.learning.examples import TextReader, read_label_names
from ckd_ehr.learning.explanations import calibrated_evidence, label_explanations
from ckd_ehr.learning.reading import pick_device, predict_logits, read_batch, reading
from ckd_ehr.learning.scoring import PlattScaling
from ckd_ehr.learning.student import PREDICTOR, TOKENIZER, Variant
from ckd_ehr.learning.student_model import load_student, refuse_other_labels
from ckd_ehr.learning.weights import token_counter


class StudentPredictor:
    """A student, its tokenizer and its calibration, loaded from one folder.

    Args:
        folder: of the student.
        knowledge: the folder of the knowledge stage, to tell new histories as it did.
        labels: what it must predict, in this order; None for whatever it does.
    """

    def __init__(
        self,
        folder: Path,
        *,
        knowledge: Path | None = None,
        labels: Sequence[str] | None = None,
        device: str = "cpu",
    ) -> None:
        facts = _read_facts(folder)
        self._folder = folder
        self.facts: Mapping[str, object] = facts
        self.labels: tuple[str, ...] = tuple(facts["labels"])
        if labels is not None:
            refuse_other_labels(folder, self.labels, labels)
        self.prevalence = np.asarray(facts["prevalence"])
        self.scaling = PlattScaling(np.asarray(facts["slope"]), np.asarray(facts["intercept"]))
        self.max_tokens = int(facts["max_tokens"])
        self.device = pick_device(device)
        self.model = load_student(folder, device=self.device, labels=self.labels)
        self.reader = TextReader(str(folder), "first")
        settings = KnowledgeConfig.model_validate(facts["knowledge"])
        base = None
        if knowledge is not None:
            phenotypes = [Phenotype.model_validate(row) for row in facts["phenotypes"]]
            base = KnowledgeBase.load(knowledge, phenotypes=phenotypes, settings=settings)
        self._narrator = Narrator(
            token_counter(str(folder)),
            max_tokens=self.max_tokens,
            max_history_visits=int(facts["max_history_visits"]),
            settings=settings,
            base=base,
        )

    @classmethod
    def load(cls, run: Path, variant: Variant = "distilled") -> "StudentPredictor":
        """The student of a run directory."""
        labels = read_label_names(run / "02_cohort")
        return cls(run / "07_student" / variant, knowledge=run / "03_knowledge", labels=labels)

    def narrate(self, history: Sequence[Visit]) -> Narrative:
        """The text the student reads of a history (oldest visit first)."""
        if self._narrator.lacks_knowledge:
            raise CkdEhrError(
                f"{self._folder}: this student was taught with medical knowledge and must be told "
                "it again; load it with the knowledge folder of its run"
            )
        return self._narrator.tell(history)

    def predict(self, histories: Sequence[Sequence[Visit]]) -> NDArray[np.float64]:
        """Calibrated probabilities (histories, labels), given that there is a next visit."""
        return self.risks([self.narrate(history) for history in histories])

    def risks(self, narratives: Sequence[Narrative]) -> NDArray[np.float64]:
        """As `predict`, of what the student reads."""
        examples = [self.reader.example(str(n), text) for n, text in enumerate(narratives)]
        logits = predict_logits(
            self.model,
            examples,
            pad_token=self.reader.pad_token,
            device=self.device,
        )
        return np.asarray(expit(self.scaling.apply(logits)))

    def explain(
        self, pair_id: str, narrative: Narrative, citations: Mapping[str, str] | None = None
    ) -> Explanation:
        """The risks of one narrative, and each concept's part in their log-odds.

        Args:
            pair_id: its pair.
            narrative: what the student reads.
            citations: concept_id → where a piece of knowledge is from.
        """
        example = self.reader.example(pair_id, narrative)
        with reading(self.device, "fp32"):
            output = read_batch(
                self.model, [example], pad_token=self.reader.pad_token, device=self.device
            )
        bias = self.model.head.bias.detach().cpu().double().numpy()
        evidence = calibrated_evidence(output.evidence[0].double().numpy(), bias, self.scaling)
        return Explanation(
            pair_id=pair_id,
            model=f"student_{self.facts['variant']}",
            narrative=narrative,
            labels=label_explanations(
                evidence,
                narrative,
                labels=self.labels,
                prevalence=self.prevalence,
                citations=citations or {},
            ),
        )


def _read_facts(folder: Path) -> Any:
    """What `predictor.json` says, if the tokenizer beside it is the one that it was written for."""
    try:
        facts = json.loads((folder / PREDICTOR).read_text())
    except FileNotFoundError:
        raise CkdEhrError(f"{folder}: no trained student ({PREDICTOR} is missing)") from None
    tokenizer = folder / TOKENIZER
    if not tokenizer.is_file() or sha256_of(tokenizer) != facts.get("tokenizer_sha256"):
        raise CkdEhrError(
            f"{tokenizer}: missing, or not what this student was trained with; rerun stage student"
        )
    return facts


def explain_by_student(inputs: Mapping[str, Path], pair_id: str, config: RunConfig) -> Explanation:
    """Explain the distilled student's risks for one pair of a run.

    Args:
        inputs: the folders of the stages `cohort`, `knowledge` and `student`.
    """
    narrative, citations = cite_narrative(inputs, config, pair_id=pair_id, reader="student")
    predictor = StudentPredictor(
        inputs["student"] / "distilled",
        labels=read_label_names(inputs["cohort"]),
        device=config.device,
    )
    return predictor.explain(pair_id, narrative, citations)
