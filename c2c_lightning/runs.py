"""Where runs are kept, what lies where in a run's folder, and how a run is cut off."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from c2c_lightning.errors import UserError

RUNS = Path("runs")
CONFIG_FILE, SUMMARY_FILE, RESULTS_FILE = "config.yaml", "summary.json", "results.json"
PROGRESS_FILE, TRIAL_FILE, STOP_FILE = "progress.jsonl", "trial.yaml", "stop"
CHECKPOINTS, LAST, FUSER = "checkpoints", "last.ckpt", "fuser"


class Interrupted(SystemExit):
    """A run was asked to stop and can be resumed; the exit code is the shell's for the signal."""


def run_of(fuser: str) -> Path | None:
    """The folder of the run that a fuser or a checkpoint is of, if it lies where runs put theirs."""
    path = Path(fuser)
    folders = (path, *path.parents[:2]) if path.exists() else ()
    return next((folder for folder in folders if (folder / CONFIG_FILE).exists()), None)


def newest_fuser(runs: Path = RUNS) -> Path:
    """The fuser of the run that was begun last, or its newest checkpoint if it has not ended.

    Raises:
        UserError: no run has either.
    """
    begun = sorted(runs.glob(f"*/{CONFIG_FILE}"), key=lambda file: file.stat().st_mtime, reverse=True)
    for folder in (file.parent for file in begun):
        newest = max((folder / CHECKPOINTS).glob("*.ckpt"), key=lambda file: file.stat().st_mtime, default=None)
        for fuser in (folder / FUSER, newest):
            if fuser is not None and fuser.exists():
                return fuser
    raise UserError(f"model.fuser is last, but {runs}/ has no run with a fuser: train one, or name a fuser's folder.")


def new_folder(parent: Path = RUNS, name: str = "") -> Path:
    """A folder of this moment's own; of several processes that ask for one, the first one's is to be taken.

    Args:
        parent: where it is.
        name: what comes after the moment.
    """
    first = parent / f"{datetime.now():%Y-%m-%d_%H-%M-%S}{name and '-'}{name}"
    folder, number = first, 2
    while folder.exists():
        folder, number = first.with_name(f"{first.name}-{number}"), number + 1
    return folder


def make_folder(folder: Path, key: str) -> None:
    """Makes a folder that a user has named as `key`, before anything is computed for it.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key} {folder} cannot be made: {error.strerror}. Name another folder.") from error
