"""From an exception to one clear message on stderr and an exit status.

2: something the user can mend. 130: interrupted. Anything else keeps its traceback: it is a bug.
"""

import errno

import click

from ckd_ehr.contracts.errors import CkdEhrError

FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_TEXT = "No space left on device"
TRAINING = (
    "accelerate", "gguf", "peft", "safetensors", "sentencepiece", "tokenizers", "torch",
    "transformers",
)  # fmt: skip
EXTRA_OF = dict.fromkeys(TRAINING, "train") | {
    "onnx": "release",
    "onnxscript": "release",
    "onnxruntime": "serve",
}
ELSEWHERE = "give another place: --out for results, CKD_EHR_CACHE for weights, data.root for tables"
PLACES: dict[int | None, str] = {
    errno.EACCES: f"change its permissions, or {ELSEWHERE}",
    errno.EPERM: f"change its permissions, or {ELSEWHERE}",
    errno.EROFS: f"this disk cannot be written to; {ELSEWHERE}",
    errno.ENOTDIR: f"a part of this path is a file; {ELSEWHERE}",
    errno.EEXIST: f"a file stands where a folder is needed; {ELSEWHERE}",
}
RESUME = "the same command resumes"


def exit_status_of(error: Exception) -> int:
    """Say what went wrong on stderr; the exit status. Raises what is not for users again."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, click.Abort):  # click's word for KeyboardInterrupt
        click.echo(f"\ninterrupted; {RESUME}", err=True)
        return 130
    message = message_of(error)
    if message is None:
        raise error
    click.echo(click.style("error: ", fg="red", bold=True) + message, err=True)
    return 2


def message_of(error: BaseException) -> str | None:
    """What a user should read of an exception; None where it is a bug.

    >>> message_of(CkdEhrError("runs/demo: no run here"))
    'runs/demo: no run here'
    >>> message_of(ZeroDivisionError()) is None
    True
    """
    if isinstance(error, CkdEhrError):
        return str(error)
    if _is_full(error):
        place = getattr(error, "filename", None) or "the disk that is written to"
        return f"{place}: no space left; earlier results are intact. Free some space: {RESUME}"
    if isinstance(error, OSError) and error.errno in PLACES:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; {PLACES[error.errno]}"
    if isinstance(error, MemoryError):
        detail = f" ({error})" if str(error) else ""
        return f"not enough memory{detail}; take fewer patients, or a machine with more"
    if type(error).__name__ == "OutOfMemoryException":  # of DuckDB
        return (
            "DuckDB needs more memory than engine.memory_limit allows, even with spilling; give "
            "it more: engine.memory_limit=4GB"
        )
    if type(error).__name__ == "SafetensorError":
        return f"a weights file is damaged ({error}); delete its stage's folder and run again"
    if isinstance(error, ModuleNotFoundError):
        extra = EXTRA_OF.get((error.name or "").split(".")[0])
        return extra and f"{error.name} is not installed; pip install 'ckd-ehr[{extra}]'"
    return None


def _is_full(error: BaseException) -> bool:
    """Whether a full disk is the cause; some libraries tell it in their message only."""
    known: BaseException | None = error
    while known is not None:
        if isinstance(known, OSError) and known.errno in FULL:
            return True
        if FULL_TEXT in str(known):
            return True
        known = known.__cause__ or known.__context__
    return False
