"""Where runs are kept, what lies where in a run's folder, and how a run is cut off."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from c2c_lightning.errors import UserError

RUNS = Path("runs")
CONFIG_FILE, SUMMARY_FILE, RESULTS_FILE = "config.yaml", "summary.json", "results.json"
PROGRESS_FILE, TRIAL_FILE, STOP_FILE = "progress.jsonl", "trial.yaml", "stop"
CHECKPOINTS, LAST, FUSER = "checkpoints", "last.ckpt", "fuser"
LOCK_FILE = ".lock"


class Interrupted(SystemExit):
    """A run was asked to stop and can be resumed; the exit code is the shell's for the signal."""


def run_of(fuser: str) -> Path | None:
    """The folder of the run that a fuser or a checkpoint is of, if it lies where runs put theirs."""
    path = Path(fuser)
    folders = (path, *path.parents[:2]) if path.exists() else ()
    return next((folder for folder in folders if (folder / CONFIG_FILE).exists()), None)


def begun(folders: Iterable[Path]) -> list[Path]:
    """Those of some folders that hold a run, the one begun last first."""
    configs = [folder / CONFIG_FILE for folder in folders if (folder / CONFIG_FILE).exists()]
    return [file.parent for file in sorted(configs, key=lambda file: file.stat().st_mtime, reverse=True)]


def checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints, whole or not, newest first."""

    def age(file: Path) -> tuple[bool, int]:
        step = re.search(r"\d+", file.stem)
        return file.name == LAST, int(step[0]) if step else 0

    return sorted((run / CHECKPOINTS).glob("*.ckpt"), key=age, reverse=True)


def cut_off_early(run: Path) -> bool:
    """Whether a folder holds a run that left nothing to go on from, so that it may begin again in its folder."""
    left = [run / FUSER, run / SUMMARY_FILE, *checkpoints(run)]
    return (run / CONFIG_FILE).exists() and not any(path.exists() for path in left)


def new_folder(parent: Path = RUNS, name: str = "") -> Path:
    """A folder of this moment's own, made here and now, so that no other process takes the same.

    The name comes after the moment. Raises UserError if it cannot be made.
    """
    first = f"{datetime.now():%Y-%m-%d_%H-%M-%S}{name and '-'}{name}"
    for number in count(1):
        folder = parent / (first if number == 1 else f"{first}-{number}")
        make_folder(parent, "the folder of runs")
        try:
            folder.mkdir()
            return folder
        except (FileExistsError, FileNotFoundError):  # or another process has just given back the only run in `parent`
            continue
        except OSError as error:
            raise UserError(f"{folder} cannot be made: {error.strerror}.") from error


@contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """Keeps other processes from a folder while it is written to, or until this process ends in whatever way.

    Raises:
        UserError: another process holds it, which is probably a `what` too.
    """
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise UserError(f"another {what} is writing to {folder}: wait for its end.") from error
    try:
        yield
    finally:
        if not (folder / CONFIG_FILE).exists():  # refused, and so to leave no trace
            (folder / LOCK_FILE).unlink(missing_ok=True)
        lock.release()


def give_back(folder: Path) -> None:
    """Removes a folder that was claimed if nothing was put into it."""
    with suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()


def make_folder(folder: Path, key: str) -> None:
    """Makes a folder that a user has named as `key`, before anything is computed for it; a UserError if it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{key} {folder} cannot be made: {error.strerror}. Name another folder.") from error
