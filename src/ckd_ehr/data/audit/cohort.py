"""The audit of a cohort: no patient in two places, no history that knows its future.

In: visits.parquet, pairs.parquet and, if there, the events they were made from. Out: a result for
each check. Ignores: how the files were made; it trusts no earlier stage.
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from ckd_ehr.contracts.phenotype import Phenotype
from ckd_ehr.contracts.records import label_names
from ckd_ehr.data.audit.duplicates import duplicate_patients
from ckd_ehr.data.audit.findings import CheckResult, Finding, findings_of
from ckd_ehr.data.audit.predictors import single_predictors
from ckd_ehr.data.audit.prevalence import prevalence_shift
from ckd_ehr.data.audit.structure import structure_checks
from ckd_ehr.data.audit.support import support_checks
from ckd_ehr.data.audit.tables import MEMORY_LIMIT, open_cohort


def cohort_findings(
    cohort: Path,
    events: Path | None,
    *,
    shift_expected: bool = False,
    synthetic_times: bool = False,
    shifted_times: bool = False,
    phenotypes: Sequence[Phenotype] = (),
    memory_limit: str = MEMORY_LIMIT,
) -> list[Finding]:
    """All that is wrong with a cohort; empty if nothing is.

    Args:
        cohort: the folder of visits.parquet and pairs.parquet.
        events: the folder of the MEDS dataset; None leaves out the checks against it.
        shift_expected: the splits are divided by time or differ on purpose.
        synthetic_times: times only give the order of visits, so that equal ones prove nothing.
        shifted_times: each patient's times were moved by a distance of their own, so that only
            lengths of stay can be equal.
        phenotypes: what the labels mean; without them a label's own codes are held to be features
            like others.
        memory_limit: DuckDB's; beyond it, it spills.
    """
    results = cohort_checks(
        cohort,
        events,
        shift_expected=shift_expected,
        synthetic_times=synthetic_times,
        shifted_times=shifted_times,
        phenotypes=phenotypes,
        memory_limit=memory_limit,
    )
    return findings_of(results)


def cohort_checks(
    cohort: Path,
    events: Path | None,
    *,
    shift_expected: bool,
    synthetic_times: bool,
    phenotypes: Sequence[Phenotype],
    memory_limit: str = MEMORY_LIMIT,
    shifted_times: bool = False,
) -> list[CheckResult]:
    """As `cohort_findings`, with the checks that passed or could not be made."""
    with open_cohort(cohort, memory_limit=memory_limit) as connection:
        results = structure_checks(connection)
        if events is not None:
            results += support_checks(connection, events)
        results.append(
            duplicate_patients(
                connection, synthetic_times=synthetic_times, shifted_times=shifted_times
            )
        )
        results.append(prevalence_shift(cohort, shift_expected=shift_expected))
        names = label_names(pq.read_schema(cohort / "pairs.parquet"))
        results.append(single_predictors(connection, names, phenotypes))
    return results
