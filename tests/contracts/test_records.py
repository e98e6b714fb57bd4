"""Keys, label names and explanations of the contracts."""

import math

import pyarrow as pa
import pytest
from pydantic import ValidationError

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.phenotype import PHENOTYPES_25, Phenotype
from ckd_ehr.contracts.records import (
    NARRATIVES,
    PAIRS,
    PREDICTIONS,
    SOFT_LABELS,
    VISITS,
    ConceptEvidence,
    LabelExplanation,
    concept_id_of,
    label_names,
    pair_id_of,
    with_label_names,
)


def test_the_25_phenotypes_are_one_ccs_category_each() -> None:
    categories = [phenotype.ccs for phenotype in PHENOTYPES_25]
    assert sorted(ccs for (ccs,) in categories) == [
        2, 49, 50, 53, 55, 98, 99, 100, 101, 105, 106, 108, 109, 122, 127, 130, 131, 133, 134, 151,
        153, 157, 158, 238, 249,
    ]  # fmt: skip
    assert len({phenotype.name for phenotype in PHENOTYPES_25}) == 25


@pytest.mark.parametrize("codes", [{}, {"icd9cm": ("",)}, {"icd10cm": (" . ",)}])
def test_a_phenotype_without_a_definition_is_refused(codes: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(ValidationError, match="'Gout' has no definition; give it ccs, icd9cm or"):
        Phenotype.model_validate({"name": "Gout"} | codes)


def test_label_names_travel_with_the_table() -> None:
    schema = with_label_names(PREDICTIONS, ["Shock", "Sepsis; any"])
    assert label_names(pa.schema(schema, metadata=schema.metadata)) == ("Shock", "Sepsis; any")
    with pytest.raises(CkdEhrError, match="without label names"):
        label_names(PREDICTIONS)


def test_label_names_leave_other_metadata_alone() -> None:
    schema = with_label_names(PAIRS.with_metadata({"source": "x"}), ["Shock"])
    assert schema.metadata[b"source"] == b"x"


def test_pair_ids_tell_subject_and_visit_apart() -> None:
    assert pair_id_of(1, "11") != pair_id_of(11, "1")
    assert pair_id_of(1, "11") == "3f4ffd26df275e6f"


def test_concept_ids_differ_in_every_part() -> None:
    parts = {"visit_index": 0, "kind": "diagnosis", "system": "ICD9CM", "code": "1"}
    first = concept_id_of(**parts, occurrence=0)  # type: ignore[arg-type]
    others = [
        concept_id_of(**{**parts, "visit_index": 1}, occurrence=0),  # type: ignore[arg-type]
        concept_id_of(**{**parts, "code": "2"}, occurrence=0),  # type: ignore[arg-type]
        concept_id_of(**parts, occurrence=1),  # type: ignore[arg-type]
    ]
    assert len({first, *others}) == 4


@pytest.mark.parametrize(
    ("schema", "keys"),
    [
        (VISITS, {"visit_id"}),
        (PAIRS, {"pair_id", "subject_id"}),
        (NARRATIVES, {"pair_id", "reader"}),
        (SOFT_LABELS, {"pair_id", "source"}),
        (PREDICTIONS, {"pair_id", "subject_id"}),
    ],
)
def test_keys_are_never_null(schema: pa.Schema, keys: set[str]) -> None:
    assert not any(schema.field(key).nullable for key in keys)


def test_the_reading_state_share_ignores_signs_and_the_base() -> None:
    concepts = (
        ConceptEvidence("a", "Fever", "diagnosis", 0, 1.0),
        ConceptEvidence("b", "Cough", "diagnosis", 0, -2.0),
    )
    label = LabelExplanation("Shock", 0.1, 0.1, -9.0, -1.0, concepts)
    assert math.isclose(label.reading_state_share, 0.25)
    assert LabelExplanation("Shock", 0.1, 0.1, -9.0, 0.0, ()).reading_state_share == 0.0
