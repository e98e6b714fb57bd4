"""The measured parts of docs/simulator.md: two benchmarks' files in, tables out.

In: benchmarks/results/calibration.json and ceiling.json. Out: Markdown. Ignores: how they were
measured, and the figure.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from calibration_figure import FIGURE

Result = Mapping[str, Any]

NUMBERS = {
    "age_years": "age in years",
    "stay_days": "length of stay in days",
    "diagnoses": "diagnoses a stay",
    "procedures": "procedures a stay",
    "drugs": "distinct drugs a stay",
    "gap_days": "days to the next stay",
}
RATES = {
    "next": "Coded at the next stay",
    "persistence": "P(next \\| now): coded at the next stay, if coded at this one",
    "incidence": "P(next \\| not now): coded at the next stay, if not coded at this one",
    "new_onset": "New onset: coded at the next stay, if never before",
}
RULES = {
    "size": "More than 10 % off what is published",
    "prevalence": "Prevalence more than 10 % outside the published range of train and test",
    "uci persistence": "P(next \\| now) of all diagnoses more than 0.1 off UCI's",
    "uci persistence, seen alike": "P(next \\| now) as UCI would see it more than 0.1 off UCI's",
    "uci incidence, seen alike": "P(next \\| not now) as UCI would see it more than 0.1 off UCI's",
    "uci new_onset, seen alike": "Rate of new onsets as UCI would see it more than 0.1 off UCI's",
    "demo stays": "Prevalence outside the demo's 95 % interval",
    "demo persistence": "P(next \\| now) outside the demo's 95 % interval",
    "uci together": "Correlation more than 0.1 off UCI's (of the largest differences)",
    "demo together": "Correlation more than 0.3 off the demo's (of the largest differences)",
}
STRUCTURAL = (
    "No newborns: MIMIC-III's 46,520 patients count 7,870 neonates, all simulated patients are "
    "adults. The published numbers of stays and rows are of all patients, those of age, sex, death "
    "and length of stay of adults.",
    "The published prevalences are per ICU stay of adults, hospital stays with several ICU stays "
    "left out; the simulated ones are per hospital stay.",
    "UCI's patients are diabetics outside intensive care, the demo's have all died since; neither "
    "is the population that is simulated. Where they and the published figures disagree, the "
    "published ones are the aim.",
    "No laboratory values, notes, wards, transfers, charges, seasons or trend in the habits of "
    "coding; nobody changes the hospital.",
    "A condition's place in a simulated bill is partly the patient's usual one, partly chance, "
    "acute ones a little further up; a real bill puts what the stay was for first and often the "
    "same as last time. The three diagnoses that UCI would see therefore persist otherwise than "
    "UCI's.",
    "Within a stay one hidden severity brings conditions together, mostly acute ones, and nothing "
    "else does. "
    "Conditions are coded one by one: what the code book ties (hypertensive kidney disease with "
    "kidney disease) or keeps apart (hypertension with heart failure) is not tied or kept apart "
    "beyond that.",
)
MODELS = {
    "carry_forward": "carry-forward",
    "logistic_regression": "logistic regression",
    "lightgbm": "LightGBM",
    "record": "**best from the record alone**",
    "true_state": "**true risk, hidden state known**",
}
METRICS = {
    "auroc": "macro AUROC",
    "auprc": "macro AUPRC",
    "brier": "Brier",
    "new_onset_auroc": "new onset: AUROC",
    "new_onset_auprc": "AUPRC",
}
VIEWS = ("simulated_as_uci", "uci", "simulated")


def calibration_part(result: Result) -> str:
    """The calibration report."""
    report = result["report"]
    blocks = [
        [
            f"The hospital with its default settings and {result['figures']['patients']:,} "
            "patients, read by the pipeline as the real ones are. Onsets were fitted to the "
            "published prevalences, the spread of stays was set by the published numbers. After "
            "an earlier look at this report, a few persistences and progressions were moved by "
            "hand.",
            *_about(result),
            "",
            *_sources(),
        ],
        ["### Patients and stays", "", *_sizes(report)],
        ["### Prevalence", "", *_prevalences(report)],
        ["### From one stay to the next", "", *_next_stays(report)],
        [f"![Simulated against published and UCI's rates]({FIGURE})"],
        ["### What occurs together", "", *_together(report)],
        ["### Deviations", "", *_deviations(report)],
    ]
    return "\n\n".join("\n".join(block) for block in blocks)


def ceiling_part(result: Result) -> str:
    """How far models stand from the references."""
    report = result["report"]
    counts = report["counts"]
    lines = [
        f"{result['data'].capitalize()}; {counts['train_pairs']:,} train pairs, "
        f"{counts['test_pairs']:,} test pairs of {counts['test_patients']:,} other patients "
        f"(prevalence {counts['test_prevalence']:.3f}; {counts['test_new_onset_rate']:.3f} where "
        "the history holds no such code). In brackets 95 % intervals over patients of the "
        f"difference to the reference ({report['draws']} bootstrap draws).",
        *_about(result),
        "",
        "On all test pairs, less the true risk given the hidden state:",
        "",
        *_distances(report["test"], "true_state"),
        "",
        f"On the {counts['replayed_pairs']:,} test pairs of {counts['replayed_patients']:,} "
        "patients whose records were replayed, less the best that the record alone allows "
        f"(estimated from a median of {counts['median_effective_particles']:,} effective draws):",
        "",
        *_distances(report["replayed"], "record"),
    ]
    return "\n".join(lines)


def _about(result: Result) -> list[str]:
    commit, python = str(result["commit"])[:12], result["machine"]["python"]
    return [f"Seed {result['seed']}, commit {commit}, Python {python}."]


def _sources() -> list[str]:
    return [
        "- **published**: Johnson et al. 2016, Sci Data 3:160035 (patients, stays, and of adults "
        "age, sex, death, length of stay); rows as MIT-LCP/mimic-code checks version 1.4; "
        "prevalences per ICU stay of adults in train and test of Harutyunyan et al. 2019, Sci Data "
        "6:96.",
        "- **demo**: MIMIC-III Clinical Database Demo 1.4: 100 patients, all of whom died; its "
        "pairs are few and half of them one patient's. Cells of fewer than five patients are left "
        "out (–). Its intervals are binomial (Wilson) and take stays for independent, which is too "
        "narrow.",
        "- **UCI**: Diabetes 130-US Hospitals (Strack et al. 2014): **diabetics all**, at most "
        "three diagnoses a stay, codes cut to three digits, 19 of the 25 phenotypes, no dates, no "
        "procedures, only drugs for diabetes.",
        "- **seen as UCI**: the simulated patients who are ever coded diabetic, and the first "
        "three diagnoses of each of their stays.",
    ]


def _sizes(report: Result) -> list[str]:
    sets, published = report["data_sets"], report["published"]
    simulated, demo, uci = sets["simulated"], sets["demo"], sets["uci"]
    real = {size["what"]: size["real"] for size in report["sizes"]}
    ours = {size["what"]: size["simulated"] for size in report["sizes"]}
    rows = [
        ["patients", simulated["patients"], published["patients"], demo["patients"],
         uci["patients"]],
        ["stays", simulated["stays"], published["stays"], demo["stays"], uci["stays"]],
        ["of them adults: patients, stays", f"{simulated['patients']:,}, {simulated['stays']:,}",
         f"{published['adult_patients']:,}, {published['adult_stays']:,}", None, None],
        ["patients with two stays or more", _several(simulated), published["patients_with_two"],
         _several(demo), _several(uci)],
        ["labelled pairs", simulated["pairs"], None, demo["pairs"], uci["pairs"]],
        ["women", _share(simulated["women"]), f"{published['adult_women']:.3f} (adults)",
         _share(demo["women"]), _share(uci["women"])],
        ["stays that end in death", _share(simulated["died"]),
         f"{published['adult_died']:.3f} (adults)", _share(demo["died"]), _share(uci["died"])],
    ]  # fmt: skip
    for key, said in NUMBERS.items():
        in_print = {"age_years": "adult_age", "stay_days": "adult_days"}.get(key)
        quartiles = in_print and [published[f"{in_print}_{q}"] for q in ("q1", "median", "q3")]
        told = f"{quartiles[1]} ({quartiles[0]}–{quartiles[2]}) (adults)" if quartiles else None
        numbers = [_numbers(data["numbers"][key]) for data in (simulated, demo, uci)]
        if key == "procedures":
            numbers[2] = None  # UCI has none
        rows.append([f"{said}: median (quartiles), mean", numbers[0], told, *numbers[1:]])
    for kind in ("diagnoses", "procedures", "drugs"):
        what = f"rows of {kind} per stay"
        demo_rows = f"{demo['rows'][kind] / demo['stays']:.1f}"
        rows.append([what, f"{ours[what]:.1f}", f"{real[what]:.1f}", demo_rows, None])
    for number in ("1", "2", "3", "4", "5", "6+"):
        counts = [data["stays_per_patient"].get(number) for data in (simulated, demo, uci)]
        stays = "stay" if number == "1" else "stays"
        rows.append([f"patients with {number} {stays}", counts[0], None, *counts[1:]])
    kinds = [kind for kind in simulated["admission_types"] if kind in uci["admission_types"]]
    for kind in kinds:
        shares = [_part(data, kind) for data in (simulated, demo, uci)]
        rows.append([f"admitted as {kind}", shares[0], None, *shares[1:]])
    return _table(["", "simulated", "MIMIC-III, published", "demo", "UCI"], rows)


def _several(data: Result) -> int:
    return int(data["patients"]) - int(data["stays_per_patient"]["1"])


def _part(data: Result, kind: str) -> str | None:
    count = data["admission_types"].get(kind)
    return None if count is None else f"{count / data['stays']:.3f}"


def _numbers(numbers: Mapping[str, float] | None) -> str | None:
    if numbers is None:
        return None
    low, middle, high, mean = (numbers[name] for name in ("q1", "median", "q3", "mean"))
    return f"{middle:.1f} ({low:.1f}–{high:.1f}), {mean:.1f}"


def _prevalences(report: Result) -> list[str]:
    sets = report["data_sets"]
    rows = [
        [
            name,
            _share(sets["simulated"]["phenotypes"][name]["stays"]),
            "/".join(f"{share:.3f}" for share in published),
            _few(sets["demo"]["phenotypes"][name]["stays"]),
            _rate_of(sets["simulated_as_uci"], name, "stays"),
            _rate_of(sets["uci"], name, "stays"),
        ]
        for name, published in report["published_prevalence"].items()
    ]
    heads = ["share of stays", "simulated", "published", "demo", "seen as UCI", "UCI"]
    return _table(heads, rows)


def _next_stays(report: Result) -> list[str]:
    sets = report["data_sets"]
    simulated, demo = sets["simulated"], sets["demo"]
    lines = [
        f"{simulated['pairs']:,} simulated pairs, {sets['simulated_as_uci']['pairs']:,} seen as "
        f"UCI, {sets['uci']['pairs']:,} of UCI, {demo['pairs']} of the demo, of "
        f"{demo['pair_patients']} patients. {_between(sets)}",
    ]
    heads = ["share of pairs", "simulated", "demo", "seen as UCI", "UCI"]
    for kind, title in RATES.items():
        rows = [
            [
                name,
                _share(rates[kind]),
                _few(demo["phenotypes"][name][kind]),
                _rate_of(sets["simulated_as_uci"], name, kind),
                _rate_of(sets["uci"], name, kind),
            ]
            for name, rates in simulated["phenotypes"].items()
        ]
        lines += ["", f"**{title}**", "", *_table(heads, rows)]
    return lines


def _between(sets: Result) -> str:
    """How UCI's persistence lies to the two views of the simulated one."""
    shares = [
        [sets[key]["phenotypes"][name]["persistence"]["share"] for key in VIEWS]
        for name, rates in sets["uci"]["phenotypes"].items()
        if rates["persistence"]
    ]
    inside = sum(min(few, every) <= real <= max(few, every) for few, real, every in shares)
    return (
        f"Of {len(shares)} phenotypes, UCI's P(next \\| now) lies for {inside} between that of "
        "the first three simulated diagnoses and that of all."
    )


def _rate_of(data: Result, name: str, kind: str) -> str | None:
    return _share(data["phenotypes"].get(name, {}).get(kind))


def _share(rate: Mapping[str, float] | None) -> str | None:
    return None if rate is None else f"{rate['share']:.3f}"


def _few(rate: Mapping[str, float] | None) -> str | None:
    """A rate of few, with its count and interval."""
    if rate is None:
        return None
    return f"{rate['count']}/{rate['of']} ({rate['low']:.2f}–{rate['high']:.2f})"


def _together(report: Result) -> list[str]:
    together = report["together"]
    uci, every, demo, both = (together[key] for key in ("uci", "uci_all", "demo", "demo_uci"))
    lines = [
        "For each two phenotypes the correlation (phi) over all stays. Rank correlation of these "
        f"numbers between simulated and real: {uci['spearman']:.2f} with UCI ({uci['pairs']} pairs "
        f"of phenotypes, seen as UCI; {every['spearman']:.2f} with all diagnoses of everybody), "
        f"{demo['spearman']:.2f} with the demo ({demo['pairs']} pairs). The two real ones agree "
        f"with each other to {both['spearman']:.2f} ({both['pairs']} pairs), as many simulated "
        f"patients as the demo has with all of them to {together['few']:.2f}: the demo's numbers "
        "are noisy, and UCI's three diagnoses crowd each other out. The largest differences:",
    ]
    for title, found in (("UCI", uci), ("demo", demo)):
        rows = [
            [f"{pair['first']} – {pair['second']}", _signed(pair["simulated"], 2),
             _signed(pair["real"], 2)]
            for pair in found["largest"]
        ]  # fmt: skip
        lines += ["", *_table([f"phi, against {title}", "simulated", title], rows)]
    return lines


def _deviations(report: Result) -> list[str]:
    found = report["deviations"]
    lines = [f"By rule, {len(found)} in all:", ""]
    for rule, said in RULES.items():
        mine = [one for one in found if one["rule"] == rule]
        cases = [f"{one['what']} ({one['simulated']}, real {one['real']})" for one in mine]
        listed = "; ".join(cases)
        lines.append(f"- {said}: {listed or 'none'}.")
    return [*lines, "", "By construction:", "", *(f"- {text}" for text in STRUCTURAL)]


def _distances(scored: Result, reference: str) -> list[str]:
    rows = []
    for model, said in MODELS.items():
        if model in scored:
            cells = [_distance(scored[model][metric], f"less_{reference}") for metric in METRICS]
            rows.append([said, *cells])
    return _table(["", *METRICS.values()], rows)


def _distance(cells: Mapping[str, Mapping[str, float | None]], key: str) -> str:
    """A score, and its distance with interval if it is no reference's own."""
    value = f"{cells['value']['value']:.3f}"
    if key not in cells:
        return value
    low, high = cells[key]["low"], cells[key]["high"]
    return f"{value} [{_signed(low)}, {_signed(high)}]"


def _signed(value: float | None, digits: int = 3) -> str:
    """A number with its sign.

    >>> _signed(-0.0312), _signed(-0.001, 2)
    ('−0.031', '+0.00')
    """
    return "–" if value is None else f"{value:+z.{digits}f}".replace("-", "−")


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A Markdown table; None is a dash."""
    return [
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
        *(f"| {' | '.join(map(_cell, row))} |" for row in rows),
    ]


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else str(value)
