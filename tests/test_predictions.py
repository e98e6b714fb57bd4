"""What a prediction's input is told about, before any model is loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from ckd_ehr.contracts.config import build_config
from ckd_ehr.contracts.files import write_json
from ckd_ehr.contracts.inputs import read_histories
from ckd_ehr.contracts.records import Visit
from ckd_ehr.contracts.runs import RunDirectory
from ckd_ehr.learning import inference
from ckd_ehr.predictions import count_unknown_codes, predict_lines

LINE = """{"subject_id": 7, "visits": [{"visit_id": "a", "admit_time": "2024-01-01T08:00:00",
 "discharge_time": "2024-01-03T08:00:00", "diagnoses": [{"system": "ICD9CM", "code": "428.0"},
 {"system": "ICD9CM", "code": "585"}, {"system": "ICD9CM", "code": "ZQX1"},
 {"system": "ICD10CM", "code": "QQQ9", "title": "Own words"}],
 "procedures": [{"system": "ICD9PROC", "code": "QQ"}],
 "medications": [{"system": "NAME", "code": "warfarin"}]}]}"""


@pytest.fixture
def visits(tmp_path: Path) -> Path:
    path = tmp_path / "visits.jsonl"
    line = LINE.replace("\n", "")
    path.write_text(f"{line}\n{line.replace('7', '8', 1)}\n", encoding="utf-8")
    return path


def test_codes_without_any_title_are_counted_once(visits: Path) -> None:
    assert count_unknown_codes(read_histories(visits)) == 2
    assert count_unknown_codes([]) == 0


class Half:
    """A student that gives its one label one half."""

    labels = ("Shock",)
    facts: ClassVar[dict[str, object]] = {}

    @classmethod
    def load(cls, run: Path) -> "Half":
        return cls()

    def predict(self, histories: Sequence[Sequence[Visit]]) -> np.ndarray:
        return np.full((len(histories), 1), 0.5)


def test_unknown_codes_are_said_once_and_never_shown(
    visits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inference, "StudentPredictor", Half)
    config = build_config({"name": "trial"}).model_dump(mode="json")
    write_json(visits.with_name("run.json"), {"config": config})
    assert len(list(predict_lines(RunDirectory(visits.parent, ()), visits))) == 2
    shown = capsys.readouterr()
    assert shown.err == "2 codes are unknown to the ontology and were read as they stand\n"
    assert shown.out == ""
