"""The audit of narratives: clean ones pass, every planted leak is found."""

from collections.abc import Callable
from pathlib import Path

import pytest
from audited import SEPSIS, Rows, narratives, pairs, span, visits, write_cohort, write_narratives

from ckd_ehr.data.audit.findings import Finding
from ckd_ehr.data.audit.narratives import WordsOf, narrative_findings


def as_recorded(_system: str, code: str, title: str | None) -> str:
    """How texts call a code here: as the source does."""
    return title or code


def findings_of(folder: Path, rows: Rows, words_of: WordsOf = as_recorded) -> list[Finding]:
    cohort = write_cohort(folder / "cohort", visits(), pairs())
    knowledge = write_narratives(folder / "knowledge", rows)
    return narrative_findings(knowledge, cohort, words_of=words_of)


def spans_of(row: dict[str, object]) -> Rows:
    found = row["spans"]
    assert isinstance(found, list)
    return found


def add(words: str) -> Callable[[Rows], object]:
    """Append words to the text of the second pair, whose next visit is 10003, outside spans."""
    return lambda rows: rows[2].update(text=f"{rows[2]['text']} {words}")


def rewrite(row: dict[str, object], span: dict[str, object], words: str) -> None:
    """Put other words into a span, and move the spans behind it."""
    text, start, end = row["text"], span["start"], span["end"]
    assert isinstance(text, str) and isinstance(start, int) and isinstance(end, int)
    row["text"] = text[:start] + words + text[end:]
    for other in spans_of(row):
        for edge in ("start", "end"):
            if int(str(other[edge])) >= end:
                other[edge] = int(str(other[edge])) + len(words) - (end - start)


def of_the_patient(row: dict[str, object], words: str) -> None:
    rewrite(row, spans_of(row)[0], words)


def call(row: dict[str, object], words: str) -> None:
    """Put other words into the span of the last code."""
    rewrite(row, spans_of(row)[-1], words)


def test_a_code_may_be_called_by_its_own_title_or_itself(tmp_path: Path) -> None:
    rows = narratives()
    call(rows[2], "congestive heart FAILURE")
    call(rows[3], "4280")
    assert findings_of(tmp_path, rows) == []


def test_a_number_in_the_name_of_a_drug_is_no_id(tmp_path: Path) -> None:
    drug = {"system": "NAME", "code": "ergocalciferol 10003 unt", "title": None}
    visit_rows = visits()
    visit_rows[1]["medications"] = [drug]
    cohort = write_cohort(tmp_path / "cohort", visit_rows, pairs())
    rows = narratives()
    text = str(rows[2]["text"])
    name = str(drug["code"])
    start = len(text) + 1
    rows[2]["text"] = f"{text} {name}."
    shown = span(start, start + len(name), kind="medication", system="NAME", code=name, index=1)
    spans_of(rows[2]).append(shown)
    knowledge = write_narratives(tmp_path / "knowledge", rows)
    assert narrative_findings(knowledge, cohort, words_of=as_recorded) == []


def test_clean_narratives_pass_and_titles_may_speak_of_death(tmp_path: Path) -> None:
    assert findings_of(tmp_path, narratives()) == []


def test_harmless_numbers_pass(tmp_path: Path) -> None:
    rows = narratives()
    for words in ("She is 73.", "Visit 10004.", "Stay of 5 days.", "Deathly ill: dietary."):
        add(words)(rows)
    assert findings_of(tmp_path, rows) == []


@pytest.mark.parametrize(
    ("count", "problem", "change"),
    [
        (1, "narratives are missing, or belong to no pair", lambda rows: rows.pop()),
        (2, "narratives are missing", lambda rows: rows[0].update(pair_id="p9")),
        (1, "pairs have several narratives", lambda rows: rows.append(rows[0])),
        (1, "spans lie outside their text", lambda rows: spans_of(rows[0])[1].update(end=999)),
        (1, "spans lie outside their text", lambda rows: spans_of(rows[0])[0].update(start=7)),
        (
            1,
            "spans show a code of the next visit that no history visit has",
            lambda rows: spans_of(rows[2])[1].update(code=SEPSIS["code"]),
        ),
        (
            1,
            "spans show a code that their history visit does not have",
            lambda rows: spans_of(rows[0])[1].update(code="4019"),
        ),
        (
            1,
            "spans show a code that their history visit does not have",
            lambda rows: spans_of(rows[0])[1].update(visit_index=1),
        ),
        (1, "texts hold the id of the next visit", add("See 10003.")),
        (1, "texts tell a date", add("She was readmitted.")),
        (1, "texts tell a date", add("A re-admission.")),
        (1, "texts tell a date", add("She DIED.")),
        (1, "texts tell a date", add("Patient expired.")),
        (1, "texts tell a date", add("Back 8 days later.")),
        (1, "texts tell a date", add("Seen 2100-02-01.")),
        (1, "texts tell a date", add("Seen 2/1/2100.")),
        (1, "texts hold outside codes the title", add("With unspecified septicemia.")),
        (1, "texts tell a date", lambda rows: of_the_patient(rows[2], "woman, expired 2100-02-01")),
        (1, "texts tell a date", lambda rows: of_the_patient(rows[2], "woman, readmitted")),
        (
            1,
            "texts hold outside codes the title",
            lambda rows: of_the_patient(rows[2], "woman with Unspecified septicemia"),
        ),
        (1, "texts hold the id of", lambda rows: of_the_patient(rows[2], "woman 10003")),
        (1, "spans show words that are neither", lambda rows: call(rows[2], "heart trouble soon")),
        (
            1,
            "codes of a single pair",
            lambda rows: call(rows[2], "unspecified  SEPTICEMIA to come"),
        ),
    ],
)
def test_a_leak_planted_in_a_narrative_is_found(
    tmp_path: Path, count: int, problem: str, change: Callable[[Rows], object]
) -> None:
    rows = narratives()
    change(rows)
    found = [f for f in findings_of(tmp_path, rows) if f.problem.startswith(problem)]
    assert [finding.rows for finding in found] == [count]
    assert found[0].stage == "knowledge"
    assert found[0].remedy


def test_a_title_of_the_code_system_may_hold_a_title_of_the_next_visit(tmp_path: Path) -> None:
    def words_of(_system: str, code: str, title: str | None) -> str:
        return "Heart failure after unspecified septicemia" if code == "4280" else title or code

    rows = narratives()
    call(rows[2], "Heart failure after unspecified septicemia")
    assert findings_of(tmp_path, rows, words_of) == []


@pytest.mark.parametrize("next_title", ["unspecified septicemia", "blood poisoning, NOS"])
def test_a_title_of_the_next_visit_added_to_one_of_the_code_system_is_found(
    tmp_path: Path, next_title: str
) -> None:
    def words_of(_system: str, code: str, title: str | None) -> str:
        return {"4280": "Cardiac failure", "0389": "Blood poisoning, NOS"}.get(code, title or code)

    rows = narratives()
    call(rows[2], f"Cardiac failure, then {next_title}")
    found = {finding.check for finding in findings_of(tmp_path, rows, words_of)}
    assert "titles of the next visit in spans" in found


def test_leaks_of_several_kinds_are_found_together(tmp_path: Path) -> None:
    rows = narratives()
    add("She was readmitted: unspecified septicemia, 10003.")(rows)
    assert [finding.check for finding in findings_of(tmp_path, rows)] == [
        "ids of the next visit",
        "times, deaths, readmissions in texts",
        "titles of the next visit in texts",
    ]
