"""A seeded hospital without patients: settings in, MIMIC-III 1.4 tables as `.csv.gz` out.

The course of disease is simulator_course.py, what the coders make of it simulator_tables.py, the
medicine in both simulator_catalogue.py. Ignores: where the tables go from here.
"""

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from ckd_ehr.contracts.config import SimulatorConfig
from ckd_ehr.data.simulator_course import draw_people, live
from ckd_ehr.data.simulator_tables import tables_of


def simulate(settings: SimulatorConfig, folder: Path) -> None:
    """Write the simulated hospital's tables into `folder`; the same seed gives the same bytes."""
    rng = np.random.default_rng(settings.seed)
    people = draw_people(
        rng, patients=settings.patients, visits_per_patient=settings.visits_per_patient
    )
    tables = tables_of(rng, people, live(rng, people), broken_rows=settings.broken_rows)
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        _write_csv(table, folder / f"{name}.csv.gz")


def _write_csv(table: pa.Table, path: Path) -> None:
    # No file name and no time in the gzip header: the same rows are the same bytes.
    with (
        path.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0, compresslevel=6) as packed,
    ):
        pa_csv.write_csv(table, packed)
