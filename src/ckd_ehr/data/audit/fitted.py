"""The audit of what was fitted: weights on train, choices on tuning, nothing on held_out.

In: pairs.parquet and each stage's `fitted.json`. Out: one result a stage. Ignores: how well
anything was fitted. The digests are computed again from pairs.parquet: what a record says of its
splits and folds is not believed.

Of treatments a pair of fold f is told what was counted without fold f, other pairs what was counted
on all of train. The teacher of fold f labels the pairs of fold f: it must not have seen them, and
its calibration is fitted on just those. A distilled student may use unlabelled train pairs too.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.fitted import FittedOn, digest_of, read_fitted
from ckd_ehr.contracts.records import Split
from ckd_ehr.data.audit.findings import CheckResult, Finding, findings_of

CHECK = "fitted on allowed pairs"
STAGES = ("knowledge", "teacher", "signals", "student", "evaluation")
_OF_MEMBER = re.compile(r"[^/]+/(?:fold_(?P<fold>\d+)/)?(?P<thing>weights|platt)")
_DOMAIN = re.compile(r"fold_(?P<fold>\d+)/domain")
_REMEDY = (
    "fit weights on train, and early stopping, penalties, calibration and thresholds on tuning or "
    "out of fold; then delete the stage's folder and run again"
)


@dataclass(frozen=True)
class Allowed:
    """The pairs that a thing may be fitted on; `folds` None for all of the split."""

    split: Split
    folds: tuple[int, ...] | None = None
    unlabelled_too: bool = False


@dataclass(frozen=True)
class PairRow:
    """What decides about a pair."""

    pair_id: str
    split: str
    fold: int
    labelled: bool


def fitted_findings(cohort: Path, records: Mapping[str, Path]) -> list[Finding]:
    """All that was fitted on pairs it must not see; empty if nothing was.

    Args:
        cohort: the folder of pairs.parquet.
        records: the path of `fitted.json` by stage name.
    """
    return findings_of(fitted_checks(cohort, records))


def fitted_checks(cohort: Path, records: Mapping[str, Path]) -> list[CheckResult]:
    """As `fitted_findings`, with the stages that passed."""
    pairs = _read_pairs(cohort)
    return [_check_stage(stage, path, pairs) for stage, path in records.items()]


def allowed_pairs(stage: str, folds: Sequence[int]) -> dict[str, Allowed]:
    """What each fitted thing of a stage may see, by its name.

    >>> allowed_pairs("signals", [0, 1])["teacher/fold_1/platt"]
    Allowed(split='train', folds=(1,), unlabelled_too=False)
    """
    return dict(_rules(stage, folds))


def _rules(stage: str, folds: Sequence[int]) -> Iterator[tuple[str, Allowed]]:
    train, tuning = Allowed("train"), Allowed("tuning")
    if stage == "knowledge":
        yield "efficacy/all", train
        for fold in folds:
            others = tuple(other for other in folds if other != fold)
            yield f"efficacy/without_fold_{fold}", Allowed("train", others)
    elif stage == "teacher":
        for fold in folds:
            others = tuple(other for other in folds if other != fold)
            yield f"fold_{fold}/weights", Allowed("train", others)
            yield f"fold_{fold}/early_stopping", tuning
    elif stage == "signals":
        yield "committee/weights", train
        for fold in folds:
            yield f"teacher/fold_{fold}/platt", Allowed("train", (fold,))
    elif stage == "student":
        for variant in ("hard", "distilled"):
            unlabelled_too = variant == "distilled"
            yield f"{variant}/prevalence", train
            yield f"{variant}/weights", Allowed("train", unlabelled_too=unlabelled_too)
            yield f"{variant}/early_stopping", tuning
            yield f"{variant}/platt", tuning
    elif stage == "evaluation":
        yield "carry_forward", train
        yield "code_features", train
        yield "logistic_regression/weights", train
        yield "logistic_regression/penalty", tuning
        yield "logistic_regression/platt", tuning
        yield "thresholds", tuning
    else:
        raise KeyError(stage)


def _further_rule(stage: str, name: str, folds: Sequence[int]) -> Allowed | None:
    """What may be fitted besides: a teacher's reading of narratives, members of the committee."""
    if stage == "teacher" and (domain := _DOMAIN.fullmatch(name)) is not None:
        others = tuple(other for other in folds if other != int(domain["fold"]))
        return Allowed("train", others, unlabelled_too=True)
    found = _OF_MEMBER.fullmatch(name) if stage == "signals" else None
    if found is None:
        return None
    if found["fold"] is None:
        return Allowed("train") if found["thing"] == "weights" else None
    fold = int(found["fold"])
    if found["thing"] == "platt":
        return Allowed("train", (fold,))
    return Allowed("train", tuple(other for other in folds if other != fold))


def _check_stage(stage: str, path: Path, pairs: Sequence[PairRow]) -> CheckResult:
    try:
        records = read_fitted(path)
    except CkdEhrError:
        return _result(stage, ["fitted.json is missing or unreadable"])
    folds = sorted({pair.fold for pair in pairs if pair.fold >= 0})
    rules = allowed_pairs(stage, folds)
    counted = Counter(record.name for record in records)
    problems = [f"{name}: recorded {n} times" for name, n in counted.items() if n > 1]
    problems += [f"{name}: not recorded" for name in rules if name not in counted]
    further = {name: _further_rule(stage, name, folds) for name in counted if name not in rules}
    rules |= {name: rule for name, rule in further.items() if rule is not None}
    for record in records:
        if record.name not in rules:
            problems.append(f"{record.name}: fitted, and the audit does not know on what it may be")
        elif not _matches(record, rules[record.name], pairs):
            problems.append(f"{record.name}: {record.pairs} pairs of {_origin(record, pairs)}")
    return _result(stage, problems)


def _result(stage: str, problems: Sequence[str]) -> CheckResult:
    if not problems:
        return CheckResult(CHECK, stage)
    problem = f"things were fitted on pairs they must not see ({'; '.join(problems)})"
    return CheckResult(CHECK, stage, (Finding(CHECK, stage, len(problems), problem, _REMEDY),))


def _matches(record: FittedOn, allowed: Allowed, pairs: Sequence[PairRow]) -> bool:
    """Whether the record's digest, splits and folds are those of an allowed set of pairs."""
    if record.splits != (allowed.split,) or record.folds != allowed.folds:
        return False
    mine = [
        pair
        for pair in pairs
        if pair.split == allowed.split and (allowed.folds is None or pair.fold in allowed.folds)
    ]
    sets = [[pair.pair_id for pair in mine if pair.labelled]]
    if allowed.unlabelled_too:
        sets.append([pair.pair_id for pair in mine])
    return (record.pairs, record.digest) in [(len(ids), digest_of(ids)) for ids in sets]


def _origin(record: FittedOn, pairs: Sequence[PairRow]) -> str:
    """Where the pairs really stand, if they are a whole split or fold; else what is claimed."""
    splits = {pair.split for pair in pairs}
    groups = {split: [p.pair_id for p in pairs if p.split == split and p.labelled]
              for split in splits}  # fmt: skip
    groups["all splits"] = [pair.pair_id for pair in pairs if pair.labelled]
    for name, ids in sorted(groups.items()):
        if digest_of(ids) == record.digest:
            return name
    folds = "" if record.folds is None else f", folds {', '.join(map(str, record.folds))}"
    return f"no allowed set (recorded as {' and '.join(record.splits)}{folds})"


def _read_pairs(cohort: Path) -> list[PairRow]:
    table = pq.read_table(cohort / "pairs.parquet", columns=["pair_id", "split", "fold", "labels"])
    columns = [table[name].to_pylist() for name in ("pair_id", "split", "fold")]
    labelled = table["labels"].is_valid().to_pylist()
    return [PairRow(*row) for row in zip(*columns, labelled, strict=True)]
