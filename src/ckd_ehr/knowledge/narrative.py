"""A history as text, with the characters of every concept.

In: visits, oldest first, and a function that counts tokens. Out: `Narrative`s that fit a reader's
token budget. Ignores: times, distances in time, deaths and ids, which never enter a text, and
everything after the visits given. A concept is a demographic fact, diagnosis, drug or procedure.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ckd_ehr.contracts.files import read_table, write_json, write_table
from ckd_ehr.contracts.records import (
    AGE,
    ETHNICITY,
    NARRATIVES,
    PAIRS,
    SEX,
    SPAN,
    VISITS,
    Code,
    Kind,
    Narrative,
    Reader,
    Span,
    Visit,
    concept_id_of,
    visits_from_table,
)
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.knowledge.ontology import ORIGINS, title_of, words_of

CountTokens = Callable[[str], int]

OF_THE_PATIENT = -1  # visit_index of demographics: they belong to no visit
NOTHING_CODED = "No codes recorded."
ALL_CUT = "Codes left out."
ADULT_AGE, HIGHEST_AGE = 18, 89
BATCH = 2048  # narratives held as Python objects at a time
SHORT_TEXT = 300  # characters of a text whose tokens are worth remembering
_NOUNS = {("F", True): "woman", ("M", True): "man", ("F", False): "girl", ("M", False): "boy"}


@dataclass(frozen=True, slots=True)
class _Concept:
    """A concept and what stands before it: it is cut from the end, so that never changes."""

    lead: str
    text: str
    kind: Kind
    system: str
    code: str
    visit_index: int
    occurrence: int


# Concepts that share one opening and are cut from the end: the patient's, or a visit's.
_Sentence = tuple[_Concept, ...]


def tell(history: Sequence[Visit], *, count_tokens: CountTokens, max_tokens: int) -> Narrative:
    """Tell a history, oldest visit first, within a token budget.

    What does not fit is cut by whole concepts: from the oldest visit on; in a visit procedures,
    then drugs, then diagnoses, each from the end; demographics last. `visit_index` counts from
    the oldest visit given, whatever is cut.

    Args:
        history: visits of one patient, oldest first; codes come in any order.
        count_tokens: the reader's tokens of a text, special ones included.
        max_tokens: the budget.
    """
    return tell_and_count(history, count_tokens=count_tokens, max_tokens=max_tokens)[0]


def tell_and_count(
    history: Sequence[Visit], *, count_tokens: CountTokens, max_tokens: int
) -> tuple[Narrative, int]:
    """As `tell`, with the number of tokens of the text."""
    sentences = [_demographics(history)]
    sentences += [_visit_sentence(visit, index) for index, visit in enumerate(history)]
    sizes = [len(sentence) for sentence in sentences]
    counted: dict[int, tuple[Narrative, int]] = {}

    def with_cut(cut: int) -> tuple[Narrative, int]:
        if cut not in counted:
            narrative = _write(sentences, _kept(sizes, cut), cut)
            counted[cut] = narrative, count_tokens(narrative.text)
        return counted[cut]

    # An estimate first, so that the tokeniser reads the whole text once or twice.
    cut = _estimated_cut(sentences, count_tokens, max_tokens)
    while cut < sum(sizes) and with_cut(cut)[1] > max_tokens:
        cut += 1
    while cut > 0 and with_cut(cut - 1)[1] <= max_tokens:
        cut -= 1
    return with_cut(cut)


def _demographics(history: Sequence[Visit]) -> _Sentence:
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
        facts.append((" ", noun, SEX, sex) if facts else ("", noun.capitalize(), SEX, sex))
    if latest and latest.ethnicity and (words := words_of(ETHNICITY, latest.ethnicity)):
        shown = words.title() if words.isupper() else words
        facts.append((", " if facts else "", shown, ETHNICITY, latest.ethnicity))
    return tuple(
        _Concept(lead, text, "demographics", system, code, OF_THE_PATIENT, 0)
        for lead, text, system, code in facts
    )


def _visit_sentence(visit: Visit, index: int) -> _Sentence:
    """A visit's concepts in their one order: diagnoses, drugs, procedures, each by code."""
    admission = f" ({visit.admission_type.lower()})" if visit.admission_type else ""
    opening = f"Visit {index + 1}{admission}"
    sections: tuple[tuple[Kind, str, tuple[Code, ...]], ...] = (
        ("diagnosis", "", visit.diagnoses),
        ("medication", "Drugs", visit.medications),
        ("procedure", "Procedures", visit.procedures),
    )
    concepts: list[_Concept] = []
    for kind, heading, codes in sections:
        seen: Counter[tuple[str, str]] = Counter()
        start = f"{opening}: " if not heading else f"{opening}. {heading}: "
        if concepts:
            start = f". {heading}: "
        for number, code in enumerate(sorted(codes, key=lambda code: (code.system, code.code))):
            key = (code.system, code.code)
            text = words_of(code.system, code.code, code.title)
            lead = "; " if number else start
            concepts.append(_Concept(lead, text, kind, *key, index, seen[key]))
            seen[key] += 1
    return tuple(concepts)


def _estimated_cut(
    sentences: Sequence[_Sentence], count_tokens: CountTokens, max_tokens: int
) -> int:
    """How many concepts to cut if the tokens of pieces add up, which they nearly do."""
    empty = count_tokens("")
    costs: list[int] = []  # in the order of cutting
    for sentence in (*sentences[1:], sentences[0]):
        for number, concept in reversed(list(enumerate(sentence))):
            full_stop = 1 if number == 0 else 0
            lead = count_tokens(concept.lead.rstrip()) - empty
            costs.append(lead + count_tokens(" " + concept.text) - empty + full_stop)
    total = empty + sum(costs)
    remaining = (total - spent for spent in accumulate(costs, initial=0))
    return next((cut for cut, tokens in enumerate(remaining) if tokens <= max_tokens), len(costs))


def _kept(sizes: Sequence[int], cut: int) -> list[int]:
    """How many concepts each sentence keeps; the first sentence is cut last.

    >>> _kept([3, 4, 2], 5)
    [3, 0, 1]
    """
    kept = []
    for size in (*sizes[1:], sizes[0]):
        kept.append(max(size - cut, 0))
        cut = max(cut - size, 0)
    return [kept[-1], *kept[:-1]]


def _write(sentences: Sequence[_Sentence], kept: Sequence[int], cut: int) -> Narrative:
    pieces: list[str] = []
    spans: list[Span] = []
    position = 0
    for sentence, count in zip(sentences, kept, strict=True):
        if count and pieces:
            pieces.append(" ")
            position += 1
        for concept in sentence[:count]:
            start = position + len(concept.lead)
            position = start + len(concept.text)
            pieces += (concept.lead, concept.text)
            spans.append(_span(concept, start, position))
        if count:
            pieces.append(".")
            position += 1
    if not sum(kept[1:]):
        closing = ALL_CUT if any(sentences[1:]) else NOTHING_CODED
        pieces.append(f" {closing}" if pieces else closing)
    return Narrative("".join(pieces), tuple(spans), cut)


def _span(concept: _Concept, start: int, end: int) -> Span:
    return Span(
        start=start,
        end=end,
        concept_id=concept_id_of(
            visit_index=concept.visit_index,
            kind=concept.kind,
            system=concept.system,
            code=concept.code,
            occurrence=concept.occurrence,
        ),
        kind=concept.kind,
        system=concept.system,
        code=concept.code,
        visit_index=concept.visit_index,
    )


def write_narratives(context: StageContext, count_tokens: Mapping[Reader, CountTokens]) -> None:
    """Stage `knowledge`: every pair's history as text, for each reader; then the leak audit."""
    from ckd_ehr.data.audit.findings import refuse
    from ckd_ehr.data.audit.narratives import narrative_findings

    visits = read_table(context.inputs["cohort"] / "visits.parquet", VISITS)
    pairs = read_table(context.inputs["cohort"] / "pairs.parquet", PAIRS)
    known = visits_from_table(visits)
    ids = zip(pairs["pair_id"].to_pylist(), pairs["history"].to_pylist(), strict=True)
    histories = {pair_id: [known[visit_id] for visit_id in history] for pair_id, history in ids}
    files: list[Path] = []
    summary: dict[str, object] = {"titles_by_origin": _titles_by_origin(histories.values())}
    for reader, count in count_tokens.items():
        budget = getattr(context.config.knowledge, reader).max_tokens
        table, facts = tell_all(histories, reader=reader, count_tokens=count, max_tokens=budget)
        files.append(context.folder / f"{reader}.parquet")
        write_table(table, files[-1], NARRATIVES)
        summary[reader] = facts
        context.say(
            f"{reader}: {facts['narratives']} narratives, {facts['mean_tokens']} tokens on "
            f"average, {facts['narratives_cut']} cut to {budget}"
        )
    write_json(context.folder / "summary.json", summary)
    refuse(narrative_findings(files, context.inputs["cohort"], words_of=words_of), "knowledge")


def tell_all(
    histories: Mapping[str, Sequence[Visit]],
    *,
    reader: Reader,
    count_tokens: CountTokens,
    max_tokens: int,
) -> tuple[pa.Table, dict[str, int | float]]:
    """The `narratives` table of pair_id → history for one reader, and figures about it."""
    remembering = _remembering(count_tokens)
    tokens: list[int] = []
    tables = [NARRATIVES.empty_table()]
    waiting = iter(histories.items())
    while batch := list(islice(waiting, BATCH)):
        told = [
            tell_and_count(history, count_tokens=remembering, max_tokens=max_tokens)
            for _, history in batch
        ]
        tokens += [count for _, count in told]
        ids = [pair_id for pair_id, _ in batch]
        tables.append(_narratives_table(ids, reader, [narrative for narrative, _ in told]))
    table = pa.concat_tables(tables)
    cut = table["concepts_cut"].to_numpy()
    return table, {
        "narratives": table.num_rows,
        "max_tokens_allowed": max_tokens,
        "mean_tokens": round(sum(tokens) / max(len(tokens), 1), 1),
        "max_tokens": max(tokens, default=0),
        "concepts": int(pc.sum(pc.list_value_length(table["spans"])).as_py() or 0),
        "concepts_cut": int(cut.sum()),
        "narratives_cut": int((cut > 0).sum()),
    }


def _narratives_table(
    pair_ids: Sequence[str], reader: Reader, narratives: Sequence[Narrative]
) -> pa.Table:
    spans = [span for narrative in narratives for span in narrative.spans]
    columns = [pa.array([getattr(span, f.name) for span in spans], f.type) for f in SPAN]
    ends = accumulate((len(narrative.spans) for narrative in narratives), initial=0)
    return pa.table(
        {
            "pair_id": pa.array(pair_ids, pa.string()),
            "reader": pa.array([reader] * len(pair_ids), pa.string()),
            "text": pa.array([narrative.text for narrative in narratives], pa.string()),
            "spans": pa.ListArray.from_arrays(
                pa.array(list(ends), pa.int32()), pa.StructArray.from_arrays(columns, fields=SPAN)
            ),
            "concepts_cut": pa.array([n.concepts_cut for n in narratives], pa.int32()),
        },
        schema=NARRATIVES,
    )


def _remembering(count_tokens: CountTokens) -> CountTokens:
    """The same counts; short texts (a concept, a lead) are read by the tokeniser only once."""
    known: dict[str, int] = {}

    def count(text: str) -> int:
        if len(text) > SHORT_TEXT:
            return count_tokens(text)
        if text not in known:
            known[text] = count_tokens(text)
        return known[text]

    return count


def _titles_by_origin(histories: Iterable[Sequence[Visit]]) -> dict[str, int]:
    """How many distinct codes have their title from where."""
    codes = {
        code
        for history in histories
        for visit in history
        for code in (*visit.diagnoses, *visit.medications, *visit.procedures)
    }
    origins = Counter(title_of(code.system, code.code, code.title).origin for code in codes)
    return {origin: origins[origin] for origin in ORIGINS}
