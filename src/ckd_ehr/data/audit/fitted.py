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
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json
from ckd_ehr.contracts.fitted import FittedOn, digest_of, read_fitted
from ckd_ehr.contracts.records import Split
from ckd_ehr.data.audit.findings import CheckResult, Finding, findings_of

CHECK = "fitted on allowed pairs"
STAGES = ("knowledge", "teacher", "committee", "student", "evaluation")
_PLATT = re.compile(r"(?P<source>[^/]+)/(?:fold_\d+/)?platt")
COMMITTEE_FILE = "committee.json"
TEACHER = "teacher"
FITTED_HERE = ("logistic_regression", "lightgbm")  # members whose models the stage fits
_STACK, _WITHOUT = "committee", "committee_without_"
VOCABULARY = "concept_vocabulary"
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


def allowed_pairs(
    stage: str, folds: Sequence[int], members: Collection[str] = (TEACHER,)
) -> dict[str, Allowed]:
    """What each fitted thing of a stage may see, by its name.

    >>> allowed_pairs("committee", [0, 1])["teacher/fold_1/platt"]
    Allowed(split='train', folds=(1,), unlabelled_too=False)
    """
    return dict(_rules(stage, folds, members))


def _rules(
    stage: str, folds: Sequence[int], members: Collection[str]
) -> Iterator[tuple[str, Allowed]]:
    train, tuning = Allowed("train"), Allowed("tuning")
    if stage == "knowledge":
        yield "efficacy/all", train
        for fold in folds:
            yield f"efficacy/without_fold_{fold}", Allowed("train", _others(fold, folds))
    elif stage == "teacher":
        for fold in folds:
            yield f"fold_{fold}/weights", Allowed("train", _others(fold, folds))
            yield f"fold_{fold}/early_stopping", tuning
    elif stage == "committee":
        yield f"{_STACK}/weights", train
        for member in members:
            yield f"{member}/platt", train
            for fold in folds:
                yield f"{member}/fold_{fold}/platt", Allowed("train", (fold,))
                if member in FITTED_HERE:
                    yield f"{member}/fold_{fold}/weights", Allowed("train", _others(fold, folds))
    elif stage == "student":
        for variant in ("hard", "distilled"):
            unlabelled_too = variant == "distilled"
            yield f"{variant}/prevalence", train
            yield f"{variant}/weights", Allowed("train", unlabelled_too=unlabelled_too)
            yield f"{variant}/early_stopping", tuning
            yield f"{variant}/platt", tuning
        yield "distilled/gate", tuning
    elif stage == "evaluation":
        yield "carry_forward", train
        yield "code_features", train
        yield "logistic_regression/weights", train
        yield "logistic_regression/penalty", tuning
        yield "logistic_regression/platt", tuning
        yield "thresholds", tuning
    else:
        raise KeyError(stage)


def _further_rules(stage: str, names: Collection[str], folds: Sequence[int]) -> dict[str, Allowed]:
    """Rules of what need not be there: vocabulary, teacher's reading of texts, committees."""
    if stage == "knowledge" and VOCABULARY in names:
        return {VOCABULARY: Allowed("train", unlabelled_too=True)}
    if stage == "teacher" and any(map(_DOMAIN.fullmatch, names)):
        return {
            f"fold_{fold}/domain": Allowed("train", _others(fold, folds), unlabelled_too=True)
            for fold in folds
        }
    if stage == "student" and "domain" in names:
        return {"domain": Allowed("train", unlabelled_too=True)}
    if stage != "committee":
        return {}
    found = [name for name in names if name.startswith(_WITHOUT) and name.endswith("/weights")]
    return {name: Allowed("train") for name in found}


def _members(names: Collection[str], committee: Path) -> set[str]:
    """The committee's members: all that were calibrated, and all that the committee names."""
    facts = read_json(committee).get(_STACK) if committee.is_file() else None
    told = facts.get("members") if isinstance(facts, dict) else None
    calibrated = {match["source"] for match in map(_PLATT.fullmatch, names) if match}
    return {TEACHER, *calibrated, *(told if isinstance(told, list) else ())}


def _others(fold: int, folds: Sequence[int]) -> tuple[int, ...]:
    return tuple(other for other in folds if other != fold)


def _check_stage(stage: str, path: Path, pairs: Sequence[PairRow]) -> CheckResult:
    try:
        records = read_fitted(path)
    except CkdEhrError:
        return _result(stage, ["fitted.json is missing or unreadable"])
    folds = sorted({pair.fold for pair in pairs if pair.fold >= 0})
    counted = Counter(record.name for record in records)
    members = _members(counted, path.with_name(COMMITTEE_FILE)) if stage == "committee" else ()
    rules = allowed_pairs(stage, folds, members) | _further_rules(stage, counted, folds)
    problems = [f"{name}: recorded {n} times" for name, n in counted.items() if n > 1]
    problems += [f"{name}: not recorded" for name in rules if name not in counted]
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
