"""A bundle at work: what it says, when it abstains, and that it needs no torch."""

import datetime
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json, write_json
from ckd_ehr.contracts.records import Code, Visit
from ckd_ehr.learning.inference import StudentPredictor
from ckd_ehr.release.manifest import write_manifest
from ckd_ehr.serving.engine import NO_CODES, NONE_KNOWN, Predictor

WITHOUT_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "onnx", "peft", "safetensors"}:
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
from pathlib import Path
from ckd_ehr.contracts.inputs import read_histories
from ckd_ehr.serving.engine import Predictor
predictor = Predictor.load(sys.argv[1])
found = predictor.predict(read_histories(Path(sys.argv[1]) / "golden/visits.jsonl"))
print(predictor.precision, len(found), len(predictor.explain(found[1]).labels))
"""


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return Predictor(bundle, precision="fp32", threads=1)


def _visit(*codes: str, number: int = 0, drugs: tuple[str, ...] = ()) -> Visit:
    day = datetime.datetime(2020, 1, 1 + number % 28)
    return Visit(
        visit_id=str(number),
        subject_id=1,
        admit_time=day,
        discharge_time=day,
        age_years=60.0,
        sex="F",
        ethnicity=None,
        admission_type=None,
        died=False,
        diagnoses=tuple(Code("ICD9CM", code.upper()) for code in codes),
        medications=tuple(Code("NAME", drug) for drug in drugs),
        procedures=(),
    )


def test_a_bundle_says_what_the_student_says(
    predictor: Predictor, finished_run_folders: dict[str, Path]
) -> None:
    student = StudentPredictor(finished_run_folders["student"] / "distilled")
    histories = [[_visit("shock")], [_visit("fever"), _visit("sugar", "aspirin", number=1)]]
    found = np.array([one.probabilities for one in predictor.predict(histories)])
    np.testing.assert_allclose(found, student.predict(histories), atol=2e-3)


def test_evidence_adds_up_by_visit_and_by_concept(predictor: Predictor) -> None:
    [one] = predictor.predict([[_visit("shock"), _visit("fever", "aspirin", number=1)]])
    assert one.by_visit.keys() == {-1, 0, 1}
    total = one.evidence[:, 0] + sum(one.by_visit.values()) + predictor.facts.base_log_odds
    np.testing.assert_allclose(1 / (1 + np.exp(-total)), one.probabilities, atol=1e-5)
    explained = predictor.explain(one).labels[2]
    assert explained.label == predictor.labels[2]
    assert explained.probability == pytest.approx(one.probabilities[2], abs=1e-5)
    assert [concept.text for concept in explained.concepts][-2:] == ["ASPIRIN", "FEVER"]


@pytest.mark.parametrize(
    ("history", "share", "reason"),
    [
        ([], 0.0, NO_CODES),
        ([_visit()], 0.0, NO_CODES),
        ([_visit("ZQX1", drugs=("acétaminophène",))], 1.0, NONE_KNOWN),
        ([_visit("shock", "A1", "A2")], 2 / 3, "more than 50% of the codes were not in training"),
        ([_visit("shock", "aspirin", "A1")], 1 / 3, None),
    ],
)
def test_no_risk_is_told_of_histories_unlike_training(
    predictor: Predictor, history: list[Visit], share: float, reason: str | None
) -> None:
    [one] = predictor.predict([history])
    assert one.unknown_share == pytest.approx(share)
    assert one.abstention == reason
    assert ((one.probabilities > 0) & (one.probabilities < 1)).all()


def test_of_500_visits_the_last_ones_are_read(predictor: Predictor) -> None:
    many = [_visit("shock", number=number) for number in range(500)]
    recent = many[-predictor.facts.max_history_visits :]
    one, other = predictor.predict([many, recent])
    np.testing.assert_allclose(one.probabilities, other.probabilities, atol=1e-6)


def _off(folder: Path, *precisions: str) -> None:
    """As if the bundle had been made where these graphs say something else."""
    path = folder / "golden/expected.json"
    expected = read_json(path)
    for name in precisions:
        expected[name] = np.clip(np.array(expected[name]) + 0.01, 0, 1).tolist()
    write_json(path, expected)
    write_manifest(folder)


def test_fp32_takes_the_place_of_int8_that_differs_here(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    said: list[str] = []
    assert Predictor(copy, say=said.append).precision == "int8"
    _off(copy, "int8")
    assert Predictor(copy, say=said.append).precision == "fp32"
    [note] = said
    assert "int8 is up to 0.01 off its golden set" in note
    assert note.endswith("fp32 instead")
    with pytest.raises(CkdEhrError, match=r"int8 is up to 0\.01 off"):
        Predictor(copy, precision="int8")
    _off(copy, "fp32")
    with pytest.raises(CkdEhrError, match=r"fp32 is up to 0\.01 off .* take the bundle again"):
        Predictor(copy)


def test_answers_do_not_depend_on_who_else_is_asked_about(bundle: Path) -> None:
    predictor = Predictor(bundle, precision="int8", threads=1)
    histories = [[replace(_visit(code), subject_id=n)] for n, code in enumerate(["shock", "fever"])]
    together = predictor.predict(histories)
    for history, one in zip(histories, together, strict=True):
        [alone] = predictor.predict([history])
        np.testing.assert_allclose(alone.probabilities, one.probabilities, atol=1e-5)


def test_a_bundle_works_where_torch_is_not_installed(bundle: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["int8", "16", "3"]
