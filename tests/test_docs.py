"""Docs are in sync with the code, and no tracked file names the machine it was written on."""

import importlib.util
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from ckd_ehr.cli import commands
from ckd_ehr.contracts.config import RunConfig, Section
from ckd_ehr.contracts.inputs import read_histories

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\(([^)#:\s]+)\)")


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = load_generator()
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def tracked_files() -> list[Path]:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("name", sorted(str(p.relative_to(ROOT)) for p in GENERATOR.generated()))
def test_a_generated_file_is_in_sync(name: str) -> None:
    wanted = GENERATOR.generated()[ROOT / name]
    assert (ROOT / name).read_text(encoding="utf-8") == wanted, f"{name} is stale: make docs"


RESULTS = ROOT / "benchmarks" / "results"


MEASURED = sorted(str(path.relative_to(ROOT)) for path in GENERATOR.results(RESULTS))


@pytest.mark.parametrize("name", MEASURED)
def test_what_benchmarks_measured_is_in_sync_with_their_files(name: str) -> None:
    wanted = GENERATOR.results(RESULTS)[ROOT / name]
    assert (ROOT / name).read_text(encoding="utf-8") == wanted, f"{name} is stale: make results"


def test_the_simulators_page_holds_what_was_measured() -> None:
    figures = json.loads((RESULTS / "calibration.json").read_text(encoding="utf-8"))["figures"]
    page = (ROOT / "docs" / "simulator.md").read_text(encoding="utf-8")
    assert f"By rule, {figures['deviations']} in all" in page
    assert f"| patients | {figures['patients']:,} |" in page


def settings(model: type[Section], name: str = "") -> Iterator[tuple[str, str | None]]:
    for key, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from settings(kind, f"{name}{key}.")
        else:
            yield f"{name}{key}", field.description


@pytest.mark.parametrize(("key", "description"), list(settings(RunConfig)))
def test_every_setting_is_described_and_listed(key: str, description: str | None) -> None:
    assert description
    assert f"| `{key}` |" in (ROOT / "docs" / "config.md").read_text(encoding="utf-8")


def test_every_command_is_documented_with_an_example() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for name, command in commands.commands.items():
        assert f"## ckd-ehr {name}\n" in page
        assert name == "doctor" or "Example" in (command.help or "")


def test_the_example_of_a_prediction_is_valid() -> None:
    histories = read_histories(ROOT / "docs" / "examples" / "visits.jsonl")
    assert [len(history) for history in histories] == [2, 1]


def test_the_schema_names_the_fields_of_the_example() -> None:
    schema = json.loads((ROOT / "docs" / "visits.schema.json").read_text(encoding="utf-8"))
    lines = (ROOT / "docs" / "examples" / "visits.jsonl").read_text().splitlines()
    for patient in map(json.loads, lines):
        assert set(patient) <= set(schema["properties"])
        for visit in patient["visits"]:
            assert set(visit) <= set(schema["$defs"]["VisitInput"]["properties"])
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_no_tracked_file_names_the_machine_it_was_written_on() -> None:
    places = [f"/{name}/" for name in ("work", "root")]
    for path in tracked_files():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        assert not [place for place in places if place in text], path.relative_to(ROOT)


def test_results_are_written_from_the_benchmarks_files(tmp_path: Path) -> None:
    result = {
        "name": "ingest",
        "commit": "0123456789abcdef",
        "machine": {"processor": "A processor", "cores": 2, "python": "3.11.7"},
        "data": "simulated",
        "seed": 3,
        "figures": {"seconds": 1.25, "rows": 4_200_000},
    }
    (tmp_path / "ingest.json").write_text(json.dumps(result))
    page = GENERATOR.results_page(tmp_path, tmp_path / "scores")
    assert "## ingest" in page
    assert "| seconds | 1.25 |" in page
    assert "| rows | 4,200,000 |" in page
    assert "Seed 3, commit 0123456789ab, A processor, 2 cores" in page
    lacking = re.findall(r"## (\w+)\n\nNot run yet\.", page)
    assert lacking == ["bootstrap", "label", "latency", "narratives", "simulate", "train"]


def test_scores_of_soft_labels_stand_in_the_results(tmp_path: Path) -> None:
    figure = {"value": 0.25, "low": 0.2, "high": 0.3}
    figures = dict.fromkeys(("macro_auprc", "macro_auroc", "ece"), figure)
    fold = {"pairs": 3000, "seconds": 12.3, "precision": "fp32"}
    scores = {
        "name": "uci",
        "data_set": "uci_diabetes",
        "labels": 19,
        "commit": "0123456789abcdef",
        "machine": {"processor": "A processor"},
        "seed": 0,
        "split_seed": 1,
        "bootstrap_draws": 2000,
        "pairs": {"train": 6000, "tuning": 499, "held_out": 1996},
        "teacher": {
            "settings": {"model": "pypi://a==1/b/Small.gguf", "recipe": "joint", "epochs": 1.0},
            "reads": {"max_tokens": 128},
            "training": {"fold_0": fold, "fold_1": fold},
        },
        "mean_weights": {"teacher": 0.4},
        "sources": {"baseline: carry_forward": figures, "teacher": figures, "committee": figures},
        "committee_less": {
            "teacher": {"macro_auprc": {"value": 0.01, "low": -0.001, "high": 0.02}}
        },
    }
    (tmp_path / "sources-uci.json").write_text(json.dumps(scores))
    page = GENERATOR.results_page(tmp_path / "none", tmp_path)
    assert "## Soft labels: uci" in page
    assert (
        "Small.gguf, joint recipe, 2 folds of 3,000 to 3,000 pairs, 1 epochs, at most 128" in page
    )
    row = "| teacher | 0.40 | 0.250 [0.200, 0.300] | 0.250 [0.200, 0.300] | 0.250 [0.200, 0.300] "
    assert f"{row}| +0.010 [−0.001, +0.020] |" in page
