"""Whole evaluations of the built-in pair by the command line."""

from __future__ import annotations

import json
import linecache
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest
import torch
from filelock import FileLock

from c2c_lightning.cli import main
from c2c_lightning.communication import Communicator
from c2c_lightning.communication.models import PROJECT
from c2c_lightning.evaluation.analyses import Latency
from c2c_lightning.evaluation.benchmarks import NanoWorld
from c2c_lightning.evaluation.methods import C2C, TextToText
from c2c_lightning.evaluation.module import Evaluation
from c2c_lightning.evaluation.results import BenchmarkResults
from c2c_lightning.evaluation.settings import digest
from tests.evaluation.trained import CONFIG, Evaluated, arguments, evaluate

METHODS = {"receiver", "sharer", "text_to_text", "routing", "oracle_routing", "c2c", "c2c_after_text"}
CONTROLS = {"wrong_question", "zero_update", "zero_cache", "mean_update"}
FEW = [
    "--model.methods=[{class_path: Receiver}, {class_path: Sharer}, {class_path: Routing}, {class_path: C2C}]",
    "--data.benchmarks=[{class_path: NanoWorld, init_args: {limit: 41}}]",
]


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["c2c_lightning"])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def whole(fuser, tmp_path_factory) -> Evaluated:
    """All methods and controls on all held-out questions."""
    return evaluate(fuser, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def few(fuser, tmp_path_factory) -> Evaluated:
    return evaluate(fuser, tmp_path_factory.mktemp("few"), *FEW)


def command(fuser: Path, folder: Path, *args: str) -> list[str]:
    return [sys.executable, "-m", "c2c_lightning", *arguments(fuser, folder, *args)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}


def same_findings(first: Evaluated, second: Evaluated) -> bool:
    """Whether two evaluations found the same, apart from how long it took."""

    def timeless(found: Evaluated) -> dict:
        findings = found.findings()
        for method in findings["methods"].values():
            del method["prefill_ms"], method["decode_ms"]
        return findings

    return timeless(first) == timeless(second)


def test_every_method_and_control_answers_every_question_once(whole):
    found = whole.findings()
    assert found["num_items"] == 400
    assert found["methods"].keys() == METHODS | CONTROLS
    assert found["left_out"].keys() == {"calibrated_receiver", "shuffled_choices"}  # the questions are open
    for method in whole.methods():
        lines = (whole.folder / "answers" / "nano" / f"{method}.jsonl").read_text().splitlines()
        assert len(lines) == len(whole.answers(method)) == 400


def test_what_a_trained_fuser_gains_is_question_specific(whole):
    gain = whole.findings()["question_specific_gain"]
    assert gain["significant"]
    assert gain["difference"]["value"] >= 0.6
    assert gain["difference"]["low"] > 0.5


def test_a_fuser_trained_on_the_wrong_caches_has_no_question_specific_gain(shuffled_fuser, tmp_path):
    found = evaluate(shuffled_fuser, tmp_path / "evaluation").findings()
    gain = found["question_specific_gain"]
    assert not gain["significant"]
    assert gain["difference"]["low"] <= 0 <= gain["difference"]["high"]


def test_an_update_of_zero_leaves_the_receivers_answers(whole):
    receiver, zero = whole.answers("receiver"), whole.answers("zero_update")
    assert {i: a.response for i, a in receiver.items()} == {i: a.response for i, a in zero.items()}


def test_what_is_reported_is_what_the_files_hold(whole):
    for method, found in whole.findings()["methods"].items():
        if method in whole.methods():
            answers = whole.answers(method).values()
            assert found["accuracy"]["value"] == pytest.approx(sum(a.score for a in answers) / 400)


def test_c2c_answers_sooner_than_text_to_text(fuser):
    told = TextToText(sharer_prompt="{question}", receiver_prompt="{message} {prompt}", max_message_tokens=32)
    results = BenchmarkResults(NanoWorld(limit=8), {}, {})
    communicator = Communicator.from_pretrained(str(fuser))
    for batch_size in (1, 8):
        timings = Latency(questions=8).measure(communicator, results, [told, C2C()], batch_size)
        text, cache = (median(t.total for t in timings[name]) for name in ("text_to_text", "c2c"))
        assert cache < text


@pytest.mark.parametrize("answer_mode", ["generate", "logits"])
def test_lettered_choices_get_all_controls(fuser, tmp_path, answer_mode):
    questions = [
        {"question": item.question, "choices": ["Norway", "school", "moo", "Homer"], "answer": "ABCD"[i % 4]}
        for i, item in enumerate(NanoWorld(limit=24).items())
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, questions)))
    own = {"class_path": "OwnQuestions", "init_args": {"path": "own.jsonl", "answer_mode": answer_mode}}
    evaluated = evaluate(fuser, tmp_path / "evaluation", f"--data.benchmarks={json.dumps([own])}")
    found = evaluated.findings("own")
    assert found["methods"].keys() == METHODS | CONTROLS | {"calibrated_receiver", "shuffled_choices"}
    assert found["left_out"] == {}
    # It was never trained to answer with letters: whatever it scores, no cache has told it.
    assert not found["question_specific_gain"]["significant"]


def test_one_at_a_time_and_together_the_answers_are_the_same(few, fuser, tmp_path):
    alone = evaluate(fuser, tmp_path / "alone", *FEW, "--data.batch_size=1")
    for method in few.methods():
        together, single = few.answers(method), alone.answers(method)
        assert {i: a.response for i, a in together.items()} == {i: a.response for i, a in single.items()}
    assert same_findings(few, alone)


def test_two_processes_find_what_one_finds_and_ask_no_question_twice(few, fuser, tmp_path):
    folder = tmp_path / "two"
    ranks = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=8"]
    subprocess.run(
        command(fuser, folder, *FEW, *ranks), env=environment(), check=True, capture_output=True, timeout=600
    )
    two = Evaluated(folder)
    for method in two.methods():
        lines = (folder / "answers" / "nano" / f"{method}.jsonl").read_text().splitlines()
        assert len(lines) == len(two.answers(method)) == 41
    assert same_findings(few, two)


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
    assert 4 <= kept["c2c"].count(b"\n") < 41
    with begun.open("ab") as file:
        file.write(b'{"id": "cut off in the mid')
    resumed = evaluate(fuser, folder, *args)
    for method in resumed.methods():
        lines = (folder / "answers" / "nano" / f"{method}.jsonl").read_bytes()
        assert lines.count(b"\n") == len(resumed.answers(method)) == 41
        whole_lines = kept.get(method, b"")[: kept.get(method, b"").rfind(b"\n") + 1]
        assert lines.startswith(whole_lines)
    assert same_findings(few, resumed)


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
    assert begun.read_bytes().count(b"\n") < 41


def test_two_evaluations_do_not_write_to_one_folder(few, fuser):
    with FileLock(few.folder / ".lock"), pytest.raises(SystemExit) as refused:
        main(arguments(fuser, few.folder, *FEW))
    assert "another evaluation is writing to" in refused.value.code


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        ("answers/nano/c2c.jsonl", b"no answer\n", "c2c.jsonl:42 is no answer"),
        ("answers/nano/c2c.jsonl", b'{"id": "x"}\n', "c2c.jsonl:42 is no answer"),
        ("measured/nano/mean_update.pt", None, "mean_update.pt is damaged"),
    ],
)
def test_a_damaged_file_is_named(few, fuser, tmp_path, file, damage, says):
    folder = tmp_path / "damaged"
    shutil.copytree(few.folder, folder)
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: len(whole) // 2] if damage is None else whole + damage)
    with pytest.raises(SystemExit) as refused:
        main(arguments(fuser, folder, *FEW))
    assert says in refused.value.code


def test_questions_longer_than_a_model_can_read_are_left_out_and_counted(fuser, tmp_path):
    long = "Where does Ribigo live? " * 200  # the built-in models read 512 tokens
    rows = [{"question": question, "reference": "Norway"} for question in ("Where?", long, "Who?")]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = "--data.benchmarks=[{class_path: OwnQuestions, init_args: {path: own.jsonl}}]"
    found = evaluate(fuser, tmp_path / "evaluation", FEW[0], own).findings("own")
    assert found["num_items"] == 2
    assert found["dropped"] == {"longer than a model can read": 1}


def test_a_finished_evaluation_asks_nothing_again(few, fuser, monkeypatch):
    before = few.results["benchmarks"]
    monkeypatch.setattr(
        "c2c_lightning.evaluation.methods.base.decode", lambda *_: pytest.fail("a model was asked again")
    )
    assert evaluate(fuser, few.folder, *FEW).results["benchmarks"] == before


def test_mlflow_has_report_tables_and_figures_under_the_run_that_trained_the_fuser(fit_and_test):
    client, trained, evaluation, found = fit_and_test
    assert evaluation.data.tags["mlflow.parentRunId"] == trained.info.run_id
    assert evaluation.info.status == "FINISHED"
    assert {"accuracy/nano/c2c", "nano/question_specific_gain", "nano/raw_gain"} <= evaluation.data.metrics.keys()
    for method in ("receiver", "c2c", "wrong_question", "routing"):
        accuracy = found["methods"][method]["accuracy"]["value"]
        assert evaluation.data.metrics[f"accuracy/nano/{method}"] == pytest.approx(accuracy)
    files = {file.path for file in client.list_artifacts(evaluation.info.run_id)}
    assert files >= {"config.yaml", "report.html", "report.md", "results.json", "figures", "tables"}
    assert evaluation.data.params["model/fuser"].endswith("fuser")
    tables = [file.path for file in client.list_artifacts(evaluation.info.run_id, "tables/nano")]
    assert tables
    figures = [file.path for file in client.list_artifacts(evaluation.info.run_id, "figures/nano")]
    assert any(figure.endswith(".png") for figure in figures)


@pytest.fixture
def fit_and_test(fit, monkeypatch, tmp_path):
    run = fit("--trainer.max_steps=2", workspace=tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", run.store)
    main(["test", f"--config={CONFIG}", *FEW, "--trainer.callbacks=[]", "--trainer.enable_progress_bar=false"])
    folder = next(run.folder.glob("evaluation-*"))
    assert (folder / "report.html").exists()
    children = [r for r in run.client.search_runs(["1"]) if r.info.run_id != run.tracked.info.run_id]
    assert len(children) == 1
    return run.client, run.tracked, children[0], Evaluated(folder).findings()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--model.fuser=./nowhere"], "'./nowhere': no such folder"),
        (["--model.fuser=last"], "runs/ has no run with a fuser"),
        (["--ckpt_path=x.ckpt"], "name the checkpoint to test as --model.fuser"),
        (["--trainer.limit_test_batches=1"], "limit_test_batches is 1"),
        (["--trainer.fast_dev_run=true"], "fast_dev_run is True"),
        (["--model.methods=[]", "--model.controls=[]"], "nothing is asked"),
        (["--model.methods=[{class_path: Sharer, init_args: {index: 3}}]"], "names sharer 3, but the fuser has 1"),
        (["--data.benchmarks=[]"], "data.benchmarks is empty"),
        (["--data.benchmarks=[{class_path: NanoWorld}, {class_path: NanoWorld}]"], "nano twice"),
        (["--model.methods=[{class_path: C2C}, {class_path: C2C}]"], "'c2c' twice"),
        (["--data.batch_size=0"], "data.batch_size is 0"),
        (["--data.benchmarks=[{class_path: NanoWrld}]"], "Did you mean NanoWorld?"),
        (["--data.benchmarks=[{class_path: OwnQuestions, init_args: {path: no.jsonl}}]"], "'no.jsonl'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_wrong_input_gets_one_message(fuser, tmp_path, args, says):
    with pytest.raises(SystemExit) as refused:
        main(arguments(fuser, tmp_path / "evaluation", *args))
    assert str(refused.value.code).startswith("error: ")
    assert says in refused.value.code


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("own.jsonl", "Who", "Which"),
        ("prompt.yaml", "max_new_tokens: 8", "max_new_tokens: 4"),
        ("prompt.yaml", 'response: "{answer}"', 'response: "It is {answer}"'),
        ("exemplars.jsonl", "Somebody", "Everybody"),
    ],
)
def test_answers_to_other_questions_prompts_or_exemplars_are_not_taken_for_these(fuser, tmp_path, file, old, new):
    rows = ('{"question": "Who?", "reference": "Nobody"}', '{"question": "Where?", "reference": "Nowhere"}')
    (tmp_path / "own.jsonl").write_text("\n".join(rows))
    (tmp_path / "exemplars.jsonl").write_text('{"question": "Whose?", "reference": "Somebody"}')
    (tmp_path / "prompt.yaml").write_text(
        'name: mine\nversion: 1\nmessage: "{question}"\nresponse: "{answer}"\nmax_new_tokens: 8\n'
    )
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
    code = "from c2c_lightning.evaluation.methods import C2C\n\n\nclass Mine(C2C):\n    name = 'mine'\n"
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
    assert changed("model", methods=["C2C"])
    assert changed("trainer", precision="bf16-mixed")


def test_the_frozen_models_and_the_fuser_are_left_as_they_were(fuser, tmp_path, monkeypatch):
    evaluated = []
    monkeypatch.setattr(Evaluation, "on_test_epoch_end", lambda module: evaluated.append(module.communicator))
    evaluate(fuser, tmp_path / "evaluation", *FEW, "--trainer.callbacks=[{class_path: LayerAblation}]")
    fresh = Communicator.from_pretrained(str(fuser)).state_dict()
    after = evaluated[0].state_dict()
    assert fresh.keys() == after.keys()
    assert all(torch.equal(after[name], fresh[name]) for name in fresh)
