"""Are the treatments we rank first truly effective ones? On hospitals whose true effects are known.

Of all combinations of a disease and a drug, the five that rank first: by the lower bound of the
adjusted, shrunk effect (ours), and by two naive rankings: how many of the treated got rid of the
disease (how often it "helped"), and what share of them. Three hospitals of MIMIC-III's size.
"""

import argparse
import csv
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from _cohorts import run
from ckd_ehr.contracts.config import RunConfig, build_config
from ckd_ehr.contracts.files import write_json
from ckd_ehr.contracts.machine import commit, machine_facts
from ckd_ehr.contracts.truth import EFFECTS, TRUTH
from ckd_ehr.data.sources.drug_names import drug_name
from ckd_ehr.knowledge.efficacy import ALL_TRAIN, count_efficacy

PATIENTS = 46_520  # as MIMIC-III
SEEDS = (1, 2, 3)
FIRST = 5
Row = Mapping[str, Any]
RANKINGS: Mapping[str, Callable[[Row], float]] = {
    "ours": lambda row: row["low"],
    "naive_count": lambda row: row["treated_resolved"],
    "naive_share": lambda row: row["treated_resolved"] / row["treated"],
}


def main() -> None:
    """Measure the seeds; print a table and, with `--json`, write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, metavar="FILE")
    out = parser.parse_args().json
    figures: dict[str, float] = {}
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            measured = measure(Path(folder), seed)
        figures |= {f"{name}_seed_{seed}": value for name, value in measured.items()}
        for name, value in measured.items():
            print(f"seed {seed}  {name:<28} {value:>6.4g}", flush=True)
    if out:
        about = {"name": "efficacy", "commit": commit(), "machine": machine_facts()}
        data = f"three simulated hospitals of {PATIENTS:,} patients, true effects known"
        write_json(out, {**about, "data": data, "seed": SEEDS[0], "figures": figures})


def measure(folder: Path, seed: int) -> dict[str, float]:
    """One hospital: precision of the first by each ranking, and of what narratives are told."""
    simulator = {"patients": PATIENTS, "seed": seed, "replayed_patients": 0}
    settings = {"name": "efficacy", "data": {"source": "simulated", "simulator": simulator}}
    config = folder / "config.yaml"
    config.write_text(json.dumps(settings), encoding="utf-8")
    run("run", str(config), "--out", str(folder / "run"), "--until", "cohort")
    checked = build_config(settings)
    rows = _compared(folder / "run", checked)
    effective = _truly_effective(folder / "run" / "01_events" / TRUTH / EFFECTS, checked)
    is_true = [(row["label"], row["code"]) in effective for row in rows]
    told = [true for row, true in zip(rows, is_true, strict=True) if row["low"] > 0]
    figures: dict[str, float] = {}
    for name, key in RANKINGS.items():
        order = sorted(range(len(rows)), key=lambda n: (-key(rows[n]), n))
        figures[f"precision_at_{FIRST}_{name}"] = sum(is_true[n] for n in order[:FIRST]) / FIRST
    figures |= {
        "compared": len(rows),
        "truly_effective_compared": sum(is_true),
        "told": len(told),
        "told_truly_effective": sum(told),
    }
    return figures


def _compared(run_folder: Path, config: RunConfig) -> list[Row]:
    """What was compared on all of train."""
    cohort, settings = run_folder / "02_cohort", config.knowledge.efficacy
    found = count_efficacy(
        pq.read_table(cohort / "visits.parquet"),
        pq.read_table(cohort / "pairs.parquet"),
        config.labels.selected,
        kinds=settings.kinds,
        min_support=settings.min_support,
    )
    rows: list[Row] = found.table.to_pylist()
    return [row for row in rows if row["fold"] == ALL_TRAIN]


def _truly_effective(path: Path, config: RunConfig) -> set[tuple[str, str]]:
    """Label and drug of each effect that lowers the odds that the disease stays."""
    names = {str(ccs): label.name for label in config.labels.selected for ccs in label.ccs}
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if float(row["log_odds"]) < 0]
    return {(names[row["ccs"]], drug_name(row["drug"])) for row in rows if row["ccs"] in names}


if __name__ == "__main__":
    main()
