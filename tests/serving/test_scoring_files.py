"""Files of many patients: what is refused, and that an interruption costs one part at most."""

import datetime
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ckd_ehr.cli import main
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.records import VISITS, Visit, label_names
from ckd_ehr.contracts.visit_files import iter_histories
from ckd_ehr.serving.engine import Prediction, Predictor
from ckd_ehr.serving.scoring_files import score_file
from tiny import LABELS

PATIENTS = 20


def _rows() -> list[dict[str, object]]:
    """Patient n has n % 3 + 1 visits; every fifth has unknown codes alone."""
    return [
        {
            "visit_id": f"{subject}-{number}",
            "subject_id": subject,
            "admit_time": datetime.datetime(2020, 1, 1 + number),
            "discharge_time": datetime.datetime(2020, 1, 1 + number, 12),
            "age_years": 50.0,
            "sex": "F",
            "diagnoses": [
                {
                    "system": "ICD9CM",
                    "code": "ZQX1" if subject % 5 == 0 else "shock",
                    "title": None,
                }
            ],
        }
        for subject in range(PATIENTS)
        for number in range(subject % 3 + 1)
    ]


def _write(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    schema = pa.schema([VISITS.field(name) for name in rows[0]])
    pq.write_table(pa.Table.from_pylist(list(rows), schema), path)
    return path


@pytest.fixture
def visits(tmp_path: Path) -> Path:
    return _write(tmp_path / "visits.parquet", _rows())


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return Predictor(bundle, precision="fp32", threads=1)


def test_each_patient_gets_a_row_in_the_order_of_the_file(
    predictor: Predictor, visits: Path, tmp_path: Path
) -> None:
    out = tmp_path / "risks.parquet"
    assert score_file(predictor, visits, out, patients_a_part=7) == PATIENTS
    table = pq.read_table(out)
    assert label_names(table.schema) == LABELS
    rows = table.to_pylist()
    assert [row["subject_id"] for row in rows] == list(range(PATIENTS))
    assert rows[2]["prediction_time"] == datetime.datetime(2020, 1, 3, 12)
    assert [row["probabilities"] is None for row in rows] == [n % 5 == 0 for n in range(PATIENTS)]
    assert rows[5]["abstention"] == "no code of the history was in training"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["risks.parquet", "visits.parquet"]


class Killed(BaseException):
    """As kill -9: nothing is cleaned up."""


def test_an_interruption_costs_one_part(
    predictor: Predictor, visits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole.parquet", tmp_path / "risks.parquet"
    score_file(predictor, visits, whole, patients_a_part=4)
    asked: list[int] = []
    plain = Predictor.predict

    def counted(self: Predictor, histories: Sequence[Sequence[Visit]]) -> list[Prediction]:
        if len(asked) == 3:
            raise Killed
        asked.append(len(histories))
        return plain(self, histories)

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict", counted)
        with pytest.raises(Killed):
            score_file(predictor, visits, out, patients_a_part=4)
        assert not out.exists()
        asked.clear()
        said: list[str] = []
        score_file(predictor, visits, out, patients_a_part=4, say=said.append)
    assert asked == [4, 4]
    assert said[0] == "going on behind 12 of 20 patients"
    assert out.read_bytes() == whole.read_bytes()


def test_parts_of_another_input_are_thrown_away(
    predictor: Predictor, visits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "risks.parquet"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("ckd_ehr.serving.scoring_files.write_batches", _kill)
        score_file(predictor, visits, out, patients_a_part=4)
    _write(visits, _rows()[:5])
    assert score_file(predictor, visits, out, patients_a_part=4) == 3
    assert pq.read_table(out).num_rows == 3


def _kill(*_: object) -> None:
    raise Killed


def _without(name: str) -> list[dict[str, object]]:
    return [{key: value for key, value in row.items() if key != name} for row in _rows()]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (_without("admit_time"), "column 'admit_time' is missing"),
        ([row | {"died": False} for row in _rows()], "unknown column 'died'; Leave out what"),
        ([*_rows(), _rows()[0]], "row 39: subject_id: this patient stands further up"),
        ([_rows()[0] | {"age_years": 200.0}], "row 0: visits.0..age_years: Input should be less"),
        (_without("diagnoses"), "row 0: visits.0.: the visit is empty"),
    ],
)
def test_parquet_that_breaks_the_schema_is_refused(
    tmp_path: Path, rows: list[dict[str, object]], message: str
) -> None:
    path = _write(tmp_path / "visits.parquet", rows)
    with pytest.raises(CkdEhrError, match=message):
        list(iter_histories(path))


def test_parquet_and_json_lines_give_the_same_histories(visits: Path, tmp_path: Path) -> None:
    lines: dict[int, list[dict[str, object]]] = {}
    for row in _rows():
        times = {name: str(row[name]) for name in ("admit_time", "discharge_time")}
        visit = {key: value for key, value in (row | times).items() if key != "subject_id"}
        lines.setdefault(int(str(row["subject_id"])), []).append(visit)
    path = tmp_path / "visits.jsonl"
    path.write_text("\n".join(json.dumps({"subject_id": k, "visits": v}) for k, v in lines.items()))
    assert list(iter_histories(path)) == list(iter_histories(visits))


def test_what_is_no_parquet_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "v.parquet").write_bytes(b"no parquet")
    with pytest.raises(CkdEhrError, match=r"v\.parquet: not a whole Parquet file"):
        list(iter_histories(tmp_path / "v.parquet"))
    with pytest.raises(CkdEhrError, match="no such file"):
        list(iter_histories(tmp_path / "absent.parquet"))


def test_the_command_predicts_and_verifies_by_a_bundle(
    bundle: Path, visits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "risks.parquet"
    assert main(["predict", str(bundle), "--visits", str(visits), "--out", str(out)]) == 0
    assert pq.read_table(out).num_rows == PATIENTS
    assert main(["predict", str(bundle), "--visits", str(bundle / "golden/visits.jsonl")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[0]["probabilities"] is None
    assert lines[0]["abstention"] == "no code of the history was in training"
    assert lines[1]["probabilities"].keys() == set(LABELS)
    assert main(["bundle", "verify", str(bundle)]) == 0
    assert "golden set reproduced by int8" in capsys.readouterr().out
    assert main(["predict", str(bundle), "--visits", str(visits)]) == 2
    assert "ckd-ehr bundle build RUN --out BUNDLE" in capsys.readouterr().err
