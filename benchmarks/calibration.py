"""How the simulated hospital compares with real ones: MIMIC-III in print, its demo, UCI.

The simulated hospital has MIMIC-III's number of patients, the default settings and broken rows. It,
the MIMIC-III demo and UCI Diabetes-130 go through the pipeline alike, `ckd-ehr run … --until
cohort`; what is compared are counts of the cohort's visits and pairs. UCI's stays are those of
diabetics and have three diagnoses at most, so the simulated ones are also counted as UCI would see
them: diabetics alone, the first three diagnoses. Without the real data (CKD_EHR_REAL_DATA) nothing
is measured and nothing written.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from _cohorts import (
    FEWEST,
    TABLES,
    Cohort,
    Flags,
    Report,
    describe,
    flags_of,
    phi_of,
    run,
    run_pipeline,
    some_labels,
)
from _published import BENCHMARK, PUBLISHED
from ckd_ehr.contracts.config import SimulatorConfig
from ckd_ehr.contracts.files import write_json
from ckd_ehr.contracts.machine import commit, machine_facts
from ckd_ehr.contracts.phenotype import PHENOTYPES_25

ROOT = Path(__file__).parent.parent
PATIENTS = 46_520
SHOWN_PAIRS = 8
SAMPLES = 40
# What counts as a deviation.
RELATIVE, ABSOLUTE, OF_PHI, OF_DEMO_PHI = 0.1, 0.1, 0.1, 0.3
RATES = ("persistence", "incidence", "new_onset")

Deviation = dict[str, str | float]


def compare_phi(
    simulated: Flags, real: Flags, names: Sequence[str], *, hides: bool
) -> dict[str, object]:
    """Rank correlation of all pairs' phi, and the pairs that differ most."""
    ours, theirs = phi_of(simulated), phi_of(real)
    upper = np.triu(np.isfinite(ours) & np.isfinite(theirs), k=1)
    first, second = np.nonzero(upper)
    together = [
        len(np.unique(real.patients[real.at_stay[:, i] & real.at_stay[:, j]]))
        for i, j in zip(first, second, strict=True)
    ]
    order = np.argsort(-np.abs(ours[upper] - theirs[upper]), kind="stable")
    largest = [
        {
            "first": names[first[n]],
            "second": names[second[n]],
            "simulated": round(float(ours[first[n], second[n]]), 3),
            "real": round(float(theirs[first[n], second[n]]), 3),
        }
        for n in order
        if together[n] >= FEWEST or not hides
    ]
    return {
        "pairs": len(first),
        "spearman": round(float(spearmanr(ours[upper], theirs[upper]).statistic), 3),
        "largest": largest[:SHOWN_PAIRS],
    }


def deviations(report: Report) -> list[Deviation]:
    """What the simulated hospital gets wrong, by rule; the page has the rules in words."""
    found = [*_of_published(report), *_of_uci(report), *_of_demo(report), *_together(report)]
    return [
        {"rule": rule, "what": what, "simulated": round(ours, 3), "real": real}
        for rule, what, ours, real in found
    ]


Found = Iterator[tuple[str, str, float, float | str]]


def _of_published(report: Report) -> Found:
    """Sizes, and prevalences outside the range of the benchmark's train and test."""
    for size in report["sizes"]:
        if abs(size["simulated"] - size["real"]) > RELATIVE * size["real"]:
            yield "size", size["what"], size["simulated"], round(size["real"], 3)
    for name, shares in report["published_prevalence"].items():
        low, high = min(shares), max(shares)
        ours = report["data_sets"]["simulated"]["phenotypes"][name]["stays"]["share"]
        if not (1 - RELATIVE) * low <= ours <= (1 + RELATIVE) * high:
            yield "prevalence", name, ours, f"{low:.3f}–{high:.3f}"


def _of_uci(report: Report) -> Found:
    """Persistence of all diagnoses, and all rates of what UCI would see."""
    sets = report["data_sets"]
    compared = [("simulated", "persistence", "uci persistence")]
    compared += [("simulated_as_uci", kind, f"uci {kind}, seen alike") for kind in RATES]
    for key, kind, rule in compared:
        for name, rates in sets["uci"]["phenotypes"].items():
            ours, real = sets[key]["phenotypes"][name][kind], rates[kind]
            if ours and real and abs(ours["share"] - real["share"]) > ABSOLUTE:
                yield rule, name, ours["share"], round(real["share"], 3)


def _of_demo(report: Report) -> Found:
    """Rates outside the interval of the demo's."""
    sets = report["data_sets"]
    for kind in ("stays", "persistence"):
        for name, rates in sets["demo"]["phenotypes"].items():
            ours, real = sets["simulated"]["phenotypes"][name][kind]["share"], rates[kind]
            if real and not real["low"] <= ours <= real["high"]:
                yield f"demo {kind}", name, ours, f"{real['low']:.2f}–{real['high']:.2f}"


def _together(report: Report) -> Found:
    for key, limit in (("uci", OF_PHI), ("demo", OF_DEMO_PHI)):
        for pair in report["together"][key]["largest"]:
            if abs(pair["simulated"] - pair["real"]) > limit:
                what = f"{pair['first']} with {pair['second']}"
                yield f"{key} together", what, pair["simulated"], pair["real"]


def sizes(simulated: Report) -> list[tuple[str, float, float]]:
    """What is told of MIMIC-III in print: name, simulated, real. Of adults where that is known."""
    published, numbers = PUBLISHED, simulated["numbers"]
    several = simulated["patients"] - simulated["stays_per_patient"]["1"]
    listed = [
        ("stays per patient", simulated["stays"] / simulated["patients"],
         published["stays"] / published["patients"]),
        ("share of patients with two stays or more", several / simulated["patients"],
         published["patients_with_two"] / published["patients"]),
        ("share of stays that end in death, adults", simulated["died"]["share"],
         published["adult_died"]),
        ("share of women, adults", simulated["women"]["share"], published["adult_women"]),
    ]  # fmt: skip
    for quartile in ("q1", "median", "q3"):
        listed += [
            (f"{said}, {quartile}, adults", numbers[name][quartile], published[f"{key}_{quartile}"])
            for said, name, key in (
                ("age in years", "age_years", "adult_age"),
                ("length of stay in days", "stay_days", "adult_days"),
            )
        ]
    return listed + [
        (f"rows of {kind} per stay", simulated["rows"][kind] / simulated["stays"],
         published[f"rows_{kind}"] / published["stays"])
        for kind in TABLES.values()
    ]  # fmt: skip


def agreement_of_few(flags: Flags, *, patients: int, seed: int) -> float:
    """How well phi of so few patients agrees with that of all: mean rank correlation."""
    rng, everyone, whole = np.random.default_rng(seed), np.unique(flags.patients), phi_of(flags)
    found = []
    for _ in range(SAMPLES):
        some = np.isin(flags.patients, rng.choice(everyone, size=patients, replace=False))
        few = phi_of(replace(flags, at_stay=flags.at_stay[some]))
        upper = np.triu(np.isfinite(few) & np.isfinite(whole), k=1)
        found.append(spearmanr(few[upper], whole[upper]).statistic)
    return round(float(np.mean(found)), 3)


def make_report(simulated: Cohort, demo: Cohort, uci: Cohort) -> Report:
    """All that the page shows."""
    seen = simulated.as_uci_sees_it(uci.phenotypes)
    cohorts = {"simulated": simulated, "simulated_as_uci": seen, "demo": demo, "uci": uci}
    flags = {key: flags_of(cohort) for key, cohort in cohorts.items()}
    names = [phenotype.name for phenotype in uci.phenotypes]
    every = [phenotype.name for phenotype in PHENOTYPES_25]
    report: Report = {
        "published": dict(PUBLISHED),
        "published_prevalence": {
            phenotype.name: BENCHMARK[phenotype.ccs[0]] for phenotype in PHENOTYPES_25
        },
        "data_sets": {key: describe(cohort, flags[key]) for key, cohort in cohorts.items()},
        "together": {
            "uci": compare_phi(flags["simulated_as_uci"], flags["uci"], names, hides=True),
            "demo": compare_phi(flags["simulated"], flags["demo"], every, hides=True),
            "uci_all": compare_phi(
                some_labels(flags["simulated"], simulated, names), flags["uci"], names, hides=True
            ),
            "demo_uci": compare_phi(
                some_labels(flags["demo"], demo, names), flags["uci"], names, hides=True
            ),
        },
    }
    report["sizes"] = [
        {"what": what, "simulated": round(ours, 4), "real": round(real, 4)}
        for what, ours, real in sizes(report["data_sets"]["simulated"])
    ]
    few = report["data_sets"]["demo"]["patients"]
    report["together"]["few"] = agreement_of_few(
        flags["simulated"], patients=few, seed=SimulatorConfig().seed
    )
    return {**report, "deviations": deviations(report)}


def figures_of(report: Report) -> dict[str, float]:
    """The few numbers that sum the report up."""
    sets = report["data_sets"]
    simulated, seen, uci = (sets[key] for key in ("simulated", "simulated_as_uci", "uci"))
    prevalence = [
        abs(simulated["phenotypes"][name]["stays"]["share"] / np.mean(shares) - 1)
        for name, shares in report["published_prevalence"].items()
    ]
    figures: dict[str, float] = {
        "patients": simulated["patients"],
        "stays": simulated["stays"],
        "patients_with_two_stays": simulated["patients"] - simulated["stays_per_patient"]["1"],
        "pairs": simulated["pairs"],
        "hospital_mortality": simulated["died"]["share"],
        "median_stay_days": simulated["numbers"]["stay_days"]["median"],
        "prevalence_largest_relative_deviation_from_published": round(max(prevalence), 3),
        "prevalence_mean_relative_deviation_from_published": round(float(np.mean(prevalence)), 3),
    }
    for kind in RATES:
        apart = [
            seen["phenotypes"][name][kind]["share"] - rates[kind]["share"]
            for name, rates in uci["phenotypes"].items()
            if seen["phenotypes"][name][kind] and rates[kind]
        ]
        figures[f"{kind}_mean_deviation_from_uci_seen_alike"] = round(float(np.mean(apart)), 3)
        mean = float(np.mean(np.abs(apart)))
        figures[f"{kind}_mean_absolute_deviation_from_uci_seen_alike"] = round(mean, 3)
    figures["phi_rank_correlation_with_uci"] = report["together"]["uci"]["spearman"]
    figures["phi_rank_correlation_with_demo"] = report["together"]["demo"]["spearman"]
    figures["deviations"] = len(report["deviations"])
    return figures


def measure(real: Path) -> Report:
    """Write the simulated hospital, run the three through the pipeline, compare."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tables = folder / "hospital"
        run("simulate", str(tables), "--patients", str(PATIENTS), "--replayed", "0")
        mimic3 = ROOT / "configs" / "mimic3.yaml"
        samples = ("train", "unlabelled", "tuning", "held_out")
        return make_report(
            run_pipeline(mimic3, folder / "simulated", f"data.root={tables}", hides=False),
            run_pipeline(
                mimic3, folder / "demo", f"data.root={real / 'mimic3-demo-1.4'}", hides=True
            ),
            run_pipeline(
                ROOT / "configs" / "uci-diabetes.yaml",
                folder / "uci",
                f"data.root={real / 'uci-diabetes130'}",
                *(f"cohort.sample.{sample}=null" for sample in samples),
                hides=True,
            ),
        )


def main() -> None:
    """Compare; print the figures and the deviations and, with `--json`, write all to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the figures and the report")
    out = parser.parse_args().json
    real = Path(os.environ.get("CKD_EHR_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not real.is_dir():
        print(f"no real data at {real}; set CKD_EHR_REAL_DATA. Nothing is compared.")
        return
    report = measure(real.resolve())
    figures = figures_of(report)
    for name, value in figures.items():
        print(f"{name:<60} {value:>12,}")
    for one in report["deviations"]:
        print(f"{one['rule']:<18} {one['what']}: {one['simulated']}, real {one['real']}")
    if out:
        about = {"name": "calibration", "commit": commit(), "machine": machine_facts()}
        data = (
            "simulated hospital in MIMIC-III layout, default settings; MIMIC-III demo 1.4; UCI "
            "Diabetes-130; published figures of MIMIC-III"
        )
        seed = SimulatorConfig().seed
        result = {**about, "data": data, "seed": seed, "figures": figures, "report": report}
        write_json(out, result)


if __name__ == "__main__":
    main()
