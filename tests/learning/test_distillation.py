"""From settings to recipe: what is on, what cannot be had, what controls leave."""

import numpy as np
import pytest
import torch

from ckd_ehr.contracts.config import StudentConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.learning.distillation import controlled_logits, recipe_of, without
from ckd_ehr.learning.gate import Gate

NAMES = ("Shock", "Pneumonia")
GATE = Gate(np.array([True, False]), np.array([True, True]))


def test_a_recipe_is_what_the_settings_say() -> None:
    settings = StudentConfig.model_validate(
        {
            "temperature": 2.0,
            "temperatures": {"Pneumonia": 4.0},
            "spread_scale": None,
            "terms": {"concept": 0.3, "visit": 0, "layer_map": "reverse", "until": 0.4},
        }
    )
    recipe = recipe_of(settings, NAMES, gate=GATE, missing={"layers": "why"}, seed=1)
    assert recipe.temperature.tolist() == [2.0, 4.0]
    assert recipe.gate.tolist() == [1.0, 0.0]
    assert torch.isinf(torch.tensor(recipe.spread_scale))
    assert recipe.shares == {"concept": 0.3, "correlation": 0.1, "relation": 0.1}
    assert (recipe.layer_map, recipe.attention_until) == ("reverse", 0.4)


def test_without_a_gate_every_label_is_taught() -> None:
    recipe = recipe_of(StudentConfig(gate=False), NAMES, gate=GATE, missing={}, seed=1)
    assert recipe.gate.tolist() == [1.0, 1.0]


def test_a_temperature_of_an_unknown_label_is_refused_with_the_known_ones() -> None:
    settings = StudentConfig(temperatures={"Shok": 2.0})
    with pytest.raises(CkdEhrError, match=r"'Shok' is no label of this run; labels: Shock, Pneu"):
        recipe_of(settings, NAMES, gate=GATE, missing={}, seed=1)


def test_a_teacher_that_has_read_nothing_has_logits_alone() -> None:
    missing = without(StudentConfig(), pooling="label_attention", has_signals=False)
    assert set(missing) == {"concept", "visit", "layers", "relation"}
    assert without(StudentConfig(), pooling="label_attention", has_signals=True) == {}


@pytest.mark.parametrize("control", ["none", "shuffled", "smoothed", "permuted", "uniform"])
def test_controls_of_soft_labels_leave_unlabelled_pairs_out(control: str) -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(40, 2)), rng.uniform(size=(40, 2)) < 0.4
    labelled = np.arange(40) < 30
    labels[~labelled] = False
    settings = StudentConfig.model_validate({"control": control})
    found = controlled_logits(settings, logits, labels, labelled, seed=0)
    if control in ("shuffled", "smoothed"):
        assert np.isnan(found[~labelled]).all()
        assert np.isfinite(found[labelled]).all()
        assert not np.allclose(found[labelled], logits[labelled])
    else:
        np.testing.assert_array_equal(found, logits)
