"""The tasks of the lm-evaluation-harness by name, with one message for what a user got wrong."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from c2c_lightning.errors import UserError, first_line, meant

try:
    from lm_eval.tasks import TaskManager
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "lm_eval":
        raise
    raise UserError('lm-eval needs the harness: pip install "c2c-lightning[harness]"') from error


class Tasks(TaskManager):
    """The harness's own tasks, and the user's in the folder `include_path`; a UserError if there is no such folder."""

    def __init__(self, include_path: str | None = None):
        folder = None if include_path is None else Path(include_path).expanduser()
        if folder is not None and not folder.is_dir():
            raise UserError(f"include_path {include_path!r}: no such folder. Give one with YAML files of tasks.")
        super().__init__(include_path=folder)

    def match(self, names: list[str]) -> list[str]:
        """The names that patterns stand for, and files as they are; a UserError names the task that is meant."""
        found: dict[str, None] = {}
        for name in names:
            matches = [name] if Path(name).is_file() else self.match_tasks([name])
            if not matches:
                hint = meant(name, self.all_tasks, "Name your own tasks' folder by include_path.")
                raise UserError(f"the harness has no task {name!r}. {hint}")
            found.update(dict.fromkeys(matches))
        if not found:
            raise UserError("tasks is empty: name one at least, such as arc_challenge.")
        return list(found)

    def load(self, task_list: Any) -> Any:
        """As the harness does; a task reads its file and its data then, and runs what it has of Python."""
        try:
            return super().load(task_list)
        except Exception as error:  # of YAML, of the hub client, of `datasets`, of the task's own functions
            named = task_list["task"][0] if isinstance(task_list, dict) else {"task": ", ".join(map(str, task_list))}
            files = named.get("dataset_kwargs", {}).get("data_files", {}).values()
            of = f" of {' and '.join(files)}" if files else ""
            # `datasets` says what is wrong only in the cause.
            raise UserError(
                f"task {named['task']}{of} cannot be loaded: {first_line(error.__cause__ or error)}"
            ) from error


find_tasks = lru_cache(Tasks)  # it takes seconds


def load_tasks(task: str, include_path: str | None, changes: dict[str, Any]) -> dict[str, Any]:
    """A task by name, or all those of a tag or group; `changes` stand in for a single task's own configuration.

    Raises:
        UserError: there is no such task, it cannot be loaded, or several are to be changed.
    """
    tasks = find_tasks(include_path)
    names = tasks.match([task])
    if not changes:
        return tasks.load(names)["tasks"]
    if len(names) > 1 or names[0] not in tasks.all_subtasks:
        raise UserError(f"task {task!r} stands for several tasks, but the files are of one: name one of them.")
    return tasks.load({"group": "changed", "task": [{"task": names[0], **changes}]})["tasks"]
