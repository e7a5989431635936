"""A training process of its own: its environment, its log, its end.

This module knows neither Ray nor torch, so that what supervises a process is light.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

LOG = "log.txt"
LOCK = "lock"
DIES_WITH_PARENT = "C2C_DIES_WITH_PARENT"
# What tells a process that it is one of several; a trial inside such a job is none of its ranks.
FOREIGN = re.compile(
    r"(SLURM|PMI|PMIX|OMPI|TORCHELASTIC)_.*|LOCAL_RANK|RANK|GROUP_RANK|ROLE_RANK|NODE_RANK|LOCAL_WORLD_SIZE"
    r"|WORLD_SIZE|MASTER_ADDR|MASTER_PORT|RAY_.*"
)
SECONDS_TO_STOP = 60.0
PR_SET_PDEATHSIG = 1


class TrainingProcess:
    """A command in its own process group, which ends when whoever started it does.

    Args:
        arguments: of `python -m c2c_lightning`.
        folders: of the trials that it trains; each gets its log, and a lock that it holds as long as it lives.
        working_folder: that it runs in.
        cpus: threads that it may use.
    """

    def __init__(self, arguments: Sequence[str], folders: Sequence[Path], working_folder: Path, cpus: float = 1.0):
        environment = {name: value for name, value in os.environ.items() if not FOREIGN.fullmatch(name)}
        environment |= {DIES_WITH_PARENT: "1", "OMP_NUM_THREADS": str(max(1, int(cpus))), "PYTHONUNBUFFERED": "1"}
        first, *others = sorted(folders)
        if (first / LOG).is_symlink():  # of an earlier process, which it shared
            (first / LOG).unlink()
        for folder in others:
            (folder / LOG).unlink(missing_ok=True)
            (folder / LOG).symlink_to(Path("..") / first.name / LOG)
        with ExitStack() as stack:
            locks = [stack.enter_context((folder / LOCK).open("w")) for folder in (first, *others)]
            for lock in locks:
                # Held by the process itself: a trial that is begun again, here or on another machine, waits for
                # the end of the one before it, so that two never write to one folder.
                fcntl.flock(lock, fcntl.LOCK_EX)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "c2c_lightning", *arguments],
                cwd=working_folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stack.enter_context((first / LOG).open("ab")),
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[lock.fileno() for lock in locks],
            )

    def returncode(self) -> int | None:
        """None while it runs."""
        return self.process.poll()

    def stop(self) -> None:
        """Asks it to stop, which it does after saving a checkpoint, and ends its whole group if it does not."""
        if self.returncode() is None:
            self._signal(signal.SIGTERM, group=False)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(SECONDS_TO_STOP)
        # Its other ranks, should any be left.
        self._signal(signal.SIGKILL, group=True)
        self.process.wait()

    def _signal(self, number: int, group: bool) -> None:
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.process.pid, number)


def die_with_parent() -> None:
    """If a sweep wants it so, has the kernel end this process when the one that started it ends, however it does."""
    if DIES_WITH_PARENT not in os.environ or sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def is_free(folder: Path) -> bool:
    """Whether no process is at work on a trial's folder."""
    file = folder / LOCK
    if not file.exists():
        return True
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def wait_until_free(folders: Sequence[Path], seconds: float) -> list[Path]:
    """Waits for the processes in trials' folders to end; returns the folders where one has not."""
    deadline = time.monotonic() + seconds
    busy = list(folders)
    while busy := [folder for folder in busy if not is_free(folder)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return busy


def log_tail(folder: Path, lines: int = 30) -> str:
    """The last lines of a trial's log."""
    file = folder / LOG
    if not file.exists():
        return ""
    with file.open("rb") as log:
        log.seek(max(0, file.stat().st_size - 64_000))
        text = log.read().decode("utf-8", errors="replace")
    return "\n".join(text.splitlines()[-lines:])
