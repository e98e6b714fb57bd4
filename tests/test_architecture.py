"""The order of the rooms: a module imports from its own room and the rooms before it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "ckd_ehr"
ROOMS = sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))
MODULES = sorted(path for room in ROOMS for path in (SOURCE / room).rglob("*.py"))
HEAVY = {"torch", "transformers", "peft", "accelerate", "safetensors", "gguf"}


def imported(path: Path) -> Iterator[str]:
    """Every module that this one imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def names(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def test_the_rooms_stand_in_flow_order() -> None:
    assert ROOMS == [
        "contracts",
        "data",
        "knowledge",
        "learning",
        "metrics",
        "release",
        "serving",
    ]


@pytest.mark.parametrize("path", MODULES, ids=names)
def test_a_module_imports_only_from_its_room_and_those_before(path: Path) -> None:
    room = path.relative_to(SOURCE).parts[0]
    allowed = ROOMS[: ROOMS.index(room) + 1]
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "ckd_ehr" and parts[1:] not in ([], ["__version__"]):
            assert parts[1] in allowed, f"{names(path)} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=names)
def test_heavy_imports_stay_in_learning_and_the_export(path: Path) -> None:
    if path.relative_to(SOURCE).parts[0] != "learning" and names(path) != "release/export.py":
        assert not {name.split(".")[0] for name in imported(path)} & HEAVY


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=names)
def test_every_module_says_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring
    assert docstring.splitlines()[0].endswith((".", "?"))


def test_command_line_and_serving_load_no_heavy_package() -> None:
    code = (
        "import sys, ckd_ehr.cli, ckd_ehr.doctor, ckd_ehr.display, ckd_ehr.predictions;"
        "import ckd_ehr.serving.engine, ckd_ehr.serving.scoring_files;"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
