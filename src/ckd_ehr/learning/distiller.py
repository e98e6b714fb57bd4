"""Distillation: all terms of the student's loss, balanced against each other.

In: a batch of pairs with what the teacher knows of them, and the student's output. Out: terms with
their weights. Each attention and patient term is scaled once, before training, so that its gradient
has the wanted share of that of the logits' loss. Ignores: how training goes on.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ckd_ehr.learning.attention_losses import (
    Divergence,
    LayerMap,
    has_choice,
    has_visits,
    layer_weights,
    mix_layers,
    split_divergence,
)
from ckd_ehr.learning.batches import MODEL_INPUTS, Batch
from ckd_ehr.learning.heads import HeadOutput
from ckd_ehr.learning.losses import (
    attention_decay,
    confidence,
    mean_over,
    soft_loss,
    weighted_hard_loss,
)
from ckd_ehr.learning.patient_losses import correlation_loss, relation_loss
from ckd_ehr.learning.readout import recording
from ckd_ehr.learning.terms import Term, gradient_norms

BalancedTerm = Literal["concept", "visit", "layers", "correlation", "relation"]
BALANCED: tuple[BalancedTerm, ...] = get_args(BalancedTerm)
FADING: tuple[BalancedTerm, ...] = ("concept", "visit", "layers")
QUEUE = 256
SMALLEST_MASS = 1e-6


@dataclass(frozen=True)
class Recipe:
    """What is distilled, and how much.

    `shares`: the gradient of each balanced term as a share of the logits' loss's; absent or 0: off.
    """

    soft_weight: float
    temperature: Tensor  # (labels,)
    gate: Tensor  # (labels,), 1 open, 0 closed
    spread_scale: float
    shares: Mapping[BalancedTerm, float]
    attention_until: float
    layer_map: LayerMap = "fixed"
    map_entropy: float = 0.01
    seed: int = 0

    def wants(self, *names: BalancedTerm) -> bool:
        """Whether any of the terms is on."""
        return any(self.shares.get(name, 0.0) > 0 for name in names)


class Distiller(nn.Module):
    """A student in training, with what distillation needs to remember in its checkpoints.

    Args:
        student: what is trained; its backbone records its attention if the layers' term is on.
        recipe: what is distilled.
        teacher_layers: of the readout; 0 where none is distilled.
    """

    queue: Tensor  # (QUEUE, 2, labels), earlier pairs' log-odds, the student's and the teacher's
    queued: Tensor  # how many there are
    layer_scores: Tensor  # (student layers, teacher layers), before the softmax

    def __init__(self, student: nn.Module, recipe: Recipe, *, teacher_layers: int = 0) -> None:
        super().__init__()
        self.student = student
        self.recipe = recipe
        self.scales: dict[str, float] = dict.fromkeys(BALANCED, 1.0)
        labels = len(recipe.gate)
        self.register_buffer("queue", torch.zeros(QUEUE, 2, labels))
        self.register_buffer("queued", torch.zeros((), dtype=torch.long))
        if recipe.wants("layers"):
            layers = int(student.backbone.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
            weights = layer_weights(layers, teacher_layers, kind=recipe.layer_map, seed=recipe.seed)
            learned = recipe.layer_map == "learned"
            scores = (0.8 * weights + 0.2 / teacher_layers).log() if learned else weights.log()
            self.layer_scores = nn.Parameter(scores, requires_grad=learned)

    @property
    def backbone(self) -> nn.Module:
        """The student's."""
        backbone: nn.Module = self.student.backbone  # type: ignore[assignment]
        return backbone

    def forward(self, **inputs: Tensor) -> HeadOutput:
        """The student's output, with its layers' attention where that is distilled."""
        if not (self.recipe.wants("layers") and torch.is_grad_enabled()):
            output: HeadOutput = self.student(**inputs)
            return output
        concepts = inputs["concept_mask"].shape[1]
        places = inputs["concept_index"], inputs["reading_index"]
        with recording(*places, concepts=concepts) as readout:
            output = self.student(**inputs)
        # As an output: several processes know which weights have a gradient by what comes out.
        return output._replace(readout=readout.shares(), layer_map=self.layer_scores.softmax(-1))

    def terms(self, output: HeadOutput, batch: Batch, progress: float) -> dict[str, Term]:
        """All terms that are on at this point of training, from 0 to 1."""
        recipe = self.recipe
        terms = self._logit_terms(output, batch)
        fading = attention_decay(progress, recipe.attention_until)
        if fading > 0 and recipe.wants(*FADING) and "shared" in batch:
            terms |= self._attention_terms(output, batch, fading)
        if recipe.wants("correlation") and "taught" in batch:
            value = self._correlation(output, batch)
            terms["correlation"] = Term(value, self.scales["correlation"])
        if recipe.wants("relation") and "teacher_state" in batch:
            value = relation_loss(output.state, batch["teacher_state"], batch["teacher_fold"])
            terms["relation"] = Term(value, self.scales["relation"])
        learned = output.layer_map if self.recipe.layer_map == "learned" else None
        if learned is not None and "layers" not in terms:
            terms["layers"] = Term(learned.sum(), 0.0)  # processes wait for its gradient
        return terms

    def _logit_terms(self, output: HeadOutput, batch: Batch) -> dict[str, Term]:
        """(1 − λw)·hard + λw·soft for each pair and label; a closed gate leaves the hard one."""
        recipe, logits = self.recipe, output.logits
        labelled = batch["labelled"][:, None].to(logits.dtype)
        if "taught" not in batch:
            hard = weighted_hard_loss(logits, batch["labels"], labelled.expand_as(logits))
            return {"hard": Term(hard, 1.0), "soft": Term(logits.sum() * 0.0, 1.0)}
        spread = batch.get("teacher_spread", torch.zeros_like(logits))
        trusted = confidence(spread, recipe.gate.to(logits.device), scale=recipe.spread_scale)
        weights = recipe.soft_weight * trusted * batch["taught"][:, None]
        soft = soft_loss(
            logits,
            batch["teacher_logits"],
            weights,
            temperature=recipe.temperature.to(logits.device),
        )
        hard = weighted_hard_loss(logits, batch["labels"], (1 - weights) * labelled)
        return {"hard": Term(hard, 1.0), "soft": Term(soft, 1.0)}

    def _attention_terms(self, output: HeadOutput, batch: Batch, fading: float) -> dict[str, Term]:
        recipe = self.recipe
        terms: dict[str, Term] = {}
        shared, groups = batch["shared"], batch["visit_index"]
        if recipe.wants("concept", "visit"):
            split = split_divergence(output.scores, batch["teacher_attention"], shared, groups)
            parts = _averages(Divergence(*(part.mean(-1) for part in split)), shared, groups)
            for name, value in parts.items():
                if recipe.wants(name):
                    terms[name] = Term(value, fading * self.scales[name])
        if output.readout is not None and "teacher_readout" in batch:
            value = self._layers(output, batch)
            terms["layers"] = Term(value, fading * self.scales["layers"])
        return terms

    def _layers(self, output: HeadOutput, batch: Batch) -> Tensor:
        """KL of each layer's attention of the reading position, by the teacher's retained mass."""
        assert output.readout is not None
        assert output.layer_map is not None
        readout, weights = output.readout, output.layer_map
        target, counts = mix_layers(weights, batch["teacher_readout"], batch["teacher_retained"])
        shared = batch["shared"][:, 1:]
        scores = readout.clamp(min=SMALLEST_MASS).log()
        split = split_divergence(scores, target, shared, batch["visit_index"][:, 1:])
        both = split.visit + split.concept  # (batch, layers)
        counts = counts * (shared.sum(-1) >= 2)[:, None]
        value = (both * counts).sum() / counts.sum().clamp(min=1e-8)
        if not self.layer_scores.requires_grad:
            return value
        entropy = -torch.xlogy(weights, weights).sum(-1).mean()
        return value - self.recipe.map_entropy * entropy

    def _correlation(self, output: HeadOutput, batch: Batch) -> Tensor:
        """With the last pairs that were taught, which then make room for this batch's.

        A batch has a gradient through its own pairs alone, so the term is weighed by how many
        there are for each of them: its pull does not fade as the queue fills.
        """
        taught, logits = batch["taught"], output.logits
        earlier = self.queue[: int(self.queued)].clone()
        mine = torch.stack([logits[taught], batch["teacher_logits"][taught]], dim=1)
        every = torch.cat([mine, earlier.to(mine.dtype)])
        value = correlation_loss(every[:, 0], every[:, 1], self.recipe.gate.to(mine.device) > 0)
        if self.training and torch.is_grad_enabled():
            kept = every[:QUEUE].detach()
            self.queue[: len(kept)] = kept.to(self.queue.dtype)
            self.queued.fill_(len(kept))
        return value * (len(every) / max(len(mine), 1))

    def balance(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Scale each balanced term by its gradient on some batches at the initial weights.

        The student is left as it was. Terms without a gradient keep the scale 0.

        Returns:
            The mean gradient norm of each term before scaling; `logits` is that of the logits'
            loss.
        """
        was_training = self.training
        self.eval()
        norms: dict[str, list[float]] = {}
        for batch in batches:
            output = self(**{name: batch[name] for name in MODEL_INPUTS})
            terms = self.terms(output, batch, progress=0.0)
            values: dict[str, Tensor] = {
                name: term.value for name, term in terms.items() if name in BALANCED
            }
            values["logits"] = terms["hard"].value + terms["soft"].value
            for name, norm in gradient_norms(values, self).items():
                norms.setdefault(name, []).append(norm)
        self.train(was_training)
        means = {name: sum(found) / len(found) for name, found in norms.items()}
        for name in BALANCED:
            norm, share = means.get(name, 0.0), self.recipe.shares.get(name, 0.0)
            self.scales[name] = share * means["logits"] / norm if norm > 0 else 0.0
        return means


def _averages(
    split: Divergence, shared: Tensor, groups: Tensor
) -> dict[Literal["concept", "visit"], Tensor]:
    """Over the pairs that have concepts to choose from, and visits to choose from."""
    choice = has_choice(shared)
    return {
        "concept": mean_over(split.concept, choice),
        "visit": mean_over(split.visit, choice & has_visits(shared, groups)),
    }
