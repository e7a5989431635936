"""Trials that share a process: gathered into groups, each of which one `fit-shared` trains from the same caches.

Three kinds of Ray actors: every trial is a `SharedTrial`, which only follows its own progress and needs no
device; the `Pool` gathers trials that may share; a `Runner` for each process that is to run at once has the
devices and runs one group after the other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from c2c_lightning.runs import STOP_FILE, SUMMARY_FILE
from c2c_lightning.sweep.process import SECONDS_TO_STOP, TrainingProcess
from c2c_lightning.sweep.process_trial import ProcessTrial, clear_false_start, has_checkpoint
from c2c_lightning.sweep.settings import Resources

# A group that is not full is begun when nobody has come for so long.
QUIET_SECONDS = 5.0
# A runner that was not heard of for so long is taken for lost, with its machine.
LOST_SECONDS = 30.0
POLL = 0.5
GROUP_FILE = "group"  # whom a trial last trained with: only with them can it go on from its checkpoint
ENDED_FILES = (SUMMARY_FILE, STOP_FILE)
ALONE_FILE = "alone"  # the trial was in a group that crashed: next time it runs by itself, and spoils no other


class Pool:
    """Gathers trials into groups.

    Args:
        size: trials in a group.
    """

    def __init__(self, size: int):
        self.size = size
        self.waiting: dict[str, str] = {}  # folder: key
        self.running: dict[str, int] = {}  # folder: runner
        self.heard: dict[int, float] = {}  # runner: when
        self.last_came = 0.0
        self.open = True

    def add(self, folder: str, key: str) -> None:
        """A trial comes; only trials of the same key share a process. One that is here already stays as it is."""
        if not self.is_busy(folder):
            self.waiting[folder] = key
            self.last_came = time.monotonic()

    def withdraw(self, folder: str) -> None:
        self.waiting.pop(folder, None)

    def is_busy(self, folder: str) -> bool:
        """Whether a trial waits or runs."""
        self._give_up_the_lost()
        return folder in self.waiting or folder in self.running

    def take(self, runner: int) -> list[str]:
        """A group for a runner that has nothing to do, and whose last one has so ended; empty if none is ready."""
        self.heard[runner] = time.monotonic()
        self.running = {folder: other for folder, other in self.running.items() if other != runner}
        self._give_up_the_lost()
        for key in dict.fromkeys(self.waiting.values()):
            group = [folder for folder, other in self.waiting.items() if other == key][: self.size]
            if len(group) == self.size or time.monotonic() - self.last_came > QUIET_SECONDS:
                for folder in group:
                    del self.waiting[folder]
                    self.running[folder] = runner
                return group
        return []

    def may_go_on(self, runner: int, group: list[str]) -> bool:
        """Whether a runner that is at work on a group, if it has one, is still wanted."""
        self.heard[runner] = time.monotonic()
        return self.open and all(self.running.get(folder) == runner for folder in group)

    def close(self) -> list[int]:
        """The sweep ends: runners stop what they run. Returns those that will hear of it."""
        self.open = False
        return [runner for runner, when in self.heard.items() if time.monotonic() - when < LOST_SECONDS]

    def _give_up_the_lost(self) -> None:
        """Puts the groups of runners that are lost back among those that wait, each as it was."""
        for runner in set(self.running.values()):
            if time.monotonic() - self.heard[runner] > LOST_SECONDS:
                group = [folder for folder, other in self.running.items() if other == runner]
                left = [folder for folder in group if not any((Path(folder) / name).exists() for name in ENDED_FILES)]
                self.waiting |= dict.fromkeys(left, " ".join(group))
                self.running = {folder: other for folder, other in self.running.items() if other != runner}


class Runner:
    """Runs groups, one after the other, for as long as the sweep goes on."""

    def run(self, number: int, pool: ActorHandle, working_folder: str, cpus: float) -> None:
        while ray.get(pool.may_go_on.remote(number, [])):
            group = ray.get(pool.take.remote(number))
            if group:
                self.train(number, group, pool, Path(working_folder), cpus)
            else:
                time.sleep(POLL)

    def train(self, number: int, group: list[str], pool: ActorHandle, working_folder: Path, cpus: float) -> None:
        """Runs one group to its end, or to the sweep's."""
        runs, folders = ",".join(group), [Path(folder) for folder in group]
        for folder in folders:
            clear_false_start(folder)
            (folder / GROUP_FILE).write_text(runs, encoding="utf-8")
        arguments = ["fit-shared", "--runs", runs, "--progress_bar", "false"]
        process = TrainingProcess(arguments, folders, working_folder, cpus)
        while process.returncode() is None and ray.get(pool.may_go_on.remote(number, group)):
            time.sleep(POLL)
        process.stop()


class SharedTrial(ProcessTrial):
    """A trial whose process is shared with others."""

    def setup(self, config: dict[str, Any]) -> None:
        self.pool, self.key, self.asked, self.busy = config["pool"], config["key"], 0.0, True
        super().setup(config)

    def start(self, config: dict[str, Any]) -> None:
        (self.folder / STOP_FILE).unlink(missing_ok=True)
        clear_false_start(self.folder)
        key = self.key
        if (self.folder / ALONE_FILE).exists():
            key = str(self.folder)
        elif has_checkpoint(self.folder) and (self.folder / GROUP_FILE).exists():
            key += (self.folder / GROUP_FILE).read_text(encoding="utf-8")
        ray.get(self.pool.add.remote(str(self.folder), key))
        self.config_of_start, self.busy = config, True

    def has_ended(self) -> bool:
        if self.busy and time.monotonic() - self.asked > POLL:
            self.asked = time.monotonic()
            self.busy = ray.get(self.pool.is_busy.remote(str(self.folder)))
        return not self.busy

    def failed(self) -> dict[str, Any]:
        if (self.folder / ALONE_FILE).exists():
            return super().failed()
        # Any of the group may have been the cause.
        (self.folder / ALONE_FILE).touch()
        self.start(self.config_of_start)
        return {"step": 0}

    def cleanup(self) -> None:
        if self.busy and not self.has_result():
            ray.get(self.pool.withdraw.remote(str(self.folder)))
            (self.folder / STOP_FILE).touch()


@contextmanager
def runners(number: int, resources: Resources, together: int, working_folder: Path) -> Iterator[ActorHandle]:
    """A pool, and runners for it, which are ended with all that they run when the sweep is."""
    # On the driver's machine: if that is lost, so is the sweep.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    pool = ray.remote(num_cpus=0, scheduling_strategy=here)(Pool).remote(together)
    demand = {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
    # A runner whose machine is lost goes on on another.
    kind = ray.remote(**demand, max_restarts=-1, max_task_retries=-1)(Runner)
    actors = [kind.remote() for _ in range(number)]
    running = [actor.run.remote(i, pool, str(working_folder), resources.cpus) for i, actor in enumerate(actors)]
    try:
        yield pool
    finally:
        there = ray.get(pool.close.remote())
        if there:
            ray.wait([running[i] for i in there], num_returns=len(there), timeout=SECONDS_TO_STOP)
