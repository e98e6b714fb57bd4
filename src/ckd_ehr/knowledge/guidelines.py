"""Guideline digests: statements on progression and complications, and which a patient calls for.

In: a pack of digests (a registry and Markdown files), a site's own folder of Markdown. Out:
snippets, each traceable to file and lines, and their order for a patient's conditions. Ignores:
doses, techniques, trials; token budgets. A digest is not the guideline itself.

A rule finds the statements on progression; where it errs on the pinned pack,
`guideline_statements.csv` decides.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.knowledge.condition_tables import (
    guideline_conditions,
    mentions_of,
    reviewed_statements,
    without_mentions,
)
from ckd_ehr.knowledge.guideline_files import (
    PACK,
    REGISTRY,
    SITE_FOLDER,
    SITE_KEYS,
    Guideline,
    markdown_files,
    read_file,
    read_site_file,
)
from ckd_ehr.knowledge.markdown import Statement, statements_of

CONTENT = "content"
OF_SITE = "site:"  # before the ids of a site's statements: its paths may be the pack's
# What a statement on the course of a disease speaks of.
_PROGRESSION = (
    "complications?|progress(?:es|ion|ive)?|risk|predispos\\w+|leads? to|develop(?:s|ed|ing|ment)?|"
    "recurren\\w+|relapse\\w*|worsen\\w*|deteriorat\\w+|predict\\w*|prognos\\w+|precipitat\\w+|"
    "susceptib\\w+|sequelae?|mortality|survival|likelihood|associated with|decompensat\\w+|"
    "results? (?:in|from)|causes?"
)
# Words of treatment, technique, trials, scores and birth.
_OTHER = (
    "mg|mcg|mL|units?|IU|mEq|kg|pregnan\\w*|neonat\\w*|newborns?|perinatal|postpartum|labor|trials?|"
    "contraindicat\\w*|dos(?:e|es|ing|age)|MCP|via|calculators?|HR|RR|NNT|infus\\w*|"
    "titrat\\w*|monotherapy|score of|points?|was|were|should|recommend\\w*|suggest\\w*|indicated|"
    "considered|consider|preferred|therap(?:y|ies)|treatments?|statins?|insulin|inhibitors?|\\w*blockers?|"
    "antibiotics?|prophyla\\w+|resuscitation|aspirin|clopidogrel|sulfonylureas|SGLT2i|GDMT|glucagon|"
    "mannitol|barbiturates?|gabapentin|saline|LR|epinephrine|norepinephrine|dopamine|HES|steroids?|"
    "glucocorticoids?|SABA|ICS|ipratropium|ceftriaxone|cessation|support|catheter|devices?|stockings|"
    "hyperventilation|bicarbonate|discharge|summaries|education|training|weight gain|drug|centers|"
    "adverse|side effects?|calculated|tool|equations|sensitivity|safety|RRT|anticoag\\w*|office BP|"
    "screening|optimi[sz]e|select|transplant\\w*|elective|surgical|referral|criterion|escalation|"
    "discussion|essential|attention|imaging|lowering|classified|stratification|shared|requires|"
    "warrants|glycemic control|interventions|classification|TZDs|TIR|DNAR|decision|estimates|manage"
)
_ADVICE = (
    "if|when|not|no|do|use|using|avoid|administer|perform|give|monitor|obtain|initiat\\w+|start|"
    "assess|screen|evaluat\\w+|ensure|maintain|treat|target|provide|prescribe|discuss|encourage|offer|"
    "continue|discontinu\\w+|stop|hold|repeat|refer|check|measure|add|switch|reassess|begin|apply|limit|"
    "reduce|goals?|identify|educate|include|confirm|rule out|image|rationale|caveat|caution|"
    "indications?|criteria|core components|management|focused|important|following|before|how to|"
    "to prevent|good response|despite|minimally"
)
_TELLS = re.compile(rf"\b(?:{_PROGRESSION})\b", re.IGNORECASE)
_TREATS = re.compile(rf"\b(?:{_OTHER})\b|/kg\b|--?>|→", re.IGNORECASE)
_ADVISES = re.compile(rf"^(?:[^:]*: )?(?:{_ADVICE})\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Snippet:
    """One statement of a digest.

    `conditions` are the CCS categories that its guideline is for, `mentions` those that its text
    speaks of; lines count from 1, the last included.
    """

    snippet_id: str
    guideline_id: str
    title: str
    doi: str | None
    file: str
    first_line: int
    last_line: int
    text: str
    conditions: tuple[int, ...]
    mentions: tuple[int, ...]


@dataclass(frozen=True)
class Digests:
    """Snippets; a line for each file of which something was left out; the ids of all guidelines.

    `not_for_us` are guidelines of a pack that are superseded or for no condition.
    """

    snippets: tuple[Snippet, ...] = ()
    left_out: tuple[str, ...] = ()
    not_for_us: tuple[str, ...] = ()
    guideline_ids: frozenset[str] = frozenset()

    @property
    def guidelines(self) -> int:
        """How many guidelines have a snippet."""
        return len({snippet.guideline_id for snippet in self.snippets})


def read_pack(folder: Path) -> Digests:
    """The digests of a pack: `registry.json` and `content/GUIDELINE/SECTION.md`.

    Raises:
        CkdEhrError: the registry or a guideline's files are missing or cannot be read.
    """
    left_out: list[str] = []
    snippets: list[Snippet] = []
    entries = _registry(folder / REGISTRY)
    for entry in entries:
        name = str(entry["id"])
        if reason := _why_not(entry):
            left_out.append(f"{name}: {reason}")
            continue
        doi = entry.get("doi")
        guideline = Guideline(
            name, str(entry["title"]), str(doi) if doi else None, guideline_conditions()[name]
        )
        paths = sorted((folder / CONTENT / name).glob("*.md"))
        if not paths:
            raise CkdEhrError(
                f"{folder / CONTENT / name}: holds no Markdown file; the pack is damaged, fetch it "
                "again"
            )
        for path in paths:
            statements = _statements(path, read_file(path))
            place = f"{name}/{path.name}"
            snippets += _snippets(guideline, place, statements, reviewed=reviewed_statements())
    ids = frozenset(str(entry["id"]) for entry in entries)
    return Digests(tuple(snippets), not_for_us=tuple(left_out), guideline_ids=ids)


def _why_not(entry: Mapping[str, object]) -> str | None:
    """Why a guideline of the registry is not read, if it is not."""
    name = str(entry["id"])
    if superseded_by := entry.get("superseded_by"):
        return f"superseded by {superseded_by}"
    if name not in guideline_conditions():
        return "not in guideline_conditions.csv"
    if not guideline_conditions()[name]:
        return "for no condition"
    return None


def read_site_folder(folder: Path) -> Digests:
    """A site's own digests: Markdown with front matter of id, title, doi and conditions.

    Files without front matter are left out and named, and so are those without a statement on
    progression.

    Raises:
        CkdEhrError: the folder or a file cannot be used, or no file has front matter; names it,
            what is wrong and the remedy.
    """
    left_out: list[str] = []
    snippets: list[Snippet] = []
    seen: dict[str, str] = {}
    paths = markdown_files(folder, SITE_FOLDER)
    for path in paths:
        name = path.relative_to(folder).as_posix()
        guideline, lines, body = read_site_file(path)
        if guideline is None:
            left_out.append(f"{name}: no front matter")
            continue
        if (other := seen.setdefault(guideline.guideline_id, name)) != name:
            raise CkdEhrError(
                f"{path}: id '{guideline.guideline_id}' is also that of {other}; give it another"
            )
        statements = _statements(path, body, lines_before=lines, apart=True)
        found = tuple(_snippets(guideline, name, statements, origin=OF_SITE))
        snippets += found
        if len(found) < len(statements):
            left_out.append(f"{name}: {len(found)} of {len(statements)} statements kept")
        elif not found:
            left_out.append(f"{name}: no statement")
    if not seen:
        raise CkdEhrError(
            f"{SITE_FOLDER}: {folder}: none of its {len(paths)} Markdown files has "
            f"front matter; begin each with a line ---, then {', '.join(SITE_KEYS)}, then ---"
        )
    return Digests(tuple(snippets), tuple(left_out), guideline_ids=frozenset(seen))


def choose(
    snippets: Sequence[Snippet], *, present: Collection[int], at_stake: Collection[int]
) -> list[Snippet]:
    """The statements for a patient's conditions, the most telling first.

    First those that name a disease at stake which the patient does not have (where it may lead),
    then those that name more diseases at stake. Among equals guidelines take turns, those for more
    of the patient's conditions first, so that none fills the space; each gives its shorter ones
    first. The same conditions always give the same order.

    Args:
        snippets: of all digests.
        present: CCS categories of the patient's diagnoses.
        at_stake: CCS categories to predict.
    """
    having, wanted = frozenset(present), frozenset(at_stake)
    absent = wanted - having
    ranked = []
    for snippet in snippets:
        if shared := len(having.intersection(snippet.conditions)):
            leads_on = not absent.isdisjoint(snippet.mentions)
            named = len(wanted.intersection(snippet.mentions))
            ranked.append((not leads_on, -named, -shared, len(snippet.text), snippet))
    ranked.sort(key=lambda row: (*row[:4], row[4].snippet_id))
    turns: Counter[tuple[bool, int, str]] = Counter()
    in_turn = []
    for place, (leads_on, named, shared, _, snippet) in enumerate(ranked):
        queue = (leads_on, named, snippet.guideline_id)
        in_turn.append((leads_on, named, turns[queue], shared, place, snippet))
        turns[queue] += 1
    return [row[-1] for row in sorted(in_turn, key=lambda row: row[:-1])]


def bears_on_progression(text: str) -> bool:
    """Whether a statement tells where a disease may lead, or who is at risk, and advises nothing.

    >>> bears_on_progression("Heart failure increases the risk of stroke")
    True
    >>> bears_on_progression("Consider furosemide 40 mg in heart failure at risk of stroke")
    False
    """
    if text.endswith(":") or _TREATS.search(text) or _ADVISES.search(text):
        return False
    return _TELLS.search(text) is not None


def _snippets(
    guideline: Guideline,
    file: str,
    statements: Sequence[Statement],
    *,
    origin: str = "",
    reviewed: Mapping[str, tuple[str, bool]] = MappingProxyType({}),
) -> Iterator[Snippet]:
    """The statements to keep, by rule or as somebody has decided who read them.

    A site's file speaks of its own conditions, whatever words it has for them.
    """
    seen: Counter[str] = Counter()
    for statement in statements:
        place = f"{file}#L{statement.first_line}-L{statement.last_line}"
        mentions = mentions_of(statement.text)
        if origin:
            kept = bears_on_progression(without_mentions(statement.text))
            mentions = mentions or guideline.conditions
        else:
            kept = _is_kept(statement, reviewed.get(place))
        if not kept or not mentions:
            continue
        seen[place] += 1
        yield Snippet(
            snippet_id=f"{origin}{place}" + (f".{seen[place]}" if seen[place] > 1 else ""),
            guideline_id=guideline.guideline_id,
            title=guideline.title,
            doi=guideline.doi,
            file=file,
            first_line=statement.first_line,
            last_line=statement.last_line,
            text=statement.text.rstrip(".:"),
            conditions=guideline.conditions,
            mentions=mentions,
        )


def _statements(
    path: Path, text: str, *, lines_before: int = 0, apart: bool = False
) -> list[Statement]:
    try:
        return statements_of(text, lines_before=lines_before, apart=apart)
    except ValueError as error:
        raise CkdEhrError(f"{path}: {error}; divide it by empty lines") from None


def _is_kept(statement: Statement, review: tuple[str, bool] | None) -> bool:
    """As somebody has decided who read this very statement, else by the rule."""
    if review and statement.text.startswith(review[0]):
        return review[1]
    return bears_on_progression(statement.text)


def _registry(path: Path) -> list[Mapping[str, object]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CkdEhrError(
            f"{path}: missing; {PACK} must name a folder, or a pypi:// path, "
            f"with {REGISTRY} and {CONTENT}/"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, OSError) as error:
        kind = type(error).__name__
        raise CkdEhrError(f"{path}: no readable JSON ({kind}); fetch the pack again") from None
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and entry.get("id") and entry.get("title") for entry in entries
    ):
        raise CkdEhrError(f"{path}: not a list of guidelines with id and title")
    [(name, times)] = Counter(str(entry["id"]) for entry in entries).most_common(1) or [("", 0)]
    if times > 1:
        raise CkdEhrError(f"{path}: id '{name}' stands there {times} times; leave all but one out")
    return entries
