"""A seeded hospital in a folder: settings in, its records and their truth out.

`mimic3` is MIMIC-III 1.4, `omop` OMOP CDM 5.4, both as `.csv.gz`; `meds` is a MEDS 0.4 dataset as
others write it. Beside the records stands `truth/`: the true risks, the best that could be known
from the record alone for a sample of patients, and the drugs' true effects. Records are written
some thousand patients at a time, so that memory does not grow with them. Ignores: where the
records go from here.
"""

import csv
import gzip
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from ckd_ehr.contracts.config import SimulatorConfig
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.files import write_json, write_table
from ckd_ehr.contracts.folders import whole_folder
from ckd_ehr.contracts.phenotype import PHENOTYPES_25
from ckd_ehr.contracts.records import with_label_names
from ckd_ehr.contracts.truth import EFFECTS, HOSPITAL, RISKS, RISKS_SCHEMA, TRUTH
from ckd_ehr.data.simulator.catalogue import LABELS, Catalogue, Floats, Ints, code_choices
from ckd_ehr.data.simulator.course import Stays
from ckd_ehr.data.simulator.layouts import Layout
from ckd_ehr.data.simulator.meds import MedsFolder
from ckd_ehr.data.simulator.omop import Omop
from ckd_ehr.data.simulator.replay import replay
from ckd_ehr.data.simulator.risks import true_risks
from ckd_ehr.data.simulator.tables import Habits, Tables, dictionaries, paperwork
from ckd_ehr.data.simulator.world import World, make_world

GZIP_LEVEL = 1  # twice the size of level 6, in a third of the time

Say = Callable[[str], None]


class Records(Protocol):
    """A folder of records that grows by some patients at a time."""

    def add(self, tables: Tables) -> None:
        """Write these patients."""
        ...

    def finish(self) -> None:
        """Write what is about all of them."""
        ...


def simulate(
    settings: SimulatorConfig,
    folder: Path,
    *,
    layout: Layout = "mimic3",
    say: Say = lambda _: None,
) -> None:
    """Write a simulated hospital's records and truth into `folder`; same seed, same bytes.

    The patients are the same in every layout and in both code systems. `folder` is new or empty,
    and appears with all its files or not at all; one that holds anything is refused.

    Raises:
        CkdEhrError: the folder cannot be written as a whole; MIMIC-III's layout with ICD-10.
    """
    refuse_impossible(settings, layout)
    with whole_folder(folder) as partial:
        course, papers, truth = np.random.SeedSequence(settings.seed).spawn(3)
        world = make_world(settings, course)
        say(f"{len(world.stays.patient):,} stays of {settings.patients:,} patients")
        habits = Habits(
            choices=code_choices(settings.coding, settings.hospital),
            coding=settings.coding,
            hospital=settings.hospital,
            broken_rows=settings.broken_rows,
            detail=settings.detail,
        )
        write_records(paperwork(papers, habits, world), habits, partial, layout)
        say("records written")
        write_truth(np.random.default_rng(truth), settings, world, partial / TRUTH, say)


def refuse_impossible(settings: SimulatorConfig, layout: Layout) -> None:
    """Refuse what no table can hold, before any work."""
    if layout == "mimic3" and settings.coding == "icd10":
        raise CkdEhrError(
            "layout mimic3 with coding icd10: MIMIC-III's tables have no column for ICD-10; take "
            "layout omop or meds"
        )


def write_records(pages: Iterable[Tables], habits: Habits, folder: Path, layout: Layout) -> None:
    """Write the tables as they come: while some patients are written, the next are made."""
    fixed = dictionaries(habits)
    with ExitStack() as files, ThreadPoolExecutor(1) as writer:
        records: Records
        if layout == "meds":
            records = MedsFolder(folder, fixed, habits.coding)
        elif layout == "omop":
            omop = Omop(fixed, habits.coding)
            records = _CsvFolder(folder, omop.tables, [("concept", omop.concepts())], files)
        else:
            records = _CsvFolder(folder, _as_they_are, fixed.items(), files)
        waiting: Future[None] | None = None
        for page in pages:
            if waiting is not None:
                waiting.result()
            waiting = writer.submit(records.add, page)
        if waiting is not None:
            waiting.result()
        records.finish()


def write_truth(
    rng: np.random.Generator, settings: SimulatorConfig, world: World, folder: Path, say: Say
) -> None:
    """Write what the records do not tell: see contracts/truth.py."""
    folder.mkdir()
    stays = world.stays
    left_alive = np.flatnonzero(~stays.died)
    risks = true_risks(world.medicine, world.people, stays.take(left_alive))
    patients = _replayed_patients(rng, stays, settings.replayed_patients)
    known = replay(
        rng, world, patients=patients, visits_per_patient=settings.visits_per_patient, say=say
    )
    place = np.full(len(stays.patient), -1)
    place[known.rows] = np.arange(len(known.rows))
    seen = pa.array(place[left_alive], mask=place[left_alive] < 0)
    table = pa.table(
        {
            "visit_id": pa.array(world.hadm_ids[left_alive]).cast(pa.string()),
            "subject_id": world.subject_ids[stays.patient[left_alive]],
            "true_probabilities": _lists(risks),
            "record_probabilities": _lists(known.risks).take(seen),
            "effective_particles": pa.array(known.effective_particles, pa.float32()).take(seen),
        }
    ).sort_by("visit_id")
    names = [phenotype.name for phenotype in PHENOTYPES_25]
    write_table(table, folder / RISKS, with_label_names(RISKS_SCHEMA, names))
    _write_effects(world.medicine, settings, folder / EFFECTS)
    write_json(folder / HOSPITAL, {"simulated": True, **settings.model_dump(mode="json")})


def _replayed_patients(rng: np.random.Generator, stays: Stays, wanted: int) -> Ints:
    """A sample of those who came back: only their risks meet a next visit."""
    returned = np.unique(stays.patient[stays.returned])
    chosen = rng.choice(returned, size=min(wanted, len(returned)), replace=False)
    return np.sort(chosen)


def _write_effects(medicine: Catalogue, settings: SimulatorConfig, path: Path) -> None:
    """Each drug with each condition it is given for, and what it truly does to it."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["drug", "ccs", "condition", "log_odds"])
        for drug, condition in np.argwhere(medicine.prescribed.caused.T > 0):
            named, about = medicine.drugs[drug], medicine.conditions[condition]
            name = named.other_name if settings.hospital == "b" else named.name
            rows.writerow([name, about.ccs, about.name, float(medicine.effects[drug, condition])])


def _lists(values: Floats) -> pa.Array:
    flat = pa.array(values.astype(np.float32).ravel())
    return pa.ListArray.from_arrays(np.arange(len(values) + 1) * LABELS, flat)


class _CsvFolder:
    """Tables as `.csv.gz`."""

    def __init__(
        self,
        folder: Path,
        convert: Callable[[Tables], Iterator[tuple[str, pa.Table]]],
        fixed: Iterable[tuple[str, pa.Table]],
        files: ExitStack,
    ) -> None:
        self._folder, self._convert, self._files = folder, convert, files
        self._open: dict[str, gzip.GzipFile] = {}
        self._fixed = fixed

    def add(self, tables: Tables) -> None:
        for name, table in self._convert(tables):
            self._write(name, table)

    def finish(self) -> None:
        for name, table in self._fixed:
            self._write(name, table)

    def _write(self, name: str, table: pa.Table) -> None:
        new = name not in self._open
        if new:
            raw = self._files.enter_context((self._folder / f"{name}.csv.gz").open("wb"))
            # No file name and no time in the gzip header: the same rows are the same bytes.
            self._open[name] = self._files.enter_context(
                gzip.GzipFile(
                    filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=GZIP_LEVEL
                )
            )
        pa_csv.write_csv(table, self._open[name], pa_csv.WriteOptions(include_header=new))


def _as_they_are(tables: Tables) -> Iterator[tuple[str, pa.Table]]:
    yield from tables.items()
