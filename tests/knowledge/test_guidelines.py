"""Guideline digests: what survives, where it is from, in which order, and what is refused."""

import csv
import html
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.phenotype import PHENOTYPES_25, Phenotype
from ckd_ehr.contracts.wheels import parse_wheel_path, unpack
from ckd_ehr.data.ccs import category_names
from ckd_ehr.knowledge import condition_tables, guidelines
from ckd_ehr.knowledge.condition_tables import mentions_of
from ckd_ehr.knowledge.guideline_files import MAX_BYTES, SITE_FOLDER, folder_digest
from ckd_ehr.knowledge.guidelines import (
    Digests,
    Snippet,
    bears_on_progression,
    choose,
    read_pack,
    read_site_folder,
)
from ckd_ehr.knowledge.markdown import statements_of

AKI = "kdigo_aki_2012"  # for CCS 55, 157 and 158
RISK = """# Risk

Heart failure increases the risk of acute kidney injury.

## Risk factors for AKI

- diabetes
- **sepsis** (Grade 1B)

Give furosemide 40 mg in heart failure at risk of kidney injury.
"""
FRONT_MATTER = "id: own_aki\ntitle: Our own\nconditions: [157]"
AT_STAKE = frozenset(ccs for phenotype in PHENOTYPES_25 for ccs in phenotype.ccs)


def real_pack() -> Path:
    """The folder of the real pack, fetched on first use."""
    wheel = parse_wheel_path("pypi://open-medicine==0.12.0/open_medicine/guidelines")
    assert wheel is not None
    return unpack(wheel)


@pytest.fixture(scope="module")
def real_digests() -> Digests:
    return read_pack(real_pack())


def write_pack(folder: Path, files: dict[str, str], **more: object) -> Path:
    """A pack of the guidelines that the files' folders name."""
    for name, text in files.items():
        path = folder / "content" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    ids = sorted({name.partition("/")[0] for name in files})
    entries = [{"id": name, "title": f"Title of {name}", "doi": "10.1/x", **more} for name in ids]
    (folder / "registry.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


def write_site(folder: Path, front_matter: str = FRONT_MATTER, name: str = "own.md") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"---\n{front_matter}\n---\n{RISK}", encoding="utf-8")
    return folder


def snippet(
    name: str,
    guideline: str = "g",
    *,
    mentions: tuple[int, ...] = (157,),
    conditions: tuple[int, ...] = (108,),
    text: str = "Same length",
) -> Snippet:
    return Snippet(name, guideline, "Title", None, "f.md", 1, 1, text, conditions, mentions)


def digest(folder: Path) -> str:
    return folder_digest(folder, SITE_FOLDER)


READINGS: tuple[Callable[[Path], object], ...] = (read_site_folder, digest)


def chosen(snippets: list[Snippet], present: set[int]) -> list[str]:
    return [s.snippet_id for s in choose(snippets, present=present, at_stake=AT_STAKE)]


def test_a_pack_gives_its_statements_on_progression_and_where_they_are_from(
    tmp_path: Path,
) -> None:
    digests = read_pack(write_pack(tmp_path, {f"{AKI}/risk.md": RISK}))
    first, second = digests.snippets
    assert first == Snippet(
        snippet_id=f"{AKI}/risk.md#L3-L3",
        guideline_id=AKI,
        title=f"Title of {AKI}",
        doi="10.1/x",
        file=f"{AKI}/risk.md",
        first_line=3,
        last_line=3,
        text="Heart failure increases the risk of acute kidney injury",
        conditions=(55, 157, 158),
        mentions=(108, 157),
    )
    assert (second.first_line, second.last_line, second.mentions) == (7, 8, (2, 49, 157))
    assert second.text == "Risk factors for AKI: diabetes; sepsis"
    assert (digests.guidelines, digests.left_out) == (1, ())


def test_two_sentences_of_one_line_have_ids_of_their_own(tmp_path: Path) -> None:
    sentence = f"Heart failure increases the risk of AKI in {'very ' * 25}old adults. "
    digests = read_pack(write_pack(tmp_path, {f"{AKI}/risk.md": sentence * 3}))
    place = f"{AKI}/risk.md#L1-L1"
    assert [s.snippet_id for s in digests.snippets] == [place, f"{place}.2", f"{place}.3"]


def test_a_superseded_guideline_is_left_out_and_named(tmp_path: Path) -> None:
    pack = write_pack(tmp_path, {f"{AKI}/risk.md": RISK}, superseded_by="kdigo_aki_2026")
    digests = read_pack(pack)
    assert digests.snippets == ()
    assert digests.not_for_us == (f"{AKI}: superseded by kdigo_aki_2026",)


def test_a_guideline_without_a_row_of_conditions_is_left_out_and_named(tmp_path: Path) -> None:
    digests = read_pack(write_pack(tmp_path, {"unheard_of_2030/risk.md": RISK}))
    assert digests.snippets == ()
    assert digests.not_for_us == ("unheard_of_2030: not in guideline_conditions.csv",)


@pytest.mark.parametrize(
    ("registry", "said"),
    [
        (None, "registry.json: missing"),
        ("{", "registry.json: no readable JSON"),
        ('{"id": 1}', "registry.json: not a list of guidelines with id and title"),
        ('[{"id": "x"}]', "registry.json: not a list of guidelines with id and title"),
        (f'[{{"id": "{AKI}", "title": "T"}}]', f"{AKI}: holds no Markdown file"),
        ('[{"id": "x", "title": "T"}, {"id": "x", "title": "T"}]', "id 'x' stands there 2 times"),
    ],
)
def test_a_damaged_pack_is_refused(tmp_path: Path, registry: str | None, said: str) -> None:
    if registry is not None:
        (tmp_path / "registry.json").write_text(registry)
    with pytest.raises(CkdEhrError, match=re.escape(said)):
        read_pack(tmp_path)


def test_a_guideline_for_no_condition_is_left_out_and_named(tmp_path: Path) -> None:
    digests = read_pack(write_pack(tmp_path, {"rcp_news2_2017/risk.md": RISK}))
    assert digests.not_for_us == ("rcp_news2_2017: for no condition",)


def test_a_decision_on_a_statement_holds_only_while_it_reads_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = write_pack(tmp_path, {f"{AKI}/risk.md": RISK})
    for begins, number in [("Heart failure increases", 1), ("Another text", 2)]:
        review = {f"{AKI}/risk.md#L3-L3": (begins, False)}
        monkeypatch.setattr(guidelines, "reviewed_statements", lambda review=review: review)
        assert len(read_pack(pack).snippets) == number


@pytest.mark.parametrize("name", ["guideline_conditions", "condition_terms"])
def test_a_table_with_an_unknown_category_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rows = [{"guideline": "g", "term": "t", "ccs": "9999", "why": ""}]
    monkeypatch.setattr(condition_tables, "_table", lambda _: rows)
    with pytest.raises(CkdEhrError, match=rf"{name}\.csv: 'g': CCS has no category '9999'"):
        getattr(condition_tables, name).__wrapped__()


def test_a_category_may_be_a_number_in_quotes(tmp_path: Path) -> None:
    digests = read_site_folder(write_site(tmp_path, "id: a\ntitle: T\nconditions: ['157']"))
    assert digests.snippets[0].conditions == (157,)


def test_a_site_folder_is_searched_in_order_and_lines_count_from_the_file_s_first(
    tmp_path: Path,
) -> None:
    write_site(tmp_path, "id: b\ntitle: B\nconditions: [157]", "b.md")
    write_site(
        tmp_path, 'id: a\ntitle: A\nconditions: ["Septicemia (except in labor)", 157]', "a/a.md"
    )
    digests = read_site_folder(tmp_path)
    places = ["a/a.md#L8-L8", "a/a.md#L12-L13", "b.md#L8-L8", "b.md#L12-L13"]
    assert [s.snippet_id for s in digests.snippets] == [f"site:{place}" for place in places]
    first = digests.snippets[0]
    assert (first.guideline_id, first.doi, first.conditions) == ("a", None, (2, 157))
    assert digests.guidelines == 2
    assert digests.guideline_ids == {"a", "b"}


@pytest.mark.parametrize(
    "change", [lambda b: b.replace(b"\n", b"\r\n"), lambda b: b"\xef\xbb\xbf" + b]
)
def test_line_ends_and_byte_order_marks_of_windows_change_nothing(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    write_site(tmp_path)
    plain = read_site_folder(tmp_path)
    path = tmp_path / "own.md"
    path.write_bytes(change(path.read_bytes()))
    assert read_site_folder(tmp_path) == plain


def test_a_file_without_front_matter_is_left_out_and_named(tmp_path: Path) -> None:
    write_site(tmp_path)
    (tmp_path / "README.md").write_text(RISK)
    digests = read_site_folder(tmp_path)
    assert digests.left_out[0] == "README.md: no front matter"
    assert {s.file for s in digests.snippets} == {"own.md"}


@pytest.mark.parametrize(
    ("front_matter", "said"),
    [
        ("id: a\nconditions: [157]", "'title' is missing"),
        (f"{FRONT_MATTER}\ntitel: x", "unknown key 'titel'; did you mean 'title'?"),
        (f"{FRONT_MATTER}\nzzz: x", "unknown key 'zzz'; it has id, title, doi, conditions"),
        (f"{FRONT_MATTER}\nconditions: [2]", "'conditions' stands there twice"),
        (f"{FRONT_MATTER}\ndoi: {'[' * 900}", "nested too deeply"),
        ("id: [7]\ntitle: T\nconditions: [157]", "id: write some text"),
        ("id: a\ntitle: T\nconditions: [0x6c]", "CCS has no category '0x6c'"),
        ("id: a\ntitle: T\nconditions: []", "conditions: is empty"),
        ("id: a\ntitle: T\nconditions: [9999]", "CCS has no category '9999'"),
        ("id: a\ntitle: T\nconditions: [Gout of toe]", "CCS has no category 'Gout of toe'"),
        ("id: a\ntitle: T\nconditions: 157", "conditions: write a list"),
        ("id: a\ntitle: T\nconditions: [true]", "CCS has no category 'true'"),
        ("{{ id }}: a\ntitle: T", "not valid YAML"),
        ("? [a]\n: 1", "not valid YAML"),
        ("id: a\ntitle: T\nconditions: [Septicaemia]", "did you mean 2 (Septicemia"),
        ("id: ' '\ntitle: T\nconditions: [157]", "id: "),
        ("id: [a\ntitle: T", "not valid YAML (line 3)"),
        ("- a", "must have id, title, doi, conditions"),
    ],
)
def test_front_matter_that_cannot_be_used_is_refused(
    tmp_path: Path, front_matter: str, said: str
) -> None:
    write_site(tmp_path, front_matter)
    with pytest.raises(CkdEhrError, match=re.escape(said)) as error:
        read_site_folder(tmp_path)
    assert "own.md" in str(error.value)


def test_an_error_repeats_little_of_a_file(tmp_path: Path) -> None:
    write_site(tmp_path, f"id: a\ntitle: T\nconditions: ['{'secret ' * 50}']")
    with pytest.raises(CkdEhrError) as error:
        read_site_folder(tmp_path)
    assert str(error.value).count("secret") <= 6


def test_a_file_without_a_statement_to_tell_is_named(tmp_path: Path) -> None:
    write_site(tmp_path)
    write_site(tmp_path, "id: e\ntitle: E\nconditions: [157]", "empty.md")
    (tmp_path / "empty.md").write_text((tmp_path / "empty.md").read_text().replace(RISK, "Water."))
    digests = read_site_folder(tmp_path)
    assert digests.left_out == ("empty.md: no statement", "own.md: 2 of 3 statements kept")
    assert (digests.guidelines, digests.guideline_ids) == (1, {"own_aki", "e"})


def test_a_folder_without_any_front_matter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(RISK)
    with pytest.raises(CkdEhrError, match="none of its 1 Markdown files has front matter"):
        read_site_folder(tmp_path)


def test_suffixes_of_any_case_and_linked_folders_are_read_once(tmp_path: Path) -> None:
    site = write_site(tmp_path / "site", name="OWN.MD")
    elsewhere = write_site(tmp_path / "else", "id: b\ntitle: B\nconditions: [157]", "b.markdown")
    (site / "linked").symlink_to(elsewhere, target_is_directory=True)
    (site / "linked" / "back").symlink_to(site, target_is_directory=True)
    assert {s.file for s in read_site_folder(site).snippets} == {"OWN.MD", "linked/b.markdown"}


@pytest.mark.parametrize("name", ["gone.md", "gone"])
def test_a_link_to_nothing_is_refused(tmp_path: Path, name: str) -> None:
    write_site(tmp_path)
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    for reading in READINGS:
        with pytest.raises(CkdEhrError, match=rf"{name}: is a link to nothing"):
            reading(tmp_path)


def test_what_is_no_file_or_hidden_is_not_read(tmp_path: Path) -> None:
    write_site(tmp_path)
    write_site(tmp_path, name=".ipynb_checkpoints/own-checkpoint.md")
    (tmp_path / "._own.md").write_bytes(b"\x00\xff")
    assert {s.file for s in read_site_folder(tmp_path).snippets} == {"own.md"}
    os.mkfifo(tmp_path / "pipe.md")
    for reading in READINGS:
        with pytest.raises(CkdEhrError, match=r"pipe\.md: has disappeared, or is no file"):
            reading(tmp_path)


def test_dates_and_numbers_are_taken_as_they_are_written(tmp_path: Path) -> None:
    write_site(tmp_path, "id: 7\ntitle: 2024\ndoi:\nconditions: [0157]")
    [first, *_] = read_site_folder(tmp_path).snippets
    assert (first.guideline_id, first.title, first.doi) == ("7", "2024", None)
    assert first.conditions == (157,)


def test_each_sentence_and_item_of_a_site_is_judged_alone(tmp_path: Path) -> None:
    path = write_site(tmp_path) / "own.md"
    path.write_text(
        f"---\n{FRONT_MATTER}\n---\n"
        "- Heart failure increases the risk of kidney failure.\n"
        "- Consider aspirin in all of these patients.\n"
        "- Essential hypertension increases the risk of stroke.\n\n"
        "It was seen in half of our patients. Proteinuria increases the risk of dialysis.\n"
    )
    digests = read_site_folder(tmp_path)
    assert [(s.text, s.first_line, s.mentions) for s in digests.snippets] == [
        ("Heart failure increases the risk of kidney failure", 6, (108, 157)),
        ("Essential hypertension increases the risk of stroke", 8, (98, 109)),
        ("Proteinuria increases the risk of dialysis", 10, (157,)),
    ]
    assert digests.left_out == ("own.md: 3 of 5 statements kept",)


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    write_site(tmp_path)
    (tmp_path / os.fsdecode(b"caf\xe9.md")).write_text(RISK)
    for read in READINGS:
        with pytest.raises(CkdEhrError, match=r"caf\\udce9.md: its name is not UTF-8"):
            read(tmp_path)


def test_a_paragraph_of_a_megabyte_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.md").write_text(f"---\n{FRONT_MATTER}\n---\n\n" + "[[ [\n" * 200_000)
    with pytest.raises(CkdEhrError, match=r"own\.md: line 7: a paragraph of 999,999 characters"):
        read_site_folder(tmp_path)


def test_an_id_given_twice_is_refused(tmp_path: Path) -> None:
    write_site(tmp_path, name="a.md")
    write_site(tmp_path, name="b.md")
    with pytest.raises(CkdEhrError, match=r"b\.md: id 'own_aki' is also that of a\.md"):
        read_site_folder(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"---\nid: \xff\n---\n", "not UTF-8 (byte 8)"),
        (b"x" * (MAX_BYTES + 1), "1,048,577 bytes"),
        (b"---\nid: a\n", "its front matter has no end"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "own.md").write_bytes(content)
    with pytest.raises(CkdEhrError, match=re.escape(said)):
        read_site_folder(tmp_path)


@pytest.mark.parametrize("function", READINGS)
def test_a_folder_that_is_none_or_holds_nothing_is_refused(
    tmp_path: Path, function: Callable[[Path], object]
) -> None:
    (tmp_path / "file.txt").write_text("x")
    for path, said in [
        (tmp_path / "gone", "no such folder"),
        (tmp_path / "file.txt", "this is a file; give its folder"),
        (tmp_path, "holds no Markdown file"),
    ]:
        with pytest.raises(CkdEhrError, match=said) as error:
            function(path)
        assert str(path) in str(error.value)


def test_a_folder_s_digest_depends_on_names_and_bytes_of_its_markdown(tmp_path: Path) -> None:
    write_site(tmp_path / "one")
    write_site(tmp_path / "two")
    before = digest(tmp_path / "one")
    assert re.fullmatch(r"[0-9a-f]{64}", before)
    assert digest(tmp_path / "two") == before
    (tmp_path / "two" / "note.txt").write_text("x")
    assert digest(tmp_path / "two") == before
    (tmp_path / "two" / "own.md").rename(tmp_path / "two" / "other.md")
    assert digest(tmp_path / "two") != before
    (tmp_path / "one" / "own.md").write_text("changed")
    assert digest(tmp_path / "one") != before


def test_a_guideline_is_chosen_for_a_condition_the_patient_has() -> None:
    snippets = [snippet("a"), snippet("b", conditions=(49,))]
    assert chosen(snippets, {108}) == ["a"]
    assert chosen(snippets, {49}) == ["b"]
    assert chosen(snippets, {122}) == []


def test_a_disease_the_patient_may_get_comes_before_one_he_has() -> None:
    snippets = [
        snippet("a-present", mentions=(108,)),
        snippet("b-not-at-stake", mentions=(206,)),
        snippet("c-two-new", mentions=(157, 158)),
        snippet("d-new", mentions=(157,)),
    ]
    assert chosen(snippets, {108}) == ["c-two-new", "d-new", "a-present", "b-not-at-stake"]


def test_the_shorter_comes_first_then_the_id() -> None:
    snippets = [snippet("b"), snippet("a", text="A longer statement"), snippet("c")]
    assert chosen(snippets, {108}) == ["b", "c", "a"]


def test_guidelines_take_turns() -> None:
    snippets = [snippet(f"a{n}", "a") for n in range(3)] + [snippet("b0", "b"), snippet("b1", "b")]
    assert chosen(snippets, {108}) == ["a0", "b0", "a1", "b1", "a2"]


def test_progression_of_any_guideline_comes_before_what_leads_nowhere() -> None:
    snippets = [snippet("a0", "a"), snippet("a1", "a"), snippet("b0", "b", mentions=(108,))]
    assert chosen(snippets, {108}) == ["a0", "a1", "b0"]


def test_among_equals_a_guideline_for_more_of_the_conditions_comes_first() -> None:
    snippets = [snippet("a", "a"), snippet("b", "b", conditions=(49, 108))]
    assert chosen(snippets, {49, 108}) == ["b", "a"]


def test_the_order_depends_on_nothing_but_conditions() -> None:
    snippets = [
        snippet(f"{g}{n}", g, mentions=(157, 2)[: 1 + n % 2]) for g in "abc" for n in range(4)
    ]
    assert chosen(snippets, {108}) == chosen(snippets[::-1], {108})


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("AKI may follow", (157,)),
        ("aki may follow", ()),
        ("Sepsis, septic shock and DIABETES", (2, 49, 249)),
        ("diabetic ketoacidosis", (50,)),
        ("secondary hypertension", (99,)),
        ("portal hypertension", (151,)),
        ("intracranial hypertension", (95,)),
        ("increased exacerbation risk in asthma", (128,)),
        ("uremic neuropathy, septic arthritis", ()),
        ("a MILD fever", ()),
        ("strokes of luck in a backstroke", ()),
    ],
)
def test_a_text_mentions_a_category_by_whole_words(text: str, mentions: tuple[int, ...]) -> None:
    assert mentions_of(text) == mentions


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Heart failure is a complication of myocardial infarction", True),
        ("Sepsis can progress to shock", True),
        ("CKD predisposes to AKI", True),
        ("Recurrent stroke is common in diabetes", True),
        ("Diabetes is common in adults", False),
        ("Heart failure at risk of stroke: give furosemide 40 mg", False),
        ("Statins increase the risk of diabetes", False),
        ("The trial of 2012 found a lower risk of stroke", False),
        ("The risk of stroke in pregnancy is raised", False),
        ("Avoid fluids in heart failure at risk of worsening", False),
    ],
)
def test_a_statement_bears_on_progression_and_advises_nothing(text: str, kept: bool) -> None:
    assert bears_on_progression(text) is kept


def table(name: str) -> list[dict[str, str]]:
    text = (resources.files("ckd_ehr.knowledge") / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


@pytest.mark.parametrize(
    ("name", "keys"),
    [("guideline_conditions.csv", ("guideline", "ccs")), ("condition_terms.csv", ("term",))],
)
def test_tables_have_no_row_twice_and_know_every_category(name: str, keys: tuple[str, ...]) -> None:
    rows = table(name)
    counts = Counter(tuple(row[key] for key in keys) for row in rows)
    assert [key for key, number in counts.items() if number > 1] == []
    assert {int(row["ccs"]) for row in rows if row["ccs"]} <= category_names().keys()


def test_every_row_on_a_guideline_says_why() -> None:
    rows = table("guideline_conditions.csv")
    assert all(row["why"] for row in rows)
    without = {row["guideline"] for row in rows if not row["ccs"]}
    assert not without & {row["guideline"] for row in rows if row["ccs"]}


@pytest.mark.parametrize("phenotype", PHENOTYPES_25, ids=lambda p: p.name[:20])
def test_every_phenotype_has_a_term(phenotype: Phenotype) -> None:
    [ccs] = phenotype.ccs
    assert ccs in {int(row["ccs"]) for row in table("condition_terms.csv")}


def words(text: str) -> list[str]:
    return re.findall(r"\w+", html.unescape(text))


@pytest.mark.slow
def test_every_word_of_the_real_pack_s_snippets_stands_in_the_lines_they_name(
    real_digests: Digests,
) -> None:
    for found in real_digests.snippets:
        path = real_pack() / "content" / found.file
        lines = path.read_text(encoding="utf-8").split("\n")
        headings = {s.headings[-1] for s in statements_of("\n".join(lines)) if s.headings}
        own = [h for h in headings if found.text.startswith(f"{h}: ")]
        said = words(found.text.removeprefix(max(own, key=len)) if own else found.text)
        written = set(words("\n".join(lines[found.first_line - 1 : found.last_line])))
        assert set(said) <= written, found.snippet_id


@pytest.mark.slow
def test_the_real_pack_gives_enough_statements_in_order_and_the_same_again(
    real_digests: Digests,
) -> None:
    ids = [found.snippet_id for found in real_digests.snippets]
    assert len(ids) == len(set(ids)) >= 40
    assert read_pack(real_pack()) == real_digests
    assert all(found.mentions and found.conditions for found in real_digests.snippets)
    assert max(len(found.text.split()) for found in real_digests.snippets) <= 75


@pytest.mark.slow
def test_every_guideline_of_the_real_pack_has_a_row() -> None:
    registry = json.loads((real_pack() / "registry.json").read_text(encoding="utf-8"))
    rows = {row["guideline"] for row in table("guideline_conditions.csv")}
    assert {entry["id"] for entry in registry} == rows
