"""Statements of Markdown: what is one, which lines it stands in, what is no statement."""

import pytest

from ckd_ehr.knowledge.markdown import Statement, split_front_matter, statements_of

SENTENCE = "Heart failure raises the risk of kidney failure"


def texts(markdown: str) -> list[str]:
    return [statement.text for statement in statements_of(markdown)]


def test_a_paragraph_over_several_lines_is_one_statement_with_its_lines_and_headings() -> None:
    markdown = f"# AKI\n\n## Risk\n\n{SENTENCE}\nin adults of any age.\n"
    assert statements_of(markdown) == [
        Statement(f"{SENTENCE} in adults of any age.", 5, 6, ("AKI", "Risk"))
    ]


def test_lines_before_the_text_count() -> None:
    [statement] = statements_of(f"# Risk\n\n{SENTENCE}.\n", lines_before=4)
    assert (statement.first_line, statement.last_line) == (7, 7)


def test_a_heading_ends_those_of_its_level_and_below() -> None:
    markdown = f"# A\n\n### B\n\n{SENTENCE} one.\n\n## C\n\n{SENTENCE} two.\n"
    assert [s.headings for s in statements_of(markdown)] == [("A", "B"), ("A", "C")]


def test_a_list_of_short_items_is_one_statement_with_what_opens_it() -> None:
    markdown = "Comorbidities that increase risk:\n\n- diabetes;\n- CKD.\n- cancer\n"
    assert statements_of(markdown) == [
        Statement("Comorbidities that increase risk: diabetes; CKD; cancer", 1, 5, ())
    ]


def test_a_list_item_opens_the_list_below_it() -> None:
    markdown = "- Risk factors of kidney injury:\n  - diabetes\n  - heart failure\n"
    assert texts(markdown) == ["Risk factors of kidney injury: diabetes; heart failure"]


def test_a_list_under_a_heading_alone_opens_with_the_heading() -> None:
    markdown = "# AKI\n\n## Risk factors for CI-AKI\n\n1. diabetes mellitus\n2. heart failure\n"
    [statement] = statements_of(markdown)
    assert statement.text == "Risk factors for CI-AKI: diabetes mellitus; heart failure"
    assert (statement.first_line, statement.last_line) == (5, 6)


def test_long_items_are_statements_each() -> None:
    long = f"{SENTENCE} in adults of any age, and the more so in the old"
    assert texts(f"It is known:\n\n- {long}\n- {long} too\n") == [long, f"{long} too"]


def test_a_long_paragraph_is_cut_into_sentences() -> None:
    sentence = f"{SENTENCE} in adults, whatever else is the matter with them at that time."
    assert texts(" ".join([sentence] * 4)) == [sentence] * 4
    assert texts(" ".join([sentence] * 2)) == [f"{sentence} {sentence}"]


def test_a_long_list_keeps_its_first_items() -> None:
    items = "".join(
        f"- cause number {number} of kidney failure in all adults\n" for number in "abcdefgh"
    )
    [text] = texts(f"Causes are:\n\n{items}")
    assert text.startswith("Causes are: cause number a of kidney failure in all adults; cause")
    assert len(text.split()) <= 60


@pytest.mark.parametrize(
    "left_out",
    [
        f"> **OpenMedicine Calculator:** {SENTENCE}.",
        f"| Factor | Risk |\n|---|---|\n| age | {SENTENCE} |",
        f"```\n{SENTENCE}\n```",
        f"    {SENTENCE}",
        f"## Limitations\n\n{SENTENCE}.",
        f"## Decision Algorithm\n\n- {SENTENCE}.",
        f"## References\n\n{SENTENCE}.",
        f"## Limitations\n\n### Of the score\n\n{SENTENCE}.",
        "Too short to say anything.",
        "---",
        "",
    ],
)  # fmt: skip
def test_what_is_no_statement_is_left_out(left_out: str) -> None:
    assert texts(f"# Guideline\n\n{left_out}\n") == []


def test_what_follows_a_section_left_out_is_read() -> None:
    markdown = f"## Limitations\n\n{SENTENCE} one.\n\n## Risk\n\n{SENTENCE} two.\n"
    assert texts(markdown) == [f"{SENTENCE} two."]


@pytest.mark.parametrize(
    "grade",
    [
        "(Grade 1B)",
        "(Class IIa, Level of Evidence: B)",
        "(COR 2a, LOE B)",
        "(Not Graded)",
        "(Conditional, Low)",
        "[Level I]",
        "(Strong recommendation, Moderate quality of evidence)",
        "(Recommendation 1.2.2)",
    ],
)
def test_grades_of_evidence_are_taken_out(grade: str) -> None:
    assert texts(f"{SENTENCE} {grade}.") == [f"{SENTENCE}."]


def test_the_number_of_a_recommendation_is_taken_out() -> None:
    assert texts(f"**Recommendation 6.17 (Grade B):** {SENTENCE}.") == [f"{SENTENCE}."]


def test_other_brackets_stay() -> None:
    assert texts(f"{SENTENCE} (eGFR < 60 mL/min).") == [f"{SENTENCE} (eGFR < 60 mL/min)."]


def test_text_is_plain_and_printable() -> None:
    markdown = "**Heart** _failure_  raises\tthe `risk`\x07 of [AKI](https://example.org) &amp; CKD"
    assert texts(markdown) == ["Heart failure raises the risk of AKI & CKD"]


def test_a_hard_break_parts_words_and_html_is_not_seen() -> None:
    assert texts("Heart failure<br> raises  \nthe **risk** of AKI and death") == [
        "Heart failure raises the risk of AKI and death"
    ]


@pytest.mark.parametrize(
    "of_a_disease", ["(NYHA Class III–IV)", "(Killip Class II)", "(Grade III-IV)"]
)
def test_classes_and_grades_of_a_disease_stay(of_a_disease: str) -> None:
    assert texts(f"{SENTENCE} {of_a_disease}.") == [f"{SENTENCE} {of_a_disease}."]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("---\nid: a\n---\n# Risk\n", ("id: a", 3, "# Risk\n")),
        ("---\r\nid: a\x0cb\u2028c\r\n---\r\nx", ("id: a\x0cb\u2028c", 3, "x")),
        ("# Risk\n---\n", (None, 0, "# Risk\n---\n")),
        ("---\nid: a\n", (None, 3, "")),
        ("", (None, 0, "")),
    ],
)
def test_front_matter_is_split_off_by_the_lines_of_markdown(
    text: str, parts: tuple[str | None, int, str]
) -> None:
    assert split_front_matter(text) == parts


def test_an_opening_that_leaves_the_disease_unsaid_gets_its_heading_once() -> None:
    risk = (
        "Risk factors: hypertension, diabetes mellitus, obesity and a family history of the disease"
    )
    assert texts(f"# Heart failure\n\n{risk}.\n") == [f"Heart failure: {risk}."]
    high = "High risk of fracture is told from bone density and from earlier fractures"
    assert texts(f"# High risk of fracture\n\n{high}.\n") == [f"{high}."]


def test_what_opens_something_left_out_is_cut_off() -> None:
    assert texts(f"{SENTENCE}. The rates are:\n\n| a |\n|---|\n| b |\n") == [f"{SENTENCE}."]
