"""Distillation as a whole: which terms are on, how they are balanced, what is remembered."""

from dataclasses import replace

import pytest
import torch
from transformers import BertConfig, BertModel

from ckd_ehr.learning.batches import MODEL_INPUTS, Batch
from ckd_ehr.learning.distiller import BALANCED, QUEUE, Distiller, Recipe
from ckd_ehr.learning.heads import LabelAttentionHead, LabelAttentionModel
from ckd_ehr.learning.readout import READOUT
from ckd_ehr.learning.terms import gradient_norms, total_of

LABELS, CONCEPTS, TOKENS, TEACHER_LAYERS = 3, 4, 6, 5
RECIPE = Recipe(
    soft_weight=0.5,
    temperature=torch.ones(LABELS),
    gate=torch.ones(LABELS),
    spread_scale=1.0,
    shares=dict.fromkeys(BALANCED, 0.2),
    attention_until=0.5,
)


def _student(*, dropout: float = 0.0) -> LabelAttentionModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    backbone = BertModel(config, add_pooling_layer=False)
    backbone.set_attn_implementation(READOUT)
    head = LabelAttentionHead(16, LABELS, attention_size=8)
    torch.nn.init.normal_(head.weights)
    return LabelAttentionModel(backbone, head, pooling="mean")


def _batch(seed: int = 0, pairs: int = 4) -> Batch:
    """Pairs of two visits, all labelled and taught."""
    torch.manual_seed(seed)
    index = torch.tensor([0, 1, 2, 3, 3, 4]).repeat(pairs, 1)
    return {
        "input_ids": torch.randint(1, 30, (pairs, TOKENS)),
        "attention_mask": torch.ones(pairs, TOKENS, dtype=torch.long),
        "concept_index": index,
        "concept_mask": torch.ones(pairs, CONCEPTS, dtype=torch.bool),
        "reading_index": torch.zeros(pairs, dtype=torch.long),
        "labels": torch.randint(0, 2, (pairs, LABELS)).float(),
        "labelled": torch.ones(pairs, dtype=torch.bool),
        "taught": torch.ones(pairs, dtype=torch.bool),
        "teacher_logits": torch.randn(pairs, LABELS),
        "teacher_spread": torch.full((pairs, LABELS), float("nan")),
        "teacher_attention": torch.rand(pairs, LABELS, 1 + CONCEPTS).softmax(-1),
        "shared": torch.ones(pairs, 1 + CONCEPTS, dtype=torch.bool),
        "visit_index": torch.tensor([0, 1, 3, 4, 4]).repeat(pairs, 1),
        "teacher_readout": torch.rand(pairs, TEACHER_LAYERS, CONCEPTS).softmax(-1),
        "teacher_retained": torch.rand(pairs, TEACHER_LAYERS),
        "teacher_state": torch.randn(pairs, 7),
        "teacher_fold": torch.zeros(pairs, dtype=torch.long),
    }


def _distiller(recipe: Recipe = RECIPE) -> Distiller:
    return Distiller(_student(), recipe, teacher_layers=TEACHER_LAYERS)


def _terms(distiller: Distiller, batch: Batch, progress: float = 0.0):  # type: ignore[no-untyped-def]
    output = distiller(**{name: batch[name] for name in MODEL_INPUTS})
    return distiller.terms(output, batch, progress)


def test_each_term_pulls_with_its_share_of_the_logits_gradient_at_the_start() -> None:
    distiller, batch = _distiller(), _batch()
    shares = {"concept": 0.1, "visit": 0.3, "layers": 0.2, "correlation": 0.25, "relation": 0.15}
    distiller.recipe = replace(RECIPE, shares=shares)  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in distiller.state_dict().items()}
    distiller.balance([batch])
    for name, value in distiller.state_dict().items():
        assert torch.equal(value, before[name]), name
    terms = _terms(distiller, batch)
    weighted = {name: term.value * term.weight for name, term in terms.items()}
    weighted["logits"] = weighted["hard"] + weighted["soft"]
    norms = gradient_norms(weighted, distiller)
    for name, share in shares.items():
        assert norms[name] == pytest.approx(share * norms["logits"], rel=1e-4), name


@pytest.mark.parametrize("name", BALANCED)
def test_each_term_can_be_switched_off_alone(name: str) -> None:
    shares = {other: 0.2 for other in BALANCED if other != name}
    terms = _terms(_distiller(replace(RECIPE, shares=shares)), _batch())
    assert set(terms) == {"hard", "soft", *shares}


def test_attention_terms_fade_and_patient_terms_stay() -> None:
    distiller, batch = _distiller(), _batch()
    early, late = (_terms(distiller, batch, progress) for progress in (0.25, 0.5))
    assert early["concept"].weight == early["layers"].weight == 0.5
    assert set(late) == {"hard", "soft", "correlation", "relation"}


def test_a_closed_gate_leaves_the_label_to_the_hard_loss_in_full() -> None:
    batch = _batch()
    closed = replace(RECIPE, gate=torch.zeros(LABELS), shares={})
    terms, plain = _terms(_distiller(closed), batch), replace(closed, soft_weight=0.0)
    assert terms["soft"].value.item() == 0.0
    hard = _terms(_distiller(plain), batch)["hard"].value
    torch.testing.assert_close(terms["hard"].value, hard)


def test_an_unlabelled_pair_learns_from_soft_labels_alone() -> None:
    batch = _batch() | {"labelled": torch.zeros(4, dtype=torch.bool)}
    terms = _terms(_distiller(), batch)
    assert terms["hard"].value.item() == 0.0
    assert terms["soft"].value.item() > 0.0


def test_a_batch_that_nobody_has_read_has_the_hard_loss_alone() -> None:
    batch = {name: value for name, value in _batch().items() if "teacher" not in name}
    del batch["taught"], batch["shared"]
    terms = _terms(_distiller(), batch)
    assert set(terms) == {"hard", "soft"}
    assert terms["soft"].value.item() == 0.0
    everywhere = _terms(_distiller(replace(RECIPE, soft_weight=0.0)), _batch())["hard"].value
    torch.testing.assert_close(terms["hard"].value, everywhere)


def test_a_student_that_agrees_in_everything_has_no_loss_but_the_hard_one() -> None:
    distiller, batch = _distiller(), _batch()
    with torch.no_grad():
        distiller.student.head.weights *= 5  # type: ignore[union-attr, operator]
        output = distiller.student(**{name: batch[name] for name in MODEL_INPUTS})
    batch["teacher_logits"] = output.logits
    batch["teacher_attention"] = output.attention
    batch["teacher_state"] = 3 * output.state
    terms = _terms(distiller, batch)
    for name in ("soft", "concept", "visit", "correlation", "relation"):
        assert terms[name].value.item() == pytest.approx(0.0, abs=1e-5), name
    assert terms["layers"].value.item() > 0.01


def test_the_readout_is_that_of_the_students_own_attention() -> None:
    distiller, batch = _distiller(), _batch()
    output = distiller(**{name: batch[name] for name in MODEL_INPUTS})
    backbone = distiller.backbone
    backbone.set_attn_implementation("eager")  # type: ignore[operator]
    seen = backbone(
        batch["input_ids"], attention_mask=batch["attention_mask"], output_attentions=True
    )
    for layer, attention in enumerate(seen.attentions):
        row = attention.mean(1)[:, 0]  # (pairs, tokens) of [CLS]
        masses = torch.stack([row[:, 1], row[:, 2], row[:, 3] + row[:, 4], row[:, 5]], -1)
        expected = masses / masses.sum(-1, keepdim=True)
        torch.testing.assert_close(output.readout[:, layer], expected)


def test_a_learned_map_starts_at_the_fixed_one_and_is_trained() -> None:
    distiller = _distiller(replace(RECIPE, layer_map="learned", shares={"layers": 0.2}))
    assert distiller.layer_scores.softmax(-1).argmax(-1).tolist() == [1, 4]
    total_of(_terms(distiller, _batch())).backward()
    gradient = distiller.layer_scores.grad
    assert gradient is not None
    assert gradient.abs().max() > 0
    fixed = _distiller(replace(RECIPE, shares={"layers": 0.2}))
    assert not fixed.layer_scores.requires_grad


def test_the_queue_keeps_recent_pairs_and_travels_with_checkpoints() -> None:
    distiller = _distiller().train()
    for seed in range(70):
        _terms(distiller, _batch(seed))
    assert int(distiller.queued) == QUEUE
    recent = _batch(69)["teacher_logits"]
    torch.testing.assert_close(distiller.queue[:4, 1], recent)
    again = _distiller()
    again.load_state_dict(distiller.state_dict())
    torch.testing.assert_close(again.queue, distiller.queue)


def test_the_correlations_pull_does_not_fade_as_the_queue_fills() -> None:
    distiller = _distiller(replace(RECIPE, shares={"correlation": 0.2})).eval()
    distiller.balance([_batch(seed, pairs=16) for seed in range(4)])
    distiller.train()
    shares = []
    for seed in range(20):
        terms = _terms(distiller, _batch(seed, pairs=16))
        values = {name: term.value * term.weight for name, term in terms.items()}
        values["logits"] = values["hard"] + values["soft"]
        norms = gradient_norms(values, distiller)
        shares.append(norms["correlation"] / norms["logits"])
    assert int(distiller.queued) == QUEUE
    assert 0.1 < sum(shares[-3:]) / 3 < 0.4


def test_a_term_without_a_gradient_has_no_scale() -> None:
    distiller = _distiller(replace(RECIPE, shares={"visit": 0.2, "concept": 0.2}))
    batch = _batch()
    batch["visit_index"] = torch.tensor([0, 1, 3, 3, 3]).repeat(4, 1)  # one visit
    distiller.balance([batch])
    assert distiller.scales["visit"] == 0.0
    assert distiller.scales["concept"] > 0.0


def test_labels_of_no_patient_are_left_out_of_the_correlation() -> None:
    closed = replace(RECIPE, gate=torch.zeros(LABELS), shares={"correlation": 0.2})
    assert _terms(_distiller(closed), _batch())["correlation"].value.item() == 0.0


def test_a_pairs_attention_does_not_depend_on_its_batch_and_padding() -> None:
    student, batch = _student().eval(), _batch()
    alone = {name: batch[name][:1] for name in MODEL_INPUTS}
    padded = {name: batch[name].clone() for name in MODEL_INPUTS}
    padded["input_ids"] = torch.nn.functional.pad(padded["input_ids"], (0, 3), value=5)
    for name in ("attention_mask", "concept_index"):
        padded[name] = torch.nn.functional.pad(padded[name], (0, 3))
    with torch.inference_mode():
        single, together = student(**alone), student(**padded)
    torch.testing.assert_close(single.attention[0], together.attention[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(single.logits[0], together.logits[0], atol=1e-5, rtol=0)
