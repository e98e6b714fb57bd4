"""Training followed elsewhere: Hugging Face Trainer's own reports to TensorBoard, MLflow, W&B.

In: the trackers that a config names. Out: what TrainingArguments need for them. Off by default.
Ignores: what is reported; it is losses, scores and settings, never a narrative.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ckd_ehr.contracts.errors import CkdEhrError
from ckd_ehr.contracts.runs import StageContext

STEPS_A_REPORT = 25
TENSORBOARD_FOLDER = "TENSORBOARD_LOGGING_DIR"  # where Transformers' callback looks


def refuse_absent(trackers: Sequence[str]) -> None:
    """An error where a tracker's package is not installed.

    >>> refuse_absent(())
    """
    for name in trackers:
        if find_spec(name) is None:
            raise CkdEhrError(
                f"trackers: the package '{name}' is not installed; install it with: "
                f"pip install {name}, or leave it out of trackers"
            )


@dataclass(frozen=True)
class Tracking:
    """Which trackers follow a training, and the folder of those that write files."""

    trackers: tuple[str, ...] = ()
    folder: Path | None = None

    @classmethod
    def of(cls, context: StageContext) -> "Tracking":
        """Of a run: files go beside its stages' folders, which are replaced when they run again."""
        return cls(context.config.trackers, context.folder.parent / "tensorboard")

    def arguments(self, title: str) -> dict[str, object]:
        """Of TrainingArguments; without a tracker nothing is noted between evaluations.

        >>> Tracking().arguments("student (hard)")
        {'report_to': [], 'logging_strategy': 'no'}
        """
        if not self.trackers:
            return {"report_to": [], "logging_strategy": "no"}
        return {
            "report_to": list(self.trackers),
            "run_name": title,
            "logging_strategy": "steps",
            "logging_steps": STEPS_A_REPORT,
        }

    @contextmanager
    def place(self, title: str) -> Iterator[None]:
        """While a Trainer is made: where TensorBoard's files go, unless the user has said so."""
        if self.folder is None or TENSORBOARD_FOLDER in os.environ:
            yield
            return
        name = re.sub(r"\W+", "_", title).strip("_")
        os.environ[TENSORBOARD_FOLDER] = str(self.folder / name)
        try:
            yield
        finally:
            del os.environ[TENSORBOARD_FOLDER]


UNTRACKED = Tracking()
