"""A feature that alone tells a label: planted ones are found, diseases that stay are not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from audited import read_rows, simulated_cohort, write_cohort
from scipy import sparse

from ckd_ehr.contracts.phenotype import PHENOTYPES_25
from ckd_ehr.data.audit.cohort import cohort_findings
from ckd_ehr.data.audit.findings import Finding
from ckd_ehr.data.audit.predictors import CHECK, correlations
from ckd_ehr.data.phenotypes import match_codes

LABEL = 8  # congestive heart failure, which stays
Plant = Callable[[dict[str, object], bool], object]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated_cohort(tmp_path_factory.mktemp("simulated"), patients=700)[1]


def findings_after(cohort: Path, folder: Path, plant: Plant) -> list[Finding]:
    """Change the last visit of each train pair, knowing whether it will have the label."""
    visits, pairs, names = read_rows(cohort)
    visit_of = {visit["visit_id"]: visit for visit in visits}
    for pair in pairs:
        if pair["split"] == "train" and pair["labels"] is not None:
            last = visit_of[pair["history"][-1]]  # type: ignore[index]
            plant(last, pair["labels"][LABEL])  # type: ignore[index]
    write_cohort(folder, visits, pairs, names)
    findings = cohort_findings(folder, None, phenotypes=PHENOTYPES_25)
    return [finding for finding in findings if finding.check == CHECK]


def add_drug(visit: dict[str, object], name: str) -> None:
    drugs = visit["medications"]
    assert isinstance(drugs, list)
    drugs.append({"system": "NAME", "code": name, "title": None})


def test_an_honest_hospital_passes_with_diseases_that_stay(cohort: Path, tmp_path: Path) -> None:
    assert findings_after(cohort, tmp_path, lambda visit, label: None) == []


def test_a_drug_that_tells_a_label_is_found(cohort: Path, tmp_path: Path) -> None:
    plant: Plant = lambda visit, label: add_drug(visit, "telltale") if label else None  # noqa: E731
    [finding] = findings_after(cohort, tmp_path, plant)
    assert finding.rows in (1, 2)  # at the last visit, perhaps at any visit too
    assert "medication NAME telltale at the last visit → Congestive heart failure" in (
        finding.problem
    )


def test_a_drug_whose_absence_tells_a_label_is_found(cohort: Path, tmp_path: Path) -> None:
    plant: Plant = lambda visit, label: None if label else add_drug(visit, "telltale")  # noqa: E731
    [finding] = findings_after(cohort, tmp_path, plant)
    assert "telltale at the last visit" in finding.problem


def test_a_field_of_the_visit_that_tells_a_label_is_found(cohort: Path, tmp_path: Path) -> None:
    def plant(visit: dict[str, object], label: bool) -> None:
        visit["admission_type"] = "PLANNED" if label else "OTHER"

    [finding] = findings_after(cohort, tmp_path, plant)
    assert "admission type PLANNED → Congestive heart failure" in finding.problem


def test_a_number_that_tells_a_label_is_found(cohort: Path, tmp_path: Path) -> None:
    def plant(visit: dict[str, object], label: bool) -> None:
        visit["age_years"] = 80.0 if label else 20.0

    [finding] = findings_after(cohort, tmp_path, plant)
    assert "age → Congestive heart failure" in finding.problem


def test_labels_of_the_last_visit_instead_of_the_next_are_found(
    cohort: Path, tmp_path: Path
) -> None:
    visits, pairs, names = read_rows(cohort)
    coded = {visit["visit_id"]: visit["diagnoses"] for visit in visits}
    keys = {(item["system"], item["code"]) for found in coded.values() for item in found}  # type: ignore[attr-defined]
    matches = match_codes(dict.fromkeys(keys, 1), PHENOTYPES_25)
    labels_of = {(match.system, match.code): match.labels for match in matches}
    for pair in pairs:
        if pair["labels"] is not None:
            codes = coded[pair["history"][-1]]  # type: ignore[index]
            present = {
                label
                for item in codes  # type: ignore[attr-defined]
                for label in labels_of[item["system"], item["code"]]
            }
            pair["labels"] = [label in present for label in range(len(names))]
    write_cohort(tmp_path, visits, pairs, names)
    findings = cohort_findings(tmp_path, None, phenotypes=PHENOTYPES_25)
    [finding] = [finding for finding in findings if finding.check == CHECK]
    assert "its own codes at the last visit → " in finding.problem
    assert finding.rows > 10


def test_a_lifelong_disease_is_no_leak_where_the_label_s_meaning_is_known(
    cohort: Path, tmp_path: Path
) -> None:
    """One code that 95 % of the patients with the label had before, and 1 % of the others."""
    visits, pairs, names = read_rows(cohort)
    rng = np.random.default_rng(3)
    visit_of = {visit["visit_id"]: visit for visit in visits}
    for pair in pairs:
        if pair["split"] == "train" and pair["labels"] is not None:
            last = visit_of[pair["history"][-1]]  # type: ignore[index]
            ill = pair["labels"][LABEL]  # type: ignore[index]
            kept = [item for item in last["diagnoses"] if item["code"] != "4280"]  # type: ignore[attr-defined]
            if rng.random() < (0.95 if ill else 0.01):
                kept.append({"system": "ICD9CM", "code": "4280", "title": None})
            last["diagnoses"] = kept
    write_cohort(tmp_path, visits, pairs, names)
    unknown, known = (
        [f.rows for f in cohort_findings(tmp_path, None, phenotypes=given) if f.check == CHECK]
        for given in ((), PHENOTYPES_25)
    )
    assert unknown == [1]
    assert known == []


def test_a_feature_of_few_patients_tells_nothing() -> None:
    labels = np.repeat([[1.0], [0.0]], [19, 100], axis=0)
    assert correlations(sparse.csr_matrix(labels), labels, np.ones(119)).tolist() == [[0.0]]
    labels = np.repeat([[1.0], [0.0]], [20, 100], axis=0)
    told = correlations(sparse.csr_matrix(labels), labels, np.ones(120))
    assert told[0, 0] == pytest.approx(1.0)


def test_a_patient_of_many_pairs_counts_once() -> None:
    """Of 41 patients one has 100 pairs with feature and label; the others contradict it."""
    rng = np.random.default_rng(0)
    feature = np.concatenate([np.ones(100), np.repeat([1.0, 0.0], 20)])[:, None]
    labels = np.concatenate([np.ones(100), rng.permutation(feature[100:, 0])])[:, None]
    weight = np.concatenate([np.full(100, 0.01), np.ones(40)])
    once = np.concatenate([[0], np.arange(100, 140)])
    expected = abs(np.corrcoef(feature[once, 0], labels[once, 0])[0, 1])
    found = correlations(sparse.csr_matrix(feature), labels, weight)[0, 0]
    assert found == pytest.approx(expected)
    assert found < 0.5
