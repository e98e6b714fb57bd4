"""Visits → pairs: order, prediction time, next visit, labels, sampling."""

import datetime
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckd_ehr.contracts.config import EngineConfig
from ckd_ehr.contracts.phenotype import Phenotype
from ckd_ehr.contracts.records import VISITS, pair_id_of
from ckd_ehr.data import pairs as steps
from ckd_ehr.data.engine import Engine, open_engine
from ckd_ehr.data.pairs import PAIR_ORDER, PairRules
from ckd_ehr.data.phenotypes import CodeMatch, match_codes

DAY = datetime.timedelta(days=1)
START = datetime.datetime(2100, 1, 1)


def visit(
    visit_id: str,
    admitted: float,
    discharged: float,
    *,
    subject: int = 1,
    died: bool = False,
    age: float | None = 50.0,
    codes: tuple[str, ...] = (),
) -> dict[str, object]:
    """A row of the visits table; times in days."""
    return {
        "visit_id": visit_id,
        "subject_id": subject,
        "admit_time": START + admitted * DAY,
        "discharge_time": START + discharged * DAY,
        "age_years": age,
        "sex": "F",
        "ethnicity": None,
        "admission_type": None,
        "died": died,
        "diagnoses": [{"system": "ICD9CM", "code": code, "title": None} for code in codes],
        "medications": [],
        "procedures": [],
    }


def table(*rows: dict[str, object]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=VISITS)


@pytest.fixture(scope="module", autouse=True)
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with open_engine(EngineConfig(), tmp_path_factory.mktemp("engine")) as opened:
        OPENED.append(opened)
        yield opened
    OPENED.clear()


OPENED: list[Engine] = []


def pair_visits(visits: pa.Table, **rules: object) -> pa.Table:
    return labelled_pairs(visits, [], n_labels=1, **rules).drop(
        ["labels", "outcome_time", "has_outcome"]
    )


def labelled_pairs(
    visits: pa.Table, matches: Sequence[CodeMatch], *, n_labels: int, **rules: object
) -> pa.Table:
    [engine], given = OPENED, PairRules(**rules)  # type: ignore[arg-type]
    table = engine.upload(visits)
    placed = engine.keep(steps.place_visits(table))
    following = engine.keep(steps.within_gap(steps.next_visits(placed, given), given))
    days = given.label_window_days
    outcomes = following
    if days is not None:
        outcomes = steps.window_visits(placed, given, window_days=days)
    paired = steps.pair_visits(placed, following, given)
    found = steps.visit_labels(table, engine.upload(steps.labels_of_codes(matches)))
    labelled = steps.label_pairs(paired, outcomes, found, n_labels=n_labels, window_days=days)
    return engine.fetch(labelled.order_by(PAIR_ORDER))


def histories(pairs: pa.Table) -> dict[str, tuple[list[str], str | None]]:
    """Last history visit → history and next visit."""
    return {row["history"][-1]: (row["history"], row["next_visit_id"]) for row in pairs.to_pylist()}


def test_visits_are_ordered_by_time_never_by_id() -> None:
    pairs = pair_visits(table(visit("9", 0, 1), visit("1", 20, 22), visit("5", 10, 11)))
    assert histories(pairs) == {
        "9": (["9"], "5"),
        "5": (["9", "5"], "1"),
        "1": (["9", "5", "1"], None),
    }


def test_a_pair_has_the_key_discharge_and_gap_of_its_last_visit() -> None:
    first, second = pair_visits(table(visit("a", 0, 1), visit("b", 4.5, 6))).to_pylist()
    assert first["pair_id"] == pair_id_of(1, "a")
    assert first["prediction_time"] == START + DAY
    assert first["gap_days"] == 3.5
    assert second["next_visit_id"] is second["gap_days"] is None


def test_synthetic_times_give_no_gap() -> None:
    visits = table(visit("a", 0, 1), visit("b", 5, 6))
    pairs = pair_visits(visits, synthetic_times=True)
    assert pairs["next_visit_id"].to_pylist() == ["b", None]
    assert pairs["gap_days"].to_pylist() == [None, None]


def test_a_stay_that_ended_in_death_makes_no_unlabelled_pair() -> None:
    pairs = pair_visits(table(visit("a", 0, 1), visit("b", 5, 6, died=True)))
    assert histories(pairs) == {"a": (["a"], "b")}


def test_older_visits_are_left_out_of_long_histories() -> None:
    visits = table(*(visit(str(n), 10 * n, 10 * n + 1) for n in range(5)))
    last = histories(pair_visits(visits, max_history_visits=2))["4"]
    assert last == (["3", "4"], None)


def test_short_histories_and_young_patients_can_be_left_out() -> None:
    visits = table(visit("a", 0, 1, age=17.5), visit("b", 5, 6, age=18.5), visit("c", 9, 9))
    assert set(histories(pair_visits(visits, min_history_visits=2))) == {"b", "c"}
    assert set(histories(pair_visits(visits, min_age_years=18))) == {"b", "c"}


def test_an_age_equal_to_the_limit_passes_whatever_a_float_holds() -> None:
    visits = table(visit("a", 0, 1, age=17.9), visit("b", 5, 6, age=17.8))
    assert set(histories(pair_visits(visits, min_age_years=17.9))) == {"a"}


def test_an_unknown_age_passes_only_without_a_limit() -> None:
    visits = table(visit("a", 0, 1, age=None))
    assert pair_visits(visits).num_rows == 1
    assert pair_visits(visits, min_age_years=1).num_rows == 0


def test_overlapping_stays_are_neither_known_nor_next() -> None:
    # b lies within a: at b's end a's codes are unknown, at a's end b is no next visit.
    pairs = pair_visits(table(visit("a", 0, 10), visit("b", 2, 5), visit("c", 20, 21)))
    assert histories(pairs) == {
        "b": (["b"], "c"),
        "a": (["a"], "c"),
        "c": (["a", "b", "c"], None),
    }


def test_a_stay_that_starts_as_the_last_ends_is_the_next() -> None:
    pairs = pair_visits(table(visit("a", 0, 1), visit("b", 1, 1), visit("c", 1, 2)))
    assert histories(pairs) == {
        "a": (["a"], "b"), "b": (["a", "b"], "c"), "c": (["a", "b", "c"], None),
    }  # fmt: skip


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(0, 30), st.integers(0, 5)),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 4),
)
def test_no_history_knows_its_future(stays: list[tuple[int, int, int]], longest: int) -> None:
    rows = {
        f"v{n}": visit(f"v{n}", start, start + length, subject=subject)
        for n, (subject, start, length) in enumerate(stays)
    }
    pairs = pair_visits(table(*rows.values()), max_history_visits=longest).to_pylist()
    assert sorted(pair["history"][-1] for pair in pairs) == sorted(rows)
    for pair in pairs:
        assert 1 <= len(pair["history"]) <= longest
        for visit_id in pair["history"]:
            assert rows[visit_id]["subject_id"] == pair["subject_id"]
            assert rows[visit_id]["discharge_time"] <= pair["prediction_time"]
        if pair["next_visit_id"] is not None:
            assert rows[pair["next_visit_id"]]["admit_time"] >= pair["prediction_time"]
            assert pair["next_visit_id"] not in pair["history"]


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6)), min_size=1, max_size=10),
    st.integers(1, 3),
    st.sampled_from([0.0, 2.0]),
)
def test_histories_and_next_visits_are_those_of_a_plain_loop(
    stays: list[tuple[int, int]], longest: int, gap: float
) -> None:
    rows = [visit(f"v{n}", start, start + length) for n, (start, length) in enumerate(stays)]
    ordered = sorted(rows, key=lambda v: (v["admit_time"], v["discharge_time"], v["visit_id"]))
    expected = {}
    for place, this in enumerate(ordered):
        end = this["discharge_time"]
        assert isinstance(end, datetime.datetime)
        known = [v["visit_id"] for v in ordered[: place + 1] if v["discharge_time"] <= end]
        later = [v["visit_id"] for v in ordered[place + 1 :] if v["admit_time"] >= end + gap * DAY]
        expected[this["visit_id"]] = (known[-longest:], next(iter(later), None))
    pairs = pair_visits(table(*rows), max_history_visits=longest, min_gap_days=gap)
    assert histories(pairs) == expected


def test_labels_are_the_phenotypes_of_the_next_visit_alone() -> None:
    phenotypes = [
        Phenotype(name="heart failure", ccs=(108,)),
        Phenotype(name="hypertension", ccs=(98,)),
        Phenotype(name="gout", icd9cm=("2749",)),
    ]
    visits = table(
        visit("a", 0, 1, codes=("4280",)),
        visit("b", 5, 6, codes=("4019", "2749", "42831")),
        visit("c", 9, 10, codes=("486",)),
        visit("d", 19, 20),
    )
    counts = {("ICD9CM", code): 1 for code in ("4280", "4019", "2749", "42831")}
    matches = match_codes(counts, phenotypes)
    labelled = labelled_pairs(visits, matches, n_labels=3)
    assert labelled["labels"].to_pylist() == [[True, True, True], [False] * 3, None, None]


def test_a_next_visit_that_was_not_coded_labels_nothing() -> None:
    visits = table(visit("a", 0, 1, codes=("4280",)), visit("b", 5, 6), visit("c", 9, 10))
    labelled = labelled_pairs(visits, [], n_labels=2)
    assert labelled["next_visit_id"].to_pylist() == ["b", "c", None]
    assert labelled["labels"].to_pylist() == [None, None, None]


def sampled(pairs: list[tuple[int, str, bool, float]], **limits: int | None) -> list[int]:
    """Subjects of the pairs kept; pairs are (subject, split, labelled, place)."""
    rows = [
        {
            "pair_id": f"{number:016d}",
            "subject_id": subject,
            "prediction_time": START,
            "split": split,
            "labels": [True] if labelled else None,
            "sample_key": f"{int(place * 16**8):08x}",
        }
        for number, (subject, split, labelled, place) in enumerate(pairs)
    ]
    bounds = {"train": None, "unlabelled": None, "tuning": None, "held_out": None} | limits
    [engine] = OPENED
    kept = engine.fetch(steps.sample_pairs(engine.upload(pa.Table.from_pylist(rows)), bounds))
    return sorted(kept["subject_id"].to_pylist())


def test_sampling_keeps_whole_patients_in_hash_order() -> None:
    pairs = [(1, "train", True, 0.9), *[(2, "train", True, 0.1)] * 2, (3, "train", True, 0.5)]
    assert sampled(pairs, train=4) == [1, 2, 2, 3]
    assert sampled(pairs, train=3) == [2, 2, 3]
    assert sampled(pairs, train=2) == [2, 2]
    assert sampled(pairs, train=1) == []


def test_each_group_has_its_own_limit() -> None:
    pairs = [
        (1, "train", True, 0.1), (1, "train", False, 0.1), (2, "train", False, 0.2),
        (3, "tuning", True, 0.1), (4, "held_out", True, 0.1),
    ]  # fmt: skip
    assert sampled(pairs, unlabelled=1) == [1, 1, 3, 4]
    assert sampled(pairs, unlabelled=0) == [1, 3, 4]
    assert sampled(pairs) == [1, 1, 2, 3, 4]


def codes_of_three_visits() -> tuple[pa.Table, list[CodeMatch]]:
    visits = table(
        visit("a", 0, 1), visit("b", 11, 12, codes=("4280",)), visit("c", 31, 32, codes=("4019",))
    )
    phenotypes = [
        Phenotype(name="heart failure", ccs=(108,)), Phenotype(name="hypertension", ccs=(98,)),
    ]  # fmt: skip
    return visits, match_codes({("ICD9CM", code): 1 for code in ("4280", "4019")}, phenotypes)


def test_an_admission_too_soon_is_no_next_visit() -> None:
    visits = table(visit("a", 0, 1), visit("b", 1.5, 2), visit("c", 9, 10))
    assert histories(pair_visits(visits, min_gap_days=1.0))["a"] == (["a"], "c")
    assert histories(pair_visits(visits, min_gap_days=0.5))["a"] == (["a"], "b")


def test_a_next_visit_too_late_labels_nothing() -> None:
    visits, matches = codes_of_three_visits()
    labelled = labelled_pairs(visits, matches, n_labels=2, max_gap_days=10.0)
    assert labelled["next_visit_id"].to_pylist() == ["b", None, None]
    assert labelled["labels"].to_pylist() == [[True, False], None, None]


def test_a_label_window_joins_the_labels_of_all_its_stays() -> None:
    visits, matches = codes_of_three_visits()
    wide = labelled_pairs(visits, matches, n_labels=2, label_window_days=30.0)
    assert wide["next_visit_id"].to_pylist() == ["b", "c", None]
    assert wide["labels"].to_pylist() == [[True, True], [False, True], None]
    assert wide["outcome_time"].to_pylist()[:2] == [START + 32 * DAY, START + 42 * DAY]
    narrow = labelled_pairs(visits, matches, n_labels=2, label_window_days=15.0)
    assert narrow["labels"].to_pylist() == [[True, False], None, None]


def test_times_beyond_the_year_2262_survive() -> None:
    far = (datetime.datetime(2300, 1, 1) - START) / DAY
    pairs = pair_visits(table(visit("a", far, far + 1), visit("b", far + 3, far + 4)))
    assert pairs["prediction_time"].to_pylist()[0] == datetime.datetime(2300, 1, 2)
    assert pairs["gap_days"].to_pylist() == [2.0, None]
