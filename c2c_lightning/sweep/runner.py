"""One group of trials in a training process, on the machine that Ray has chosen for it.

A group of one is an ordinary `fit`; several learn from the same prefill in one `fit-shared`. What a process leaves in
the trials' folders decides what became of them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

from c2c_lightning.files import cut_unfinished_line, write_whole
from c2c_lightning.runs import CHECKPOINTS, CONFIG_FILE, LAST, PROGRESS_FILE, SUMMARY_FILE, TRIAL_FILE
from c2c_lightning.sweep.process import TrainingProcess, held

POLL = 0.2
GROUP_FILE = "group"  # with whom a trial was trained last


class Runner:
    """Starts a training process and waits for its end; a Ray actor, or a plain object."""

    def __init__(self) -> None:
        self.stopped = threading.Event()

    def ready(self) -> None:
        """Returns when the runner has a machine."""

    def train(self, folders: Sequence[str], working_folder: str, cpus: float) -> list[str]:
        """Trains the trials in these folders, or those of them that can be trained together.

        Args:
            folders: of the trials.
            working_folder: that the process runs in.
            cpus: that it may use.

        Returns:
            The folders of the trials that the process trained; the others have a result, or wait for another process.

        Raises:
            FolderBusy: another process has not left one of the folders in time.
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
                write_whole(folder / GROUP_FILE, group_of(group))
            process = TrainingProcess(
                arguments(group), {folder: locks[folder] for folder in group}, Path(working_folder), cpus
            )
        try:
            while process.returncode() is None and not self.stopped.wait(POLL):
                pass
        finally:
            process.stop()
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
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else group_of([folder])


def group_of(folders: Sequence[Path]) -> str:
    """What is written down of a group in the folders of its trials."""
    return "\n".join(str(folder) for folder in folders)
