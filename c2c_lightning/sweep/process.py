"""A training process of its own: its environment, its log, its end.

This module knows neither Ray nor torch, so that what supervises a process is light.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

LOG = "log.txt"
LOCK = "lock"
DIES_WITH_PARENT = "C2C_DIES_WITH_PARENT"  # the parent's process id
# What tells a process that it is one of several; a trial inside such a job is none of its ranks.
FOREIGN = re.compile(
    r"(SLURM|PMI|PMIX|OMPI|TORCHELASTIC)_.*|LOCAL_RANK|RANK|GROUP_RANK|ROLE_RANK|NODE_RANK|LOCAL_WORLD_SIZE"
    r"|WORLD_SIZE|MASTER_ADDR|MASTER_PORT|RAY_.*"
)
SECONDS_TO_STOP = 60.0
# For whoever was at work in a folder before: it has been told to stop, and may have a long step to end and to save.
SECONDS_TO_WAIT = 180.0
PR_SET_PDEATHSIG = 1


class FolderBusy(Exception):
    """Another process has not left a trial's folder in time."""


@contextmanager
def held(folders: Sequence[Path], seconds: float = SECONDS_TO_WAIT) -> Iterator[dict[Path, TextIO]]:
    """Holds trials' folders, so that what lies in them is nobody else's to change; yields their locks.

    A process that is started with the locks holds them for as long as it lives. So a trial that is begun again,
    here or on another machine, waits for the end of the one before it, and two never write to one folder. While one is
    waited for, its log says for whom; raises FolderBusy if not all are free after so many seconds.
    """
    deadline = time.monotonic() + seconds
    with ExitStack() as stack:
        locks = {}
        for folder in sorted(folders):  # in one order everywhere, or two might wait for each other
            locks[folder] = stack.enter_context((folder / LOCK).open("a", encoding="utf-8"))
            _take(locks[folder], folder, deadline)
            _sign(locks[folder], os.getpid())
        yield locks


def _take(lock: TextIO, folder: Path, deadline: float) -> None:
    began, said = time.monotonic(), False
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = (folder / LOCK).read_text(encoding="utf-8") or "another process"
        except OSError as error:
            add_to_log(folder, f"{folder} cannot be locked ({error.strerror}): its storage is mounted without flock")
            raise
        now = time.monotonic()
        if now > deadline:
            message = f"gave up waiting for {holder}, which is still at work in {folder}: end it, and begin again"
            add_to_log(folder, message)
            raise FolderBusy(message)
        if not said and now > began + 0.5:  # not of whoever only looks whether the folder is free
            add_to_log(folder, f"waiting for {holder}, which is still at work in {folder}")
            said = True
        time.sleep(0.1)


def _sign(lock: TextIO, pid: int) -> None:
    """Says in a lock who holds it."""
    lock.truncate(0)
    lock.write(f"process {pid} on {socket.gethostname()}")
    lock.flush()


def start_training(
    arguments: Sequence[str], locks: Mapping[Path, TextIO], working_folder: Path, cpus: float = 1.0
) -> subprocess.Popen[bytes]:
    """Starts `python -m c2c_lightning` in its own process group, which ends when whoever started it does.

    It trains the trials of the folders that are held by `locks`; each folder gets its log.
    """
    environment = {name: value for name, value in os.environ.items() if not FOREIGN.fullmatch(name)}
    environment |= {
        DIES_WITH_PARENT: str(os.getpid()),
        "OMP_NUM_THREADS": str(max(1, int(cpus))),
        "PYTHONUNBUFFERED": "1",
        "C2C_TRACEBACK": "1",  # to the log
    }
    first, *others = sorted(locks)
    if (first / LOG).is_symlink():  # of an earlier process, which it shared
        (first / LOG).unlink()
    for folder in others:
        (folder / LOG).unlink(missing_ok=True)
        (folder / LOG).symlink_to(Path("..") / first.name / LOG)
    with (first / LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "c2c_lightning", *arguments],
            cwd=working_folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[lock.fileno() for lock in locks.values()],
        )
    for lock in locks.values():
        _sign(lock, process.pid)
    return process


def stop_training(process: subprocess.Popen[bytes]) -> None:
    """Asks a process to stop, which it does after saving a checkpoint, and ends its whole group if it does not."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(SECONDS_TO_STOP)
    with suppress(ProcessLookupError):  # its other ranks, should any be left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def die_with_parent() -> None:
    """If a sweep wants it so, has the kernel end this process when the one that started it ends, however it does.

    What this process starts in turn, such as its other ranks, ends with it in the same way.
    """
    parent = os.environ.get(DIES_WITH_PARENT)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it ended before the kernel was told
        os.kill(os.getpid(), signal.SIGTERM)
    os.environ[DIES_WITH_PARENT] = str(os.getpid())


def add_to_log(folder: Path, text: str) -> None:
    with (folder / LOG).open("a", encoding="utf-8") as log:
        log.write(f"{text.rstrip()}\n")


def log_tail(folder: Path, lines: int = 30) -> str:
    """The last lines of a trial's log."""
    file = folder / LOG
    if not file.exists():
        return ""
    with file.open("rb") as log:
        log.seek(max(0, file.stat().st_size - 64_000))
        text = log.read().decode("utf-8", errors="replace")
    return "\n".join(text.splitlines()[-lines:])
