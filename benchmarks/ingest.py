"""From raw csv.gz tables of MIMIC-III's size to labelled pairs: seconds, memory, growth.

The hospital is the simulated one, which has MIMIC-III's numbers of patients, stays and rows. Each
size is read by a process of its own, `ckd-ehr run … --until cohort`; making the tables is not
timed. Hashing the tables, checking the dataset and the audit are.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from ckd_ehr.contracts.config import SimulatorConfig
from ckd_ehr.contracts.files import write_json
from ckd_ehr.contracts.machine import commit, machine_facts
from ckd_ehr.data.simulator.hospital import simulate

PATIENTS = 46_520
SEED = 2026
SCALES = (1, 2, 4)


@dataclass(frozen=True)
class Measured:
    """One size: what was read, and what it took."""

    patients: int
    stays: int
    rows: int
    prescriptions: int
    seconds: float
    peak_rss_bytes: int


def write_hospital(folder: Path, *, scale: int) -> None:
    """The simulated hospital with `scale` × MIMIC-III's patients."""
    simulate(SimulatorConfig(patients=PATIENTS * scale, seed=SEED, replayed_patients=0), folder)


def measure(root: Path, out: Path) -> Measured:
    """Run events and cohort on the tables, in a process of their own."""
    config = out.with_suffix(".yaml")
    config.write_text(f"data: {{source: mimic3, root: {root}}}\n", encoding="utf-8")
    command = [
        sys.executable, "-m", "ckd_ehr.cli", "run", str(config), "--out", str(out),
        "--until", "cohort",
    ]  # fmt: skip
    started = perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = perf_counter() - started
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    rows = json.loads((out / "01_events" / "rows.json").read_text(encoding="utf-8"))
    counts = json.loads((out / "02_cohort" / "flow.json").read_text(encoding="utf-8"))["counts"]
    return Measured(
        patients=counts["patients_read"],
        stays=counts["visits_read"],
        rows=sum(table["read"] for table in rows.values()),
        prescriptions=rows["PRESCRIPTIONS.csv.gz"]["read"],
        seconds=seconds,
        peak_rss_bytes=usage.ru_maxrss * 1024,
    )


def measure_scale(scale: int) -> Measured:
    """Write a hospital and measure it, in one temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # A process of its own, so that its memory is not charged to what is measured.
        writer = multiprocessing.get_context("spawn").Process(
            target=write_hospital, args=(folder / "tables",), kwargs={"scale": scale}
        )
        writer.start()
        writer.join()
        if writer.exitcode:
            raise SystemExit(f"the tables could not be written (exit status {writer.exitcode})")
        return measure(folder / "tables", folder / "run")


def main() -> None:
    """Measure every size; print a table and, with `--json`, write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--scale", type=int, help="measure one size and print it as JSON")
    given = parser.parse_args()
    if given.scale:
        print(json.dumps(vars(measure_scale(given.scale))))
        return
    sizes = {}
    for scale in SCALES:
        command = [sys.executable, __file__, "--scale", str(scale)]
        shown = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        size = sizes[scale] = Measured(**json.loads(shown))
        print(
            f"{scale}x: {size.patients:,} patients, {size.stays:,} stays, {size.rows:,} rows "
            f"({size.prescriptions:,} prescriptions): {size.seconds:.1f} s, "
            f"{size.peak_rss_bytes / 2**30:.2f} GiB"
        )
    whole = sizes[1]
    figures: dict[str, float] = {
        "seconds": round(whole.seconds, 1),
        "peak_rss_bytes": whole.peak_rss_bytes,
        "rows_per_second": round(whole.rows / whole.seconds),
        "growth_4x": round(sizes[4].seconds / (4 * whole.seconds), 3),
        "patients": whole.patients,
        "stays": whole.stays,
        "rows": whole.rows,
        "prescriptions": whole.prescriptions,
    }
    for scale in SCALES[1:]:
        figures[f"seconds_{scale}x"] = round(sizes[scale].seconds, 1)
        figures[f"peak_rss_bytes_{scale}x"] = sizes[scale].peak_rss_bytes
    if given.json:
        result = {
            "name": "ingest",
            "commit": commit(),
            "machine": machine_facts(),
            "data": "simulated hospital in MIMIC-III layout (csv.gz), at its numbers of rows",
            "seed": SEED,
            "figures": figures,
        }
        write_json(given.json, result)


if __name__ == "__main__":
    main()
