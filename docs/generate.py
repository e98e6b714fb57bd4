"""Docs that cannot lie: everything in docs/ and README.md that is derived from the code.

In: the settings, the stage table, the commands, the modules' first lines, benchmark files. Out:
docs/config.md, docs/cli.md, the JSON Schemas, the marked parts of README.md and
docs/architecture.md, and with `--results` docs/results.md and the measured parts of
docs/simulator.md. `tests/test_docs.py` fails while anything is out of date. Ignores: prose.
"""

import argparse
import ast
import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from calibration_figure import FIGURE, calibration_figure
from ckd_ehr.cli import commands
from ckd_ehr.contracts.config import RunConfig, Section
from ckd_ehr.contracts.inputs import PatientInput
from ckd_ehr.contracts.phenotype import PHENOTYPES_25
from ckd_ehr.metrics.results import Metrics
from ckd_ehr.pipeline import STAGES
from distillation_page import distillation_part
from scores_page import scores_part
from simulator_page import calibration_part, ceiling_part

ROOT = Path(__file__).parent.parent
BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "min_length": "length ≥"}
LONG_DEFAULT = 100
HELP_WIDTH = 96
# What the project has to measure; a benchmark without a file is said to be lacking.
BENCHMARKS = ("simulate", "ingest", "narratives", "label", "train", "bootstrap", "latency")


def generated() -> dict[Path, str]:
    """Every generated file with the text it should have."""
    return {
        ROOT / "README.md": with_part(ROOT / "README.md", "tree", tree()),
        ROOT / "docs/architecture.md": with_part(
            ROOT / "docs/architecture.md", "stages", stage_table(), "run", run_folder()
        ),
        ROOT / "docs/config.md": config_page(),
        ROOT / "docs/cli.md": cli_page(),
        ROOT / "docs/visits.schema.json": schema(PatientInput, "One line of visits.jsonl"),
        ROOT / "docs/metrics.schema.json": schema(Metrics, "metrics.json of an evaluation"),
    }


def with_part(path: Path, *names_and_texts: str) -> str:
    """The file's text with each named part between its markers replaced."""
    text = path.read_text(encoding="utf-8")
    for name, part in zip(names_and_texts[::2], names_and_texts[1::2], strict=True):
        pattern = rf"(<!-- {name}: [^\n]* -->\n).*?(<!-- end of {name} -->)"
        text, found = re.subn(
            pattern, lambda m, new=part: f"{m[1]}{new}\n{m[2]}", text, flags=re.DOTALL
        )
        if found != 1:
            raise SystemExit(f"{path}: the markers of part '{name}' are missing")
    return text


def tree() -> str:
    """The source tree, one line a file: what its docstring's first line says."""
    source = ROOT / "src/ckd_ehr"
    lines = ["src/ckd_ehr/"]
    for folder in sorted(path.parent for path in source.rglob("__init__.py")):
        depth = len(folder.relative_to(source).parts)
        if folder != source:
            lines.append(_entry(f"{'  ' * depth}{folder.name}/", folder / "__init__.py"))
        lines += [
            _entry(f"{'  ' * (depth + 1)}{path.name}", path)
            for path in sorted(folder.glob("*.py"))
            if path.name != "__init__.py"
        ]
    lines += [
        "configs/                      settings of runs on real records",
        "docs/                         architecture, settings, commands, decisions, log",
        "tests/                        mirror src/; tests/tiny.py makes random models",
        "benchmarks/                   each prints a table and writes a JSON file",
    ]
    return "\n".join(["```", *lines, "```"])


def _entry(name: str, path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return f"{name:<29} {docstring.splitlines()[0].rstrip('.')}"


def stage_table() -> str:
    """The stages as a Markdown table."""
    rows = ["| stage | what | settings | reads | writes |", "|---|---|---|---|---|"]
    for stage in STAGES:
        cells = (_codes(stage.sections), _codes(stage.reads) or "the source", _codes(stage.writes))
        rows.append(f"| `{stage.name}` | {stage.summary} | {' | '.join(cells)} |")
    return "\n".join(rows)


def run_folder() -> str:
    """What a run's folder holds."""
    lines = ["runs/NAME/", f"  {'run.json':<17} resolved config, command, commit, machine"]
    for number, stage in enumerate(STAGES, start=1):
        folder = f"{number:02d}_{stage.name}/"
        lines.append(f"  {folder:<17} {', '.join(stage.writes)}, manifest.json")
    return "\n".join(["```", *lines, "```"])


def _codes(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def config_page() -> str:
    """Every setting with its type, default and description."""
    lines = [
        "# Settings",
        "",
        "Generated from `config*.py` in `src/ckd_ehr/contracts/`. A config is",
        "a YAML file with these keys; any can be overridden: `ckd-ehr run CONFIG seed=2`. Unknown",
        "keys are refused. The whole is checked before any work.",
        "",
    ]
    for name, section in _sections(RunConfig, ""):
        lines += [f"## {name or 'Top level'}", "", _paragraph(section), ""]
        keys = [key for key, field in section.model_fields.items()
                if not _is_section(field.annotation)]  # fmt: skip
        own = {f"{name}.{key}" for key in keys}
        used = [
            stage.name
            for stage in STAGES
            if any(part in own or f"{name}.".startswith(f"{part}.") for part in stage.sections)
        ]
        if name and used:
            lines += [f"A change runs {_codes(used)} again, and what follows.", ""]
        lines += ["| key | type | default | what |", "|---|---|---|---|"]
        for key in keys:
            lines.append(_setting(f"{name}.{key}" if name else key, section.model_fields[key]))
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _paragraph(section: type[BaseModel]) -> str:
    return " ".join((section.__doc__ or "").split())


def _sections(model: type[Section], name: str) -> Iterator[tuple[str, type[Section]]]:
    yield name, model
    for key, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _sections(kind, f"{name}.{key}" if name else key)


def _is_section(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def _setting(dotted: str, field: FieldInfo) -> str:
    limits = [
        f"{sign} {getattr(rule, name)}"
        for rule in field.metadata
        for name, sign in BOUNDS.items()
        if getattr(rule, name, None) is not None
    ]
    kind = ", ".join([_kind(field.annotation), *limits])
    return f"| `{dotted}` | {kind} | {_default(field)} | {field.description or ''} |"


def _kind(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(part) for part in parts)
    if origin is tuple:
        return f"list of {_kind(parts[0])}"
    if origin is dict:
        return f"mapping of {_kind(parts[1])}"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    names |= {Path: "path", types.NoneType: "null"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)).lower())


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if default == PHENOTYPES_25:
        return "the 25 in `contracts/phenotype.py`"
    if isinstance(default, tuple):
        return f"`{json.dumps(list(default))}`"
    is_word = default is None or isinstance(default, bool)
    shown = json.dumps(default) if is_word else str(default)
    return f"`{shown}`" if len(shown) <= LONG_DEFAULT else "see the source"


def cli_page() -> str:
    """The help of every command."""
    lines = ["# Commands", "", "Generated from `ckd-ehr --help` and the help of each command.", ""]
    for name in ("", *sorted(commands.commands)):
        lines += [f"## ckd-ehr {name}".rstrip(), "", "```", help_text(name), "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def help_text(name: str) -> str:
    """What `ckd-ehr NAME --help` prints."""
    group = click.Context(
        commands,
        info_name="ckd-ehr",
        terminal_width=HELP_WIDTH,
        help_option_names=commands.context_settings["help_option_names"],
    )
    if not name:
        return _trimmed(commands.get_help(group))
    command = commands.commands[name]
    context = click.Context(command, parent=group, info_name=name, terminal_width=HELP_WIDTH)
    return _trimmed(command.get_help(context))


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()


def schema(model: type[BaseModel], title: str) -> str:
    """The JSON Schema of what a model reads or writes."""
    described = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **{k: v for k, v in model.model_json_schema().items() if k != "title"},
    }
    return json.dumps(described, indent=1, ensure_ascii=False) + "\n"


def results(folder: Path) -> dict[Path, str]:
    """Every file that is made of what benchmarks wrote, with the text it should have."""
    texts = {ROOT / "docs/results.md": results_page(folder, ROOT / "docs/results")}
    measured = {name: folder / f"{name}.json" for name in ("calibration", "ceiling")}
    if all(path.exists() for path in measured.values()):
        calibration, ceiling = (json.loads(path.read_text("utf-8")) for path in measured.values())
        texts[ROOT / "docs/simulator.md"] = with_part(
            ROOT / "docs/simulator.md",
            "calibration", calibration_part(calibration), "ceiling", ceiling_part(ceiling),
        )  # fmt: skip
        texts[ROOT / "docs" / FIGURE] = calibration_figure(calibration)
    return texts


def results_page(folder: Path, scores: Path) -> str:
    """docs/results.md from the files that benchmarks and `signals score` wrote."""
    lines = [
        "# Results",
        "",
        "Generated by `make results` from the files of `make bench`, and of "
        "`ckd-ehr signals score RUN --json docs/results/sources-NAME.json`, and of "
        "`benchmarks/studies/distillation.py RUN --out docs/results/distillation`.",
        "",
    ]
    for path in sorted(scores.glob("sources-*.json")):
        lines += scores_part(json.loads(path.read_text(encoding="utf-8")))
    studied = sorted((scores / "distillation").glob("*.json"))
    lines += distillation_part([json.loads(path.read_text("utf-8")) for path in studied])
    for name in sorted({*BENCHMARKS, *(path.stem for path in folder.glob("*.json"))}):
        path = folder / f"{name}.json"
        if path.exists():
            lines += _result(json.loads(path.read_text(encoding="utf-8")))
        else:
            lines += [f"## {name}", "", "Not run yet.", ""]
    return "\n".join(lines).rstrip() + "\n"


def _result(result: Mapping[str, Any]) -> list[str]:
    machine = result["machine"]
    about = (
        f"Data: {result['data']}. Seed {result['seed']}, commit {str(result['commit'])[:12]}, "
        f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}."
    )
    rows = [f"| {name} | {_figure(value)} |" for name, value in result["figures"].items()]
    return [f"## {result['name']}", "", about, "", "| figure | value |", "|---|---|", *rows, ""]


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def main() -> None:
    """Write what is generated; `--results` writes what benchmarks measured instead."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--results", action="store_true", help="write what benchmarks measured")
    measured = parser.parse_args().results
    texts = results(ROOT / "benchmarks/results") if measured else generated()
    for path, text in texts.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
