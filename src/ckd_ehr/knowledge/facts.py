"""What is told besides a history: categories, treatments a disease goes away with, guidelines.

In: the history alone, the knowledge stage's tables, a reader's settings. Out: sentences of facts
for the narrative, and the citation of each. Every fact depends on the codes of the last visit and
on the pair's fold, and on nothing later. Ignores: how sentences become text and what is cut.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ckd_ehr.contracts.config import KnowledgeConfig, ReaderConfig
from ckd_ehr.contracts.files import read_table
from ckd_ehr.contracts.phenotype import Phenotype
from ckd_ehr.contracts.records import EFFICACY, GUIDELINES, Code, Kind, Span, Visit
from ckd_ehr.data.phenotypes import LabelRules, ccs_of
from ckd_ehr.knowledge.categories import category_path_of
from ckd_ehr.knowledge.guidelines import OF_SITE, Snippet, choose
from ckd_ehr.knowledge.pieces import PieceCounter

EFFICACY_FILE, GUIDELINES_FILE = "efficacy.parquet", "guidelines.parquet"
TELLING = ("leaf", "prefix")  # origins of a category that says more than the chapter
FEWEST_TOKENS = 8  # no statement is shorter
MOST_STATEMENTS = 40  # looked at for one history
CCS, GUIDELINE = "CCS", "GUIDELINE"  # the systems of facts that are no treatment
GIVEN, NOT_GIVEN = "given at the last visit", "not at the last visit"
OPENINGS: Mapping[Kind, str] = {
    "category": "Kinds of disease",
    "efficacy": "Associated with the disease no longer being coded",
    "guideline": "Guideline digests",
}


@dataclass(frozen=True, slots=True)
class Fact:
    """One piece of knowledge: its words, and the key under which its source is found."""

    kind: Kind
    system: str
    code: str
    text: str


Facts = tuple[Fact, ...]  # of one kind: a sentence

Row = Mapping[str, Any]  # of the efficacy table
Diagnosis = tuple[int | None, tuple[int, ...]]  # its CCS category, the positions of its labels


class KnowledgeBase:
    """What the knowledge stage knows, ready to be told of many histories."""

    def __init__(
        self,
        *,
        efficacy: pa.Table,
        snippets: Sequence[Snippet],
        phenotypes: Sequence[Phenotype],
        settings: KnowledgeConfig,
    ) -> None:
        self.settings = settings
        self.snippets = tuple(snippets)
        self._labels = [phenotype.name for phenotype in phenotypes]
        self._rules = LabelRules(phenotypes)
        self._at_stake = frozenset(ccs for phenotype in phenotypes for ccs in phenotype.ccs)
        self._helpful = _helpful(efficacy, settings.efficacy.top)
        self._known: dict[tuple[str, str], Diagnosis] = {}
        self._chosen: dict[frozenset[int], tuple[Snippet, ...]] = {}

    @classmethod
    def load(
        cls, folder: Path, *, phenotypes: Sequence[Phenotype], settings: KnowledgeConfig
    ) -> "KnowledgeBase":
        """From the folder of a knowledge stage."""
        return cls(
            efficacy=read_table(folder / EFFICACY_FILE, EFFICACY),
            snippets=snippets_from_table(read_table(folder / GUIDELINES_FILE, GUIDELINES)),
            phenotypes=phenotypes,
            settings=settings,
        )

    def facts(
        self, history: Sequence[Visit], *, fold: int, reader: ReaderConfig, counter: PieceCounter
    ) -> tuple[Facts, ...]:
        """What a reader is told besides a history, a sentence a kind.

        Args:
            history: visits, oldest first.
            fold: the pair's, whose own patients its efficacy was counted without; -1 outside train.
            reader: which kinds it is told.
            counter: of its tokens.
        """
        if not history:
            return ()
        last = history[-1]
        known = [self._of(code) for code in last.diagnoses]
        told = [
            self._categories(last) if reader.categories else (),
            self._treatments(last, fold, known) if reader.efficacy else (),
            self._statements(known, counter) if reader.guidelines else (),
        ]
        return tuple(sentence for sentence in told if sentence)

    def cite(self, span: Span, *, fold: int) -> str:
        """Where a fact in a narrative of a pair of this fold is from, in words."""
        if span.kind == "guideline":
            return cite_snippet(self._snippets_by_id[span.code])
        if span.kind == "efficacy":
            return cite_efficacy(self._rows_by_key[fold, span.system, span.code])
        return "category of a code of the last visit (AHRQ CCS)"

    def has_room(self, snippet: Snippet, counter: PieceCounter) -> bool:
        """Whether a statement is short enough to be told at all."""
        return _tokens_of(snippet, counter) <= self.settings.guidelines.max_tokens

    def _of(self, code: Code) -> Diagnosis:
        """A diagnosis's CCS category and the positions of its labels."""
        key = code.system, code.code
        if key not in self._known:
            ccs = ccs_of(*key).ccs
            self._known[key] = ccs, self._rules.labels_of(*key, ccs)
        return self._known[key]

    def _categories(self, last: Visit) -> Facts:
        codes = sorted({(code.system, code.code) for code in last.diagnoses})
        paths = (category_path_of(*key) for key in codes)
        distinct = dict.fromkeys(path.names[-1] for path in paths if path.origin in TELLING)
        return tuple(Fact("category", CCS, name, name) for name in distinct)

    def _treatments(self, last: Visit, fold: int, known: Sequence[Diagnosis]) -> Facts:
        present = sorted({label for _, labels in known for label in labels})
        given = {(c.system, c.code) for c in (*last.medications, *last.procedures)}
        return tuple(
            efficacy_fact(row, given=(row["system"], row["code"]) in given)
            for label in present
            for row in self._helpful.get((fold, self._labels[label]), ())
        )

    def _statements(self, known: Sequence[Diagnosis], counter: PieceCounter) -> Facts:
        """The first statements that fit together; one too long, or told already, is passed over."""
        room = self.settings.guidelines.max_tokens
        told: list[Fact] = []
        said: set[str] = set()
        present = frozenset(ccs for ccs, _ in known if ccs is not None)
        for snippet in self._choose(present, counter):
            tokens = _tokens_of(snippet, counter)
            if tokens <= room and snippet.text.casefold() not in said:
                room -= tokens
                said.add(snippet.text.casefold())
                told.append(Fact("guideline", GUIDELINE, snippet.snippet_id, snippet.text))
            if room < FEWEST_TOKENS:
                break
        return tuple(told)

    def _choose(self, present: frozenset[int], counter: PieceCounter) -> tuple[Snippet, ...]:
        relevant = present & (self._conditions | self._at_stake)
        if relevant not in self._chosen:
            self._chosen[relevant] = tuple(
                choose(self.snippets, present=relevant, at_stake=self._at_stake)
            )
        fitting = (one for one in self._chosen[relevant] if self.has_room(one, counter))
        return tuple(islice(fitting, MOST_STATEMENTS))

    @cached_property
    def _conditions(self) -> frozenset[int]:
        return frozenset(ccs for snippet in self.snippets for ccs in snippet.conditions)

    @cached_property
    def _snippets_by_id(self) -> Mapping[str, Snippet]:
        return {snippet.snippet_id: snippet for snippet in self.snippets}

    @cached_property
    def _rows_by_key(self) -> Mapping[tuple[int, str, str], Row]:
        rows = [(fold, row) for (fold, _), rows in self._helpful.items() for row in rows]
        return {(fold, row["system"], _code_of(row)): row for fold, row in rows}


def _tokens_of(snippet: Snippet, counter: PieceCounter) -> int:
    return counter.later(f" {snippet.text};")


def efficacy_fact(row: Row, *, given: bool) -> Fact:
    """The words on one treatment of a patient's disease."""
    text = f"{row['treatment']}, {row['label']} ({GIVEN if given else NOT_GIVEN})"
    return Fact("efficacy", row["system"], _code_of(row), text)


def _code_of(row: Row) -> str:
    return f"{row['label']}/{row['code']}"


def _helpful(efficacy: pa.Table, top: int) -> dict[tuple[int, str], tuple[Row, ...]]:
    """By fold and label the first `top` treatments whose lower bound is above none."""
    chosen: dict[tuple[int, str], list[Row]] = {}
    for row in efficacy.to_pylist():  # the best of a label first
        some = chosen.setdefault((row["fold"], row["label"]), [])
        if row["low"] > 0 and len(some) < top:
            some.append(row)
    return {key: tuple(some) for key, some in chosen.items()}


def snippets_table(snippets: Sequence[Snippet]) -> pa.Table:
    """Snippets as the `guidelines` table."""
    names = GUIDELINES.names
    rows = [{name: getattr(snippet, name) for name in names} for snippet in snippets]
    return pa.Table.from_pylist(rows, schema=GUIDELINES)


def snippets_from_table(table: pa.Table) -> list[Snippet]:
    """The rows of a `guidelines` table."""
    rows: list[dict[str, Any]] = table.to_pylist()
    lists = ("conditions", "mentions")
    return [Snippet(**row | {name: tuple(row[name]) for name in lists}) for row in rows]


def cite_snippet(snippet: Snippet) -> str:
    """Guideline, DOI, file and lines."""
    doi = f", doi {snippet.doi}" if snippet.doi else ""
    lines = f"lines {snippet.first_line}-{snippet.last_line}"
    if snippet.first_line == snippet.last_line:
        lines = f"line {snippet.first_line}"
    whose = "the site's own digest" if snippet.snippet_id.startswith(OF_SITE) else "digest"
    return f"{whose} of {snippet.title}{doi}; {snippet.file}, {lines}"


def cite_efficacy(row: Row) -> str:
    """Counts, odds ratio and interval of an efficacy row.

    >>> row = {"treated": 50, "treated_resolved": 40, "untreated": 60, "untreated_resolved": 30}
    >>> cite_efficacy(row | {"shrunk_log_odds": 0.69, "low": 0.1, "high": 1.1}).split("; ")[1]
    'odds ratio, adjusted and shrunk, 2.0 [1.1, 3.0]'
    """
    ratio, low, high = (float(np.exp(row[k])) for k in ("shrunk_log_odds", "low", "high"))
    return (
        f"not coded at the next visit: {row['treated_resolved']} of {row['treated']} with, "
        f"{row['untreated_resolved']} of {row['untreated']} without; "
        f"odds ratio, adjusted and shrunk, {ratio:.1f} [{low:.1f}, {high:.1f}]"
    )
