"""A file of many patients → a Parquet file of their risks, in little memory, resumable.

In: a bundle's predictor and a file of visits. Out: a row a patient, in the order of the file. After
an interruption, of whatever kind, the same call goes on behind the last finished part. Ignores: how
a risk is computed.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from time import monotonic

import pyarrow as pa

from ckd_ehr.contracts.files import (
    read_batches,
    read_json,
    sha256_of,
    write_batches,
    write_json,
    write_table,
)
from ckd_ehr.contracts.records import Visit, with_label_names
from ckd_ehr.contracts.visit_files import iter_histories
from ckd_ehr.release.manifest import MANIFEST
from ckd_ehr.serving.engine import Predictor

PATIENTS_A_PART = 512
STARTED = "started.json"
# probabilities are null where `abstention` says why none should be told.
RISKS = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("prediction_time", pa.timestamp("us"), nullable=False),
        pa.field("probabilities", pa.list_(pa.float32())),
        pa.field("unknown_share", pa.float32(), nullable=False),
        pa.field("abstention", pa.string()),
    ]
)
Say = Callable[[str], None]


def score_file(
    predictor: Predictor,
    visits: Path,
    out: Path,
    *,
    patients_a_part: int = PATIENTS_A_PART,
    say: Say = lambda _: None,
) -> int:
    """Write the risks of each patient of a file; how many there are.

    The whole file is checked before anything is predicted. Finished parts stand beside `out` until
    it is whole; those of another input or bundle are thrown away.
    """
    total = sum(1 for _ in iter_histories(visits))
    parts = _open_parts(predictor, visits, out, patients_a_part=patients_a_part)
    started, before = monotonic(), sum(1 for _ in parts.glob("*.parquet")) * patients_a_part
    if before:
        say(f"going on behind {min(before, total):,} of {total:,} patients")
    finished: list[Path] = []
    for number, histories in enumerate(_chunks(iter_histories(visits), patients_a_part)):
        part = parts / f"{number:06}.parquet"
        finished.append(part)
        if part.is_file():
            continue
        partial = part.with_suffix(".partial")
        write_table(_risks(predictor, histories), partial, RISKS)
        partial.replace(part)
        done = min((number + 1) * patients_a_part, total)
        speed = (done - before) / max(monotonic() - started, 1e-9)
        say(f"{done:,} of {total:,} patients, {speed:.0f} a second")
    whole = out.with_name(f".{out.name}.partial")
    rows = (batch for part in finished for batch in read_batches(part, RISKS))
    write_batches(rows, whole, with_label_names(RISKS, predictor.labels))
    whole.replace(out)
    shutil.rmtree(parts)
    return total


def _open_parts(predictor: Predictor, visits: Path, out: Path, *, patients_a_part: int) -> Path:
    """The folder of finished parts, emptied if they are of another input or bundle."""
    parts = out.with_name(f".{out.name}.parts")
    wanted: dict[str, object] = {
        "bundle": sha256_of(predictor.folder / MANIFEST),
        "precision": predictor.precision,
        "visits": sha256_of(visits),
        "patients_a_part": patients_a_part,
    }
    started = parts / STARTED
    if not started.is_file() or read_json(started) != wanted:
        shutil.rmtree(parts, ignore_errors=True)
        write_json(started, wanted)
    return parts


def _chunks(
    histories: Iterator[tuple[Visit, ...]], size: int
) -> Iterator[Sequence[tuple[Visit, ...]]]:
    while chunk := list(islice(histories, size)):
        yield chunk


def _risks(predictor: Predictor, histories: Sequence[tuple[Visit, ...]]) -> pa.Table:
    predictions = predictor.predict(histories)
    return pa.table(
        {
            "subject_id": [history[-1].subject_id for history in histories],
            "prediction_time": [history[-1].discharge_time for history in histories],
            "probabilities": [
                None if one.abstention else one.probabilities.tolist() for one in predictions
            ],
            "unknown_share": [one.unknown_share for one in predictions],
            "abstention": pa.array([one.abstention for one in predictions], pa.string()),
        }
    )
