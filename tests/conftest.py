"""What tests share: where real data are, if they are; a bundle of a tiny student."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("CKD_EHR_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set CKD_EHR_REAL_DATA")
    return folder


@pytest.fixture(scope="session")
def finished_run_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The stages' folders of a finished run of a tiny student; not to be changed."""
    from tiny_bundle import write_finished_run

    return write_finished_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def bundle(finished_run_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its bundle with both graphs, whose gates are wide: a random student is no steady one."""
    from ckd_ehr.release import gates
    from ckd_ehr.release.bundle import build_bundle
    from tiny_bundle import answer, tiny_config

    out = tmp_path_factory.mktemp("release") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gates, "LIMITS", dict.fromkeys(gates.LIMITS, 1.0))
        patch.setattr(gates, "PADDING", dict.fromkeys(gates.PADDING, 1.0))
        build_bundle(
            finished_run_folders, tiny_config(), out, answer=answer, precisions=("fp32", "int8")
        )
    return out
