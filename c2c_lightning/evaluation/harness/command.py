"""The `lm-eval` command: tasks of the lm-evaluation-harness, answered through a fuser."""

from __future__ import annotations

import json
from pathlib import Path

from c2c_lightning.errors import UserError
from c2c_lightning.files import write_whole
from c2c_lightning.formats.fuser_folder import named
from c2c_lightning.runs import make_folder


def lm_eval_command(
    fuser: str,
    tasks: list[str] | str,
    include_path: str | None = None,
    num_fewshot: int | None = None,
    limit: float | None = None,
    batch_size: int = 8,
    apply_chat_template: bool = False,
    system_instruction: str | None = None,
    output: str | None = None,
    fuse: bool = True,
    dtype: str = "auto",
    device: str | None = None,
    max_gen_toks: int = 256,
    receiver: str | None = None,
    sharers: list[str] | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Evaluates a fuser on tasks of the lm-evaluation-harness and prints its table.

    Args:
        fuser: a fuser's folder, a run's folder, a checkpoint, or a hub id; `last` for the newest run.
        tasks: names or patterns of tasks, groups or tags, with commas between them, or YAML files of tasks.
        include_path: a folder with tasks of your own.
        num_fewshot: exemplars before each question; None for what the task says.
        limit: how many questions of each task; below 1, the share of them.
        batch_size: requests at once.
        apply_chat_template: hand exemplars, system prompt and the response's first words over as a
            conversation; otherwise all of them stand in one message of the user.
        system_instruction: a system prompt.
        output: a JSON file for the results.
        fuse: false for the receiver alone.
        dtype: of the frozen models; auto for the one they were saved in.
        device: where they run, such as cuda:1; None for the GPU if there is one.
        max_gen_toks: new tokens in a response where the task does not say.
        receiver: folder or hub id of the receiver, where it is no longer where the fuser says.
        sharers: the same of all sharers.
        trust_remote_code: import a fuser class that is not one of this package, and so run its file.

    Raises:
        UserError: the harness is not installed, or a task, its data or the fuser cannot be had.
    """
    # Before hours of answering.
    fuser = named(fuser)
    if limit is not None and limit <= 0:
        raise UserError(f"limit is {limit}: give a number of questions, or a share of them below 1.")
    file = None if output is None else Path(output).expanduser()
    if file is not None:
        if file.is_dir():
            raise UserError(f"output {output!r} is a folder: give a file, such as {file / 'results.json'}.")
        make_folder(file.parent, "output")
    from c2c_lightning.evaluation.harness.tasks import find_tasks  # says what to install where the harness is not

    manager = find_tasks(include_path)
    from lm_eval import simple_evaluate
    from lm_eval.utils import handle_non_serializable, make_table

    from c2c_lightning.evaluation.harness.model import NAME

    names = tasks.split(",") if isinstance(tasks, str) else tasks
    results = simple_evaluate(
        model=NAME,
        model_args={
            "pretrained": fuser,
            "dtype": dtype,
            "fuse": fuse,
            "max_gen_toks": max_gen_toks,
            "receiver": receiver,
            "sharers": sharers,
            "trust_remote_code": trust_remote_code,
        },
        tasks=manager.match([name.strip() for name in names if name.strip()]),
        task_manager=manager,
        num_fewshot=num_fewshot,
        limit=limit,
        batch_size=batch_size,
        device=device,
        apply_chat_template=apply_chat_template,
        system_instruction=system_instruction,
        log_samples=False,
    )
    for column in ("results", "groups"):
        if results.get(column):
            print(make_table(results, column))
    if file is not None:
        text = json.dumps(results, indent=2, ensure_ascii=False, default=handle_non_serializable)
        write_whole(file, f"{text}\n")
