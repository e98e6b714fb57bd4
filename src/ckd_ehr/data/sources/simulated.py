"""The simulated hospital → MEDS: tables in MIMIC-III's layout, read like any other.

In: `data.simulator`. Out: the tables under `tables/`, and the MEDS dataset made from them.
Ignores: `data.root`; nothing outside this package is read.
"""

import inspect
from pathlib import Path

from ckd_ehr.contracts.config import DataConfig
from ckd_ehr.data import simulator
from ckd_ehr.data.sources import mimic3
from ckd_ehr.data.sources.extraction import Extraction, TableStatus
from ckd_ehr.data.sources.tables import file_digests


def tables(settings: DataConfig) -> list[TableStatus]:  # noqa: ARG001
    """None: this source makes its own."""
    return []


def digests(settings: DataConfig) -> dict[str, str]:  # noqa: ARG001
    """The simulator's own code: it and the settings decide every byte."""
    folder = Path(inspect.getfile(simulator)).parent
    return file_digests(sorted(folder.glob("simulator*.py")), folder)


def extract(extraction: Extraction) -> None:
    """Simulate, then read the tables like MIMIC-III's."""
    made = extraction.folder / "tables"
    made.mkdir(parents=True, exist_ok=True)
    simulator.simulate(extraction.settings.simulator, made)
    mimic3.extract_tables(extraction, made, name="simulated hospital")
