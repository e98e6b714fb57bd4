"""A history as text within a token budget, with the characters of every concept.

In: visits, oldest first, facts, and a tokeniser's counts. Out: `Narrative`s. Ignores: which facts
are told and why. A concept is a demographic fact, diagnosis, drug or procedure of the record, or a
fact of medical knowledge.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from ckd_ehr.contracts.records import Narrative, Span, Visit
from ckd_ehr.knowledge.facts import Facts
from ckd_ehr.knowledge.pieces import CountTokens, PieceCounter
from ckd_ehr.knowledge.story import (
    OF_MEDICINE,
    RECENT_VISITS,
    RecentSentences,
    Sentence,
    Story,
    knowledge_sentence,
    patient_sentence,
)


class Priced(NamedTuple):
    """A sentence, and its tokens where it keeps 0, 1, … concepts and begins no text."""

    sentence: Sentence
    costs: tuple[int, ...]


class Told(NamedTuple):
    """A narrative and its number of tokens."""

    narrative: Narrative
    tokens: int


class Teller:
    """Tells histories to one reader within its token budget.

    What does not fit is cut by whole concepts: facts first, from the end; then from the oldest
    visit on, in a visit procedures, then drugs, then diagnoses, each from the end; demographics
    last. `visit_index` counts from the oldest visit given, whatever is cut.

    Args:
        count_tokens: the reader's tokens of a text, special ones included.
        max_tokens: the budget.
        sentences: what is said of visits, shared with other tellers.
    """

    def __init__(
        self,
        count_tokens: CountTokens,
        *,
        max_tokens: int,
        sentences: RecentSentences | None = None,
    ) -> None:
        self.counter = PieceCounter(count_tokens)
        self.max_tokens = max_tokens
        self._sentence_of = sentences or RecentSentences()
        self._costs: dict[int, Priced] = {}
        self._steps: dict[tuple[str, str, str], tuple[int, int]] = {}

    def tell(self, history: Sequence[Visit], facts: Sequence[Facts] = ()) -> Narrative:
        """Tell a history, oldest visit first, then the facts, a sentence a kind."""
        told = self.tell_by_pieces(history, facts)
        if not self.is_exact(told):
            told = self.tell_exactly(history, facts)
        return told.narrative

    def is_exact(self, told: Told) -> bool:
        """Whether the tokens of the pieces add up to those of the text."""
        return self.counter.whole(told.narrative.text) == told.tokens

    def tell_by_pieces(self, history: Sequence[Visit], facts: Sequence[Facts] = ()) -> Told:
        """As `tell`, if the tokens of the pieces add up; the text is not counted as a whole."""
        story, costs = self._prepare(history, facts)
        concepts = sum(len(sentence.concepts) for sentence in story.sentences)

        def tokens(cut: int) -> int:
            kept = story.kept(cut)
            total = self.counter.frame + sum(cost[k] for cost, k in zip(costs, kept, strict=True))
            return total + self._beginning(story, kept)

        cut, spent = 0, tokens(0)
        if spent > self.max_tokens:
            fits = range(concepts)
            cut = bisect_left(fits, True, key=lambda cut: tokens(cut) <= self.max_tokens)
            spent = tokens(cut)
        while cut < concepts and spent > self.max_tokens:
            cut += 1
            spent = tokens(cut)
        return Told(_write(story, cut), spent)

    def tell_exactly(self, history: Sequence[Visit], facts: Sequence[Facts] = ()) -> Told:
        """As `tell`, for any tokeniser: the whole text is counted, some times."""
        story, _ = self._prepare(history, facts)
        concepts = sum(len(sentence.concepts) for sentence in story.sentences)
        counted: dict[int, Told] = {}

        def with_cut(cut: int) -> Told:
            if cut not in counted:
                narrative = _write(story, cut)
                counted[cut] = Told(narrative, self.counter.whole(narrative.text))
            return counted[cut]

        guess = self.tell_by_pieces(history, facts).narrative
        cut = guess.concepts_cut + guess.knowledge_cut
        while cut < concepts and with_cut(cut).tokens > self.max_tokens:
            cut += 1
        while cut > 0 and with_cut(cut - 1).tokens <= self.max_tokens:
            cut -= 1
        return with_cut(cut)

    def _prepare(
        self, history: Sequence[Visit], facts: Sequence[Facts]
    ) -> tuple[Story, list[tuple[int, ...]]]:
        """All that is to be said, and the tokens of each sentence."""
        patient = self._price(patient_sentence(history))
        visits = [self._visit(visit, index) for index, visit in enumerate(history)]
        knowledge = [self._price(knowledge_sentence(sentence)) for sentence in facts]
        story = Story(
            patient=patient.sentence,
            visits=tuple(priced.sentence for priced in visits),
            knowledge=tuple(priced.sentence for priced in knowledge),
        )
        return story, [priced.costs for priced in (patient, *visits, *knowledge)]

    def _visit(self, visit: Visit, index: int) -> Priced:
        sentence = self._sentence_of(visit, index)
        if (known := self._costs.get(id(sentence))) is not None:
            return known
        if len(self._costs) >= RECENT_VISITS:
            self._costs.clear()
        priced = self._costs[id(sentence)] = self._price(sentence)
        return priced

    def _price(self, sentence: Sentence) -> Priced:
        costs, spent, steps = [0], 0, self._steps
        ends = [concept.head for concept in sentence.concepts[1:]] + ["."]
        for concept, end in zip(sentence.concepts, ends, strict=False):
            key = concept.opening, concept.text, end
            if (step := steps.get(key)) is None:
                step = steps[key] = self._step(*key)
            costs.append(spent + step[0])
            spent += step[1]
        return Priced(sentence, tuple(costs))

    def _step(self, opening: str, text: str, end: str) -> tuple[int, int]:
        """Tokens of a concept that ends its sentence, and of one that another follows."""
        later = self.counter.later
        before = later(f" {opening}") if opening else 0
        return before + later(f" {text}."), before + later(f" {text}{end}")

    def _beginning(self, story: Story, kept: Sequence[int]) -> int:
        """What the first words cost more than later in a text, and those that stand for codes."""
        closing = story.without_visits(kept)
        for sentence, k in zip((story.patient, *story.visits), kept, strict=False):
            if k:
                first = sentence.concepts[0]
                end = sentence.concepts[1].head if k > 1 else "."
                piece = first.opening or first.text + end
                extra = self.counter.first(piece) - self.counter.later(f" {piece}")
                return extra + (self.counter.later(f" {closing}.") if closing else 0)
        return self.counter.first(f"{closing}.")


def _write(story: Story, cut: int) -> Narrative:
    """The text of what is kept."""
    kept = story.kept(cut)
    pieces: list[str] = []
    spans: list[Span] = []
    position = 0
    closing, visits = story.without_visits(kept), 1 + len(story.visits)
    for number, ((visit_index, concepts), count) in enumerate(
        zip(story.sentences, kept, strict=True)
    ):
        if number == visits and closing:
            position = _add(pieces, f"{closing}.", position)
            closing = ""
        known = visit_index == OF_MEDICINE
        for head, opening, text, kind, system, code, concept_id in concepts[:count]:
            space = " " if pieces else ""
            before = f"{head}{space}{opening} " if opening else f"{head}{space}"
            start = position + len(before)
            position = start + len(text)
            pieces += (before, text)
            spans.append(Span(start, position, concept_id, kind, system, code, visit_index, known))
        if count:
            pieces.append(".")
            position += 1
    if closing:
        _add(pieces, f"{closing}.", position)
    facts = sum(len(sentence.concepts) for sentence in story.knowledge)
    return Narrative("".join(pieces), tuple(spans), max(cut - facts, 0), min(cut, facts))


def _add(pieces: list[str], words: str, position: int) -> int:
    """Append a sentence without concepts; the position behind it."""
    pieces.append(f" {words}" if pieces else words)
    return position + len(pieces[-1])
