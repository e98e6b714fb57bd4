"""Members of the committee: what each is worth on the scored patients."""

from pathlib import Path

import pytest

from ckd_ehr.contracts.files import read_json
from ckd_ehr.metrics.evaluation import write_evaluation
from ckd_ehr.metrics.results import Metrics
from synthetic_run import config_of, stub_models, write_run


@pytest.fixture
def metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Metrics, str]:
    stub_models(monkeypatch)
    context = write_run(tmp_path, config_of())
    write_evaluation(context)
    report = (context.folder / "report.html").read_text()
    return Metrics.model_validate(read_json(context.folder / "metrics.json")), report


def test_each_member_stands_with_its_weight_score_and_worth(metrics: tuple[Metrics, str]) -> None:
    members = {member.name: member for member in metrics[0].committee.members}
    assert {name: member.mean_weight for name, member in members.items()} == {
        "teacher": 0.8,
        "logistic_regression": 0.0,
        "site": 0.1,
    }
    assert members["teacher"].overall["macro_auprc"].value == 1
    assert members["teacher"].committee_gains["macro_auprc"].value == 0
    wrong = members["logistic_regression"]
    assert wrong.overall["macro_auroc"].value == 0
    assert wrong.committee_gains["macro_auroc"].value == 1
    assert wrong.lost_without["macro_auroc"].value == 0
    assert members["teacher"].lost_without["macro_auroc"].value == 1
    assert members["site"].overall["macro_auroc"].value == 0.5


def test_the_report_shows_the_members(metrics: tuple[Metrics, str]) -> None:
    for words in ("Who gives the soft labels", "lost without it", '<th scope="row">site</th>'):
        assert words in metrics[1]
    assert metrics[0].models["committee"].overall["macro_auprc"].value == 1
    assert "teacher, logistic_regression, site" in metrics[0].models["committee"].note
