"""A run's pairs as instruction files: read back alike, nothing of the next visit, no plain id."""

import json
from collections import Counter
from pathlib import Path

import pytest

from ckd_ehr.cli import main
from ckd_ehr.contracts.code_patterns import plain_name
from ckd_ehr.contracts.config import build_config
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_table
from ckd_ehr.contracts.phenotype import PHENOTYPES_25
from ckd_ehr.contracts.records import NARRATIVES, PAIRS, VISITS, label_names, visits_from_table
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.data.cohort import write_cohort
from ckd_ehr.data.events import write_events
from ckd_ehr.data.sources.drug_names import drug_name
from ckd_ehr.data.sources.instruction_labels import LabelNames
from ckd_ehr.knowledge.instructions import export_instructions, words_of
from ckd_ehr.knowledge.stage import write_knowledge
from small_hospital import FREQUENT

NAMES = LabelNames()
# A diagnosis in words sets the label of its name.
LABELS = {"phenotypes": [p.model_dump() | {"names": [p.name]} for p in PHENOTYPES_25]}
KEY = b"a key of the tests"
# A pair: its history's names by visit, its labels, its split.
Told = tuple[tuple[tuple[frozenset[str], ...], ...], tuple[str, ...], str]


def make(folder: Path, **settings: object) -> Path:
    """Run the stages up to the narratives; returns the run's folder."""
    knowledge = {"guidelines": {"pack": None}}
    config = build_config({"name": "test", "labels": LABELS, "knowledge": knowledge, **settings})
    inputs: dict[str, Path] = {}
    for name, stage in {
        "events": write_events,
        "cohort": write_cohort,
        "knowledge": lambda context: write_knowledge(
            context, {reader: lambda text: len(text) // 4 for reader in ("teacher", "student")}
        ),
    }.items():
        out = folder / name
        out.mkdir(parents=True)
        stage(StageContext(config=config, folder=out, inputs=dict(inputs), say=lambda _: None))
        inputs[name] = out
    return folder


def make_from(root: Path, folder: Path, **splits: str) -> Path:
    """Import files of pairs."""
    return make(
        folder,
        data={"source": "instructions", "root": str(root)},
        cohort={"sample": {"unlabelled": 0}},
        splits=splits,
    )


def owned_by(run: Path) -> list[tuple[int, Told]]:
    """The labelled pairs, each with its patient."""
    table = read_table(run / "cohort" / "pairs.parquet", PAIRS)
    visits = visits_from_table(read_table(run / "cohort" / "visits.parquet", VISITS))
    labels = label_names(table.schema)

    def names(visit_id: str) -> tuple[frozenset[str], ...]:
        words = words_of(visits[visit_id])
        return (
            frozenset(plain_name(NAMES.ours(name) or name) for name in words.diagnoses),
            frozenset(map(drug_name, words.medications)),
            frozenset(map(plain_name, words.procedures)),
        )

    return [
        (
            row["subject_id"],
            (
                tuple(names(visit_id) for visit_id in row["history"]),
                tuple(name for name, on in zip(labels, row["labels"], strict=True) if on),
                row["split"],
            ),
        )
        for row in table.to_pylist()
        if row["labels"] is not None
    ]


def told_by(run: Path) -> Counter[Told]:
    return Counter(told for _, told in owned_by(run))


def lines_of(folder: Path) -> list[dict[str, str]]:
    return [
        json.loads(line)
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    simulator = {"patients": 250, **FREQUENT}
    return make(tmp_path_factory.mktemp("run"), data={"simulator": simulator})


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "pairs"
    export_instructions(run / "cohort", out, subject_secret=KEY)
    return out


def test_pairs_read_back_have_the_same_histories_labels_and_splits(
    run: Path, exported: Path, tmp_path: Path
) -> None:
    again = make_from(exported, tmp_path / "again", method="source")
    expected = told_by(run)
    assert expected.total() > 150
    assert max(len(history) for history, _, _ in expected) > 3
    assert told_by(again) == expected


def test_one_patients_pairs_stay_one_patients(run: Path, exported: Path, tmp_path: Path) -> None:
    def sizes(pairs: list[tuple[int, Told]]) -> list[int]:
        return sorted(Counter(subject for subject, _ in pairs).values())

    again = make_from(exported, tmp_path / "again", method="source")
    assert max(sizes(owned_by(run))) > 3
    assert sizes(owned_by(again)) == sizes(owned_by(run))


def test_without_ids_pairs_whose_histories_begin_alike_stay_together(
    run: Path, tmp_path: Path
) -> None:
    export_instructions(run / "cohort", tmp_path / "out")
    whole = tmp_path / "pairs.jsonl"
    whole.write_text("".join(path.read_text() for path in (tmp_path / "out").glob("*.jsonl")))
    owner = {history: who for who, (history, *_) in owned_by(make_from(whole, tmp_path / "again"))}
    found: dict[int, set[int]] = {}
    for subject, (history, *_) in owned_by(run):
        found.setdefault(subject, set()).add(owner[history])
    assert [owners for owners in found.values() if len(owners) > 1] == []
    assert len(set(owner.values())) > 0.9 * len(found)


def test_the_papers_label_names_read_back_as_ours(run: Path, tmp_path: Path) -> None:
    export_instructions(run / "cohort", tmp_path / "out", label_style="paper", subject_secret=KEY)
    outputs = " ".join(line["output"] for line in lines_of(tmp_path / "out"))
    assert "Coronary atherosclerosis and related" in outputs
    assert "other heart disease" not in outputs
    assert told_by(make_from(tmp_path / "out", tmp_path / "again", method="source")) == told_by(run)


def test_pairs_as_of_the_paper_become_narratives_with_spans_and_labels(tmp_path: Path) -> None:
    def line(number: int, labels: str) -> str:
        prompt = (
            f"The patient-acquired disease is Gout{number}, Septicemia (except in labor). The "
            "patient used the following medication: Furosemide 20 mg. The medications that maybe "
            "have therapeutic effect on Shock are Dopamine."
        )
        answer = f"Disease that the patient may acquire: {labels}"
        return json.dumps({"instruction": prompt, "input": "", "output": answer})

    wanted = "Respiratory failure; insufficiency; arrest, Shock"
    lines = [line(number, wanted if number % 2 else "None") for number in range(40)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    run = make_from(tmp_path / "pairs.jsonl", tmp_path / "run")
    pairs = read_table(run / "cohort" / "pairs.parquet", PAIRS)
    names = label_names(pairs.schema)
    labels = {
        row["pair_id"]: [name for name, on in zip(names, row["labels"], strict=True) if on]
        for row in pairs.to_pylist()
    }
    told = read_table(run / "knowledge" / "student.parquet", NARRATIVES).to_pylist()
    assert len(told) == len(labels) == 40
    for row in told:
        septicemia, gout, drug = (row["text"][s["start"] : s["end"]] for s in row["spans"])
        assert row["text"] == f"Visit 1: Septicemia (except in labor); {gout}. Drugs: furosemide."
        assert (septicemia, drug) == ("Septicemia (except in labor)", "furosemide")
        has_disease = int(gout.removeprefix("Gout")) % 2
        assert labels[row["pair_id"]] == (
            ["Respiratory failure; insufficiency; arrest (adult)", "Shock"] if has_disease else []
        )


def test_imported_narratives_mark_every_concept_they_tell(exported: Path, tmp_path: Path) -> None:
    again = make_from(exported, tmp_path / "again", method="source")
    narratives = read_table(again / "knowledge" / "teacher.parquet", NARRATIVES).to_pylist()
    visits = visits_from_table(read_table(again / "cohort" / "visits.parquet", VISITS))
    pairs = read_table(again / "cohort" / "pairs.parquet", PAIRS).to_pylist()
    history_of = {row["pair_id"]: row["history"] for row in pairs}
    assert len(narratives) == len(pairs)
    for row in narratives:
        history = [visits[visit_id] for visit_id in history_of[row["pair_id"]]]
        marked = Counter(row["text"][span["start"] : span["end"]] for span in row["spans"])
        words = [words_of(visit) for visit in history]
        told = Counter(n for w in words for n in (*w.diagnoses, *w.medications, *w.procedures))
        assert marked.total() + row["concepts_cut"] == told.total()
        assert marked <= told


def test_a_line_has_the_phrases_and_nothing_of_the_next_visit_in_its_prompt(
    run: Path, tmp_path: Path
) -> None:
    export_instructions(run / "cohort", tmp_path / "out")
    line = lines_of(tmp_path / "out")[0]
    assert [*line] == ["instruction", "input", "output"]
    assert "The patient-acquired disease is " in line["input"]
    assert line["output"].startswith("Disease that the patient may acquire: ")
    pairs = read_table(run / "cohort" / "pairs.parquet", PAIRS)
    visits = visits_from_table(read_table(run / "cohort" / "visits.parquet", VISITS))
    rows = sorted((r for r in pairs.to_pylist() if r["labels"]), key=lambda r: r["pair_id"])
    by_split = [r for split in ("held_out", "train", "tuning") for r in rows if r["split"] == split]
    for row, written in zip(by_split, lines_of(tmp_path / "out"), strict=True):
        known = {n for v in row["history"] for n in _all_names(words_of(visits[v]))}
        later = set(_all_names(words_of(visits[row["next_visit_id"]]))) - known
        # A short name may be part of a longer one: "insulin" of "insulin glargine".
        apart = {name for name in later if not any(name in other for other in known)}
        prompt = written["instruction"].partition("Diseases:")[0] + written["input"]
        assert not [name for name in apart if name in prompt]


def _all_names(words: object) -> tuple[str, ...]:
    return tuple(
        name for kind in ("diagnoses", "medications", "procedures") for name in getattr(words, kind)
    )


def test_no_id_stands_in_clear_and_the_key_decides_the_hash(run: Path, tmp_path: Path) -> None:
    for name, secret in (("one", KEY), ("two", KEY), ("other", b"another"), ("none", None)):
        export_instructions(run / "cohort", tmp_path / name, subject_secret=secret)
    ids = {name: {line.get("subject_id") for line in lines_of(tmp_path / name)}
           for name in ("one", "two", "other", "none")}  # fmt: skip
    assert ids["one"] == ids["two"]
    assert not ids["one"] & ids["other"]
    assert ids["none"] == {None}
    subjects = read_table(run / "cohort" / "pairs.parquet", PAIRS)["subject_id"].to_pylist()
    assert not ids["one"] & set(map(str, subjects))
    assert all(len(str(name)) == 16 for name in ids["one"])


def test_unlabelled_pairs_are_counted_and_the_files_are_described(
    run: Path, tmp_path: Path
) -> None:
    counts = export_instructions(run / "cohort", tmp_path / "out")
    pairs = read_table(run / "cohort" / "pairs.parquet", PAIRS)
    assert counts.unlabelled == pairs["labels"].null_count > 0
    assert sum(counts.pairs.values()) + counts.unlabelled == pairs.num_rows
    described = json.loads((tmp_path / "out" / "dataset_info.json").read_text())
    assert described["ckd_ehr_tuning"] == {
        "file_name": "tuning.jsonl",
        "formatting": "alpaca",
        "columns": {"prompt": "instruction", "query": "input", "response": "output"},
    }
    assert {entry["file_name"] for entry in described.values()} == {
        path.name for path in (tmp_path / "out").glob("*.jsonl")
    }


def test_a_folder_with_files_is_refused_and_left_as_it_is(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(CkdEhrError, match="not empty; take a new folder"):
        export_instructions(run / "cohort", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_export_that_fails_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(counts: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ckd_ehr.knowledge.instructions._dataset_info", fail)
    with pytest.raises(KeyboardInterrupt):
        export_instructions(run / "cohort", tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def test_the_command_writes_files_warns_and_names_no_patient(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "trial.yaml"
    config.write_text(
        json.dumps({"name": "trial", "data": {"simulator": {"patients": 150, **FREQUENT}}})
    )
    folder = str(tmp_path / "run")
    assert main(["run", str(config), "--out", folder, "--until", "cohort"]) == 0
    (tmp_path / "repository" / ".git").mkdir(parents=True)
    capfd.readouterr()
    out = tmp_path / "repository" / "pairs"
    assert main(["export-instructions", folder, "--out", str(out), "--subject-key"]) == 0
    shown = capfd.readouterr()
    assert "holds patient data" in shown.out
    assert "unlabelled pairs left out" in shown.out
    assert "never commit it" in shown.err
    lines = lines_of(out)
    assert f"train: {sum(1 for _ in (out / 'train.jsonl').open()):,} pairs" in shown.out
    assert all(len(line["subject_id"]) == 16 for line in lines)
    assert not any(line["subject_id"] in shown.out + shown.err for line in lines)


def test_the_real_demo_survives_the_round_trip(real_data: Path, tmp_path: Path) -> None:
    data = {"source": "mimic3", "root": str(real_data / "mimic3-demo-1.4")}
    labels = {"splits": {"seed": 1, "tuning": 0.2, "held_out": 0.2}}
    first = make(tmp_path / "first", data=data, **labels)
    export_instructions(first / "cohort", tmp_path / "out", subject_secret=KEY)
    again = make_from(tmp_path / "out", tmp_path / "again", method="source")
    assert told_by(first).total() == 29
    assert told_by(again) == told_by(first)
