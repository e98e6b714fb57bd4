"""What metrics.json holds: the one source of every figure in the console table and the report.

A figure is None where it cannot be computed (a label with one class, no bootstrap draws); NaN
never enters. Counts and aggregates only: no identifier, no date, no patient text.
"""

import math
from collections.abc import Mapping

from pydantic import ValidationError

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.metrics.calibration import Bin, BrierParts, Recalibration
from ckd_ehr.metrics.dataset_facts import Dataset, Record

SCHEMA_VERSION = 3  # raised with every change of what the fields are or mean
PRIMARY = "macro_auprc"
# A bootstrap over fewer clusters knows too few samples: its intervals would be far too narrow.
FEWEST_PATIENTS = 20
MODELS = (
    "carry_forward",
    "logistic_regression",
    "student_hard",
    "student_distilled",
    "teacher",
    "committee",
)


class Figure(Record):
    """An estimate with its 95 % interval over patients."""

    value: float | None
    low: float | None = None
    high: float | None = None


class LabelResult(Record):
    """One model's figures for one label; its prevalence stands in `labels` of the whole.

    `remark`: why AUROC and AUPRC say nothing, if they do; a constant prediction has an AUROC of
    0.5 by definition, not by merit.
    """

    auroc: Figure
    auprc: Figure
    f1: float | None
    brier: float | None
    brier_parts: BrierParts
    ece: float | None
    recalibration: Recalibration
    net_benefit: list[float | None]  # at the thresholds of `decisions`
    threshold: float
    remark: str | None


class Curve(Record):
    """A precision–recall curve, thinned for drawing."""

    recall: list[float]
    precision: list[float]


class RocCurve(Record):
    """A receiver operating characteristic, thinned for drawing."""

    false_positive_rate: list[float]
    sensitivity: list[float]


class ModelResult(Record):
    """Everything measured of one model on the scored split."""

    overall: dict[str, Figure]
    new_onset: dict[str, Figure]
    persistent: dict[str, Figure]
    labels: dict[str, LabelResult]
    brier_parts: BrierParts  # of all cells in one list, as is `recalibration`
    recalibration: Recalibration
    net_benefit: list[Figure]  # mean over the scored labels, at the thresholds of `decisions`
    reliability: list[Bin]
    precision_recall: Curve  # of all cells in one list, as is `roc`
    roc: RocCurve
    note: str


class LabelFacts(Record):
    """How often a label occurs; `scored` if the scored split shows both classes."""

    train_prevalence: float | None
    prevalence: float | None
    positives: int
    new_onset_positives: int
    scored: bool
    degenerate_draws: int  # bootstrap draws in which a scored label shows one class


class Difference(Record):
    """Paired differences of two models on the same patients: `model` − `minus`.

    `p_value`: two-sided, of the primary score; `p_holm`: corrected for all differences beside it.
    """

    model: str
    minus: str
    figures: dict[str, Figure]
    p_value: float | None = None
    p_holm: float | None = None


class Decisions(Record):
    """What models' net benefit is held against: treating all; treating nobody has 0.

    `treat_all` is the mean over the scored labels, `labels` has each.
    """

    thresholds: list[float]
    treat_all: list[float | None]
    labels: dict[str, list[float | None]]


class GroupScores(Record):
    """A model in a subgroup. `gap`: the group less the rest, on the labels that both can score."""

    overall: dict[str, Figure]
    gap: dict[str, Figure]


class Group(Record):
    """A subgroup; its prevalence is the mean over the labels scored in it."""

    pairs: int
    patients: int
    labels_scored: int
    prevalence: float | None
    models: dict[str, GroupScores]


class Subgroups(Record):
    """The groups of one kind. Small ones are not shown, nor those that would give them away."""

    groups: dict[str, Group]
    suppressed: int  # how many groups are not shown


class MemberResult(Record):
    """A member of the committee on the scored split.

    `committee_gains`: the committee less this member alone; `lost_without`: the committee less the
    committee without it (empty with two members). Paired; Brier and ECE are better below zero.
    """

    name: str
    mean_weight: float
    overall: dict[str, Figure]
    committee_gains: dict[str, Figure]
    lost_without: dict[str, Figure]


class CommitteeResult(Record):
    """Who gives soft labels, with which weights: label → member → weight."""

    members: list[MemberResult]
    weights: dict[str, dict[str, float]]


class Distance(Record):
    """A model beside a reference, on the reference's pairs."""

    overall: dict[str, Figure]
    new_onset: dict[str, Figure]
    behind: dict[str, Figure]  # paired; above zero where the model is worse, of every score
    reached: dict[str, Figure]  # share of the way from chance to the reference; 1 is all of it


class RiskCheck(Record):
    """Groups of cells of equal size, by rising risk: in how many did it come as expected?"""

    groups: int
    within: int  # observed count within the 95 % bounds of the binomial


class Reference(Record):
    """The scores of risks that are known because the patients are simulated."""

    pairs: int
    patients: int
    effective_particles: float | None  # median over the pairs; null where nothing was estimated
    chance: dict[str, float | None]
    overall: dict[str, Figure]
    new_onset: dict[str, Figure]
    check: RiskCheck
    models: dict[str, Distance]


class Ceiling(Record):
    """The best possible.

    `true_state`: the true risk given the patient's hidden state, of all scored pairs; no model can
    know it. `record`: the best that the record alone allows, of the pairs for which it was
    estimated; `true_state_there` is the true risk on those pairs.
    """

    true_state: Reference
    record: Reference | None
    true_state_there: Distance | None


class ErasedOrder(Record):
    """How far the highest risk falls, in probability, at each of the fractions.

    Comprehensiveness: without the concepts that come first; sufficiency: with these alone.
    """

    comprehensiveness: list[Figure]
    sufficiency: list[Figure]


class Faithfulness(Record):
    """Whether erasing what an explanation names first takes the risk away.

    `orders`: by the evidence, by chance, and by the fall when each concept alone is erased
    (occlusion), the reference. `gain`: evidence over chance, mean of the fractions, above zero is
    better. `passed`: whether both intervals lie above `gate`; null without intervals.
    """

    pairs: int  # one a patient
    fractions: list[float]
    reading_share: float  # of the evidence, what rests on no concept
    orders: dict[str, ErasedOrder]
    gain: dict[str, Figure]
    gate: float
    passed: bool | None


class TermPoint(Record):
    """A term of the distilled student's loss at a step; its pull is weight · gradient."""

    step: int
    value: float
    weight: float
    gradient: float


class StageCost(Record):
    """What a stage took."""

    seconds: float
    peak_memory_bytes: int


class SplitCounts(Record):
    """Size of a split."""

    patients: int
    labelled_pairs: int
    unlabelled_pairs: int


class Metrics(Record):
    """metrics.json."""

    schema_version: int = SCHEMA_VERSION
    name: str
    data_set: str
    simulated: bool
    scored_split: str
    seed: int
    split_seed: int
    bootstrap_draws: int
    calibration_bins: int
    counts: dict[str, SplitCounts]
    labels: dict[str, LabelFacts]
    labels_scored: int
    degenerate_draws: int  # in which any scored label shows one class, and is left out
    prevalence: dict[str, dict[str, float | None]]  # what chance reaches, beside each AUPRC
    onset_cells: dict[str, int]
    models: dict[str, ModelResult]
    differences: list[Difference]
    decisions: Decisions
    subgroups: dict[str, Subgroups]
    min_cell: int  # pairs below which a subgroup is not shown
    committee: CommitteeResult
    ceiling: Ceiling | None
    no_ceiling: str | None  # why simulated data have none
    faithfulness: dict[str, Faithfulness]  # by student
    latency: dict[str, dict[str, float]]
    training_terms: dict[str, list[TermPoint]]  # of the distilled student
    stages: dict[str, StageCost]
    data_fingerprint: str | None  # of everything the stage cohort wrote
    flow: dict[str, int]
    dataset: Dataset
    knowledge: dict[str, object]
    narratives_cut: dict[str, float | None]
    config: dict[str, object]
    commit: str | None
    machine: dict[str, object]
    packages: dict[str, str]


def number(value: float) -> float | None:
    """A JSON number: NaN and infinities become None, the rest keep six decimals.

    >>> number(float("nan")), number(0.12345678)
    (None, 0.123457)
    """
    value = float(value)
    return round(value, 6) if math.isfinite(value) else None


def parse_metrics(content: Mapping[str, object], *, origin: str = "metrics.json") -> Metrics:
    """The content of metrics.json.

    Raises:
        CkdEhrError: another version of this software wrote it.
    """
    remedy = "rerun the stage evaluation: ckd-ehr run CONFIG"
    found = content.get("schema_version")
    if found != SCHEMA_VERSION:
        said = "an older one" if found is None else found
        raise CkdEhrError(
            f"{origin} is of another version (schema {said}, not {SCHEMA_VERSION}); {remedy}"
        )
    try:
        return Metrics.model_validate(content)
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise CkdEhrError(f"{origin} is of another version ({place}); {remedy}") from None
