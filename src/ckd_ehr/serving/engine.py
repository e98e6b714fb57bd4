"""A bundle at work: visits in, calibrated risks out, with what they rest on.

In: a bundle's folder and histories. Out: probabilities, thresholds, evidence by concept and visit,
the share of unknown codes, and a reason where no risk should be told. Ignores: files of many
patients; never loads torch or transformers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.records import Explanation, Narrative, Visit
from ckd_ehr.data.sources.drug_names import fold_drugs
from ckd_ehr.knowledge.facts import KnowledgeBase
from ckd_ehr.knowledge.narrator import Narrator
from ckd_ehr.knowledge.pieces import CountTokens
from ckd_ehr.learning.alignment import Encoded, encode
from ckd_ehr.learning.explanations import Evidence, label_explanations
from ckd_ehr.learning.scoring import Floats
from ckd_ehr.learning.weights import counter_of, read_tokenizer
from ckd_ehr.release.golden import difference, read_golden
from ckd_ehr.release.known_codes import codes_of, read_known_codes, unknown_share
from ckd_ehr.release.manifest import (
    AGAIN,
    KNOWLEDGE,
    TOKENIZER,
    BundleFacts,
    Precision,
    read_facts,
)
from ckd_ehr.release.session import Session

NO_CODES = "no code in the history"
NONE_KNOWN = "no code of the history was in training"


@dataclass(frozen=True)
class Prediction:
    """The risks of one patient, given that there is a next visit.

    `probabilities` (labels,) are calibrated. `evidence` (labels, 1 + concepts) are signed parts of
    the log-odds, of the reading state first, then of the concepts of `narrative` in their order.
    Where `abstention` says why the input is unlike training, nobody should act on the risks.
    """

    probabilities: Floats
    evidence: Floats
    narrative: Narrative
    unknown_share: float
    abstention: str | None

    @cached_property
    def by_visit(self) -> dict[int, Floats]:
        """Evidence (labels,) of each visit, by its place among those read; -1 and -2 are what is of
        no visit: demographics, and medical knowledge."""
        places = np.array([span.visit_index for span in self.narrative.spans], dtype=int)
        return {
            int(place): self.evidence[:, 1:][:, places == place].sum(1)
            for place in np.unique(places)
        }


class Predictor:
    """A bundle, loaded and checked against its golden set.

    Args:
        folder: of the bundle.
        precision: of the graph; by default int8 if the bundle has it and it says on this machine
            what it said where it was published, else fp32.
        threads: to compute with; as many as there are cores.
        say: told when fp32 takes the place of int8.
    """

    def __init__(
        self,
        folder: Path,
        *,
        precision: Precision | None = None,
        threads: int | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.facts: BundleFacts = read_facts(folder)
        self.labels = self.facts.labels
        self.thresholds = np.array(self.facts.thresholds)
        self.folder, self._threads = folder, threads
        self._tokenizer = read_tokenizer(folder / TOKENIZER)
        self._known = read_known_codes(folder)
        self._narrator = _narrator(folder, self.facts, counter_of(self._tokenizer))
        wanted = [precision] if precision else sorted(self.facts.graphs, reverse=True)
        for place, name in enumerate(wanted):
            self.precision: Precision = name
            self._session = self._open(name)
            problem = self._golden_problem()
            if problem is None:
                return
            if place + 1 < len(wanted):
                say(f"{folder}: {name} {problem} on this machine; {wanted[place + 1]} instead")
        raise CkdEhrError(f"{folder}: {self.precision} {problem} on this machine; {AGAIN}")

    @classmethod
    def load(cls, folder: Path | str) -> "Predictor":
        """The predictor of a bundle, at its defaults."""
        return cls(Path(folder))

    def predict(self, histories: Sequence[Sequence[Visit]]) -> list[Prediction]:
        """The risks of each history (oldest visit first)."""
        folded = [fold_drugs(history) for history in histories]
        narratives = [self._narrator.tell(history) for history in folded]
        outputs = self._session.run([self._encode(narrative) for narrative in narratives])
        return [
            Prediction(*output, narrative, *self._likeness(history))
            for output, narrative, history in zip(outputs, narratives, folded, strict=True)
        ]

    def explain(self, prediction: Prediction) -> Explanation:
        """Each label's risk and each concept's part in it."""
        return Explanation(
            pair_id="",
            model=self.facts.model,
            narrative=prediction.narrative,
            labels=label_explanations(
                Evidence(prediction.evidence, np.array(self.facts.base_log_odds)),
                prediction.narrative,
                labels=self.labels,
                prevalence=np.array(self.facts.prevalence),
                citations=self._narrator.citations(prediction.narrative),
            ),
        )

    def _encode(self, narrative: Narrative) -> Encoded:
        return encode(narrative, self._tokenizer, reading="first")

    def _open(self, precision: Precision) -> Session:
        if precision not in self.facts.graphs:
            raise CkdEhrError(f"{self.folder}: has no {precision}; take another precision")
        return Session(
            self.folder / f"{precision}.onnx",
            pad_token=self.facts.pad_token,
            most_tokens=self.facts.max_tokens,
            threads=self._threads,
        )

    def _golden_problem(self) -> str | None:
        golden = read_golden(self.folder)
        found = np.array([one.probabilities for one in self.predict(golden.histories)])
        expected = golden.probabilities.get(self.precision)
        if expected is None:  # while a bundle is being made
            return None
        return difference(found, expected, thresholds=self.thresholds, precision=self.precision)

    def _likeness(self, history: Sequence[Visit]) -> tuple[float, str | None]:
        """The share of a history's distinct codes that training did not have; why to abstain."""
        codes = codes_of(history[-self.facts.max_history_visits :])
        share = unknown_share(codes, self._known)
        limit = self.facts.unknown_share_limit
        if not codes:
            return share, NO_CODES
        if share >= 1:
            return share, NONE_KNOWN
        if share > limit:
            return share, f"more than {limit:.0%} of the codes were not in training"
        return share, None


def _narrator(folder: Path, facts: BundleFacts, count_tokens: CountTokens) -> Narrator:
    base = None
    if (folder / KNOWLEDGE).is_dir():
        base = KnowledgeBase.load(
            folder / KNOWLEDGE, phenotypes=facts.phenotypes, settings=facts.knowledge
        )
    return Narrator(
        count_tokens,
        max_tokens=facts.max_tokens,
        max_history_visits=facts.max_history_visits,
        settings=facts.knowledge,
        base=base,
    )
