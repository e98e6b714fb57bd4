"""Guideline digests: statements on progression and complications, and which a patient calls for.

In: a pack of digests (a registry and Markdown files), a site's own folder of Markdown. Out:
snippets, each traceable to file and lines, and their order for a patient's conditions. Ignores:
doses, techniques, trials; token budgets. A digest is not the guideline itself.

A rule finds the statements on progression; where it errs on the pinned pack,
`guideline_statements.csv` decides.
"""

import difflib
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    StrictInt,
    StringConstraints,
    ValidationError,
    field_validator,
)

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.knowledge.condition_tables import (
    category_of,
    guideline_conditions,
    mentions_of,
    reviewed_statements,
)
from ckd_ehr.knowledge.markdown import Statement, split_front_matter, statements_of

MAX_BYTES = 1 << 20
REGISTRY, CONTENT = "registry.json", "content"
SUFFIXES = (".md", ".markdown")
PACK, SITE_FOLDER = "knowledge.guidelines.pack", "knowledge.guidelines.folder"
OF_SITE = "site:"  # before the ids of a site's statements: its paths may be the pack's
_SITE_KEYS = ("id", "title", "doi", "conditions")
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
    """Snippets, a line for each file or guideline that was left out, the ids of all guidelines.

    `guidelines` counts those that have a snippet.
    """

    snippets: tuple[Snippet, ...] = ()
    left_out: tuple[str, ...] = ()
    guideline_ids: frozenset[str] = frozenset()

    @property
    def guidelines(self) -> int:
        """How many guidelines have a snippet."""
        return len({snippet.guideline_id for snippet in self.snippets})


@dataclass(frozen=True, slots=True)
class _Guideline:
    guideline_id: str
    title: str
    doi: str | None
    conditions: tuple[int, ...]


NotBlank = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class _FrontMatter(BaseModel):
    """What a site's own file says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: NotBlank
    title: NotBlank
    doi: NotBlank | None = None
    conditions: tuple[StrictInt | str, ...]

    @field_validator("conditions")
    @classmethod
    def _are_known(cls, written: tuple[int | str, ...]) -> tuple[int, ...]:
        if not written:
            raise ValueError("is empty; list CCS categories by number or name")
        return tuple(sorted({category_of(value) for value in written}))


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
        guideline = _Guideline(
            name, str(entry["title"]), str(doi) if doi else None, guideline_conditions()[name]
        )
        paths = sorted((folder / CONTENT / name).glob("*.md"))
        if not paths:
            raise CkdEhrError(
                f"{folder / CONTENT / name}: holds no Markdown file; the pack is damaged, fetch it "
                "again"
            )
        for path in paths:
            snippets += _snippets(
                guideline, f"{name}/{path.name}", _read(path), reviewed=reviewed_statements()
            )
    ids = frozenset(str(entry["id"]) for entry in entries)
    return Digests(tuple(snippets), tuple(left_out), ids)


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
    paths = _markdown_files(folder, SITE_FOLDER)
    for path in paths:
        name = path.relative_to(folder).as_posix()
        guideline, lines, body = _split(path)
        if guideline is None:
            left_out.append(f"{name}: no front matter")
            continue
        if (other := seen.setdefault(guideline.guideline_id, name)) != name:
            raise CkdEhrError(
                f"{path}: id '{guideline.guideline_id}' is also that of {other}; give it another"
            )
        found = tuple(_snippets(guideline, name, body, lines_before=lines, origin=OF_SITE))
        snippets += found
        if not found:
            left_out.append(f"{name}: no statement on where a disease may lead")
    if not seen:
        raise CkdEhrError(
            f"{SITE_FOLDER}: {folder}: none of its {len(paths)} Markdown files has "
            f"front matter; begin each with a line ---, then {', '.join(_SITE_KEYS)}, then ---"
        )
    return Digests(tuple(snippets), tuple(left_out), frozenset(seen))


def folder_digest(folder: Path, setting: str) -> str:
    """SHA-256 over the paths and bytes of a folder's Markdown files, and its registry if any."""
    digest = hashlib.sha256()
    for path in [*_markdown_files(folder, setting), *sorted(folder.glob(REGISTRY))]:
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


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
    guideline: _Guideline,
    file: str,
    text: str,
    *,
    lines_before: int = 0,
    origin: str = "",
    reviewed: Mapping[str, tuple[str, bool]] = MappingProxyType({}),
) -> Iterator[Snippet]:
    """The statements to keep, by rule or as somebody has decided who read them."""
    seen: Counter[str] = Counter()
    try:
        statements = statements_of(text, lines_before=lines_before)
    except ValueError as error:
        raise CkdEhrError(f"guideline digest {file}: {error}; divide it by empty lines") from None
    for statement in statements:
        place = f"{file}#L{statement.first_line}-L{statement.last_line}"
        if not _is_kept(statement, reviewed.get(place)):
            continue
        if not (mentions := mentions_of(statement.text)):
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
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CkdEhrError(f"{path}: not valid JSON ({error}); fetch the pack again") from None
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and {"id", "title"} <= entry.keys() for entry in entries
    ):
        raise CkdEhrError(f"{path}: not a list of guidelines with id and title")
    [(name, times)] = Counter(str(entry["id"]) for entry in entries).most_common(1) or [("", 0)]
    if times > 1:
        raise CkdEhrError(f"{path}: id '{name}' stands there {times} times; leave all but one out")
    return entries


def _markdown_files(folder: Path, setting: str) -> list[Path]:
    """Those of a folder and the folders in it, linked ones too."""
    if not folder.is_dir():
        raise CkdEhrError(f"{setting}: {folder}: no such folder; mend the path, or set it to null")
    paths, seen = [], set()
    for inner, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(inner)) in seen:  # a link to a folder that holds it
            folders.clear()
            continue
        seen.add(real)
        paths += [Path(inner, name) for name in names if name.lower().endswith(SUFFIXES)]
    if not paths:
        raise CkdEhrError(f"{setting}: {folder}: holds no Markdown file ({', '.join(SUFFIXES)})")
    for path in paths:
        if not (name := str(path)).isprintable():  # bytes that are not UTF-8 are not printable
            raise CkdEhrError(
                f"{ascii(name)[1:-1]}: its name is not UTF-8 or has control characters; rename it"
            )
    return sorted(paths)


def _read(path: Path) -> str:
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise CkdEhrError(
                f"{path}: {size:,} bytes, more than the {MAX_BYTES:,} of a digest; split it, or "
                "keep only what bears on the course of the disease"
            )
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise CkdEhrError(
            f"{path}: has disappeared, or is a link to nothing; put it back, or delete the link"
        ) from None
    except UnicodeDecodeError as error:
        raise CkdEhrError(
            f"{path}: not UTF-8 (byte {error.start}); save it in that encoding"
        ) from None
    except OSError as error:
        raise CkdEhrError(f"{path}: cannot be read ({error.strerror}); allow reading it") from None


def _split(path: Path) -> tuple[_Guideline | None, int, str]:
    """What a site's file says of itself (None if nothing), the lines of that, and what follows."""
    front_matter, lines, body = split_front_matter(_read(path))
    if lines and front_matter is None:
        raise CkdEhrError(f"{path}: its front matter has no end; close it with a line ---")
    if front_matter is None:
        return None, lines, body
    try:
        written = _yaml(front_matter)
    except RecursionError:
        raise CkdEhrError(f"{path}: its front matter is nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 2})" if mark else ""
        raise CkdEhrError(f"{path}: its front matter is not valid YAML{place}") from None
    except ValueError as error:  # What YAML takes for a date may be none.
        raise CkdEhrError(f"{path}: its front matter: {error}") from None
    if not isinstance(written, dict):
        raise CkdEhrError(f"{path}: its front matter must have {', '.join(_SITE_KEYS)}")
    try:
        found = _FrontMatter.model_validate(written)
    except ValidationError as error:
        raise CkdEhrError(f"{path}: front matter: {_explain(error)}") from None
    conditions = tuple(ccs for ccs in found.conditions if isinstance(ccs, int))
    return _Guideline(found.id, found.title, found.doi, conditions), lines, body


def _yaml(text: str) -> object:
    """The value of a YAML text; a key that stands twice is an error, not the last of its values."""
    root = yaml.compose(text, yaml.SafeLoader)
    keys = Counter(key.value for key, _ in root.value) if isinstance(root, yaml.MappingNode) else {}
    if doubled := [key for key, times in keys.items() if times > 1]:
        raise ValueError(f"'{doubled[0]}' stands there twice; leave one out")
    return yaml.safe_load(text)


def _explain(error: ValidationError) -> str:
    problem = error.errors()[0]
    key = str(problem["loc"][0]) if problem["loc"] else "all of it"
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, _SITE_KEYS, n=1)
        remedy = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(_SITE_KEYS)}"
        return f"unknown key '{key}'; {remedy}"
    if problem["type"] == "missing":
        return f"'{key}' is missing; it must have {', '.join(_SITE_KEYS)} (doi may be left out)"
    if problem["type"] == "value_error":
        return f"{key}: {str(problem['msg']).removeprefix('Value error, ')}"
    if key == "conditions":
        return f"{key}: write a list of CCS categories, each by number or name, as [108, 158]"
    return f"{key}: write some text; put it in quotes if it is a number or a date"
