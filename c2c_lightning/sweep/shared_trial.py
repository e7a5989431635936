"""Trials that share a process: gathered into groups, each of which one `fit-shared` trains from the same caches.

Three kinds of Ray actors: every trial is a `SharedTrial`, which only follows its own progress and needs no
device; the `Pool` gathers trials that may share; a `Runner` for each process that is to run at once has the
devices and runs one group after the other.
"""

from __future__ import annotations

import json
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from c2c_lightning.files import write_whole
from c2c_lightning.runs import STOP_FILE, SUMMARY_FILE
from c2c_lightning.sweep.process import SECONDS_TO_STOP, TrainingProcess, add_to_log, held
from c2c_lightning.sweep.process_trial import GROUP_FILE, ProcessTrial, clear_false_start, has_checkpoint
from c2c_lightning.sweep.settings import Resources

# A group that is not full is begun when nobody has come for so long.
QUIET_SECONDS = 5.0
# A runner that was not heard of for so long is taken for lost, with its machine.
LOST_SECONDS = 30.0
POLL = 0.5
ENDED_FILES = (SUMMARY_FILE, STOP_FILE)
ALONE_FILE = "alone"  # the trial was in a group that crashed: next time it runs by itself, and spoils no other


def has_ended(folder: Path) -> bool:
    """Whether a trial has a result, or was stopped."""
    return any((folder / name).exists() for name in ENDED_FILES)


def origin(folder: Path) -> str:
    """The same for trials that are at the same step, as only those can be trained together."""
    if not has_checkpoint(folder):
        return ""
    file = folder / GROUP_FILE
    return file.read_text(encoding="utf-8") if file.exists() else group_of([folder])


def group_of(folders: Sequence[Path]) -> str:
    """What is written down of a group in the folders of its trials."""
    return "\n".join(str(folder) for folder in folders)


class Pool:
    """Gathers trials into groups, and knows which runner has which.

    Args:
        size: trials in a group.
        quiet_seconds: a group that is not full is begun when nobody has come for so long.
        lost_seconds: a runner that was not heard of for so long is lost.
    """

    def __init__(self, size: int, quiet_seconds: float = QUIET_SECONDS, lost_seconds: float = LOST_SECONDS):
        self.size, self.quiet_seconds, self.lost_seconds = size, quiet_seconds, lost_seconds
        self.waiting: dict[str, str] = {}  # folder: key
        self.running: dict[str, int] = {}  # folder: start of a runner
        self.heard: list[float] = []  # by start when
        self.starts: dict[int, int] = {}  # runner: its last start
        self.runs: list[ray.ObjectRef] = []
        self.last_came = 0.0
        self.open = True

    def add(self, folder: str, key: str) -> None:
        """A trial comes; only trials of the same key share a process. One that is here already stays as it is."""
        if not self.is_busy(folder):
            self.waiting[folder] = key
            self.last_came = time.monotonic()

    def withdraw(self, folder: str) -> None:
        """A trial that waits goes away again."""
        self.waiting.pop(folder, None)

    def is_busy(self, folder: str) -> bool:
        """Whether a trial waits or runs."""
        self._look_after_runners()
        return folder in self.waiting or folder in self.running

    def begin(self, runner: int) -> int:
        """A runner begins, maybe again, and what it ran before was lost with it; returns the number of this start."""
        if runner in self.starts:
            self._give_up(self.starts[runner])
        self.starts[runner] = len(self.heard)
        self.heard.append(time.monotonic())
        return self.starts[runner]

    def take(self, start: int) -> list[str]:
        """A group for a runner that has nothing to do, and whose last one has so ended; empty if none is ready."""
        self.heard[start] = time.monotonic()
        self._end(start)
        self._look_after_runners()
        for key in dict.fromkeys(self.waiting.values()):
            group = [folder for folder, other in self.waiting.items() if other == key][: self.size]
            if len(group) == self.size or time.monotonic() - self.last_came > self.quiet_seconds:
                for folder in group:
                    del self.waiting[folder]
                    self.running[folder] = start
                return group
        return []

    def may_go_on(self, start: int, group: Sequence[str] = ()) -> bool:
        """Whether a runner that is at work on a group, if it has one, is still wanted."""
        self.heard[start] = time.monotonic()
        is_last = start in self.starts.values()
        return self.open and is_last and all(self.running.get(folder) == start for folder in group)

    def crashed(self, start: int, reason: str) -> None:
        """A runner could not train its group; the trials' logs say why."""
        for folder in self._end(start):
            add_to_log(Path(folder), reason)

    def watch(self, runs: list[ray.ObjectRef]) -> None:
        """Is told of what the runners run, which ends before the sweep only where something is wrong."""
        self.runs = runs

    def close(self) -> list[int]:
        """The sweep ends: runners stop what they run. Returns those that will hear of it."""
        self.open = False
        now = time.monotonic()
        return [runner for runner, start in self.starts.items() if now - self.heard[start] < self.lost_seconds]

    def _end(self, start: int) -> list[str]:
        """Takes a runner's group from it."""
        group = [folder for folder, other in self.running.items() if other == start]
        self.running = {folder: other for folder, other in self.running.items() if other != start}
        return group

    def _give_up(self, start: int) -> None:
        """Puts the group of a runner that is lost back among those that wait, as it was."""
        group = self._end(start)
        left = [folder for folder in group if not has_ended(Path(folder))]
        self.waiting |= dict.fromkeys(left, "\n".join(group))

    def _look_after_runners(self) -> None:
        for start in set(self.running.values()):
            if time.monotonic() - self.heard[start] > self.lost_seconds:
                self._give_up(start)
        if self.waiting and self.runs and self.open:
            ended, _ = ray.wait(self.runs, num_returns=len(self.runs), timeout=0)
            if len(ended) == len(self.runs):  # nobody is left who would ever take a group
                reason = why(ended[0])
                for folder in self.waiting:
                    add_to_log(Path(folder), reason)
                self.waiting = {}


def why(run: ray.ObjectRef) -> str:
    """Why a runner has ended."""
    try:
        ray.get(run)
    except RayError as error:
        return str(error)
    return "the runner ended"


class Runner:
    """Runs groups, one after the other, for as long as the sweep goes on."""

    def run(self, number: int, pool: ActorHandle, working_folder: str, cpus: float) -> None:
        """Asks the pool for groups until the sweep ends.

        Args:
            number: of this runner; when Ray restarts it elsewhere it has the same.
            pool: of the trials.
            working_folder: that training processes run in.
            cpus: that a training process may use.
        """
        start = ray.get(pool.begin.remote(number))
        with heartbeat(pool, start):
            while ray.get(pool.may_go_on.remote(start)):
                group = ray.get(pool.take.remote(start))
                if not group:
                    time.sleep(POLL)
                    continue
                try:
                    self.train(start, group, pool, Path(working_folder), cpus)
                except Exception:  # whatever it is, it shall be read in the trials' logs
                    ray.get(pool.crashed.remote(start, traceback.format_exc()))

    def train(self, start: int, group: list[str], pool: ActorHandle, working_folder: Path, cpus: float) -> None:
        """Runs one group to its end, or to the sweep's."""
        left = [Path(folder) for folder in group]
        while left and ray.get(pool.may_go_on.remote(start, group)):
            # What is to be done shows only when nobody is at work there any more: until then a process of an
            # earlier driver may have brought some trials further than others.
            with held(left) as locks:
                left = [folder for folder in left if not has_ended(folder)]
                now = [folder for folder in left if origin(folder) == origin(left[0])]
                if not now:
                    return
                for folder in now:
                    clear_false_start(folder)
                    write_whole(folder / GROUP_FILE, group_of(now))
                names = json.dumps([str(folder) for folder in now], ensure_ascii=False)
                arguments = ["fit-shared", "--runs", names, "--progress_bar", "false"]
                process = TrainingProcess(arguments, {folder: locks[folder] for folder in now}, working_folder, cpus)
            try:
                while process.returncode() is None and ray.get(pool.may_go_on.remote(start, group)):
                    time.sleep(POLL)
            finally:
                process.stop()
            left = [folder for folder in left if folder not in now]


@contextmanager
def heartbeat(pool: ActorHandle, start: int) -> Iterator[None]:
    """Lets the pool hear of a runner all the while, as that may have to wait for a folder or for a process to stop."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(POLL):
            with suppress(RayError):  # of which the runner itself will hear
                ray.get(pool.may_go_on.remote(start))

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class SharedTrial(ProcessTrial):
    """A trial whose process is shared with others."""

    def setup(self, config: dict[str, Any]) -> None:
        self.pool, self.key, self.asked, self.busy = config["pool"], config["key"], 0.0, True
        super().setup(config)

    def start(self, config: dict[str, Any]) -> None:
        """Goes to the pool, where it may be already: what lies in the folder is for the runner to clear."""
        (self.folder / STOP_FILE).unlink(missing_ok=True)
        is_alone = (self.folder / ALONE_FILE).exists()
        key = str(self.folder) if is_alone else self.key + origin(self.folder)
        ray.get(self.pool.add.remote(str(self.folder), key))
        self.config_of_start, self.busy = config, True

    def has_ended(self) -> bool:
        if self.busy and time.monotonic() - self.asked > POLL:
            self.asked = time.monotonic()
            self.busy = ray.get(self.pool.is_busy.remote(str(self.folder)))
        return not self.busy

    def failed(self) -> dict[str, Any]:
        """The end of a group that left this trial without a result; alone it is tried again at once."""
        file, alone = self.folder / GROUP_FILE, self.folder / ALONE_FILE
        was_alone = alone.exists() or (file.exists() and file.read_text(encoding="utf-8") == group_of([self.folder]))
        alone.touch()
        if was_alone:
            return super().failed()
        # Any of the group may have been the cause.
        self.start(self.config_of_start)
        return {"step": 0}

    def cleanup(self) -> None:
        if self.busy and not self.has_result():
            ray.get(self.pool.withdraw.remote(str(self.folder)))
            (self.folder / STOP_FILE).touch()


@contextmanager
def runners(number: int, resources: Resources, together: int, working_folder: Path) -> Iterator[ActorHandle]:
    """A pool, and runners for it, which are ended with all that they run when the sweep is.

    Args:
        number: of runners, each of which runs one process at a time.
        resources: of a process.
        together: trials in a process.
        working_folder: that the processes run in.
    """
    # On the driver's machine: if that is lost, so is the sweep.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    pool = ray.remote(num_cpus=0, scheduling_strategy=here)(Pool).remote(together)
    demand = {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
    # A runner whose machine is lost goes on on another.
    kind = ray.remote(**demand, max_restarts=-1, max_task_retries=-1)(Runner)
    actors = [kind.remote() for _ in range(number)]
    running = [actor.run.remote(i, pool, str(working_folder), resources.cpus) for i, actor in enumerate(actors)]
    ray.get(pool.watch.remote(running))
    try:
        yield pool
    finally:
        there = ray.get(pool.close.remote())
        if there:
            ray.wait([running[i] for i in there], num_returns=len(there), timeout=SECONDS_TO_STOP)
