"""Soft labels' scores as a part of docs/results.md.

In: what `ckd-ehr signals score --json` wrote. Out: lines of Markdown. Ignores: how it was scored.
"""

from collections.abc import Mapping
from typing import Any

COLUMNS = ("source", "weight", "macro-AUPRC", "macro-AUROC", "ECE", "committee less it, AUPRC")


def scores_part(scores: Mapping[str, Any]) -> list[str]:
    """A heading, what was scored, and a row for each source."""
    pairs, teacher = scores["pairs"], scores["teacher"]
    about = (
        f"Data: {scores['data_set']}, {scores['labels']} labels, {pairs['train']:,} labelled "
        f"train, {pairs['tuning']:,} tuning, {pairs['held_out']:,} held_out pairs. Split seed "
        f"{scores['split_seed']}, training seed {scores['seed']}, commit "
        f"{str(scores['commit'])[:12]}, {scores['machine']['processor']}. Teacher: "
        f"{_model(teacher['settings']['model'])}, {_training(teacher)}. Intervals: 95 %, patient "
        f"bootstrap of {scores['bootstrap_draws']:,} draws."
    )
    rows = [
        f"| {name} | {_weight(scores, name)} | {_shown(figures['macro_auprc'])} | "
        f"{_shown(figures['macro_auroc'])} | {_shown(figures['ece'])} | {_gain(scores, name)} |"
        for name, figures in scores["sources"].items()
    ]
    head = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    return [f"## Soft labels: {scores['name']}", "", about, "", *head, *rows, ""]


def _model(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _training(teacher: Mapping[str, Any]) -> str:
    settings, folds = teacher["settings"], list(teacher["training"].values())
    seconds = [round(fold["seconds"]) for fold in folds]
    return (
        f"{settings['recipe']} recipe, {len(folds)} folds of {min(f['pairs'] for f in folds):,} to "
        f"{max(f['pairs'] for f in folds):,} pairs, {settings['epochs']:g} epochs, at most "
        f"{teacher['reads']['max_tokens']} tokens, {folds[0]['precision']}, "
        f"{' and '.join(f'{s:,}' for s in seconds)} s"
    )


def _weight(scores: Mapping[str, Any], name: str) -> str:
    weight = scores["mean_weights"].get(name)
    return "" if weight is None else f"{weight:.2f}"


def _gain(scores: Mapping[str, Any], name: str) -> str:
    gain = scores["committee_less"].get(name, {}).get("macro_auprc")
    return "" if gain is None else _shown(gain, signed=True)


def _shown(figure: Mapping[str, Any], *, signed: bool = False) -> str:
    values = [figure[key] for key in ("value", "low", "high")]
    if values[0] is None:
        return "–"
    value, low, high = (
        "" if v is None else (f"{v:+.3f}" if signed else f"{v:.3f}").replace("-", "−")
        for v in values
    )
    return f"{value} [{low}, {high}]" if low else value
