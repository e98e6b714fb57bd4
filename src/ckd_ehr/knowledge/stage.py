"""The knowledge stage: what is known of codes, treatments and guidelines, and every history told.

In: the cohort's visits and pairs, guideline digests, each reader's token counter. Out: the tables
of titles, efficacy and guideline statements, and a table of narratives for each reader. Ignores:
what any of it says. A history is told what was counted without its own fold's patients.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ckd_ehr.contracts.config import GuidelinesConfig, KnowledgeConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_table, write_json, write_table
from ckd_ehr.contracts.fitted import FITTED, write_fitted
from ckd_ehr.contracts.records import (
    EFFICACY,
    GUIDELINES,
    NARRATIVES,
    PAIRS,
    TITLES,
    VISITS,
    Code,
    Reader,
)
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.contracts.wheels import parse_wheel_path, unpack
from ckd_ehr.knowledge.categories import category_path_of
from ckd_ehr.knowledge.efficacy import Efficacy, count_efficacy
from ckd_ehr.knowledge.facts import (
    EFFICACY_FILE,
    GUIDELINES_FILE,
    KnowledgeBase,
    snippets_table,
)
from ckd_ehr.knowledge.guideline_files import PACK, SITE_FOLDER, folder_digest
from ckd_ehr.knowledge.guidelines import Digests, read_pack, read_site_folder
from ckd_ehr.knowledge.ontology import ORIGINS, title_of, words_of
from ckd_ehr.knowledge.pieces import CountTokens, PieceCounter
from ckd_ehr.knowledge.telling import Figures, tell_all
from ckd_ehr.knowledge.vocabulary import STUDENT_TOKENIZER, ConceptVocabulary, fit_vocabulary

TITLES_FILE = "titles.parquet"
COUNTED = 500  # narratives whose word pieces are counted, where they are not what is read
Extend = Callable[[Sequence[str], Path], CountTokens]


def guidelines_digests(settings: KnowledgeConfig) -> dict[str, str]:
    """What identifies the guideline digests that a run reads; an error if they are not there.

    A site's files are read, so that what is wrong with them is known before anything is computed.
    """
    if not settings.uses_guidelines:
        return {}
    digests = {}
    if (pack := settings.guidelines.pack) is not None:
        wheel = parse_wheel_path(pack)
        digests["guidelines.pack"] = wheel.sha256 if wheel else folder_digest(Path(pack), PACK)
    if settings.guidelines.folder is not None:
        read_site_folder(settings.guidelines.folder)
        digests["guidelines.folder"] = folder_digest(settings.guidelines.folder, SITE_FOLDER)
    return digests


def read_digests(settings: GuidelinesConfig) -> Digests:
    """The statements of the pack, fetched on first use, and of the site's own folder."""
    site, pack = Digests(), Digests()
    if settings.folder is not None:
        site = read_site_folder(settings.folder)
    if settings.pack is not None:
        wheel = parse_wheel_path(settings.pack)
        pack = read_pack(unpack(wheel) if wheel else Path(settings.pack))
    if doubled := sorted(site.guideline_ids & pack.guideline_ids):
        raise CkdEhrError(
            f"{SITE_FOLDER}: {settings.folder}: id '{doubled[0]}' is also one of the "
            f"pack's; give the site's own guideline another id"
        )
    return Digests(
        snippets=site.snippets + pack.snippets,
        left_out=site.left_out,
        not_for_us=pack.not_for_us,
        guideline_ids=site.guideline_ids | pack.guideline_ids,
    )


def write_knowledge(
    context: StageContext, count_tokens: Mapping[Reader, CountTokens], extend: Extend | None = None
) -> None:
    """Stage `knowledge`: its tables, each reader's narrative of every pair, the leak audit.

    Args:
        context: of the stage.
        count_tokens: each reader's tokens of a text.
        extend: writes the student's tokenizer with a token for each of these texts, and gives its
            counter; needed for a concept vocabulary.
    """
    settings, phenotypes = context.config.knowledge, context.config.labels.selected
    visits = read_table(context.inputs["cohort"] / "visits.parquet", VISITS)
    pairs = read_table(context.inputs["cohort"] / "pairs.parquet", PAIRS)
    digests = read_digests(settings.guidelines) if settings.uses_guidelines else Digests()
    context.say(_said_of_guidelines(digests, settings))
    write_table(snippets_table(digests.snippets), context.folder / GUIDELINES_FILE, GUIDELINES)
    efficacy = _write_efficacy(context, visits, pairs)
    titles = titles_of(visits, pairs)
    write_table(titles, context.folder / TITLES_FILE, TITLES)
    summary: dict[str, object] = {
        "titles_by_origin": _by_origin(titles),
        "efficacy": {"left_out": efficacy.left_out, **_efficacy_facts(efficacy.table)},
        "guidelines": {
            "guidelines": digests.guidelines,
            "statements": len(digests.snippets),
            "left_out": [*digests.left_out, *digests.not_for_us],
        },
    }
    fitted, counters = list(efficacy.fitted), dict(count_tokens)
    if (limits := context.config.student.concept_vocabulary).enabled:
        vocabulary = fit_vocabulary(visits, pairs, limits)
        assert extend is not None, "a concept vocabulary needs a tokenizer"
        counters["student"] = extend(vocabulary.texts, context.folder / STUDENT_TOKENIZER)
        fitted.append(vocabulary.fitted)
        summary["concept_vocabulary"] = vocabulary.figures
        context.say(_said_of_vocabulary(vocabulary))
    write_fitted(context.folder / FITTED, fitted)
    base = KnowledgeBase(
        efficacy=efficacy.table, snippets=digests.snippets, phenotypes=phenotypes, settings=settings
    )
    summary |= _tell(context, visits, pairs, base, counters=counters, piece_counters=count_tokens)
    write_json(context.folder / "summary.json", summary)
    _audit(context)


def _write_efficacy(context: StageContext, visits: pa.Table, pairs: pa.Table) -> Efficacy:
    settings = context.config.knowledge.efficacy
    efficacy = count_efficacy(
        visits,
        pairs,
        context.config.labels.selected,
        kinds=settings.kinds,
        min_support=settings.min_support,
    )
    write_table(efficacy.table, context.folder / EFFICACY_FILE, EFFICACY)
    context.say(_said_of_efficacy(efficacy))
    return efficacy


def _tell(
    context: StageContext,
    visits: pa.Table,
    pairs: pa.Table,
    base: KnowledgeBase,
    *,
    counters: Mapping[Reader, CountTokens],
    piece_counters: Mapping[Reader, CountTokens],
) -> dict[str, object]:
    """Write each reader's narratives; figures about them."""
    summary: dict[str, object] = {}
    for reader, (table, facts) in tell_all(visits, pairs, base, counters).items():
        write_table(table, context.folder / f"{reader}.parquet", NARRATIVES)
        too_long: list[str] = []
        if base.settings.readers[reader].guidelines:
            counter = PieceCounter(counters[reader])
            too_long = [s.snippet_id for s in base.snippets if not base.has_room(s, counter)]
        if counters[reader] is not piece_counters[reader]:
            facts |= {"mean_word_pieces": _mean_tokens(table["text"], piece_counters[reader])}
        summary[reader] = {**facts, "statements_too_long": too_long}
        context.say(_said_of_reader(reader, facts))
        if too_long:
            limit = base.settings.guidelines.max_tokens
            context.say(
                f"{reader}: {len(too_long)} of {len(base.snippets)} statements are longer than "
                f"knowledge.guidelines.max_tokens={limit}, and never told "
                f"({too_long[0]}{' and others, in summary.json' if len(too_long) > 1 else ''})"
            )
    return summary


def _mean_tokens(texts: pa.ChunkedArray, count_tokens: CountTokens) -> float:
    """Tokens of a text on average, of some texts spread over all."""
    spread = list(range(0, len(texts), max(len(texts) // COUNTED, 1)))
    some = texts.take(spread).to_pylist()
    return round(sum(map(count_tokens, some)) / max(len(some), 1), 1)


def _audit(context: StageContext) -> None:
    from ckd_ehr.data.audit.findings import refuse
    from ckd_ehr.data.audit.fitted import fitted_findings
    from ckd_ehr.data.audit.narratives import narrative_findings

    cohort = context.inputs["cohort"]
    findings = narrative_findings(context.folder, cohort, words_of=words_of)
    findings += fitted_findings(cohort, {"knowledge": context.folder / FITTED})
    refuse(findings, "knowledge")


def titles_of(visits: pa.Table, pairs: pa.Table) -> pa.Table:
    """The `titles` table: every distinct code of the histories, with where its words are from."""
    told = pc.is_in(visits["visit_id"], pc.unique(pc.list_flatten(pairs["history"])))
    of_histories = visits.filter(told)
    fields = ("system", "code", "title")
    codes = {
        Code(**code)
        for kind in ("diagnoses", "medications", "procedures")
        for code in _distinct(pc.list_flatten(of_histories[kind]), fields).to_pylist()
    }
    rows = [_title_row(code) for code in codes]
    rows.sort(key=lambda row: (row["system"], row["code"], row["title"]))
    return pa.Table.from_pylist(rows, schema=TITLES)


def _distinct(structs: pa.ChunkedArray, fields: Sequence[str]) -> pa.Table:
    columns = {name: pc.struct_field(structs, name) for name in fields}
    return pa.table(columns).group_by(list(fields)).aggregate([])


def _title_row(code: Code) -> dict[str, object]:
    title, path = (
        title_of(code.system, code.code, code.title),
        category_path_of(code.system, code.code),
    )
    return {
        "system": code.system,
        "code": code.code,
        "title": title.text,
        "title_origin": title.origin,
        "categories": list(path.names),
        "categories_origin": path.origin,
    }


def _by_origin(titles: pa.Table) -> dict[str, int]:
    """How many distinct codes have their title from where."""
    origins = Counter(titles["title_origin"].to_pylist())
    return {origin: origins[origin] for origin in ORIGINS}


def _efficacy_facts(table: pa.Table) -> dict[str, int]:
    """How many combinations of disease and treatment were compared, and how many seem to help."""
    whole = table.filter(pc.equal(table["fold"], -1))
    return {
        "compared": whole.num_rows,
        "helpful": int(pc.sum(pc.greater(whole["low"], 0)).as_py() or 0),
        "separated": int(pc.sum(whole["separated"]).as_py() or 0),
    }


def _said_of_efficacy(efficacy: Efficacy) -> str:
    facts = _efficacy_facts(efficacy.table)
    said = (
        f"efficacy: {facts['compared']:,} combinations of disease and treatment compared, after "
        f"{facts['helpful']:,} the disease is coded less often"
    )
    if facts["compared"]:
        return said
    why = "; ".join(f"{reason}: {times:,}" for reason, times in efficacy.left_out.items() if times)
    return f"{said} ({why or 'no treatment of a disease to predict on record'})"


def _said_of_vocabulary(vocabulary: ConceptVocabulary) -> str:
    return (
        f"student: {len(vocabulary.concepts):,} concepts are one token each, "
        f"{vocabulary.share:.1%} of all that train histories tell"
    )


def _said_of_reader(reader: Reader, facts: Figures) -> str:
    pieces = facts.get("mean_word_pieces")
    instead = f" (word pieces: {pieces})" if pieces else ""
    return (
        f"{reader}: {facts['narratives']:,} narratives, {facts['mean_tokens']} tokens on average"
        f"{instead}; "
        f"{facts['narratives_cut']:,} histories cut to {facts['max_tokens_allowed']}; "
        f"{facts['knowledge']:,} facts told, {facts['knowledge_cut']:,} cut"
    )


def _said_of_guidelines(digests: Digests, settings: KnowledgeConfig) -> str:
    if not settings.uses_guidelines:
        folder = settings.guidelines.folder
        ignored = f"; knowledge.guidelines.folder={folder} is not read" if folder else ""
        return f"guidelines: told to no reader (knowledge.teacher.guidelines=false){ignored}"
    said = f"guidelines: {len(digests.snippets):,} statements of {digests.guidelines} digests"
    if not digests.snippets:
        said += f"; nothing can be told: set {PACK} or {SITE_FOLDER}"
    if digests.not_for_us:
        said += f"; {len(digests.not_for_us)} of the pack are for no condition or superseded"
    return "\n  ".join([said, *digests.left_out])
