"""The `lm-eval` command: its table, its file, and what it says of a user's mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from jsonargparse import auto_cli

from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.harness import lm_eval_command
from c2c_lightning.evaluation.harness.tasks import Tasks
from tests.evaluation.harness.some_requests import PAIR, TASKS, user


@pytest.fixture(scope="module")
def tasks() -> Tasks:
    """The harness's own tasks, which take seconds to find, and ours."""
    return Tasks(str(TASKS))


def test_the_command_prints_a_table_and_writes_its_results(fuser, communicator, tasks, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("c2c_lightning.evaluation.harness.tasks.find_tasks", lambda path: tasks)
    output = tmp_path / "new" / "results.json"
    auto_cli(
        lm_eval_command,
        as_positional=False,
        args=[
            *("--fuser", fuser, "--tasks", "nano_ans*,nano_choices", "--include_path", str(TASKS), "--limit", "5"),
            *("--batch_size", "3", "--output", str(output), "--apply_chat_template", "true", "--device", "cpu"),
        ],
    )
    table = capsys.readouterr().out
    results = json.loads(output.read_text())
    assert [file.name for file in output.parent.iterdir()] == ["results.json"]
    assert results["n-samples"]["nano_choices"] == {"original": 6, "effective": 5}
    assert results["config"]["receiver"] == PAIR[0]
    assert results["config"]["fuse"] is True
    for task in ("nano_choices", "nano_answers"):
        assert task in table
    rows = [json.loads(line) for line in (TASKS / "questions.jsonl").read_text().splitlines()][:5]
    said = [communicator.generate(user(row["question"]), max_new_tokens=8, do_sample=False) for row in rows]
    exact = [answer == row["choices"][row["answer"]] for answer, row in zip(said, rows)]
    assert results["results"]["nano_answers"]["exact_match,none"] == pytest.approx(sum(exact) / 5)


def test_a_task_that_cannot_be_had_is_named(tasks, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no task 'nano_choises'\. Did you mean nano_choices\?"):
        tasks.match(["nano_answers", "nano_choises"])
    with pytest.raises(UserError, match="by include_path"):
        tasks.match(["?"])
    with pytest.raises(UserError, match="tasks is empty"):
        tasks.match([])
    file = str(TASKS / "nano_choices.yaml")
    assert tasks.match([file, "nano_ans*", "nano_choices"]) == [file, "nano_answers", "nano_choices"]
    for number, damage in enumerate((b"task: x\n  bad: [\n\x00", b"\xff\xfe", b"[1, 2]", b"task: 3", b"")):
        damaged = tmp_path / f"damaged_{number}.yaml"
        damaged.write_bytes(damage)
        with pytest.raises(UserError, match=rf"damaged_{number}.*cannot be loaded"):
            tasks.load([str(damaged)])
    monkeypatch.chdir(tmp_path)  # where the tasks' data are not
    with pytest.raises(UserError, match=r"nano_choices.*cannot be loaded"):
        tasks.load(["nano_choices"])


def test_a_wrong_argument_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for wrong, message in (
        ({"include_path": "nowhere"}, "include_path 'nowhere': no such folder"),
        ({"output": str(tmp_path)}, "is a folder: give a file"),
        ({"limit": 0}, "limit is 0"),
        ({"fuser": "last"}, "runs/ has no run with a fuser"),
    ):
        with pytest.raises(UserError, match=message):
            lm_eval_command(**{"fuser": "no/such/fuser", "tasks": ["nano_choices"], **wrong})


def test_without_the_harness_only_the_command_fails():
    program = (
        "import sys; sys.modules['lm_eval'] = None\n"  # as if it were not installed
        "from c2c_lightning.evaluation.harness import lm_eval_command\n"
        "lm_eval_command('runs/some/fuser', 'arc_challenge')"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=TASKS.parents[3],
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        run.stderr.strip()
        .splitlines()[-1]
        .endswith('UserError: lm-eval needs the harness: pip install "c2c-lightning[harness]"')
    )
