"""The description of a cohort counts what a plain loop counts, and tells of no single patient."""

import datetime
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ckd_ehr.contracts.files import write_table
from ckd_ehr.contracts.records import PAIRS, VISITS, pair_id_of, with_label_names
from ckd_ehr.data.description import COLUMNS, NUMBERS, VISITS_PER_PATIENT, describe_cohort

LABELS = ("Heart failure", "Shock")
LABELS_OF_CODES = pa.table(
    {
        "system": ["S", "S", "S"],
        "code": ["hf", "hf2", "sh"],
        "label": pa.array([0, 0, 1], pa.int64()),
    }
)
START = datetime.datetime(2150, 1, 1)


def visit(subject: int, number: int, codes: Sequence[str] = (), **facts: object) -> dict[str, Any]:
    """A stay of one day; the visits of a patient are a hundred days apart."""
    admitted = START + datetime.timedelta(days=100 * number)
    return {
        "visit_id": f"{subject}-{number}",
        "subject_id": subject,
        "admit_time": admitted,
        "discharge_time": admitted + datetime.timedelta(days=1),
        "age_years": None,
        "sex": None,
        "ethnicity": None,
        "admission_type": None,
        "died": False,
        "diagnoses": [{"system": "S", "code": code, "title": None} for code in codes],
        "medications": [],
        "procedures": [],
        **facts,
    }


def pairs_of(
    visits: Sequence[Mapping[str, Any]], split_of: Mapping[int, str]
) -> list[dict[str, Any]]:
    """Every visit with the next one; the last of a train patient is unlabelled."""
    sets = {"hf": {0}, "hf2": {0}, "sh": {1}}
    pairs = []
    by_subject: dict[int, list[Mapping[str, Any]]] = {}
    for one in visits:
        by_subject.setdefault(one["subject_id"], []).append(one)
    for subject, mine in by_subject.items():
        for n, last in enumerate(mine):
            following = mine[n + 1] if n + 1 < len(mine) else None
            if following is None and split_of[subject] != "train":
                continue
            found = (
                set()
                if following is None
                else {k for code in following["diagnoses"] for k in sets.get(code["code"], set())}
            )
            pairs.append({
                "pair_id": pair_id_of(subject, last["visit_id"]),
                "subject_id": subject,
                "history": [v["visit_id"] for v in mine[: n + 1]],
                "prediction_time": last["discharge_time"],
                "next_visit_id": following and following["visit_id"],
                "gap_days": None if following is None else 99.0,
                "labels": None if following is None else [k in found for k in range(2)],
                "split": split_of[subject],
                "fold": subject % 2 if split_of[subject] == "train" else -1,
            })  # fmt: skip
    return pairs


def write_cohort_tables(
    folder: Path, visits: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]]
) -> None:
    for name, rows, schema in (("visits", visits, VISITS), ("pairs", pairs, PAIRS)):
        table = pa.Table.from_pylist(list(rows), schema)
        write_table(table, folder / f"{name}.parquet", with_label_names(schema, LABELS))


def described(
    folder: Path,
    visits: Sequence[Mapping[str, Any]],
    split_of: Mapping[int, str],
    *,
    synthetic_times: bool = False,
) -> dict[str, Any]:
    write_cohort_tables(folder, visits, pairs_of(visits, split_of))
    return describe_cohort(
        folder, LABELS_OF_CODES, label_names=LABELS, synthetic_times=synthetic_times
    )


def hospital(*, patients: int = 60, seed: int = 0) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """Patients of one to twelve visits, some without age, sex, ethnicity or diagnoses."""
    rng = np.random.default_rng(seed)
    visits, split_of = [], {}
    for subject in range(1, patients + 1):
        split_of[subject] = ("train", "tuning", "held_out")[subject % 3]
        for number in range(int(rng.integers(1, 13))):
            codes = [code for code in ("hf", "hf2", "sh", "zz") if rng.random() < 0.3]
            facts = {
                "age_years": None if rng.random() < 0.2 else float(rng.integers(20, 90)),
                "sex": (None, "F", "M")[rng.integers(3)],
                "ethnicity": ("WHITE", "BLACK")[rng.integers(2)],
                "medications": [{"system": "NAME", "code": c, "title": None} for c in "abc"]
                * int(rng.integers(3)),
            }
            visits.append(visit(subject, number, codes, **facts))
    return visits, split_of


def test_table_one_counts_what_a_plain_loop_counts(tmp_path: Path) -> None:
    visits, split_of = hospital()
    table = described(tmp_path, visits, split_of)["table_one"]
    by_id = {one["visit_id"]: one for one in visits}
    pairs = pairs_of(visits, split_of)
    for column in COLUMNS:
        mine = [
            pair
            for pair in pairs
            if (pair["labels"] is None) == (column == "train_unlabelled")
            and (column in ("all", "train_unlabelled") or pair["split"] == column)
        ]
        last = [by_id[pair["history"][-1]] for pair in mine]
        found = table[column]
        assert found["pairs"] == len(mine) > 0
        assert found["patients"] == len({pair["subject_id"] for pair in mine})
        ages = [one["age_years"] for one in last if one["age_years"] is not None]
        age = found["numbers"]["age_years"]
        assert age["mean"] == pytest.approx(statistics.mean(ages), abs=1e-4)
        assert age["sd"] == pytest.approx(statistics.stdev(ages), abs=1e-4)
        quartiles = np.quantile(ages, [0.25, 0.5, 0.75])
        assert [age["q1"], age["median"], age["q3"]] == pytest.approx(quartiles, abs=1e-4)
        assert age["missing"] == len(last) - len(ages)
        sexes = [one["sex"] for one in last]
        known = len(sexes) - sexes.count(None)
        assert found["women"] == {
            "count": sexes.count("F"),
            "of": known,
            "share": pytest.approx(sexes.count("F") / known, abs=1e-6),
        }
        assert found["sex_missing"] == sexes.count(None)
        drugs = [len(one["medications"]) for one in last]
        assert found["numbers"]["medications"]["median"] == np.median(drugs)
        histories = [len(pair["history"]) for pair in mine]
        assert found["numbers"]["history_visits"]["median"] == np.median(histories)
        whites = [one["ethnicity"] for one in last].count("WHITE")
        assert found["ethnicity"]["counts"]["WHITE"] == whites
        assert found["ethnicity"]["counts"]["other"] == 0


def test_phenotypes_count_what_a_plain_loop_counts(tmp_path: Path) -> None:
    visits, split_of = hospital(seed=1)
    found = described(tmp_path, visits, split_of)["phenotypes"]
    by_id = {one["visit_id"]: {c["code"] for c in one["diagnoses"]} for one in visits}
    pairs = [pair for pair in pairs_of(visits, split_of) if pair["labels"] is not None]
    assert list(found) == list(LABELS)
    for label, (name, codes) in enumerate(zip(LABELS, ({"hf", "hf2"}, {"sh"}), strict=True)):
        now = [bool(by_id[pair["history"][-1]] & codes) for pair in pairs]
        ever = [any(by_id[v] & codes for v in pair["history"]) for pair in pairs]
        later = [pair["labels"][label] for pair in pairs]
        new = sum(b and not e for b, e in zip(later, ever, strict=True))
        kept = sum(a and b for a, b in zip(now, later, strict=True))
        expected = {
            "now": (sum(now), len(pairs)),
            "next": (sum(later), len(pairs)),
            "new_onset": (new, ever.count(False)),
            "persistence": (kept, sum(now)),
        }
        for key, (count, of) in expected.items():
            assert 0 < count < of
            share = pytest.approx(count / of, abs=1e-6)
            assert found[name][key] == {"count": count, "of": of, "share": share}
        for split, rate in found[name]["next_by_split"].items():
            mine = [pair["labels"][label] for pair in pairs if pair["split"] == split]
            assert (rate["count"], rate["of"]) == (sum(mine), len(mine))


def test_visits_per_patient_are_a_histogram_of_kept_visits(tmp_path: Path) -> None:
    sizes = [1, 1, 2, 5, 6, 10, 11, 30]
    visits = [visit(n, k) for n, size in enumerate(sizes) for k in range(size)]
    found = described(tmp_path, visits, dict.fromkeys(range(len(sizes)), "train"))
    assert tuple(found["visits_per_patient"]) == VISITS_PER_PATIENT
    assert list(found["visits_per_patient"].values()) == [2, 1, 0, 0, 1, 2, 2]


def test_synthetic_times_leave_length_of_stay_and_gap_out(tmp_path: Path) -> None:
    visits, split_of = hospital(patients=20)
    real = described(tmp_path / "real", visits, split_of)["table_one"]
    made_up = described(tmp_path / "made_up", visits, split_of, synthetic_times=True)["table_one"]
    assert real["all"]["numbers"]["stay_days"]["median"] == 1.0
    assert real["all"]["numbers"]["gap_days"]["median"] == 99.0
    assert real["train_unlabelled"]["numbers"]["gap_days"] is None
    for column in COLUMNS:
        assert made_up[column]["numbers"]["stay_days"] is None
        assert made_up[column]["numbers"]["gap_days"] is None
        assert made_up[column]["numbers"]["age_years"] == real[column]["numbers"]["age_years"]


def test_a_summary_of_fewer_than_five_patients_is_not_given(tmp_path: Path) -> None:
    facts = {"age_years": 60.0, "sex": "F"}
    visits = [visit(n, k, ("hf",), **facts) for n in range(9) for k in range(4)]
    split_of = {n: "tuning" if n < 4 else "held_out" for n in range(9)}
    table = described(tmp_path, visits, split_of)["table_one"]
    assert (table["tuning"]["patients"], table["tuning"]["pairs"]) == (4, 12)
    assert table["tuning"]["women"] is None
    assert {facts["median"] for facts in table["tuning"]["numbers"].values()} == {None}
    assert table["held_out"]["women"] == {"count": 15, "of": 15, "share": 1.0}
    assert table["held_out"]["numbers"]["age_years"]["mean"] == 60.0
    assert table["train"]["pairs"] == table["train_unlabelled"]["pairs"] == 0


def test_small_categories_are_pooled_in_every_column(tmp_path: Path) -> None:
    """COMMON is frequent in both splits, RARE in one of them only, the OTHERs join the pool."""
    groups = ["COMMON"] * 20 + ["RARE"] * 8 + ["OTHER"] * 2
    visits = []
    for subject, group in enumerate(groups):
        facts = {"ethnicity": group, "admission_type": f"T{subject % 10}"}
        visits += [visit(subject, 0, **facts), visit(subject, 1, **facts)]
    held_out = {0, 1, 2, 3, 4, 5, 6, 20, 21}
    split_of = {n: "held_out" if n in held_out else "tuning" for n in range(len(groups))}
    table = described(tmp_path, visits, split_of)["table_one"]
    assert table["tuning"]["ethnicity"] == {"counts": {"COMMON": 13, "other": 8}, "missing": 0}
    assert table["held_out"]["ethnicity"]["counts"] == {"COMMON": 7, "other": 2}
    assert table["all"]["ethnicity"]["counts"] == {"COMMON": 20, "other": 10}
    assert table["all"]["admission_type"]["counts"] == {"other": 30}


def test_a_category_of_few_patients_is_pooled_however_many_pairs_they_have(tmp_path: Path) -> None:
    visits = [
        visit(subject, k, ethnicity="RARE" if subject < 4 else "COMMON")
        for subject in range(12)
        for k in range(9)
    ]
    table = described(tmp_path, visits, dict.fromkeys(range(12), "held_out"))["table_one"]
    assert table["held_out"]["ethnicity"]["counts"] == {"COMMON": 64, "other": 32}


def test_six_categories_are_shown_at_most(tmp_path: Path) -> None:
    visits = [
        visit(subject, k, admission_type=f"T{subject % 8}")
        for subject in range(8 * 8 - 2)
        for k in range(2)
    ]
    table = described(tmp_path, visits, dict.fromkeys(range(62), "held_out"))["table_one"]
    assert table["all"]["admission_type"]["counts"] == {
        "T0": 8, "T1": 8, "T2": 8, "T3": 8, "T4": 8, "T5": 8, "other": 14,
    }  # fmt: skip


def test_visits_without_any_fact_are_counted_as_missing(tmp_path: Path) -> None:
    visits = [visit(n, k) for n in range(8) for k in range(2)]
    found = described(tmp_path, visits, dict.fromkeys(range(8), "held_out"))
    column = found["table_one"]["held_out"]
    assert column["numbers"]["age_years"] == {
        "mean": None, "sd": None, "q1": None, "median": None, "q3": None, "missing": 8,
    }  # fmt: skip
    assert column["sex_missing"] == column["ethnicity"]["missing"] == 8
    assert column["numbers"]["diagnoses"]["mean"] == 0.0
    none = {"count": 0, "of": 8, "share": 0.0}
    assert found["phenotypes"]["Shock"]["now"] == found["phenotypes"]["Shock"]["next"] == none
    assert found["phenotypes"]["Shock"]["persistence"] == {"count": 0, "of": 0, "share": None}


def test_the_description_is_json_without_dates_and_ids(tmp_path: Path) -> None:
    visits, split_of = hospital()
    found = described(tmp_path, visits, split_of)
    text = json.dumps(found, allow_nan=False)
    assert "2150" not in text
    assert pair_id_of(1, "1-0") not in text
    assert set(found) == {"table_one", "visits_per_patient", "phenotypes"}
    assert set(found["table_one"]["all"]["numbers"]) == set(NUMBERS)
    assert found == described(tmp_path / "again", visits, split_of)
