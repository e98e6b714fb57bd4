"""A seeded hospital without patients: settings in, its records out, in one of three layouts.

`mimic3` is MIMIC-III 1.4, `omop` OMOP CDM 5.4, both as `.csv.gz`; `meds` is a MEDS 0.4 dataset as
others write it. The course of disease is simulator_course.py, what the coders make of it
simulator_tables.py, the medicine in both simulator_catalogue.py; simulator_omop.py and
simulator_meds.py lay the same tables out anew. Ignores: where the records go from here.
"""

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from ckd_ehr.contracts.config import SimulatorConfig
from ckd_ehr.contracts.folders import whole_folder
from ckd_ehr.data.simulator_course import draw_people, live
from ckd_ehr.data.simulator_layouts import Layout
from ckd_ehr.data.simulator_meds import write_meds
from ckd_ehr.data.simulator_omop import omop_tables
from ckd_ehr.data.simulator_tables import tables_of


def simulate(settings: SimulatorConfig, folder: Path, *, layout: Layout = "mimic3") -> None:
    """Write the simulated hospital's records into `folder`; the same seed gives the same bytes.

    The patients are the same in every layout. `folder` is new or empty, and appears with all its
    files or not at all; one that holds anything is refused.
    """
    with whole_folder(folder) as partial:
        rng = np.random.default_rng(settings.seed)
        people = draw_people(
            rng, patients=settings.patients, visits_per_patient=settings.visits_per_patient
        )
        tables = tables_of(rng, people, live(rng, people), broken_rows=settings.broken_rows)
        if layout == "meds":
            write_meds(tables, partial)
            return
        for name, table in omop_tables(tables) if layout == "omop" else tables.items():
            _write_csv(table, partial / f"{name}.csv.gz")


def _write_csv(table: pa.Table, path: Path) -> None:
    # No file name and no time in the gzip header: the same rows are the same bytes.
    with (
        path.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0, compresslevel=6) as packed,
    ):
        pa_csv.write_csv(table, packed)
