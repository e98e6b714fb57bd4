"""Efficacy: true effects above ubiquitous drugs, folds and splits apart, odd cohorts counted."""

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ckd_ehr.contracts.phenotype import Phenotype
from ckd_ehr.contracts.records import EFFICACY, PAIRS, VISITS
from ckd_ehr.knowledge.efficacy import ALL_TRAIN, count_efficacy

PNEUMONIA, HEART_FAILURE = Phenotype(name="Pneumonia", ccs=(122,)), Phenotype(name="HF", ccs=(108,))
LABELS = (PNEUMONIA, HEART_FAILURE)
START = datetime.datetime(2120, 1, 1)


def cohort(pairs: int = 1_200, seed: int = 0) -> tuple[pa.Table, pa.Table]:
    """Patients with pneumonia: levofloxacin helps half of them, saline nearly all get.

    One patient in ten has no pneumonia but heart failure; the severe get morphine.
    """
    rng = np.random.default_rng(seed)
    visits, rows = [], []
    for n in range(pairs):
        severe, levofloxacin = rng.random() < 0.4, rng.random() < 0.5
        drugs = ["saline"] * (rng.random() < 0.9) + ["levofloxacin"] * levofloxacin
        drugs += ["morphine"] * (rng.random() < (0.8 if severe else 0.2))
        gone = rng.random() < 0.45 + 0.35 * levofloxacin - 0.25 * severe
        ill = ["486"] if n % 10 else ["4280"]
        more = [f"V{90 + k}" for k in range(8)] if severe else []
        day = START + datetime.timedelta(days=n)
        visits.append(visit(f"v{n}", subject_id=n, day=day, diagnoses=ill + more, drugs=drugs))
        split = ("train", "train", "train", "tuning", "held_out")[n % 5]
        fold = n % 2 if split == "train" else -1
        rows.append(
            {
                "pair_id": f"p{n}",
                "subject_id": n,
                "history": [f"v{n}"],
                "prediction_time": day,
                "next_visit_id": f"w{n}",
                "gap_days": 9.0,
                "labels": [bool(n % 10) and not gone, not n % 10],
                "split": split,
                "fold": fold,
            }
        )
    return pa.Table.from_pylist(visits, schema=VISITS), pa.Table.from_pylist(rows, schema=PAIRS)


def visit(
    name: str, *, subject_id: int, day: datetime.datetime, diagnoses: list[str], drugs: list[str]
) -> dict[str, object]:
    return {
        "visit_id": name,
        "subject_id": subject_id,
        "admit_time": day,
        "discharge_time": day + datetime.timedelta(days=3),
        "age_years": 70.0,
        "sex": "F",
        "ethnicity": None,
        "admission_type": None,
        "died": False,
        "diagnoses": [{"system": "ICD9CM", "code": code, "title": None} for code in diagnoses],
        "medications": [{"system": "NAME", "code": drug, "title": None} for drug in drugs],
        "procedures": [],
    }


def of_fold(table: pa.Table, fold: int) -> pa.Table:
    return table.filter(pc.equal(table["fold"], fold))


def with_labels(pairs: pa.Table, changed: dict[str, list[bool] | None]) -> pa.Table:
    rows = [
        row | {"labels": changed.get(row["pair_id"], row["labels"])} for row in pairs.to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=PAIRS)


def test_the_drug_that_helps_stands_above_the_one_that_everybody_gets() -> None:
    table = of_fold(count_efficacy(*cohort(), LABELS).table, ALL_TRAIN)
    assert table.schema == EFFICACY
    assert table["code"].to_pylist()[0] == "levofloxacin"
    best = table.to_pylist()[0]
    assert best["label"] == "Pneumonia"
    assert best["low"] > 0.5
    assert best["q_value"] < 1e-6
    assert best["treated"] + best["untreated"] == 600  # train pairs with pneumonia
    most_often_gone = max(table.to_pylist(), key=lambda row: row["treated_resolved"])
    assert most_often_gone["code"] == "saline"


def test_severity_is_adjusted_for() -> None:
    table = of_fold(count_efficacy(*cohort(4_000), LABELS).table, ALL_TRAIN).to_pylist()
    morphine = next(row for row in table if row["code"] == "morphine")
    crude = morphine["treated_resolved"] / morphine["treated"]
    assert crude < morphine["untreated_resolved"] / morphine["untreated"] - 0.1
    assert morphine["high"] > -0.05
    assert abs(morphine["shrunk_log_odds"]) < 0.15


def test_nobody_outside_train_contributes() -> None:
    visits, pairs = cohort()
    whole = count_efficacy(visits, pairs, LABELS)
    train = pairs.filter(pc.equal(pairs["split"], "train"))
    kept = visits.filter(pc.is_in(visits["visit_id"], pc.list_flatten(train["history"])))
    alone = count_efficacy(kept, train, LABELS)
    assert alone.table.equals(whole.table)
    assert alone.fitted == whole.fitted


def test_a_fold_is_not_told_what_became_of_its_own_patients() -> None:
    visits, pairs = cohort()
    before = count_efficacy(visits, pairs, LABELS).table
    mine = pairs.filter(pc.equal(pairs["fold"], 1)).to_pylist()
    flipped: dict[str, list[bool] | None] = {
        row["pair_id"]: [not label for label in row["labels"]] for row in mine
    }
    after = count_efficacy(visits, with_labels(pairs, flipped), LABELS).table
    assert of_fold(after, 1).equals(of_fold(before, 1))
    assert not of_fold(after, 0).equals(of_fold(before, 0))
    assert not of_fold(after, ALL_TRAIN).equals(of_fold(before, ALL_TRAIN))


def test_what_was_counted_on_which_pairs_is_recorded() -> None:
    fitted = {record.name: record for record in count_efficacy(*cohort(), LABELS).fitted}
    assert {name: (record.splits, record.folds) for name, record in fitted.items()} == {
        "efficacy/all": (("train",), None),
        "efficacy/without_fold_0": (("train",), (1,)),
        "efficacy/without_fold_1": (("train",), (0,)),
    }
    assert fitted["efficacy/all"].pairs == 720


def test_a_treatment_of_everybody_and_one_of_few_are_left_out_and_counted() -> None:
    visits, pairs = cohort()
    rows = visits.to_pylist()
    for n, row in enumerate(rows):
        row["medications"].append({"system": "NAME", "code": "oxygen", "title": None})
        if n in (1, 2):
            row["medications"].append({"system": "NAME", "code": "digoxin", "title": None})
    found = count_efficacy(pa.Table.from_pylist(rows, schema=VISITS), pairs, LABELS)
    assert not {"oxygen", "digoxin"} & set(found.table["code"].to_pylist())
    assert found.left_out["treatments given to nearly everybody"] == 1
    assert found.left_out["treatments given to too few"] == 2 - 1


def test_a_disease_that_nobody_was_rid_of_has_no_rows_and_is_counted() -> None:
    found = count_efficacy(*cohort(), LABELS)  # heart failure always stays
    assert set(found.table["label"].to_pylist()) == {"Pneumonia"}
    assert found.left_out["diseases with too few patients who got rid of them or did not"] == 1


def test_a_disease_without_treated_patients_has_no_rows() -> None:
    visits, pairs = cohort()
    rows = [row | {"medications": []} for row in visits.to_pylist()]
    found = count_efficacy(pa.Table.from_pylist(rows, schema=VISITS), pairs, LABELS)
    assert found.table.num_rows == 0


@pytest.mark.parametrize("how", ["unlabelled", "no train patients"])
def test_an_empty_cohort_gives_an_empty_table(how: str) -> None:
    visits, pairs = cohort(50)
    if how == "unlabelled":
        pairs = with_labels(pairs, dict.fromkeys(pairs["pair_id"].to_pylist()))
    else:
        pairs = pairs.filter(pc.not_equal(pairs["split"], "train"))
    found = count_efficacy(visits, pairs, LABELS)
    assert found.table.num_rows == 0
    assert found.table.schema == EFFICACY


def test_a_single_disease_has_no_others_to_adjust_for() -> None:
    table = of_fold(count_efficacy(*one_label(*cohort()), (PNEUMONIA,)).table, ALL_TRAIN)
    assert table["code"].to_pylist()[0] == "levofloxacin"


def one_label(visits: pa.Table, pairs: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The cohort with its first label alone."""
    firsts: dict[str, list[bool] | None] = {
        row["pair_id"]: row["labels"][:1] for row in pairs.to_pylist()
    }
    return visits, with_labels(pairs, firsts)


def test_procedures_count_as_treatments_only_where_asked() -> None:
    visits, pairs = cohort()
    rows = [
        row | {"procedures": [{"system": "ICD9PROC", "code": "9671", "title": None}] * (n % 3 > 0)}
        for n, row in enumerate(visits.to_pylist())
    ]
    table = pa.Table.from_pylist(rows, schema=VISITS)
    without = count_efficacy(table, pairs, LABELS).table
    assert "9671" not in without["code"].to_pylist()
    assert (
        "9671"
        in count_efficacy(table, pairs, LABELS, kinds=("medication", "procedure"))
        .table["code"]
        .to_pylist()
    )


def test_a_drug_of_those_who_are_newly_ill_is_not_told_for_it() -> None:
    """An old pneumonia stays; the drug, given to the newly ill, does nothing."""
    rng = np.random.default_rng(2)
    visits, rows = [], []
    for n in range(2_000):
        old = rng.random() < 0.5
        drugs = ["azithromycin"] * (rng.random() < (0.2 if old else 0.5))
        gone = rng.random() < (0.15 if old else 0.6)
        day = START + datetime.timedelta(days=n)
        before = visit(f"u{n}", subject_id=n, day=day, diagnoses=["486"] * old, drugs=[])
        now = visit(f"v{n}", subject_id=n, day=day, diagnoses=["486"], drugs=drugs)
        visits += [before, now]
        rows.append(pair(n, history=[f"u{n}", f"v{n}"], labels=[not gone, False]))
    tables = pa.Table.from_pylist(visits, schema=VISITS), pa.Table.from_pylist(rows, schema=PAIRS)
    row = of_fold(count_efficacy(*tables, LABELS).table, ALL_TRAIN).to_pylist()[0]
    crude = row["treated_resolved"] / row["treated"] - row["untreated_resolved"] / row["untreated"]
    assert crude > 0.1
    assert abs(row["log_odds"]) < 2.5 * row["standard_error"]


def pair(number: int, *, history: list[str], labels: list[bool]) -> dict[str, object]:
    return {
        "pair_id": f"p{number}",
        "subject_id": number,
        "history": history,
        "prediction_time": START,
        "next_visit_id": f"w{number}",
        "gap_days": 9.0,
        "labels": labels,
        "split": "train",
        "fold": number % 2,
    }


def test_many_pairs_of_few_patients_are_few() -> None:
    visits, pairs = cohort()
    rows = pairs.to_pylist()
    for n, row in enumerate(rows):
        row["subject_id"] = n % 15
    found = count_efficacy(visits, pa.Table.from_pylist(rows, schema=PAIRS), LABELS)
    assert found.table.num_rows == 0
    assert found.left_out["diseases with too few patients who got rid of them or did not"] == 2
    assert count_efficacy(visits, pa.Table.from_pylist(rows, schema=PAIRS), LABELS,
                          min_support=5).table.num_rows > 0  # fmt: skip


def test_a_fold_is_not_told_what_its_own_patients_drugs_are_called() -> None:
    visits, pairs = cohort()
    own = set(pairs.filter(pc.equal(pairs["fold"], 1))["pair_id"].to_pylist())
    rows = visits.to_pylist()
    for row in rows:
        title = "A name of one fold" if f"p{row['subject_id']}" in own else "Levofloxacin"
        for drug in row["medications"]:
            drug["title"] = title if drug["code"] == "levofloxacin" else None
    table = count_efficacy(pa.Table.from_pylist(rows, schema=VISITS), pairs, LABELS).table
    named = {fold: {r["treatment"] for r in of_fold(table, fold).to_pylist()} for fold in (0, 1)}
    assert "Levofloxacin" in named[1]
    assert not any("one fold" in name for name in named[1])
    assert any("one fold" in name for name in named[0])
