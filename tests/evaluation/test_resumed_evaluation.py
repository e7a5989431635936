"""An evaluation that was cut off goes on with the answers that it has, and takes no others for its own."""

from __future__ import annotations

import io
import json
import linecache
import re
import shutil
import signal
import subprocess
import time

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from c2c_lightning.cli.commands import main
from c2c_lightning.evaluation.asking.answers import digest
from c2c_lightning.evaluation.asking.methods import C2C
from c2c_lightning.evaluation.benchmarks import Grade, NanoWorld, grading
from c2c_lightning.evaluation.report.comparison import compare_runs
from c2c_lightning.files import PROJECT
from tests.evaluation.trained import FEW, Evaluated, arguments, command, environment, evaluate, same_findings

pytestmark = pytest.mark.usefixtures("workspace")


@pytest.mark.slow
def test_killed_and_started_again_it_goes_on_with_the_answers_that_it_has(few, fuser, tmp_path):
    folder = tmp_path / "killed"
    # Two at a time, so that there is time to die in the middle of it.
    args = [*FEW, "--data.batch_size=2"]
    process = subprocess.Popen(
        command(fuser, folder, *args), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    begun = folder / "answers" / "nano" / "c2c.jsonl"
    deadline = time.monotonic() + 300
    while not (begun.exists() and begun.read_bytes().count(b"\n") >= 4) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "results.json").exists()
    kept = {method: (folder / "answers" / "nano" / f"{method}.jsonl").read_bytes() for method in ("receiver", "c2c")}
    assert 4 <= kept["c2c"].count(b"\n") < 21
    with begun.open("ab") as file:
        file.write(b'{"id": "cut off in the mid')
    resumed = evaluate(fuser, folder, *args)
    for method in resumed.methods():
        lines = (folder / "answers" / "nano" / f"{method}.jsonl").read_bytes()
        assert lines.count(b"\n") == len(resumed.answers(method)) == 21
        whole_lines = kept.get(method, b"")[: kept.get(method, b"").rfind(b"\n") + 1]
        assert lines.startswith(whole_lines)
    assert same_findings(few, resumed)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_at_once_with_a_word_and_the_shells_code(fuser, tmp_path, number, code):
    folder = tmp_path / "signalled"
    args = command(fuser, folder, *FEW, "--data.batch_size=1")
    process = subprocess.Popen(args, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    begun = folder / "answers" / "nano" / "receiver.jsonl"
    deadline = time.monotonic() + 300
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == code
    assert "keeps all answers so far. The same command goes on." in said
    assert "Traceback" not in said
    assert begun.read_bytes().count(b"\n") < 21


def a_list() -> bytes:
    torch.save([1], written := io.BytesIO())
    return written.getvalue()


def test_two_evaluations_do_not_write_to_one_folder(few, fuser):
    with FileLock(few.folder / ".lock"), pytest.raises(SystemExit) as refused:
        main(arguments(fuser, few.folder, *FEW))
    assert "another evaluation is writing to" in refused.value.code


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("answers/nano/c2c.jsonl", lambda whole: whole + b"no answer\n", "c2c.jsonl, line 22 is damaged"),
        ("answers/nano/c2c.jsonl", lambda whole: whole + b"[" * 9000 + b"\n", "c2c.jsonl, line 22 is damaged"),
        ("answers/nano/c2c.jsonl", lambda whole: whole + b'{"id": "x"}\n', "c2c.jsonl, line 22 is damaged"),
        (
            "answers/nano/c2c.jsonl",
            lambda whole: re.sub(rb'"id": "[^"]*"', b'"id": [1]', whole),
            "c2c.jsonl, line 1 is damaged: id",
        ),
        ("answers/nano/c2c.jsonl", lambda whole: whole.replace(b'"score": 1.0', b'"score": "A"'), "damaged: score"),
        ("answers/nano/c2c.jsonl", lambda whole: re.sub(rb'"id": "[^"]*"', b'"id": "?"', whole), "no such question"),
        ("answers/nano/c2c.jsonl", lambda whole: whole.replace(b"null", b"[-1.0]"), "another number of letters than 0"),
        ("answers/nano/c2c.jsonl", None, "c2c.jsonl cannot be read: Is a directory"),
        ("measured/nano/mean_update.pt", lambda _: a_list(), "mean_update.pt is damaged (a list"),
        ("measured/nano/mean_update.pt", lambda whole: whole[: len(whole) // 2], "mean_update.pt is damaged"),
        ("settings.sha256", lambda whole: b"\xff" + whole, "has answers of another fuser"),
        ("questions-nano.sha256", lambda whole: b"\xff" + whole, "has answers to other questions"),
    ],
)
def test_a_damaged_file_is_named(few, fuser, tmp_path, file, damage, says):
    folder = tmp_path / "damaged"
    shutil.copytree(few.folder, folder)
    if damage is None:
        (folder / file).unlink()
        (folder / file).mkdir()
    else:
        (folder / file).write_bytes(damage((folder / file).read_bytes()))
    with pytest.raises(SystemExit) as refused:
        main(arguments(fuser, folder, *FEW))
    assert says in refused.value.code


def test_kept_responses_are_graded_again_by_a_mended_grader(few, fuser, tmp_path, monkeypatch):
    folder = tmp_path / "graded"
    shutil.copytree(few.folder, folder)
    before = few.findings()["methods"]
    monkeypatch.setattr(NanoWorld, "grade", lambda benchmark, item, response: Grade("mended", 0.0))
    mended = evaluate(fuser, folder, *FEW)
    assert before["c2c"]["accuracy"]["value"] > 0.3
    for method in ("receiver", "sharer", "c2c", "routing", "wrong_question"):
        assert mended.findings()["methods"][method]["accuracy"]["value"] == 0
    assert {answer.extracted for answer in mended.answers("c2c").values()} == {"mended"}
    monkeypatch.undo()
    assert same_findings(few, evaluate(fuser, folder, *FEW))


def test_a_report_grades_again_where_the_grader_changed_and_needs_no_model(few, tmp_path, monkeypatch, caplog):
    folder, output = tmp_path / "graded", str(tmp_path / "comparison")
    shutil.copytree(few.folder, folder)
    again = Evaluated(folder)
    compare_runs(str(folder), output)
    assert again.results == few.results  # the same grader
    with monkeypatch.context() as patch:
        patch.setattr("c2c_lightning.communicator.load_models", lambda *_: pytest.fail("a model was loaded"))
        patch.setattr(NanoWorld, "grade", lambda benchmark, item, response: Grade("mended", 0.0))
        patch.setattr(grading, "version", lambda: "another")
        compare_runs(str(folder), output)
        assert {method["accuracy"]["value"] for method in again.findings()["methods"].values()} == {0}
        assert {answer.extracted for answer in again.answers("c2c").values()} == {"mended"}
        assert again.results["grader"] == "another"
    compare_runs(str(folder), output)
    assert again.results == few.results
    (folder / "questions-nano.sha256").write_text("of others")
    monkeypatch.setattr(grading, "version", lambda: "another")
    compare_runs(str(folder), output)
    assert again.results == few.results
    assert "cannot be graded again: nano has other questions" in caplog.text


def test_answers_for_an_analysis_are_not_dropped_by_a_report_that_cannot_grade_them(few, tmp_path, monkeypatch, caplog):
    folder = tmp_path / "analysed"
    shutil.copytree(few.folder, folder)
    analysed = few.results
    found = analysed["benchmarks"]["nano"]["methods"]
    found["only_layer_1"] = found["c2c"]
    (folder / "results.json").write_text(json.dumps(analysed))
    monkeypatch.setattr(grading, "version", lambda: "another")
    compare_runs(str(folder), str(tmp_path / "comparison"))
    assert Evaluated(folder).results == analysed
    assert "only_layer_1 was asked for an analysis" in caplog.text


def test_a_finished_evaluation_asks_nothing_again(few, fuser, monkeypatch):
    before = few.results["benchmarks"]
    monkeypatch.setattr(
        "c2c_lightning.evaluation.asking.methods.decode", lambda *_: pytest.fail("a model was asked again")
    )
    assert evaluate(fuser, few.folder, *FEW).results["benchmarks"] == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("own.jsonl", "Who", "Which"),
        ("prompt.yaml", "version: 1", "version: 2"),
        ("prompt.yaml", 'response: "{answer}"', 'response: "It is {answer}"'),
        ("exemplars.jsonl", "Somebody", "Everybody"),
    ],
)
def test_answers_to_other_questions_prompts_or_exemplars_are_not_taken_for_these(fuser, tmp_path, file, old, new):
    rows = ('{"question": "Who?", "reference": "Nobody"}', '{"question": "Where?", "reference": "Nowhere"}')
    (tmp_path / "own.jsonl").write_text("\n".join(rows))
    (tmp_path / "exemplars.jsonl").write_text('{"question": "Whose?", "reference": "Somebody"}')
    (tmp_path / "prompt.yaml").write_text('name: mine\nversion: 1\nmessage: "{question}"\nresponse: "{answer}"\n')
    init_args = "{path: own.jsonl, prompt: prompt.yaml, exemplars: exemplars.jsonl}"
    args = [FEW[0], f"--data.benchmarks=[{{class_path: OwnQuestions, init_args: {init_args}}}]"]
    evaluate(fuser, tmp_path / "evaluation", *args)
    evaluate(fuser, tmp_path / "evaluation", *args)
    text = (tmp_path / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new))
    with pytest.raises(SystemExit) as refused:
        main(arguments(fuser, tmp_path / "evaluation", *args))
    assert "has answers to other questions, prompts or exemplars than own now has" in refused.value.code


def test_a_method_of_ones_own_is_named_by_its_path_and_asked_again_when_its_code_changes(fuser, tmp_path, monkeypatch):
    code = "from c2c_lightning.evaluation.asking.methods import C2C\n\n\nclass Mine(C2C):\n    name = 'mine'\n"
    (tmp_path / "my_methods.py").write_text(code + "    description = 'as C2C'\n")
    monkeypatch.syspath_prepend(tmp_path)
    args = [FEW[1], "--model.methods=[{class_path: C2C}, {class_path: my_methods.Mine}]", "--model.controls=[]"]
    folder = tmp_path / "evaluation"
    evaluated = evaluate(fuser, folder, *args)
    mine, c2c = (evaluated.answers(method) for method in ("mine", "c2c"))
    assert {i: a.response for i, a in mine.items()} == {i: a.response for i, a in c2c.items()}
    (tmp_path / "my_methods.py").write_text(code + "    description = 'changed'\n")
    linecache.checkcache()
    with pytest.raises(SystemExit) as refused:
        main(arguments(fuser, folder, *args))
    assert "has answers of another fuser, or under other settings" in refused.value.code


def test_answers_of_another_fuser_or_under_other_settings_are_not_taken_for_these(few, shuffled_fuser, fuser):
    before = {path: path.read_bytes() for path in few.folder.rglob("*") if path.is_file()}
    precise = "--trainer.precision=bf16-mixed"
    for args in (arguments(shuffled_fuser, few.folder, *FEW), arguments(fuser, few.folder, *FEW, precise)):
        with pytest.raises(SystemExit) as refused:
            main(args)
        assert "has answers of another fuser, or under other settings" in refused.value.code
    assert {path: path.read_bytes() for path in few.folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("model", ["receiver", "sharer"])
def test_answers_of_a_model_that_was_overwritten_under_its_name_are_not_taken_for_these(fuser, tmp_path, model):
    shutil.copytree(fuser, tmp_path / "fuser")
    config = json.loads((fuser / "config.json").read_text())
    shutil.copytree(PROJECT / "c2c_lightning" / "nano", tmp_path / "nano")
    config |= {"receiver": str(tmp_path / "nano" / "receiver"), "sharers": [str(tmp_path / "nano" / "sharer")]}
    (tmp_path / "fuser" / "config.json").write_text(json.dumps(config))
    args = ["--model.methods=[{class_path: Sharer}]", "--model.controls=[]", FEW[1].replace("21", "4")]
    before = evaluate(tmp_path / "fuser", tmp_path / "evaluation", *args)
    weights = tmp_path / "nano" / model / "model.safetensors"
    save_file({name: -tensor for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(SystemExit) as refused:
        main(arguments(tmp_path / "fuser", before.folder, *args))
    assert "or of models that were changed since" in refused.value.code
    after = evaluate(tmp_path / "fuser", tmp_path / "again", *args)
    changed = [answer.response for answer in after.answers("sharer").values()]
    assert (changed == [answer.response for answer in before.answers("sharer").values()]) == (model == "receiver")


def test_only_what_can_change_an_answer_changes_the_settings(fit, tmp_path):
    run = fit("--trainer.max_steps=1", workspace=tmp_path)
    settings = {
        "model": {"fuser": str(run.folder / "fuser"), "methods": None},
        "data": {"benchmarks": ["a"], "batch_size": 4, "seed": 0},
        "trainer": {"precision": None, "devices": 1},
    }

    def changed(part: str, **values) -> bool:
        return digest({**settings, part: {**settings[part], **values}}) != digest(settings)

    assert not changed("data", batch_size=8)
    assert not changed("trainer", devices=2)
    # A checkpoint of the same weights is the same fuser.
    assert not changed("model", fuser=str(run.folder / "checkpoints" / "last.ckpt"))
    assert changed("data", seed=1)
    assert changed("data", benchmarks=["b"])
    assert changed("model", methods=[{"class_path": f"{C2C.__module__}.C2C"}])
    assert changed("trainer", precision="bf16-mixed")
