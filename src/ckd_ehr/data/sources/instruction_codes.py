"""Names of an instruction pair → codes of the system NAME, with the names as titles.

In: a history's and a list's names. Out: codes as in MEDS (`DIAGNOSIS//NAME//gout`), without regard
to case; drugs folded as everywhere. Ignores: patients and times.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ckd_ehr.contracts.code_patterns import plain_name
from ckd_ehr.contracts.records import DIAGNOSIS, DRUG_NAME, MEDICATION, PROCEDURE
from ckd_ehr.data.sources.drug_names import drug_name
from ckd_ehr.data.sources.instruction_labels import LabelNames, is_name
from ckd_ehr.data.sources.instruction_text import VisitWords

# A code and its title, if it has one.
Coded = tuple[str, str | None]
# A label that no phenotype has: the next stay was coded, and none of the diseases was there.
NOTHING_LABELLED = "none of the listed diseases"
ROLES = {"diagnoses": DIAGNOSIS, "medications": MEDICATION, "procedures": PROCEDURE}


@dataclass(frozen=True, slots=True)
class PairCodes:
    """The codes of a history's visits, oldest first, and of the visit that followed."""

    history: tuple[tuple[Coded, ...], ...]
    following: tuple[Coded, ...]

    @property
    def content(self) -> tuple[frozenset[str], ...]:
        """The codes by visit, the next one last: what makes two pairs equal."""
        return tuple(frozenset(code for code, _ in v) for v in (*self.history, self.following))


class Coder:
    """Names → codes with titles; a label's name is written as ours, wherever it stands.

    Equal names are one object, since a hospital has few names and millions of uses.
    """

    def __init__(self, names: LabelNames) -> None:
        """Code by these names of labels."""
        self.names = names
        self._known: dict[tuple[str, str], Coded | None] = {}

    def pair(self, history: Sequence[VisitWords], labels: Sequence[str]) -> PairCodes:
        """A pair's codes; no label is a code of its own, which labels nothing."""
        return PairCodes(
            history=tuple(map(self._visit, history)),
            following=self._visit(VisitWords(diagnoses=tuple(labels) or (NOTHING_LABELLED,))),
        )

    def _visit(self, visit: VisitWords) -> tuple[Coded, ...]:
        """A visit's codes, each once, in the order in which they are told."""
        coded: dict[str, Coded] = {}
        for kind in ROLES:
            for name in getattr(visit, kind):
                if found := self._code(kind, name):
                    coded.setdefault(found[0], found)
        return tuple(coded.values())

    def _code(self, kind: str, name: str) -> Coded | None:
        key = (kind, name)
        if key not in self._known:
            self._known[key] = self._new_code(kind, name)
        return self._known[key]

    def _new_code(self, kind: str, name: str) -> Coded | None:
        """None where nothing of a drug's name is left."""
        role = f"{ROLES[kind]}//{DRUG_NAME}"
        if kind == "medications":
            folded = drug_name(name)
            return (f"{role}//{folded}", None) if is_name(folded) else None
        ours = self.names.ours(name) if kind == "diagnoses" else None
        return f"{role}//{ours or plain_name(name)}", ours or name
