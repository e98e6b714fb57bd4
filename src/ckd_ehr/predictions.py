"""A trained student or a bundle at work: files of visits in, files of risks out.

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
            risks = _named(predictor.labels, row)
            yield _line(history[-1], {"probabilities": risks, "about": about})


def bundle_lines(bundle: Path, visits: Path) -> Iterator[str]:
    """As `predict_lines`, by a bundle, with a reason where it gives no probabilities."""
    histories = read_histories(visits)
    from ckd_ehr.serving.engine import Predictor

    predictor = Predictor(bundle, say=note)
    facts = predictor.facts
    about = {
        "model": facts.model,
        "run": facts.name,
        "precision": predictor.precision,
        "calibrated_on": facts.calibrated_on,
        "condition": CONDITION,
    }
    for start in range(0, len(histories), BATCH_PATIENTS):
        batch = histories[start : start + BATCH_PATIENTS]
        for history, found in zip(batch, predictor.predict(batch), strict=True):
            risks = None if found.abstention else _named(facts.labels, found.probabilities)
            likeness = {"unknown_share": found.unknown_share, "abstention": found.abstention}
            yield _line(history[-1], {"probabilities": risks, **likeness, "about": about})


def write_risks(bundle: Path, visits: Path, out: Path) -> None:
    """The risks of a file of many patients, by a bundle, as Parquet."""
    from ckd_ehr.serving.engine import Predictor
    from ckd_ehr.serving.scoring_files import score_file

    score_file(Predictor(bundle, say=note), visits, out, say=note)


def note(text: str) -> None:
    """Say something on stderr."""
    click.echo(text, err=True)


def _named(labels: Sequence[str], probabilities: Iterable[float]) -> dict[str, float]:
    return {name: round(float(p), 6) for name, p in zip(labels, probabilities, strict=True)}


def _line(last: Visit, found: Mapping[str, object]) -> str:
    key = {"subject_id": last.subject_id, "prediction_time": last.discharge_time.isoformat()}
    return json.dumps({**key, **found}, ensure_ascii=False, allow_nan=False)


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
