"""The audit of a run: every check that its finished stages allow.

In: a run directory in which at least the cohort has finished. Out: a result for each check, also
for those that have to wait for a stage. Ignores: what the checks look at.
"""

from pathlib import Path

from ckd_ehr.contracts.fitted import FITTED
from ckd_ehr.contracts.manifests import read_manifest
from ckd_ehr.contracts.runs import RunDirectory
from ckd_ehr.data.audit import fitted, narratives
from ckd_ehr.data.audit.cohort import cohort_checks
from ckd_ehr.data.audit.findings import CheckResult, accept
from ckd_ehr.data.sources.dataset import has_shifted_times, has_synthetic_times


def audit_run(directory: RunDirectory, *, words_of: narratives.WordsOf) -> list[CheckResult]:
    """Audit the files of a run, which must be as their stages left them.

    Args:
        words_of: how narratives call a code.

    Raises:
        CkdEhrError: the cohort has not finished, or a file has changed since its stage finished.
    """
    events, cohort = directory.require_intact("events"), directory.require_intact("cohort")
    config = directory.config()
    results = cohort_checks(
        cohort,
        events,
        shift_expected=config.splits.may_shift,
        synthetic_times=has_synthetic_times(events),
        shifted_times=has_shifted_times(events),
        phenotypes=config.labels.selected,
        memory_limit=config.engine.memory_limit,
    )
    results += _narratives(directory, cohort, words_of)
    for stage in fitted.STAGES:
        results += _fitted(directory, cohort, stage)
    return accept(results, config.audit.accept)


def _narratives(
    directory: RunDirectory, cohort: Path, words_of: narratives.WordsOf
) -> list[CheckResult]:
    if not _has_finished(directory, narratives.STAGE):
        return [_waiting(check.check, narratives.STAGE) for check in narratives.CHECKS]
    folder = directory.require_intact(narratives.STAGE)
    return narratives.narrative_checks(folder, cohort, words_of=words_of)


def _fitted(directory: RunDirectory, cohort: Path, stage: str) -> list[CheckResult]:
    if not _has_finished(directory, stage):
        return [_waiting(fitted.CHECK, stage)]
    return fitted.fitted_checks(cohort, {stage: directory.require_intact(stage) / FITTED})


def _has_finished(directory: RunDirectory, stage: str) -> bool:
    return read_manifest(directory.folder(stage)) is not None


def _waiting(check: str, stage: str) -> CheckResult:
    return CheckResult(check, stage, note="stage unfinished", tested=False)
