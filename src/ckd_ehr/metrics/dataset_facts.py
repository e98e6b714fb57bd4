"""What metrics.json holds of the data: the cohort's flow, Table 1, prevalences, code coverage.

In: dataset.json, coverage.json and flow.json of the stage cohort. Out: the same, checked. Counts
and aggregates only. Ignores: how they are shown (dataset_page.py).
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import read_json


class Record(BaseModel):
    """A frozen part of metrics.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Rate(Record):
    """How many of how many."""

    count: int
    of: int
    share: float | None


class NumberFacts(Record):
    """A quantity over pairs; None where fewer than five patients have it."""

    mean: float | None
    sd: float | None
    q1: float | None
    median: float | None
    q3: float | None
    missing: int


class CategoryFacts(Record):
    """Counts by category, small ones pooled under "other"."""

    counts: dict[str, int]
    missing: int


class TableOneColumn(Record):
    """One column of Table 1; a number is None where it has no meaning (synthetic times)."""

    patients: int
    pairs: int
    numbers: dict[str, NumberFacts | None]
    women: Rate | None
    sex_missing: int
    ethnicity: CategoryFacts
    admission_type: CategoryFacts


class PhenotypeFacts(Record):
    """How often a label is set: at the last visit of the history, at the next one, newly."""

    now: Rate
    next: Rate
    new_onset: Rate
    persistence: Rate
    next_by_split: dict[str, Rate | None]


class Tally(Record):
    """How many distinct codes, and how many occurrences of codes."""

    codes: int
    occurrences: int


class MissedCode(Record):
    """A code without a category."""

    code: str
    occurrences: int


class SystemCoverage(Record):
    """What became of the diagnosis codes of one system, by how they were mapped."""

    codes: dict[str, int]
    occurrences: dict[str, int]
    most_frequent_unmapped: list[MissedCode]
    most_frequent_ambiguous: list[MissedCode]
    labelling: Tally
    phenotypes: dict[str, Tally]


class SourceRows(Record):
    """What became of the rows of a source table."""

    read: int
    used: int
    left_out: dict[str, int]


class Dataset(Record):
    """What the cohort holds: its dataset.json, its coverage.json, and the source's rows."""

    table_one: dict[str, TableOneColumn]
    visits_per_patient: dict[str, int]
    phenotypes: dict[str, PhenotypeFacts]
    coverage: dict[str, SystemCoverage]
    source_rows: dict[str, SourceRows]


def read_dataset(cohort: Path) -> Dataset:
    """The part of metrics.json on the data, from a cohort's folder.

    Raises:
        CkdEhrError: a file is absent or of another version.
    """
    try:
        return Dataset.model_validate(
            {
                **read_json(cohort / "dataset.json"),
                "coverage": read_json(cohort / "coverage.json"),
                "source_rows": read_json(cohort / "flow.json").get("rows") or {},
            }
        )
    except FileNotFoundError as error:
        problem = f"{Path(error.filename).name} is missing"
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        problem = f"dataset.json, coverage.json or flow.json is of another version ({place})"
    raise CkdEhrError(f"{cohort}: {problem}; rerun the stage cohort: ckd-ehr run CONFIG")


def read_flow(cohort: Path) -> dict[str, int]:
    """How many visits and pairs each step of the cohort left, from its flow.json."""
    path = cohort / "flow.json"
    counts = read_json(path).get("counts")
    if not isinstance(counts, dict):
        raise CkdEhrError(f"{path}: no 'counts' in it; rerun the stage cohort")
    return {str(name): int(count) for name, count in counts.items()}
