"""What is said of a history, sentence by sentence, before any of it is cut.

In: visits, oldest first, and facts. Out: a `Story` of concepts in their one order. Ignores: tokens
and budgets; times, distances in time, deaths and ids, which never enter a text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from ckd_ehr.contracts.records import AGE, ETHNICITY, SEX, Code, Kind, Visit, concept_id_of
from ckd_ehr.knowledge.facts import OPENINGS, Facts
from ckd_ehr.knowledge.ontology import words_of

OF_THE_PATIENT = -1  # visit_index of demographics: they belong to no visit
OF_MEDICINE = -2  # visit_index of knowledge
NOTHING_CODED = "No codes recorded"
ALL_CUT = "Codes left out"
RECENT_VISITS = 2048
ADULT_AGE, HIGHEST_AGE = 18, 89
_NOUNS = {("F", True): "woman", ("M", True): "man", ("F", False): "girl", ("M", False): "boy"}
Key = tuple[Kind, str, str]  # kind, system and code
_BY_CODE = attrgetter("system", "code")


class Concept(NamedTuple):
    """A concept, and what stands before it: concepts are cut from the end, so that never changes.

    Before its text stand `head`, which ends what came before, `opening` and a space; the first
    concept of a sentence has no head, the first of a text no space.
    """

    head: str
    opening: str
    text: str
    kind: Kind
    system: str
    code: str
    concept_id: str


class Sentence(NamedTuple):
    """Concepts that are cut from the end together: the patient's, a visit's, or facts of a kind."""

    visit_index: int
    concepts: tuple[Concept, ...]


@dataclass(frozen=True, slots=True)
class Story:
    """Sentences in the order of the text: the patient, the visits, the knowledge."""

    patient: Sentence
    visits: tuple[Sentence, ...]
    knowledge: tuple[Sentence, ...]

    @property
    def sentences(self) -> tuple[Sentence, ...]:
        """All of them, in the order of the text."""
        return (self.patient, *self.visits, *self.knowledge)

    def kept(self, cut: int) -> list[int]:
        """How many concepts each sentence keeps when `cut` are cut, in the order of the text.

        Knowledge is cut first, from its end; then the visits, oldest first; the patient last.
        """
        kept = []
        for _, concepts in (*reversed(self.knowledge), *self.visits, self.patient):
            size = len(concepts)
            kept.append(max(size - cut, 0))
            cut = max(cut - size, 0)
        facts = len(self.knowledge)
        return [kept[-1], *kept[facts:-1], *reversed(kept[:facts])]

    def without_visits(self, kept: Sequence[int]) -> str:
        """What is said where no code of any visit is told; nothing where one is."""
        if any(kept[1 : 1 + len(self.visits)]):
            return ""
        return ALL_CUT if any(visit.concepts for visit in self.visits) else NOTHING_CODED


def patient_sentence(history: Sequence[Visit]) -> Sentence:
    """Age, sex and ethnicity at the latest visit, as far as they are known."""
    facts: list[tuple[str, str, str, str]] = []
    latest = history[-1] if history else None
    age = None if latest is None or latest.age_years is None else int(latest.age_years)
    if age is not None:
        words = f"{age}-year-old" if age <= HIGHEST_AGE else f"Over-{HIGHEST_AGE}-year-old"
        facts.append(("", words, AGE, str(age)))
    adult = age is None or age >= ADULT_AGE
    sex = ((latest.sex if latest else None) or "").upper()[:1]
    if noun := _NOUNS.get((sex, adult)):
        facts.append(("", noun if facts else noun.capitalize(), SEX, sex))
    if latest and latest.ethnicity and (words := words_of(ETHNICITY, latest.ethnicity)):
        shown = words.title() if words.isupper() else words
        facts.append(("," if facts else "", shown, ETHNICITY, latest.ethnicity))
    concepts = (
        _concept(head, "", text, ("demographics", system, code), index=OF_THE_PATIENT)
        for head, text, system, code in facts
    )
    return Sentence(OF_THE_PATIENT, tuple(concepts))


def visit_sentence(visit: Visit, index: int) -> Sentence:
    """A visit's concepts in their one order: diagnoses, drugs, procedures, each by code."""
    admission = f" ({visit.admission_type.lower()})" if visit.admission_type else ""
    opening = f"Visit {index + 1}{admission}"
    sections: tuple[tuple[Kind, str, tuple[Code, ...]], ...] = (
        ("diagnosis", "", visit.diagnoses),
        ("medication", "Drugs:", visit.medications),
        ("procedure", "Procedures:", visit.procedures),
    )
    concepts: list[Concept] = []
    for kind, heading, codes in sections:
        head, start = (".", heading) if concepts else ("", f"{opening}. {heading}")
        if not heading:
            start = f"{opening}:"
        before: Code | None = None
        occurrence = 0
        for code in sorted(codes, key=_BY_CODE):
            system, plain = code.system, code.code
            alike = before is not None and before.code == plain and before.system == system
            occurrence = occurrence + 1 if alike else 0
            text = words_of(system, plain, code.title)
            concept_id = f"{index}/{kind}/{system}/{plain}/{occurrence}"
            concepts.append(Concept(head, start, text, kind, system, plain, concept_id))
            before = code
            head, start = ";", ""
    return Sentence(index, tuple(concepts))


class RecentSentences:
    """The sentences of visits, remembered: a visit is told in many histories, to each reader."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[Visit, Sentence]] = {}

    def __call__(self, visit: Visit, index: int) -> Sentence:
        """The sentence of this very object, which is kept, so that no other has its identity."""
        key = id(visit), index
        if (known := self._known.get(key)) is not None:
            return known[1]
        if len(self._known) >= RECENT_VISITS:
            self._known.clear()
        self._known[key] = visit, visit_sentence(visit, index)
        return self._known[key][1]


def knowledge_heading(kind: Kind) -> str:
    """What stands before the facts of a kind.

    >>> knowledge_heading("guideline")
    'Guideline digests:'
    """
    return f"{OPENINGS[kind]}:"


def knowledge_sentence(facts: Facts) -> Sentence:
    """Facts of one kind after their heading."""
    concepts = []
    head, opening = "", knowledge_heading(facts[0].kind)
    for fact in facts:
        key = fact.kind, fact.system, fact.code
        concepts.append(_concept(head, opening, fact.text, key, index=OF_MEDICINE))
        head, opening = ";", ""
    return Sentence(OF_MEDICINE, tuple(concepts))


def _concept(
    head: str, opening: str, text: str, key: Key, *, index: int, occurrence: int = 0
) -> Concept:
    kind, system, code = key
    concept_id = concept_id_of(
        visit_index=index, kind=kind, system=system, code=code, occurrence=occurrence
    )
    return Concept(head, opening, text, kind, system, code, concept_id)
