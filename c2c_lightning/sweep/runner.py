"""Ray, and what it runs: groups of trials, each in a training process on a machine that has room.

A group of one is an ordinary `fit`; several learn from the same prefill in one `fit-shared`. What a process leaves in
the trials' folders decides what became of them.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

# Read when Ray is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# A process that asks for no GPU keeps seeing what it saw.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray

from c2c_lightning.errors import UserError, first_line
from c2c_lightning.files import cut_unfinished_line, write_whole
from c2c_lightning.runs import CHECKPOINTS, CONFIG_FILE, LAST, PROGRESS_FILE, SUMMARY_FILE, TRIAL_FILE
from c2c_lightning.sweep.process import held, start_training, stop_training
from c2c_lightning.sweep.settings import Resources

if TYPE_CHECKING:  # a machine runs one for each trial, and what follows a trial is to be light
    from c2c_lightning.sweep.trials import Trial

MEGABYTE = 2**20
POLL = 0.2
GROUP_FILE = "group"  # with whom a trial was trained last


@contextmanager
def postponed() -> Iterator[None]:
    """Ctrl-C takes effect when what is done here has been done; a second one at once."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, receive)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if received:
        raise KeyboardInterrupt


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Ray, at an address, at $RAY_ADDRESS, or as a cluster of this machine's own, for as long as a sweep goes on.

    Raises a UserError if nobody answers at the address, or Ray does not start here.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    # What trials hand over goes through files, so the object store stays empty.
    own = {} if address else {"include_dashboard": False, "object_store_memory": 100 * MEGABYTE}
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        try:
            if address and ":" in address and "://" not in address:
                # Ray itself would go on trying for minutes.
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), timeout=10).close()
            with postponed():  # Ray forks, and an exception within a fork is lost and leaves logging locked
                ray.init(address=address or "local", **own, **quiet)
                signal.signal(signal.SIGTERM, terminated)  # which Ray has taken
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            if address is None:
                raise UserError(
                    f"Ray does not start on this machine: {first_line(error)}. It keeps its files in $RAY_TMPDIR, or "
                    "else in /tmp/ray: that must be writable, with a short path and room; its logs there may say more."
                ) from error
            raise UserError(f"no Ray cluster answers at {address!r}: {first_line(error)}") from error
        yield
    finally:
        ray.shutdown()


def room_for(resources: Resources) -> int:
    """How many processes of such a demand the machines that are there have room for, whatever else they run.

    Who finds no room at the moment waits for it. At least 1, as a machine may be on its way; a UserError if none comes.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    demand = {kind: asked for kind, asked in (("CPU", resources.cpus), ("GPU", resources.gpus)) if asked}
    # To Ray's precision: ten times 0.1 fit into 1.
    room = sum(
        min(int(round(machine.get(kind, 0) / asked, 4)) for kind, asked in demand.items()) for machine in machines
    )
    if room == 0 and not resources.autoscaling:
        largest = max(machines, key=lambda machine: (machine.get("GPU", 0), machine.get("CPU", 0)))
        raise UserError(
            f"resources asks for {resources.cpus:g} CPUs and {resources.gpus:g} GPUs on one machine, but the largest "
            f"of the cluster's {len(machines)} has {largest.get('CPU', 0):g} and {largest.get('GPU', 0):g}. Ask for "
            "less, or set resources.autoscaling if machines are added on demand."
        )
    return max(1, room)


class Group:
    """Trials that share a process, or one by itself, and the Ray actor that runs it on a machine that has room.

    `begun` is done when it has a machine; `ended` when it has ended, with the folders of the trials that it trained.
    """

    def __init__(self, trials: Sequence[Trial], resources: Resources):
        self.trials = trials
        # Two calls at once, so that it can be stopped while it trains.
        kind = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_concurrency=2)(Runner)
        self.actor = kind.remote()
        names = [str(trial.folder.resolve()) for trial in trials]
        self.begun = self.actor.ready.remote().future()
        self.ended = self.actor.train.remote(names, str(Path.cwd()), resources.cpus).future()

    def stop(self) -> None:
        """Asks it to save and end."""
        self.actor.stop.remote()

    def close(self) -> None:
        """Gives back what it has."""
        ray.kill(self.actor)


class Runner:
    """Starts a training process and waits for its end; a Ray actor, or a plain object."""

    def __init__(self) -> None:
        self.stopped = threading.Event()

    def ready(self) -> None:
        """Returns when the runner has a machine."""

    def train(self, folders: Sequence[str], working_folder: str, cpus: float) -> list[str]:
        """Trains the trials in these folders, or those of them that can be trained together, and returns their folders.

        The others have a result, or wait for another process. FolderBusy says that another process has not left one of
        the folders in time.
        """
        # What is to be done shows only when no process of an earlier driver is at work there any more: until then it
        # may end trials, or bring some of them further than others.
        with held([Path(folder) for folder in folders]) as locks:
            left = [folder for folder in locks if not (folder / SUMMARY_FILE).exists()]
            group = [folder for folder in left if origin(folder) == origin(left[0])]
            if not group or self.stopped.is_set():
                return []
            for folder in group:
                clear_false_start(folder)
                write_whole(folder / GROUP_FILE, "\n".join(map(str, group)))
            group_locks = {folder: locks[folder] for folder in group}
            process = start_training(arguments(group), group_locks, Path(working_folder), cpus)
        try:
            while process.poll() is None and not self.stopped.wait(POLL):
                pass
        finally:
            stop_training(process)
        return [str(folder) for folder in group]

    def stop(self) -> None:
        """Asks the process to stop, which it does after saving a checkpoint."""
        self.stopped.set()


def arguments(group: Sequence[Path]) -> list[str]:
    """The command that trains a group."""
    if len(group) > 1:
        names = json.dumps([str(folder) for folder in group], ensure_ascii=False)
        return ["fit-shared", "--runs", names, "--progress_bar", "false"]
    (folder,) = group
    return [
        *("fit", "--config", str(folder / TRIAL_FILE)),
        *("--trainer.default_root_dir", str(folder), "--trainer.enable_progress_bar", "false"),
        *(["--ckpt_path", str(folder)] if has_checkpoint(folder) else []),
    ]


def has_checkpoint(folder: Path) -> bool:
    """Whether a trial can go on from where it was cut off."""
    return (folder / CHECKPOINTS / LAST).exists()


def clear_false_start(folder: Path) -> None:
    """Removes what a start left that came to no checkpoint, or half of a line; for whoever holds the folder."""
    if not has_checkpoint(folder):
        for file in (CONFIG_FILE, PROGRESS_FILE):
            (folder / file).unlink(missing_ok=True)
    elif (folder / PROGRESS_FILE).exists():
        cut_unfinished_line(folder / PROGRESS_FILE, "the progress")


def origin(folder: Path) -> str:
    """The same for trials that are at the same step, as only those can be trained together."""
    if not has_checkpoint(folder):
        return ""
    file = folder / GROUP_FILE
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else str(folder)
