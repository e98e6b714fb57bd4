"""Instruction pairs → MEDS: pairs as they stand, whose they are, splits by name, bad files."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hospital import Stage

from ckd_ehr.contracts.config import build_config
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.phenotype import PHENOTYPES_25
from ckd_ehr.contracts.records import label_names
from ckd_ehr.data.sources import instructions
from ckd_ehr.data.sources.instruction_stays import lay_out
from ckd_ehr.data.sources.instructions import (
    IN_TWO_SPLITS,
    NO_ANSWER,
    NO_HISTORY,
    NO_ID,
    NO_OBJECT,
    NO_TEXT,
)

Pair = dict[str, object]
# A diagnosis in words sets the label of its name.
LABELS = {"phenotypes": [p.model_dump() | {"names": [p.name]} for p in PHENOTYPES_25]}
COPD = "Chronic obstructive pulmonary disease"
PATIENT_TEXT = "Zebra disease of Mr Smith"


def pair(history: str, labels: str = "None", **more: object) -> Pair:
    return {
        "instruction": "Predict the diseases of the next visit.",
        "input": f"The patient-acquired disease is {history}.",
        "output": f"Disease that the patient may acquire: {labels}",
        **more,
    }


def write_pairs(path: Path, pairs: Sequence[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, pairs)) + "\n", encoding="utf-8")
    return path


def many(count: int, beginning: str = "x") -> list[Pair]:
    """Pairs of as many patients, every other one with shock."""
    return [
        pair(f"Disease {beginning}{n}, Gout", "Shock" if n % 2 else "None") for n in range(count)
    ]


@pytest.fixture
def read(tmp_path: Path, make_events: Stage) -> Stage:
    """Pairs → dataset, from one file."""

    def make(*pairs: object, **settings: object) -> Path:
        path = write_pairs(tmp_path / "data" / "pairs.jsonl", pairs)
        return make_events(path, source="instructions", **settings)

    return make


def events_of(dataset: Path) -> list[tuple[str, str, float | None, int, str]]:
    rows = pq.read_table(dataset / "data" / "0000.parquet").to_pylist()
    return [
        (r["code"], str(r["time"])[:10], r["numeric_value"], r["subject_id"], r["visit_id"])
        for r in rows
    ]


def ledger_of(dataset: Path, file: str = "pairs.jsonl") -> dict[str, object]:
    return json.loads((dataset / "rows.json").read_text())[file]


def subjects_of(dataset: Path) -> list[int]:
    return sorted({event[3] for event in events_of(dataset)})


def test_a_pair_becomes_a_history_and_a_next_stay_with_its_labels(read: Stage) -> None:
    told = pair(f"Gout, {COPD}", f"Shock, {COPD}", subject_id=7)
    told["input"] = f"{told['input']} The patient used the following medication: Furosemide 20 mg."
    events = events_of(read(told))
    assert [event[:4] for event in events] == [
        ("HOSPITAL_ADMISSION", "2000-01-01", None, 7),
        (f"DIAGNOSIS//NAME//{COPD} and bronchiectasis", "2000-01-04", 2.0, 7),
        ("DIAGNOSIS//NAME//gout", "2000-01-04", 1.0, 7),
        ("HOSPITAL_DISCHARGE", "2000-01-04", None, 7),
        ("MEDICATION//NAME//furosemide", "2000-01-04", None, 7),
        ("HOSPITAL_ADMISSION", "2000-01-04", None, 7),
        (f"DIAGNOSIS//NAME//{COPD} and bronchiectasis", "2000-01-05", 2.0, 7),
        ("DIAGNOSIS//NAME//Shock", "2000-01-05", 1.0, 7),
        ("HOSPITAL_DISCHARGE", "2000-01-05", None, 7),
    ]  # fmt: skip
    stays = dict.fromkeys(event[4].rpartition("-")[2] for event in events)
    assert [*stays] == ["1", "next"]


def test_times_are_marked_synthetic_and_names_keep_their_spelling(read: Stage) -> None:
    dataset = read(pair("Acute Bronchitis of St. James", "None"))
    assert json.loads((dataset / "metadata/dataset.json").read_text())["synthetic_times"] is True
    codes = pq.read_table(dataset / "metadata" / "codes.parquet").to_pylist()
    titles = {row["code"]: row["description"] for row in codes}
    assert titles["DIAGNOSIS//NAME//acute bronchitis of st. james"] == (
        "Acute Bronchitis of St. James"
    )
    assert titles["DIAGNOSIS//NAME//none of the listed diseases"] == "none of the listed diseases"


def test_history_may_stand_in_either_key(read: Stage) -> None:
    usual = pair("Gout", "Shock", subject_id=1)
    turned = {**usual, "instruction": usual["input"], "input": ""}
    assert events_of(read(usual)) == events_of(read(turned))


@pytest.mark.parametrize(
    ("written", "subject"), [(12, 12), ("12", 12), (12.0, 12), ("12.0", 12), (0, 0)]
)
def test_a_patients_number_is_kept(read: Stage, written: object, subject: int) -> None:
    assert subjects_of(read(pair("Gout", subject_id=written))) == [subject]


@pytest.mark.parametrize(
    "written", [1.5, float("nan"), float("inf"), True, ["a"], "a\ud800b", "\udc00"]
)
def test_a_patient_id_that_names_nobody_is_left_out(
    read: Stage, said: list[str], written: object
) -> None:
    dataset = read(pair("Gout", subject_id=3), pair("Asthma", subject_id=written))
    assert subjects_of(dataset) == [3]
    assert ledger_of(dataset)["left_out"] == {NO_ID: 1}


def test_a_whole_number_is_one_id_however_it_is_written(read: Stage) -> None:
    assert (
        len(subjects_of(read(pair("Gout", subject_id=10**22), pair("Falls", subject_id=1e22)))) == 1
    )


def test_a_patients_name_in_any_key_is_hashed(read: Stage, said: list[str]) -> None:
    one, again, other = (pair("Gout", who=name) for name in ("a7f3", "a7f3", "b"))
    two = subjects_of(read(one, again, other, instructions={"subject_id": "who"}))
    assert len(two) == 2
    assert min(two) > 1_000_000
    assert "1 equal pairs of one patient folded" in said
    assert not any("name no patient" in line for line in said)


def test_histories_that_begin_alike_are_one_patients(read: Stage, said: list[str]) -> None:
    first, second = (
        "The patient-acquired disease is Asthma, Gout.",
        "Visit 2: patient-acquired disease is Falls.",
    )
    longer = pair("x") | {"input": f"Visit 1: {first} {second}"}
    dataset = read(pair("Gout, asthma", "Shock"), longer, pair("Gout"))
    assert len(subjects_of(dataset)) == 2
    assert any("3 pairs name no patient" in line and "WARNING" in line for line in said)


def test_equal_lines_fold_and_count_as_used(read: Stage, said: list[str]) -> None:
    dataset = read(pair("Gout", "Shock"), pair("gout", "shock"), pair("Gout"))
    assert ledger_of(dataset) == {"read": 3, "used": 3, "left_out": {}}
    assert "1 equal pairs of one patient folded" in said
    assert sum(event[0] == "HOSPITAL_DISCHARGE" for event in events_of(dataset)) == 4


def test_no_line_disappears_uncounted(read: Stage) -> None:
    good = pair("Gout", "Shock")
    dataset = read(
        good,
        [1],
        "text",
        {**good, "output": None},
        {"output": good["output"]},
        {**good, "output": "Shock"},
        {**good, "output": "Disease that the patient may acquire: "},
        {**good, "input": "No phrase here."},
        {**good, "subject_id": [7]},
        {**good, "subject_id": True},
    )
    assert ledger_of(dataset) == {
        "read": 10,
        "used": 1,
        "left_out": {NO_OBJECT: 2, NO_TEXT: 2, NO_ANSWER: 2, NO_HISTORY: 1, NO_ID: 2},
    }


def test_an_unknown_label_is_refused_by_place_form_and_nearest_name(read: Stage) -> None:
    with pytest.raises(CkdEhrError) as error:
        read(pair("Gout", "Shock"), pair("Gout", f"Pneumonias, {PATIENT_TEXT}"))
    message = str(error.value)
    assert "pairs.jsonl: 2 labels are unknown, the first at line 2" in message
    assert "form 'aaaaaaaaaa'; nearest known name: 'Pneumonia'" in message
    assert "data.instructions.labels" in message
    assert "Zebra" not in message


def test_a_sites_own_labels_are_taken_with_their_commas(read: Stage) -> None:
    dataset = read(
        pair("Gout", "Falls, of any kind, Shock"), instructions={"labels": ["Falls, of any kind"]}
    )
    codes = {event[0] for event in events_of(dataset)}
    assert {"DIAGNOSIS//NAME//Falls, of any kind", "DIAGNOSIS//NAME//Shock"} <= codes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n \n", "the file is empty"),
        (b'\n{"output": "Mr Smith"\n', r"line 2 is not JSON"),
        (b'[{"output": "Mr Smith"}', "not a whole JSON array"),
        (b'{"output": "\xe9 Mr Smith"}', r"not UTF-8 \(byte 0xe9\)"),
        (b"[" * 100_000, "not a whole JSON array"),
        (b'{"reply": "Mr Smith", "input": ""}', r"key 'output' is missing \(found: reply, input\)"),
        (b'{"output": "x", "Mr. Smith": 1}', r"key 'input' is missing \(found: output\)"),
        (b'[{"Shock": 0.1}]', r"key 'output' is missing \(found: Shock\)"),
        (b"[]", r"key 'output' is missing \(found: none\)"),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_before_any_work_and_never_quoted(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "pairs.json"
    path.write_bytes(content)
    config = build_config({"name": "t", "data": {"source": "instructions", "root": str(path)}})
    with pytest.raises(CkdEhrError, match=rf"pairs\.json: {message}") as error:
        instructions.digests(config.data)
    assert "Smith" not in str(error.value)


def test_a_gzip_that_is_cut_off_is_refused(tmp_path: Path, make_events: Stage) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(pair("Gout")).encode())[:-9])
    with pytest.raises(CkdEhrError, match=r"pairs\.jsonl\.gz: the gzip file is cut off"):
        make_events(path, source="instructions")


def test_lines_arrays_and_gzip_give_the_same_events(
    read: Stage, tmp_path: Path, make_events: Stage
) -> None:
    pairs = [pair("Gout", "Shock"), pair("Asthma \ud83d")]
    expected = events_of(read(*pairs))
    lines = "\n\n".join(map(json.dumps, pairs)).encode()
    files = {
        "array.json": json.dumps(pairs, indent=2).encode(),
        "lines.json": b"\xef\xbb\xbf" + lines,
        "packed.jsonl.gz": gzip.compress(lines),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert events_of(make_events(tmp_path / name, source="instructions")) == expected


def test_renamed_keys_are_mapped_and_unknown_ones_refused(read: Stage) -> None:
    told = pair("Gout", "Shock")
    told["response"] = told.pop("output")
    renames = {"pairs": {"output": "response"}}
    assert len(events_of(read(told, columns=renames))) == 6
    with pytest.raises(CkdEhrError, match=r"data\.columns\.pairs\.answer: no column in use"):
        read(told, columns={"pairs": {"answer": "response"}})


@pytest.mark.parametrize("root", [None, "absent", "."])
def test_no_file_of_pairs_is_refused(tmp_path: Path, make_events: Stage, root: str | None) -> None:
    settings = {"source": "instructions", "root": root and str(tmp_path / root)}
    config = build_config({"name": "t", "data": settings})
    assert [table.found for table in instructions.tables(config.data)] == [None]
    with pytest.raises(CkdEhrError, match=r"data\.root"):
        make_events(root and tmp_path / root, source="instructions")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files as of the paper: lines under the name .json, beside LLaMA-Factory's own file."""
    root = tmp_path / "paper"
    write_pairs(root / "name_train.json", many(60))
    write_pairs(root / "name_val.json", [*many(20, "y"), pair("Disease x3, gout", "Pneumonia")])
    write_pairs(root / "name_test.json", many(20, "z"))
    (root / "dataset_info.json").write_text("{}")
    return root


def test_splits_of_file_names_are_written_and_no_patient_stands_in_two(
    folder: Path, make_events: Stage, said: list[str]
) -> None:
    dataset = make_events(folder, source="instructions")
    splits = pq.read_table(dataset / "metadata" / "subject_splits.parquet").to_pylist()
    counts = {s: sum(row["split"] == s for row in splits) for s in ("train", "tuning", "held_out")}
    assert counts == {"train": 59, "tuning": 21, "held_out": 20}
    assert len({row["subject_id"] for row in splits}) == len(splits) == 100
    assert ledger_of(dataset, "name_train.json") == {
        "read": 60,
        "used": 59,
        "left_out": {IN_TWO_SPLITS: 1},
    }
    assert any("train 59, tuning 21, held_out 20; splits.method=source" in line for line in said)


def test_a_name_that_tells_no_split_among_others_is_refused(
    folder: Path, make_events: Stage
) -> None:
    write_pairs(folder / "more.jsonl", many(2))
    with pytest.raises(CkdEhrError, match=r"tell no single split, while others do: more\.jsonl"):
        make_events(folder, source="instructions")


def test_the_found_table_names_files_and_splits(folder: Path) -> None:
    settings = {"source": "instructions", "root": str(folder)}
    config = build_config({"name": "t", "data": settings})
    found = [(table.found, table.purpose) for table in instructions.tables(config.data)]
    assert found == [
        ("name_test.json", "instruction pairs, split held_out"),
        ("name_train.json", "instruction pairs, split train"),
        ("name_val.json", "instruction pairs, split tuning"),
    ]


def test_equal_input_gives_equal_bytes(folder: Path, make_events: Stage) -> None:
    first, second = (make_events(folder, source="instructions") for _ in range(2))
    for name in ("data/0000.parquet", "metadata/codes.parquet", "metadata/subject_splits.parquet"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_the_pairs_of_a_patient_stand_alone_whatever_their_number() -> None:
    pairs = lay_out([2, 1, 3])
    ends = [pair.history[-1][1] for pair in pairs]
    stays = [
        (number, *days)
        for number, pair in enumerate(pairs)
        for days in (*pair.history, *([pair.cover] if pair.cover else []), pair.following)
    ]
    for number, end in enumerate(ends):
        start = pairs[number].history[-1][0]
        known = {s for s in stays if s[1] <= start and s[2] <= end}
        assert known == {(number, *days) for days in pairs[number].history}
        following = min((s for s in stays if s[1] >= end), key=lambda s: s[1])
        assert following == (number, *pairs[number].following)


def test_the_cohort_finds_the_pairs_of_the_files_and_no_others(
    read: Stage, make_cohort: Stage
) -> None:
    """Several lines of one patient, several visits in one line: each line is one pair."""
    shared = [
        pair("Gout, Shock", "Pneumonia", subject_id=1),
        pair("Gout, Falls", "None", subject_id=1),
        pair("x", f"{COPD}, Shock", subject_id=1)
        | {
            "input": "Visit 1: the patient-acquired disease is Pneumonia. "
            "Visit 2: the patient-acquired disease is Sepsis, Pneumonia."
        },
    ]
    others = [line | {"subject_id": 10 + n} for n, line in enumerate(many(60))]
    events = read(*shared, *others)
    cohort = make_cohort(events, labels=LABELS, cohort={"sample": {"unlabelled": 0}})
    table = pq.read_table(cohort / "pairs.parquet")
    names = label_names(table.schema)
    visits = {v["visit_id"]: v for v in pq.read_table(cohort / "visits.parquet").to_pylist()}
    found = sorted(
        (
            [[d["title"] for d in visits[v]["diagnoses"]] for v in row["history"]],
            [name for name, on in zip(names, row["labels"], strict=True) if on],
            row["gap_days"],
        )
        for row in table.to_pylist()
        if row["subject_id"] == 1
    )
    assert table.num_rows == 63
    assert found == [
        ([["Gout", "Falls"]], [], None),
        ([["Gout", "Shock"]], ["Pneumonia"], None),
        ([["Pneumonia"], ["Sepsis", "Pneumonia"]], [f"{COPD} and bronchiectasis", "Shock"], None),
    ]
