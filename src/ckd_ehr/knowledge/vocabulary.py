"""The concept vocabulary: which words of the train histories the student reads as one token.

In: visits and pairs. Out: the texts of frequent concepts, and of what stands before them. Ignores:
tokenizers, and all splits but train. What few patients have is left out: its token would be learnt
from next to nothing, and a text that is one patient's alone must not leave with the model.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import pyarrow as pa
import pyarrow.compute as pc

from ckd_ehr.contracts.config import ConceptVocabularyConfig
from ckd_ehr.contracts.fitted import FittedOn, fitted_on
from ckd_ehr.contracts.records import Visit
from ckd_ehr.knowledge.facts import OPENINGS
from ckd_ehr.knowledge.story import RecentSentences, Sentence, knowledge_heading, patient_sentence
from ckd_ehr.knowledge.telling import histories_of

STUDENT_TOKENIZER = "student_tokenizer.json"


@dataclass(frozen=True)
class ConceptVocabulary:
    """Texts to be read as one token each, most frequent first.

    `share` is that of the concepts in train histories that are among them.
    """

    markers: tuple[str, ...]
    concepts: tuple[str, ...]
    share: float
    fitted: FittedOn

    @property
    def texts(self) -> tuple[str, ...]:
        """Markers and concepts."""
        return (*self.markers, *self.concepts)

    @property
    def figures(self) -> dict[str, int | float]:
        """How many there are, and what they cover."""
        numbers = {"markers": len(self.markers), "concepts": len(self.concepts)}
        return {**numbers, "share_of_train_concepts": round(self.share, 4)}


def fit_vocabulary(
    visits: pa.Table, pairs: pa.Table, limits: ConceptVocabularyConfig
) -> ConceptVocabulary:
    """The concepts of the train histories that enough patients have, and what opens sentences.

    Args:
        visits: all that the train pairs' histories have.
        pairs: of all splits; those of train count, labelled or not.
        limits: how many patients a text needs, and how many concepts there may be; markers may
            be as many as there are.
    """
    train = pairs.filter(pc.equal(pairs["split"], "train"))
    mentions, patients, opened = Counter[str](), Counter[str](), Counter[str]()
    for sentences in _told_of_each_patient(visits, train):
        texts, openings = list[str](), set[str]()
        for _, concepts in sentences:
            texts += [concept.text for concept in concepts]
            openings |= {concept.opening for concept in concepts if concept.opening}
        mentions.update(texts)
        patients.update(set(texts))
        opened.update(openings)
    frequent = _frequent(patients, limits.min_patients)[: limits.max_concepts]
    return ConceptVocabulary(
        markers=(*map(knowledge_heading, OPENINGS), *_frequent(opened, limits.min_patients)),
        concepts=frequent,
        share=sum(mentions[text] for text in frequent) / max(mentions.total(), 1),
        fitted=fitted_on("concept_vocabulary", train["pair_id"].to_pylist(), split="train"),
    )


def _told_of_each_patient(visits: pa.Table, pairs: pa.Table) -> Iterator[Iterator[Sentence]]:
    """For each patient the sentences of all histories."""
    known = pc.is_in(visits["visit_id"], pc.unique(pc.list_flatten(pairs["history"])))
    histories: dict[int, list[Sequence[Visit]]] = defaultdict(list)
    told = histories_of(visits.filter(known), pairs).values()
    for subject_id, one in zip(pairs["subject_id"].to_pylist(), told, strict=True):
        histories[subject_id].append(one.history)
    sentence_of = RecentSentences()
    for of_patient in histories.values():
        yield _sentences(of_patient, sentence_of)


def _sentences(
    histories: Iterable[Sequence[Visit]], sentence_of: RecentSentences
) -> Iterator[Sentence]:
    for history in histories:
        yield patient_sentence(history)
        yield from map(sentence_of, history, count())


def _frequent(patients: Counter[str], least: int) -> tuple[str, ...]:
    """The texts of at least so many patients, most frequent first.

    >>> _frequent(Counter({"Gout": 5, "Shock": 7, "Fever": 5, "Cough": 4}), 5)
    ('Shock', 'Fever', 'Gout')
    """
    enough = [text for text, number in patients.items() if number >= least]
    return tuple(sorted(enough, key=lambda text: (-patients[text], text)))
