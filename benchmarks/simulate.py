"""How long the simulated hospital takes to write: seconds, memory, patients."""

import argparse
import resource
import tempfile
from pathlib import Path
from time import perf_counter

from ckd_ehr.contracts.config import SimulatorConfig
from ckd_ehr.contracts.files import write_json
from ckd_ehr.contracts.machine import commit, machine_facts
from ckd_ehr.data.simulator.hospital import simulate

PATIENTS = 46_520  # as MIMIC-III


def main() -> None:
    """Simulate once; print a table and, with `--json`, write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE")
    settings = SimulatorConfig(patients=PATIENTS)
    out = parser.parse_args().json
    with tempfile.TemporaryDirectory() as folder:
        started = perf_counter()
        simulate(settings, Path(folder))
        seconds = perf_counter() - started
    figures = {
        "seconds": round(seconds, 3),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "patients": settings.patients,
    }
    for name, value in figures.items():
        print(f"{name:<16} {value:>15,}")
    if out:
        about = {"name": "simulate", "commit": commit(), "machine": machine_facts()}
        data = "simulated hospital with default settings, MIMIC-III layout, truth included"
        write_json(out, {**about, "data": data, "seed": settings.seed, "figures": figures})


if __name__ == "__main__":
    main()
