"""What a run took, which data it had, and how the distilled student's loss was made up.

In: the manifests of finished stages, and training.json of a student. Out: parts of metrics.json.
Ignores: how fast predictions are (learning/latency.py).
"""

from collections.abc import Mapping
from pathlib import Path

from ckd_ehr.contracts.files import read_json
from ckd_ehr.contracts.manifests import manifest_digest, read_manifest
from ckd_ehr.metrics.results import StageCost, TermPoint


def stage_costs(inputs: Mapping[str, Path]) -> dict[str, StageCost]:
    """Seconds and memory of each stage that says what it took."""
    found = {name: read_manifest(folder) for name, folder in inputs.items()}
    return {
        name: StageCost(
            seconds=round(manifest.seconds, 1), peak_memory_bytes=manifest.peak_memory_bytes
        )
        for name, manifest in found.items()
        if manifest is not None
    }


def data_fingerprint(cohort: Path) -> str | None:
    """One hash of everything the stage cohort wrote: visits, pairs, splits, counts."""
    return manifest_digest(cohort) if read_manifest(cohort) is not None else None


def training_terms(student: Path) -> dict[str, list[TermPoint]]:
    """By term of the loss, what was noted during the distilled student's training."""
    terms = read_json(student / "distilled" / "training.json").get("terms", {})
    assert isinstance(terms, dict)
    return {name: [TermPoint(**point) for point in points] for name, points in terms.items()}
