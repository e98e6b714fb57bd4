"""New histories told as the student's were.

In: visits of one patient, and what the student was trained with. Out: a `Narrative`. Ignores: what
is read out of it.
"""

from collections.abc import Sequence

from ckd_ehr.contracts.config import KnowledgeConfig
from ckd_ehr.contracts.records import Narrative, Visit
from ckd_ehr.knowledge.efficacy import ALL_TRAIN
from ckd_ehr.knowledge.facts import Facts, KnowledgeBase
from ckd_ehr.knowledge.narrative import Teller
from ckd_ehr.knowledge.pieces import CountTokens


class Narrator:
    """Tells histories to a student.

    Args:
        count_tokens: the student's tokens of a text, special ones included.
        max_tokens: that it reads.
        max_history_visits: of a history, the latest ones.
        settings: which knowledge it was told.
        base: that knowledge; None where it was told none.
    """

    def __init__(
        self,
        count_tokens: CountTokens,
        *,
        max_tokens: int,
        max_history_visits: int,
        settings: KnowledgeConfig,
        base: KnowledgeBase | None,
    ) -> None:
        self._teller = Teller(count_tokens, max_tokens=max_tokens)
        self._max_history_visits = max_history_visits
        self._reader = settings.student
        self._base = base

    @property
    def lacks_knowledge(self) -> bool:
        """Whether the student must be told what is not here."""
        reader = self._reader
        return self._base is None and (reader.categories or reader.efficacy or reader.guidelines)

    def tell(self, history: Sequence[Visit]) -> Narrative:
        """The text the student reads of a history (oldest visit first)."""
        recent = history[-self._max_history_visits :]
        return self._teller.tell(recent, self._facts(recent))

    def citations(self, narrative: Narrative) -> dict[str, str]:
        """concept_id → where a piece of knowledge in a narrative is from."""
        if self._base is None:
            return {}
        known = [span for span in narrative.spans if span.from_knowledge]
        return {span.concept_id: self._base.cite(span, fold=ALL_TRAIN) for span in known}

    def _facts(self, history: Sequence[Visit]) -> tuple[Facts, ...]:
        """What any patient is told who was not of train."""
        if self._base is None:
            return ()
        return self._base.facts(
            history, fold=ALL_TRAIN, reader=self._reader, counter=self._teller.counter
        )
