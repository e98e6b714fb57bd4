"""What is in a bundle, what is not, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json, read_table, write_json
from ckd_ehr.contracts.records import PAIRS
from ckd_ehr.knowledge.sources import read_narratives
from ckd_ehr.release import gates
from ckd_ehr.release.bundle import build_bundle
from ckd_ehr.release.golden import invent_patients, read_golden
from ckd_ehr.release.known_codes import known_codes, read_known_codes
from ckd_ehr.release.manifest import SCHEMA_VERSION, read_facts, write_manifest
from tiny import LABELS
from tiny_bundle import answer, tiny_config


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def test_a_bundle_holds_what_it_takes_to_predict(bundle: Path) -> None:
    found = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert found == {
        "README.md",
        "bundle.json",
        "fp32.onnx",
        "golden/expected.json",
        "golden/visits.jsonl",
        "int8.onnx",
        "known_codes.json",
        "manifest.json",
        "metrics.json",
        "tokenizer.json",
        "weights.bin",
    }
    facts = read_facts(bundle)
    assert facts.labels == LABELS
    assert facts.graphs["fp32"].opset == 23
    assert (facts.graphs["fp32"].fused_attention, facts.graphs["fp32"].int8_products) == (2, 0)
    assert facts.graphs["int8"].int8_products == 11
    assert len(read_json(bundle / "metrics.json")["gates"]["int8"]) == len(LABELS)  # type: ignore[index]


def test_no_patient_is_in_a_bundle(bundle: Path, finished_run_folders: dict[str, Path]) -> None:
    pairs = read_table(finished_run_folders["cohort"] / "pairs.parquet", PAIRS)
    texts = read_narratives(finished_run_folders["knowledge"], "student").values()
    private = {*pairs["pair_id"].to_pylist(), *(text.text for text in texts)}
    private |= {f'"{visit}"' for history in pairs["history"].to_pylist() for visit in history}
    assert len(private) > 200
    for path in bundle.rglob("*"):
        if path.is_file():
            content = path.read_bytes().decode("latin-1")
            assert not [one for one in private if one in content], path
    assert all(patient.subject_id <= 16 for patient in _golden_patients())


def _golden_patients() -> list:  # type: ignore[type-arg]
    return invent_patients(frozenset({("ICD9CM", "4280"), ("NAME", "heparin")}), seed=3)


def test_golden_patients_are_drawn_by_seed_and_one_has_unknown_codes_alone() -> None:
    patients = _golden_patients()
    assert patients == _golden_patients()
    assert [len(patient.visits) for patient in patients[:7]] == [1, 2, 3, 4, 5, 6, 1]
    [odd] = patients[0].visits
    assert odd.medications[0].code == "acétaminophène 500 mg"
    assert odd.diagnoses[0].code == "ZZZ9"


def test_a_code_of_few_patients_is_not_known(bundle: Path) -> None:
    [visit] = read_golden(bundle).histories[0]
    assert known_codes([[visit]] * 9) == frozenset()  # one patient, nine pairs
    assert known_codes([[visit]], fewest=1) == {
        ("NAME", "acétaminophène 500 mg"),
        ("ICD10CM", "ZZZ9"),
    }
    words = ("ASPIRIN", "FEVER", "SHOCK", "SUGAR")
    assert read_known_codes(bundle) == {("ICD9CM", word) for word in words}


def test_expected_answers_are_of_both_graphs(bundle: Path) -> None:
    golden = read_golden(bundle)
    assert golden.probabilities.keys() == {"fp32", "int8"}
    assert golden.probabilities["fp32"].shape == (16, 3)
    shift = np.abs(golden.probabilities["fp32"] - golden.probabilities["int8"]).max()
    assert 0 < shift < 0.1


def _change_a_byte(folder: Path) -> None:
    content = bytearray((folder / "weights.bin").read_bytes())
    content[100] ^= 1
    (folder / "weights.bin").write_bytes(content)


def _make_newer(folder: Path) -> None:
    manifest = read_json(folder / "manifest.json")
    write_json(folder / "manifest.json", manifest | {"schema_version": SCHEMA_VERSION + 1})


def _add_a_key(folder: Path) -> None:
    write_json(folder / "bundle.json", read_json(folder / "bundle.json") | {"surprise": 1})
    write_manifest(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_change_a_byte, r"weights\.bin: not as it was published"),
        (_make_newer, r"a bundle of version 2, this ckd-ehr reads up to 1; install a newer"),
        (_add_a_key, r"damaged \(surprise as not expected\)"),
        (lambda folder: (folder / "int8.onnx").unlink(), r"int8\.onnx: missing; take the bundle"),
        (lambda folder: (folder / "x.json").write_text("{}"), r"x\.json: not of this bundle"),
        (lambda folder: (folder / "bundle.json").unlink(), "no bundle here"),
    ],
)
def test_a_bundle_that_is_not_as_published_is_refused(
    copy: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(copy)
    with pytest.raises(CkdEhrError, match=message):
        read_facts(copy)


def test_a_graph_that_fails_is_not_published(
    finished_run_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = gates.LIMITS | {"p99_shift": 1e-12}
    monkeypatch.setattr(gates, "LIMITS", limits)
    with pytest.raises(CkdEhrError, match="fp32: 3 of 3 labels are further from the student"):
        build_bundle(finished_run_folders, tiny_config(), tmp_path / "none", answer=answer)
    assert not (tmp_path / "none").exists()


def test_int8_that_fails_is_left_out_where_nobody_asked_for_it(
    finished_run_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = dict.fromkeys(gates.LIMITS, 1.0) | {"p99_shift": 2e-4}
    monkeypatch.setattr(gates, "LIMITS", limits)
    said: list[str] = []
    out = tmp_path / "bundle"
    published = build_bundle(
        finished_run_folders, tiny_config(), out, answer=answer, say=said.append
    )
    assert published.keys() == read_facts(out).graphs.keys() == {"fp32"}
    assert any("int8 is left out" in line and "p99 |Δp|" in line for line in said)
    assert json.loads((out / "golden/expected.json").read_text()).keys() == {"fp32"}
