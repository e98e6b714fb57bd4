"""Narratives: every concept where its span says, within the budget, nothing of the future."""

import datetime
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckd_ehr.contracts.config import build_config
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_table, write_table
from ckd_ehr.contracts.records import (
    DRUG_NAME,
    ICD9CM,
    ICD9PROC,
    ICD10CM,
    NARRATIVES,
    PAIRS,
    VISITS,
    Code,
    Narrative,
    Reader,
    Visit,
    pair_id_of,
    visits_from_table,
)
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.knowledge.facts import Fact, Facts
from ckd_ehr.knowledge.narrative import Teller
from ckd_ehr.knowledge.ontology import title_of
from ckd_ehr.knowledge.pieces import CountTokens
from ckd_ehr.knowledge.stage import write_knowledge

ADMITTED = datetime.datetime(2137, 5, 4, 3, 2, 1)
PLENTY = 1_000_000


def visit(
    name: str = "900001",
    *,
    diagnoses: tuple[str, ...] = (),
    drugs: tuple[str, ...] = (),
    procedures: tuple[str, ...] = (),
    age_years: float | None = 72.9,
    sex: str | None = "F",
    ethnicity: str | None = "WHITE",
    admission_type: str | None = "EMERGENCY",
    died: bool = False,
) -> Visit:
    return Visit(
        visit_id=name,
        subject_id=424242,
        admit_time=ADMITTED,
        discharge_time=ADMITTED + datetime.timedelta(days=3),
        age_years=age_years,
        sex=sex,
        ethnicity=ethnicity,
        admission_type=admission_type,
        died=died,
        diagnoses=tuple(Code(ICD9CM, code) for code in diagnoses),
        medications=tuple(Code(DRUG_NAME, code) for code in drugs),
        procedures=tuple(Code(ICD9PROC, code) for code in procedures),
    )


def words(text: str) -> int:
    return len(text.split())


def tell(
    history: Sequence[Visit],
    facts: Sequence[Facts] = (),
    *,
    count_tokens: CountTokens = words,
    max_tokens: int,
) -> Narrative:
    return Teller(count_tokens, max_tokens=max_tokens).tell(history, facts)


def told(narrative: Narrative) -> list[str]:
    return [narrative.text[span.start : span.end] for span in narrative.spans]


COUNTS: dict[Reader, CountTokens] = {"teacher": words, "student": words}
HISTORY = (
    visit(diagnoses=("4280", "4019"), drugs=("furosemide", "aspirin"), procedures=("3995",)),
    visit(drugs=("heparin",), admission_type=None),
    visit(diagnoses=("4280",)),
)


def test_a_history_reads_like_a_short_report() -> None:
    assert tell(HISTORY, max_tokens=PLENTY).text == (
        "72-year-old woman, White. Visit 1 (emergency): Unspecified essential hypertension; "
        "Congestive heart failure, unspecified. Drugs: aspirin; furosemide. "
        "Procedures: Hemodialysis. Visit 2. Drugs: heparin. "
        "Visit 3 (emergency): Congestive heart failure, unspecified."
    )


def test_concept_ids_name_visit_kind_code_and_occurrence() -> None:
    history = (visit(diagnoses=("585", "585"), procedures=("3995",)),)
    spans = tell(history, max_tokens=PLENTY).spans
    assert [span.concept_id for span in spans] == [
        "-1/demographics/AGE/72/0",
        "-1/demographics/GENDER/F/0",
        "-1/demographics/ETHNICITY/WHITE/0",
        "0/diagnosis/ICD9CM/585/0",
        "0/diagnosis/ICD9CM/585/1",
        "0/procedure/ICD9PROC/3995/0",
    ]


def test_the_order_of_codes_does_not_matter() -> None:
    one = visit(diagnoses=("4280", "4019", "585"), drugs=("b", "a"))
    other = visit(diagnoses=("585", "4280", "4019"), drugs=("a", "b"))
    assert tell([one], max_tokens=PLENTY) == tell([other], max_tokens=PLENTY)


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"age_years": 93.0}, "Over-89-year-old woman, White. No codes recorded."),
        ({"age_years": 9.5, "sex": "M"}, "9-year-old boy, White. No codes recorded."),
        ({"age_years": None}, "Woman, White. No codes recorded."),
        ({"sex": None}, "72-year-old, White. No codes recorded."),
        ({"age_years": None, "sex": None, "ethnicity": None}, "No codes recorded."),
    ],
)
def test_unknown_demographics_are_left_out(facts: dict[str, None], text: str) -> None:
    assert tell([visit(**facts)], max_tokens=PLENTY).text == text


def test_an_empty_history_still_gives_a_text() -> None:
    narrative = tell([], max_tokens=16)
    assert narrative == Narrative("No codes recorded.", (), 0)


def test_cutting_takes_old_visits_then_procedures_drugs_diagnoses_then_demographics() -> None:
    whole = tell(HISTORY, max_tokens=PLENTY)
    order: list[str] = []
    before = {span.concept_id for span in whole.spans}
    for budget in range(words(whole.text), 2, -1):
        narrative = tell(HISTORY, max_tokens=budget)
        now = {span.concept_id for span in narrative.spans}
        order += sorted(before - now)
        before = now
    kinds = [(name.split("/")[0], name.split("/")[1]) for name in order]
    assert list(dict.fromkeys(kinds)) == [
        ("0", "procedure"),
        ("0", "medication"),
        ("0", "diagnosis"),
        ("1", "medication"),
        ("2", "diagnosis"),
        ("-1", "demographics"),
    ]
    assert tell(HISTORY, max_tokens=3).text == "Codes left out."


FACTS = (
    (Fact("category", "CCS", "Heart failure", "Heart failure"),),
    (
        Fact("efficacy", DRUG_NAME, "HF/a", "a for HF (given)"),
        Fact("efficacy", DRUG_NAME, "HF/b", "b for HF (not given)"),
    ),
    (Fact("guideline", "GUIDELINE", "x.md#L1-L1", "Heart failure leads to kidney failure"),),
)


def test_knowledge_stands_last_and_is_marked() -> None:
    narrative = tell(HISTORY[2:], FACTS, max_tokens=PLENTY)
    assert narrative.text == (
        "72-year-old woman, White. Visit 1 (emergency): Congestive heart failure, unspecified. "
        "Kinds of disease: Heart failure. Associated with the disease no longer being coded: "
        "a for HF (given); b for HF (not given). "
        "Guideline digests: Heart failure leads to kidney failure."
    )
    known = [span for span in narrative.spans if span.from_knowledge]
    assert [span.kind for span in known] == ["category", "efficacy", "efficacy", "guideline"]
    assert {span.visit_index for span in known} == {-2}
    assert not any(span.from_knowledge for span in narrative.spans[:4])


def test_knowledge_is_cut_before_any_of_the_record_and_counted_apart() -> None:
    facts = sum(len(sentence) for sentence in FACTS)
    whole = tell(HISTORY, FACTS, max_tokens=PLENTY)
    lost: list[str] = []
    before = {span.concept_id for span in whole.spans}
    for budget in range(words(whole.text), 2, -1):
        narrative = tell(HISTORY, FACTS, max_tokens=budget)
        now = {span.concept_id for span in narrative.spans}
        lost += sorted(before - now, reverse=True)
        before = now
        assert narrative.knowledge_cut == facts or narrative.concepts_cut == 0
        assert narrative.knowledge_cut + narrative.concepts_cut == len(whole.spans) - len(now)
    assert [name.split("/")[1] for name in lost[:facts]] == [
        "guideline", "efficacy", "efficacy", "category",
    ]  # fmt: skip
    assert tell(HISTORY, FACTS, max_tokens=3) == Narrative("Codes left out.", (), 10, facts)


def test_codes_that_are_missing_are_said_so_before_the_knowledge() -> None:
    assert tell([visit()], FACTS[:1], max_tokens=PLENTY).text == (
        "72-year-old woman, White. No codes recorded. Kinds of disease: Heart failure."
    )


def test_another_patient_s_visit_of_the_same_name_is_told_as_its_own() -> None:
    teller = Teller(words, max_tokens=PLENTY)
    assert "Hemodialysis" in teller.tell([visit("1", procedures=("3995",))]).text
    assert "Hemodialysis" not in teller.tell([visit("1", diagnoses=("4280",))]).text


def test_few_exact_counts_are_needed() -> None:
    long_texts: list[str] = []

    def count(text: str) -> int:
        if len(text) > 100:
            long_texts.append(text)
        return len(text) // 4

    history = [visit(diagnoses=("4280", "4019", "5849", "486")) for _ in range(12)]
    assert tell(history, count_tokens=count, max_tokens=200).concepts_cut > 0
    assert len(long_texts) <= 12


CODES = st.lists(st.sampled_from(["4280", "4019", "585", "5849", "ZZZ", "V4581"]), max_size=5)
DRUGS = st.lists(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
    | st.sampled_from(["a; b. Visit 9", "ünïcode 💊", "line\nbreak", "\x00", " "]),
    max_size=4,
)
VISITS_TOLD = st.lists(
    st.builds(
        lambda diagnoses, drugs, procedures, age, sex: visit(
            diagnoses=tuple(diagnoses),
            drugs=tuple(drugs),
            procedures=tuple(procedures),
            age_years=age,
            sex=sex,
        ),
        CODES,
        DRUGS,
        st.lists(st.sampled_from(["3995", "8856", "00"]), max_size=3),
        st.none() | st.floats(0, 120),
        st.sampled_from([None, "F", "M", "U"]),
    ),
    max_size=4,
)


@settings(deadline=None)
@given(VISITS_TOLD, st.integers(4, 120))
def test_spans_show_exactly_their_concepts(history: list[Visit], budget: int) -> None:
    narrative = tell(history, max_tokens=budget)
    end = 0
    for span, text in zip(narrative.spans, told(narrative), strict=True):
        assert end <= span.start < span.end
        end = span.end
        if span.kind != "demographics":
            assert text == title_of(span.system, span.code).text
            assert 0 <= span.visit_index < len(history)
    assert end <= len(narrative.text)
    assert len({span.concept_id for span in narrative.spans}) == len(narrative.spans)


@settings(deadline=None)
@given(VISITS_TOLD, st.integers(4, 120), st.integers(0, 40))
def test_budget_is_kept_and_more_budget_tells_more(
    history: list[Visit], budget: int, more: int
) -> None:
    whole = tell(history, count_tokens=len, max_tokens=PLENTY)
    little = tell(history, count_tokens=len, max_tokens=budget * 10)
    much = tell(history, count_tokens=len, max_tokens=(budget + more) * 10)
    assert len(little.text) <= budget * 10
    assert {s.concept_id for s in little.spans} <= {s.concept_id for s in much.spans}
    assert len(little.spans) + little.concepts_cut == len(whole.spans)
    assert whole.concepts_cut == 0


@settings(deadline=None)
@given(VISITS_TOLD)
def test_what_is_known_only_later_or_identifies_is_never_told(history: list[Visit]) -> None:
    plain = [visit(diagnoses=("4280",), died=True), *history]
    narrative = tell(plain, max_tokens=PLENTY)
    starts = [*(span.start for span in narrative.spans), len(narrative.text)]
    ends = [0, *(span.end for span in narrative.spans)]
    frame = "|".join(narrative.text[a:b] for a, b in zip(ends, starts, strict=True))
    for secret in ("2137", "900001", "424242", "died", "dead"):
        assert secret not in frame


def test_a_later_visit_changes_nothing_of_an_earlier_text() -> None:
    earlier = tell(HISTORY[:2], max_tokens=PLENTY).text
    later = tell(HISTORY, max_tokens=PLENTY).text
    assert later.startswith(earlier)


def visits_table(*visits: Visit) -> pa.Table:
    def codes(items: tuple[Code, ...]) -> list[dict[str, str | None]]:
        return [{"system": c.system, "code": c.code, "title": c.title} for c in items]

    rows = [
        {
            **{name: getattr(v, name) for name in VISITS.names[:9]},
            "diagnoses": codes(v.diagnoses),
            "medications": codes(v.medications),
            "procedures": codes(v.procedures),
        }
        for v in visits
    ]
    return pa.Table.from_pylist(rows, schema=VISITS)


def pairs_table(*pairs: tuple[list[str], str | None]) -> pa.Table:
    rows = [
        {
            "pair_id": pair_id_of(424242, history[-1]),
            "subject_id": 424242,
            "history": history,
            "prediction_time": ADMITTED + datetime.timedelta(days=3),
            "next_visit_id": following,
            "gap_days": 1.0 if following else None,
            "labels": [True] if following else None,
            "split": "train",
            "fold": 0,
        }
        for history, following in pairs
    ]
    return pa.Table.from_pylist(rows, schema=PAIRS)


def test_visits_survive_the_table_and_share_equal_codes() -> None:
    visits = (
        visit("a", diagnoses=("4280", "4019"), drugs=("aspirin",)),
        visit("b", diagnoses=("4280",), age_years=72.5, sex=None),
        visit("c"),
    )
    table = visits_table(*visits)
    chunks = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    for source in (table, chunks):
        read = visits_from_table(source)
        assert list(read) == ["a", "b", "c"]
        assert read["b"] == visits[1]
        assert read["c"].diagnoses == ()
        assert read["a"].diagnoses == visits[0].diagnoses
        assert read["a"].diagnoses[0] is read["b"].diagnoses[0]


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    knowledge = {
        "teacher": {"max_tokens": 16},
        "student": {"max_tokens": 64},
        "guidelines": {"pack": None},
    }
    labels = {"phenotypes": [{"name": "Kidney failure", "ccs": [157]}]}
    config = build_config({"name": "t", "labels": labels, "knowledge": knowledge})
    cohort = tmp_path / "cohort"
    visits = (
        visit("900001", diagnoses=("4280", "4019"), drugs=("aspirin",)),
        visit("900002", diagnoses=("5849", "585"), procedures=("3995",)),
    )
    write_table(visits_table(*visits), cohort / "visits.parquet", VISITS)
    pairs = pairs_table((["900001"], "900002"), (["900001", "900002"], None))
    write_table(pairs, cohort / "pairs.parquet", PAIRS)
    folder = tmp_path / "knowledge"
    folder.mkdir()
    return StageContext(config, folder, {"cohort": cohort}, lambda _: None)


def test_the_stage_writes_every_pair_for_each_reader_within_its_budget(
    context: StageContext,
) -> None:
    write_knowledge(context, COUNTS)
    summary = json.loads((context.folder / "summary.json").read_text())
    for reader, budget in (("teacher", 16), ("student", 64)):
        table = read_table(context.folder / f"{reader}.parquet", NARRATIVES)
        rows = table.to_pylist()
        assert len(rows) == 2
        assert {row["reader"] for row in rows} == {reader}
        assert max(words(row["text"]) for row in rows) == summary[reader]["max_tokens"] <= budget
        assert summary[reader]["concepts"] == sum(len(row["spans"]) for row in rows)
        assert summary[reader]["concepts_cut"] == sum(row["concepts_cut"] for row in rows)
    assert summary["teacher"]["narratives_cut"] == 1
    assert summary["student"]["narratives_cut"] == 0
    assert summary["titles_by_origin"] == {"ontology": 4, "source": 0, "parent": 1, "code": 1}


@pytest.mark.parametrize("title", [None, "PULM HTN UNSPEC"])
def test_a_title_may_hold_what_the_source_calls_a_code_of_the_next_visit(
    context: StageContext, title: str | None
) -> None:
    visits = (
        replace(visit("900001"), diagnoses=(Code(ICD10CM, "I2720", title),)),
        replace(visit("900002"), diagnoses=(Code(ICD10CM, "I10", "Hypertension"),)),
    )
    cohort = context.inputs["cohort"]
    write_table(visits_table(*visits), cohort / "visits.parquet", VISITS)
    write_table(pairs_table((["900001"], "900002")), cohort / "pairs.parquet", PAIRS)
    write_knowledge(context, COUNTS)
    [text] = read_table(context.folder / "student.parquet", NARRATIVES)["text"].to_pylist()
    assert "Visit 1 (emergency): Pulmonary hypertension, unspecified." in text


def test_the_stage_s_text_is_what_tell_gives(context: StageContext) -> None:
    write_knowledge(context, COUNTS)
    known = visits_from_table(read_table(context.inputs["cohort"] / "visits.parquet", VISITS))
    rows = read_table(context.folder / "student.parquet", NARRATIVES).to_pylist()
    expected = tell(list(known.values()), max_tokens=64)
    assert rows[1]["text"] == expected.text
    assert [span["concept_id"] for span in rows[1]["spans"]] == [
        span.concept_id for span in expected.spans
    ]


def test_the_audit_ends_a_run_whose_texts_tell_of_a_readmission(context: StageContext) -> None:
    visits = (
        visit("900001", diagnoses=("4280",), admission_type="READMITTED"),
        visit("900002", diagnoses=("585",)),
    )
    write_table(visits_table(*visits), context.inputs["cohort"] / "visits.parquet", VISITS)
    with pytest.raises(CkdEhrError, match="leak audit of stage 'knowledge'"):
        write_knowledge(context, COUNTS)
