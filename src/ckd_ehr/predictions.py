"""A trained student at work: `visits.jsonl` in, risks as JSON lines out.

Ignores: how the student computes.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import click

from ckd_ehr.contracts.files import respect_umask
from ckd_ehr.contracts.inputs import read_histories
from ckd_ehr.contracts.records import Visit
from ckd_ehr.contracts.runs import RunDirectory

BATCH_PATIENTS = 256
CONDITION = "given a next hospital visit, at any later time"


def predict_lines(directory: RunDirectory, visits: Path) -> Iterator[str]:
    """One JSON object for each patient of the file, in its order.

    The whole file is checked before the model is loaded.
    """
    from ckd_ehr.data.sources.drug_names import fold_drugs

    histories = [fold_drugs(history) for history in read_histories(visits)]
    if unknown := count_unknown_codes(histories):
        click.echo(
            f"{unknown:,} codes are unknown to the ontology and were read as they stand", err=True
        )
    from ckd_ehr.learning.inference import StudentPredictor

    predictor = StudentPredictor.load(directory.root)
    about = {
        "model": f"student_{predictor.facts.get('variant')}",
        "run": directory.config().name,
        "trained_on": _pairs_of(predictor.facts, "train_pairs", "train"),
        "calibrated_on": _pairs_of(predictor.facts, "calibration_pairs", "tuning"),
        "condition": CONDITION,
    }
    for start in range(0, len(histories), BATCH_PATIENTS):
        batch = histories[start : start + BATCH_PATIENTS]
        for history, row in zip(batch, predictor.predict(batch), strict=True):
            risks = {
                name: round(float(p), 6) for name, p in zip(predictor.labels, row, strict=True)
            }
            last = history[-1]
            line = {
                "subject_id": last.subject_id,
                "prediction_time": last.discharge_time.isoformat(),
                "probabilities": risks,
                "about": about,
            }
            yield json.dumps(line, ensure_ascii=False, allow_nan=False)


def count_unknown_codes(histories: Iterable[Sequence[Visit]]) -> int:
    """How many distinct codes of diagnoses and procedures have no title, not even a parent's."""
    from ckd_ehr.knowledge.ontology import title_of

    codes = {
        code
        for history in histories
        for visit in history
        for code in (*visit.diagnoses, *visit.procedures)
    }
    return sum(title_of(c.system, c.code, c.title).origin == "code" for c in codes)


def write_lines(lines: Iterable[str], out: Path | None) -> None:
    """Write lines to a file, whole or not at all; to standard output where `out` is None."""
    if out is None:
        for line in lines:
            click.echo(line)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    partial = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
        respect_umask(partial)
        partial.replace(out)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _pairs_of(facts: Mapping[str, object], key: str, split: str) -> str:
    return f"{facts.get(key)} {split} pairs of {facts.get('data_source')}"
