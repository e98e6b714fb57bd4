"""The audit of knowledge in narratives: planted leaks are found, honest facts pass."""

from collections.abc import Callable
from pathlib import Path

import pytest
from audited import narratives, pairs, span, visits, write_cohort, write_narratives

from ckd_ehr.data.audit.narratives import narrative_findings

FOLD = 0
STATEMENT = "Heart failure progresses to kidney failure within months after discharge"
HELPFUL: dict[str, object] = {
    "fold": FOLD, "label": "Heart failure", "kind": "medication", "system": "NAME",
    "code": "spironolactone", "treatment": "spironolactone", "treated": 30, "treated_resolved": 20,
    "untreated": 30, "untreated_resolved": 9, "separated": False, "log_odds": 1.0,
    "standard_error": 0.2, "q_value": 0.01, "shrunk_log_odds": 0.9, "low": 0.4, "high": 1.3,
}  # fmt: skip
USELESS = {**HELPFUL, "code": "saline", "treatment": "saline", "low": -0.1}
ELSEWHERE = {**HELPFUL, "fold": FOLD + 1, "code": "digoxin", "treatment": "digoxin"}
SNIPPET: dict[str, object] = {
    "snippet_id": "hf/risk.md#L3-L3", "guideline_id": "hf", "title": "Heart failure", "doi": None,
    "file": "hf/risk.md", "first_line": 3, "last_line": 3, "text": STATEMENT,
    "conditions": [108], "mentions": [157],
}  # fmt: skip
TITLE: dict[str, object] = {
    "system": "ICD9CM", "code": "4280", "title": "Congestive heart failure",
    "title_origin": "ontology", "categories": ["Diseases of the heart", "Heart failure"],
    "categories_origin": "leaf",
}  # fmt: skip
SEPTIC = {**TITLE, "code": "0389", "categories": ["Infections", "Septicemia"]}
KNOWN = {
    "efficacy": [HELPFUL, USELESS, ELSEWHERE],
    "guidelines": [SNIPPET],
    "titles": [TITLE, SEPTIC],
}
EFFICACY, GUIDELINE = ("efficacy", "NAME"), ("guideline", "GUIDELINE")


def told(row: dict[str, object], kind: str, system: str, code: str, words: str) -> None:
    """Append a piece of knowledge to a narrative."""
    text, spans = str(row["text"]), row["spans"]
    assert isinstance(spans, list)
    start = len(text) + 1
    row["text"] = f"{text} {words}."
    fact = span(start, start + len(words), kind=kind, system=system, code=code, index=-2)
    spans.append({**fact, "from_knowledge": True})


def problems(folder: Path, tell: Callable[[dict[str, object]], object]) -> list[str]:
    """What is found when the first pair, of the first fold, is told something.

    Its last visit has heart failure and the drug spironolactone; its next visit has septicemia.
    """
    visit_rows, pair_rows, rows = visits(), pairs(), narratives()
    pair = pair_rows[1]
    assert pair["pair_id"] == rows[2]["pair_id"]
    pair["fold"] = FOLD
    for visit in visit_rows:
        if visit["visit_id"] == "10002":
            visit["medications"] = [{"system": "NAME", "code": "spironolactone", "title": None}]
    tell(rows[2])
    cohort = write_cohort(folder / "cohort", visit_rows, pair_rows)
    knowledge = write_narratives(folder / "knowledge", rows, KNOWN)
    found = narrative_findings(knowledge, cohort, words_of=lambda _, code, title: title or code)
    return [finding.check for finding in found]


def test_what_depends_on_the_last_visit_and_the_fold_passes(tmp_path: Path) -> None:
    def tell(row: dict[str, object]) -> None:
        helps = "spironolactone, Heart failure (given at the last visit)"
        told(row, *EFFICACY, "Heart failure/spironolactone", helps)
        told(row, *GUIDELINE, "hf/risk.md#L3-L3", STATEMENT)
        told(row, "category", "CCS", "Heart failure", "Heart failure")

    assert problems(tmp_path, tell) == []


@pytest.mark.parametrize(
    ("check", "kind", "code", "words"),
    [
        ("kinds of knowledge", ("diagnosis", "ICD9CM"), "0389", "blood poisoning"),
        ("guidelines in their own words", GUIDELINE, "hf/risk.md#L3-L3", "She comes back septic"),
        ("guidelines in their own words", GUIDELINE, "made/up.md#L1-L1", STATEMENT),
        ("treatments by fold", EFFICACY, "Heart failure/digoxin",
         "digoxin, Heart failure (not at the last visit)"),
        ("treatments by fold", EFFICACY, "Heart failure/saline",
         "saline, Heart failure (not at the last visit)"),
        ("treatments by fold", EFFICACY, "Heart failure/spironolactone",
         "spironolactone, Septicemia (given at the last visit)"),
        ("treatments as given", EFFICACY, "Heart failure/spironolactone",
         "spironolactone, Heart failure (not at the last visit)"),
        ("categories of the last visit", ("category", "CCS"), "Septicemia", "Septicemia"),
    ],
)  # fmt: skip
def test_a_planted_leak_is_found(
    tmp_path: Path, check: str, kind: tuple[str, str], code: str, words: str
) -> None:
    assert problems(tmp_path, lambda row: told(row, *kind, code, words)) == [check]
