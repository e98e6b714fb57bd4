"""What a student is taught: soft labels, the teacher's signals, and how far each is trusted.

In: settings, the committee's and the teacher's files, the student on hard labels. Out: train pairs
with their soft labels, their signals as they are asked for, a `Recipe`. Ignores: how it is carried
out (`distiller.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast, get_args

import numpy as np
import torch

from ckd_ehr.contracts.config import StudentConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.runs import StageContext
from ckd_ehr.learning.alignment import Encoded
from ckd_ehr.learning.attention_losses import FIRST_VISIT
from ckd_ehr.learning.batches import Example, Signal
from ckd_ehr.learning.controls import (
    AttentionControl,
    controlled_signal,
    shuffled_labels,
    smoothed_labels,
)
from ckd_ehr.learning.distiller import BalancedTerm, Recipe
from ckd_ehr.learning.examples import PairTable
from ckd_ehr.learning.gate import Gate, gate_of
from ckd_ehr.learning.orders import generator_of
from ckd_ehr.learning.scoring import Bools, Floats
from ckd_ehr.learning.signal_loader import SignalLoader
from ckd_ehr.learning.soft_labels import read_soft_labels

OF_ATTENTION: tuple[BalancedTerm, ...] = ("concept", "visit", "layers")
OF_SIGNALS: tuple[BalancedTerm, ...] = (*OF_ATTENTION, "relation")
OF_LABELS = ("shuffled", "smoothed")  # controls of soft labels, which know labelled pairs alone
SignalOf = Callable[[str], Signal | None]


@dataclass(frozen=True)
class Lessons:
    """All that the distilled student learns from.

    `facts` is what is said of it in `training.json`.
    """

    examples: Sequence[Example]  # train pairs with soft labels, labelled or not
    signal_of: SignalOf | None  # None where no term asks for signals
    teacher_layers: int
    recipe: Recipe
    missing: Mapping[BalancedTerm, str]  # terms that are asked for and cannot be had, and why
    facts: Mapping[str, object]


@dataclass(frozen=True)
class Teaching:
    """What there is to learn from, before it is known which labels may be taught.

    `soft_on_tuning` (tuning pairs, labels), the soft labels' log-odds.
    """

    examples: Sequence[Example]
    loader: SignalLoader
    soft_on_tuning: Floats
    seed: int


def read_teaching(
    context: StageContext, pairs: PairTable, examples: Sequence[Example], *, seed: int
) -> Teaching:
    """Soft labels and signals of this run.

    Args:
        examples: all pairs as the student reads them, in the order of `pairs`.
        seed: of controls and of a random map of layers.

    Raises:
        CkdEhrError: signals of another text or teacher, or no soft labels of a labelled pair.
    """
    settings = context.config.student
    soft = read_soft_labels(context.inputs["committee"], settings.soft_labels, pairs)
    spread = np.full_like(soft.spread, np.nan) if settings.control in OF_LABELS else soft.spread
    taught = _taught(settings, pairs, examples, soft.logits, spread, seed=seed)
    tuning = pairs.rows(split="tuning")
    return Teaching(taught, _loader(context, taught), soft.logits[tuning], seed)


def lessons_of(
    context: StageContext,
    pairs: PairTable,
    teaching: Teaching,
    *,
    hard_on_tuning: Floats,
    unrecorded: str | None,
) -> Lessons:
    """What this run's settings ask for, as far as teacher and student can give it.

    Args:
        hard_on_tuning: (tuning pairs, labels), what the student on hard labels says of them.
        unrecorded: why the attention of the student's encoder cannot be recorded; None if it can.
    """
    settings, taught, loader = context.config.student, teaching.examples, teaching.loader
    labels = pairs.labels[pairs.rows(split="tuning")]
    gate = gate_of(teaching.soft_on_tuning, hard_on_tuning, labels)
    pooling = context.config.teacher.head_pooling
    missing = without(settings, pooling=pooling, has_signals=len(loader) > 0, unrecorded=unrecorded)
    recipe = recipe_of(settings, pairs.label_names, gate=gate, missing=missing, seed=teaching.seed)
    for name, why in missing.items():
        context.say(f"    {name} term off: {why}")
    signal_of = _controlled(settings, loader.signal, seed=teaching.seed)
    return Lessons(
        examples=taught,
        signal_of=signal_of if recipe.wants(*OF_SIGNALS) else None,
        teacher_layers=_teacher_layers(loader, taught) if recipe.wants("layers") else 0,
        recipe=recipe,
        missing=missing,
        facts={
            "soft_labels": settings.soft_labels,
            "gate": dict(zip(pairs.label_names, (recipe.gate > 0).tolist(), strict=True)),
            "gate_closed": int((recipe.gate == 0).sum()),
            "gate_decided_by_macro": int((~gate.decided).sum()),
            "pairs_without_signals": len(taught) - len(loader),
            "pairs_of_one_visit": sum(not has_two_visits(one.encoded) for one in taught),
        },
    )


def has_two_visits(encoded: Encoded) -> bool:
    """Whether the text has concepts of two visits or more."""
    seen = encoded.groups[np.unique(encoded.concept_index)]
    return len(np.unique(seen[seen >= FIRST_VISIT])) >= 2


def _taught(
    settings: StudentConfig,
    pairs: PairTable,
    examples: Sequence[Example],
    logits: Floats,
    spread: Floats,
    *,
    seed: int,
) -> list[Example]:
    """Train pairs with soft labels; unlabelled ones that nobody has read are left out."""
    train = pairs.rows(split="train")
    soft = logits.copy()
    soft[train] = controlled_logits(
        settings, logits[train], pairs.labels[train], pairs.labelled[train], seed=seed
    )
    known = train[np.isfinite(soft[train]).all(axis=1)]
    logits32, spread32 = soft.astype(np.float32), spread.astype(np.float32)
    return [
        replace(examples[row], teacher_logits=logits32[row], teacher_spread=spread32[row])
        for row in known
    ]


def _loader(context: StageContext, taught: Sequence[Example]) -> SignalLoader:
    """The teacher's signals; refused here if they are not of this text and teacher."""
    terms, inputs = context.config.student.terms, context.inputs
    return SignalLoader(
        inputs["signals"],
        teacher=inputs["teacher"],
        knowledge=inputs["knowledge"],
        config=context.config,
        examples=taught,
        layers=terms.layers > 0,
        states=terms.relation > 0,
    )


def _controlled(settings: StudentConfig, signal_of: SignalOf, *, seed: int) -> SignalOf:
    if settings.control not in get_args(AttentionControl):
        return signal_of
    control = cast(AttentionControl, settings.control)

    def controlled(pair_id: str) -> Signal | None:
        signal = signal_of(pair_id)
        rng = generator_of(pair_id, order=0, seed=seed)
        return None if signal is None else controlled_signal(signal, control, rng)

    return controlled


def _teacher_layers(loader: SignalLoader, taught: Sequence[Example]) -> int:
    for example in taught:
        signal = loader.signal(example.pair_id)
        if signal is not None and signal.readout is not None:
            return len(signal.readout)
    return 0


def recipe_of(
    settings: StudentConfig,
    label_names: Sequence[str],
    *,
    gate: Gate,
    missing: Mapping[BalancedTerm, str],
    seed: int,
) -> Recipe:
    """What the settings ask for.

    Args:
        gate: whose labels may be taught.
        missing: terms that the teacher's signals do not have, which are switched off.
        seed: of a random map of layers.
    """
    terms = settings.terms
    shares = {name: getattr(terms, name) for name in get_args(BalancedTerm) if name not in missing}
    is_open = gate.is_open if settings.gate else np.ones_like(gate.is_open)
    return Recipe(
        soft_weight=settings.soft_weight,
        temperature=torch.tensor(_temperatures(settings, label_names)),
        gate=torch.tensor(is_open, dtype=torch.float32),
        spread_scale=float("inf") if settings.spread_scale is None else settings.spread_scale,
        shares={name: share for name, share in shares.items() if share > 0},
        attention_until=terms.until,
        layer_map=terms.layer_map,
        map_entropy=terms.map_entropy,
        seed=seed,
    )


def _temperatures(settings: StudentConfig, label_names: Sequence[str]) -> list[float]:
    unknown = sorted(set(settings.temperatures) - set(label_names))
    if unknown:
        raise CkdEhrError(
            f"student.temperatures: '{unknown[0]}' is no label of this run; labels: "
            + ", ".join(label_names)
        )
    return [settings.temperatures.get(name, settings.temperature) for name in label_names]


def without(
    settings: StudentConfig, *, pooling: str, has_signals: bool, unrecorded: str | None = None
) -> dict[BalancedTerm, str]:
    """The terms that are asked for and cannot be had, and why.

    >>> without(StudentConfig(), pooling="last", has_signals=True)["visit"]
    "the teacher's pooling is 'last'"
    """
    missing: dict[BalancedTerm, str] = {}
    if not has_signals:
        missing = dict.fromkeys(OF_SIGNALS, "the teacher has read no train pair")
    elif pooling != "label_attention":
        missing = dict.fromkeys(OF_ATTENTION, f"the teacher's pooling is '{pooling}'")
    if unrecorded is not None:
        missing.setdefault("layers", f"of the student's encoder {unrecorded}")
    return {name: why for name, why in missing.items() if getattr(settings.terms, name) > 0}


def controlled_logits(
    settings: StudentConfig, logits: Floats, labels: Bools, labelled: Bools, *, seed: int
) -> Floats:
    """The soft labels (pairs, labels) of train that a control leaves; NaN where it has none.

    Args:
        logits: of the teacher. labels: False where not labelled. labelled: (pairs,).
    """
    if settings.control not in OF_LABELS:
        return logits
    controlled = np.full_like(logits, np.nan)
    known = logits[labelled], labels[labelled]
    if settings.control == "shuffled":
        controlled[labelled] = shuffled_labels(*known, np.random.default_rng(seed))
    else:
        controlled[labelled] = smoothed_labels(*known)
    return controlled
