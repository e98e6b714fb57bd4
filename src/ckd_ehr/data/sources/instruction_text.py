"""The sentences of an instruction pair: a history told in fixed phrases, and the labels' list.

In: a prompt and an answer, as of the paper. Out: names by visit and kind, as they are written;
the answer's list. Ignores: hints ("The medications that maybe have therapeutic effect on X are …"),
which are knowledge on diseases and not the patient's own drugs, and every other sentence.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

DIAGNOSES = "The patient-acquired disease is"
MEDICATIONS = "The patient used the following medication:"
PROCEDURES = "The patient had the following surgical operation:"
ANSWER = "Disease that the patient may acquire:"

SplitNames = Callable[[str], list[str]]

_ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth",
    "eleventh", "twelfth",
)  # fmt: skip
_STAY = r"(?:hospital\s+)?(?:visit|admission|stay|hospitali[sz]ation)"
# A name in quotes, as `LabelNames.join` writes it: whatever is in it, it marks and ends nothing.
_QUOTED = r"""(?<!\S)"(?:[^"\n]|"")*"(?=[,.\n]|$)"""
# A hint stands first: at one place, it is no list of the patient's. "Surgical operation" alone is
# none either: names of diseases begin so.
_MARK = re.compile(
    rf"""{_QUOTED}
    |(?P<hint>\bthe\s+[a-z\ ,-]{{1,80}}?\s+that\s+may\s*be\s+have\s+therapeutic\s+effects?\b)
    |(?P<diagnoses>\bpatient-acquired\s+diseases?\s*(?:is|are|includes?)?\b\s*:?)
    |(?P<medications>\bused\s+(?:the\s+)?following\s+(?:medication|drug)s?\s*(?:is\b|are\b)?\s*:?)
    |(?P<procedures>\bsurgical\s+operations?\s*(?:(?:is|are|was|were|includes?)\b\s*:?|:)
        |\b(?:underwent|undergone|had|received|following)\s+(?:the\s+|a\s+)?(?:following\s+)?
        surgical\s+operations?\b\s*:?)
    |(?P<visit>\b(?:(?:{"|".join(_ORDINALS)}|\d{{1,3}}(?:st|nd|rd|th))\s+{_STAY}
        |{_STAY}\s+(?:no\.\s*)?\d{{1,3}})\b)""",
    re.IGNORECASE | re.VERBOSE,
)
# A list ends with its line or its sentence; brackets and "St." end nothing.
_PIECE = re.compile(
    rf"{_QUOTED}|\([^()\n]*\)|\[[^\[\]\n]*\]|\b(?i:st|dr|vs|no|inj|vit)\."
    r"|(?P<end>\n|[.!?](?=\s*$|\s+[^\sa-z0-9,]))"
)
# The opening of the next sentence, where no full stop parts it from the list.
_OPENING = re.compile(
    r"[\s,;]*\b(?:(?:and|also|the|a|an|patient|he|she|has|had|have|underwent|undergone|received"
    r"|with|by|at|in|on|during|following|then)\b[\s,;]*)+$",
    re.IGNORECASE,
)
_ANSWER = re.compile(r"\bdiseases?\s+that\s+the\s+patient\s+may\s+acquire\s*:", re.IGNORECASE)
_KINDS = ("diagnoses", "medications", "procedures")


@dataclass(frozen=True, slots=True)
class VisitWords:
    """One visit of a history: names as they are written."""

    diagnoses: tuple[str, ...] = ()
    medications: tuple[str, ...] = ()
    procedures: tuple[str, ...] = ()


def read_history(prompt: str, split_names: SplitNames) -> tuple[VisitWords, ...]:
    """The visits that a prompt tells of, oldest first; one where it numbers none.

    Empty where the prompt has none of the phrases.

    >>> commas = lambda text: text.split(", ")
    >>> read_history("The patient-acquired disease is Gout, Asthma.", commas)
    (VisitWords(diagnoses=('Gout', 'Asthma'), medications=(), procedures=()),)
    """
    visits: dict[int, dict[str, list[str]]] = {}
    number = 0  # of the visit: what stands before the first number is older
    marks = [mark for mark in _MARK.finditer(prompt) if mark.lastgroup]
    for mark, following in zip_longest(marks, marks[1:]):
        kind = mark.lastgroup
        if kind == "visit":
            number = _number_of(mark.group())
        elif kind in _KINDS:
            end = following.start() if following else len(prompt)
            listed = split_names(_list_of(prompt[mark.end() : end], is_last=following is None))
            visits.setdefault(number, {}).setdefault(kind, []).extend(listed)
    return tuple(
        VisitWords(**{kind: tuple(dict.fromkeys(names)) for kind, names in visits[key].items()})
        for key in sorted(visits)
    )


def read_answer(answer: str) -> str | None:
    """The list in an answer, or None where it lacks the phrase or the list.

    >>> read_answer("Disease that the patient may acquire: Shock, Pneumonia.")
    'Shock, Pneumonia'
    >>> read_answer("I cannot tell.") is None
    True
    """
    found = _ANSWER.search(answer)
    return (found and " ".join(answer[found.end() :].split()).rstrip(". ")) or None


def write_history(visits: Sequence[VisitWords], join_names: Callable[[Sequence[str]], str]) -> str:
    """A history in the phrases that `read_history` reads; only several visits are numbered.

    >>> write_history([VisitWords(("Gout",), ("aspirin",))], ", ".join)
    'The patient-acquired disease is Gout. The patient used the following medication: aspirin.'
    """
    told = []
    for number, visit in enumerate(visits, start=1):
        sentences = [f"{DIAGNOSES} {join_names(visit.diagnoses)}."]
        if visit.medications:
            sentences.append(f"{MEDICATIONS} {join_names(visit.medications)}.")
        if visit.procedures:
            sentences.append(f"{PROCEDURES} {join_names(visit.procedures)}.")
        opening = f"Visit {number}: " if len(visits) > 1 else ""
        told.append(opening + " ".join(sentences))
    return " ".join(told)


def _list_of(text: str, *, is_last: bool) -> str:
    """The list at the beginning of what stands between two marks."""
    for piece in _PIECE.finditer(text):
        if piece["end"] is not None and text[: piece.start()].strip():
            return text[: piece.start()]
    return text if is_last else _OPENING.sub("", text)


def _number_of(words: str) -> int:
    """The number in "second visit" or "Visit 2"."""
    if digits := re.search(r"\d+", words):
        return int(digits.group())
    ordinal, *_ = words.lower().split()
    return _ORDINALS.index(ordinal) + 1
