"""The simulated hospital → MEDS: tables in MIMIC-III's layout, read like any other.

In: `data.simulator`. Out: the tables under `tables/`, and the MEDS dataset made from them.
Ignores: `data.root`; nothing outside this package is read.
"""

import inspect
from collections.abc import Callable
from pathlib import Path

from ckd_ehr.contracts.config import DataConfig
from ckd_ehr.data import simulator
from ckd_ehr.data.sources import mimic3


def files(settings: DataConfig) -> list[Path]:  # noqa: ARG001
    """The simulator's own code: it and the settings decide every byte."""
    return sorted(Path(inspect.getfile(simulator)).parent.glob("simulator*.py"))


def extract(settings: DataConfig, folder: Path, say: Callable[[str], None]) -> None:
    """Simulate, then read the tables like MIMIC-III's."""
    tables = folder / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    simulator.simulate(settings.simulator, tables)
    mimic3.extract_tables(settings, tables, folder, say, name="simulated hospital")
