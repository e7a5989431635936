"""What whole evaluations of the built-in pair find, by the command line."""

from __future__ import annotations

import json
import subprocess
from statistics import median

import pytest
import torch

from c2c_lightning.cli.commands import main
from c2c_lightning.communicator import Communicator
from c2c_lightning.evaluation.analyses import Latency
from c2c_lightning.evaluation.asking.methods import C2C
from c2c_lightning.evaluation.asking.module import Evaluation
from c2c_lightning.evaluation.asking.text_to_text import TextToText
from c2c_lightning.evaluation.benchmarks import NanoWorld
from c2c_lightning.evaluation.report.findings import BenchmarkResults
from tests.evaluation.trained import CONFIG, FEW, Evaluated, arguments, command, environment, evaluate, same_findings

pytestmark = pytest.mark.usefixtures("workspace")
METHODS = {"receiver", "sharer", "text_to_text", "routing", "oracle_routing", "c2c", "c2c_after_text"}
HUNDRED = "--data.benchmarks=[{class_path: NanoWorld, init_args: {limit: 100}}]"
CONTROLS = {"wrong_question", "zero_update", "zero_cache", "mean_update"}


@pytest.fixture(scope="module")
def whole(fuser, tmp_path_factory) -> Evaluated:
    """All methods and controls on a hundred held-out questions."""
    return evaluate(fuser, tmp_path_factory.mktemp("whole"), HUNDRED)


def test_every_method_and_control_answers_every_question_once(whole):
    found = whole.findings()
    assert found["num_items"] == 100
    assert found["methods"].keys() == METHODS | CONTROLS
    assert found["left_out"].keys() == {"calibrated_receiver", "shuffled_choices"}  # the questions are open
    for method in whole.methods():
        lines = (whole.folder / "answers" / "nano" / f"{method}.jsonl").read_text().splitlines()
        assert len(lines) == len(whole.answers(method)) == 100


def test_what_a_trained_fuser_gains_is_question_specific(whole):
    gain = whole.findings()["question_specific_gain"]
    assert gain["significant"]
    assert gain["difference"]["value"] >= 0.4
    assert gain["difference"]["low"] > 0.2


def test_a_fuser_trained_on_the_wrong_caches_has_no_question_specific_gain(shuffled_fuser, tmp_path):
    found = evaluate(shuffled_fuser, tmp_path / "evaluation", HUNDRED).findings()
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
            assert found["accuracy"]["value"] == pytest.approx(sum(a.score for a in answers) / 100)


def test_c2c_answers_sooner_than_text_to_text(fuser):
    told = TextToText(sharer_prompt="{question}", receiver_prompt="{message} {prompt}", max_message_tokens=32)
    results = BenchmarkResults(NanoWorld(limit=8), {}, {})
    communicator = Communicator.from_pretrained(str(fuser))
    for batch_size in (1, 8):
        timings = Latency(questions=8).measure(communicator, results, [told, C2C()], batch_size)
        totals = {name: [t["total"] for t in timings if t["method"] == name] for name in ("text_to_text", "C2C")}
        text, cache = map(median, totals.values())
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


@pytest.mark.slow
def test_two_processes_find_what_one_finds_and_ask_no_question_twice(few, fuser, tmp_path):
    folder = tmp_path / "two"
    ranks = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=8"]
    subprocess.run(
        command(fuser, folder, *FEW, *ranks), env=environment(), check=True, capture_output=True, timeout=600
    )
    two = Evaluated(folder)
    for method in two.methods():
        lines = (folder / "answers" / "nano" / f"{method}.jsonl").read_text().splitlines()
        assert len(lines) == len(two.answers(method)) == 21
    assert same_findings(few, two)


def test_questions_longer_than_a_model_can_read_are_left_out_and_counted(fuser, tmp_path):
    long = "Where does Ribigo live? " * 200  # the built-in models read 512 tokens
    rows = [{"question": question, "reference": "Norway"} for question in ("Where?", long, "Who?")]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = "--data.benchmarks=[{class_path: OwnQuestions, init_args: {path: own.jsonl}}]"
    found = evaluate(fuser, tmp_path / "evaluation", FEW[0], own).findings("own")
    assert found["num_items"] == 2
    assert found["dropped"] == {"longer than a model can read": 1}


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
        (["--model.methods=[{class_path: TextToText, init_args: {sharer: 1}}]"], "names sharer 1, but the fuser has 1"),
        (["--trainer.callbacks=[{class_path: Latency, init_args: {methods: [c3c]}}]"], "methods of Latency has 'c3c'"),
        (["--trainer.callbacks=[{class_path: LayerAblation, init_args: {layers: [7]}}]"], "LayerAblation has [7]"),
        (["--trainer.callbacks=[{class_path: TransformationOracle, init_args: {sharer: 2}}]"], "Oracle is 2"),
        (["--data.benchmarks=[]"], "data.benchmarks is empty"),
        (["--data.benchmarks=[{class_path: NanoWorld}, {class_path: NanoWorld}]"], "nano twice"),
        (["--model.methods=[{class_path: C2C}, {class_path: C2C}]"], "'c2c' twice"),
        (["--data.batch_size=0"], "data.batch_size is 0"),
        (["--data.benchmarks=[{class_path: NanoWrld}]"], "Did you mean NanoWorld?"),
        (["--data.benchmarks=[{class_path: LongBenchE, init_args: {limit: 3}}]"], "give class_path HarnessTask"),
        (["--data.benchmarks=[{class_path: OwnQuestions, init_args: {path: no.jsonl}}]"], "'no.jsonl'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_wrong_input_gets_one_message_and_leaves_nothing_behind(fuser, tmp_path, args, says):
    with pytest.raises(SystemExit) as refused:
        main(arguments(fuser, tmp_path / "evaluation", *args))
    assert str(refused.value.code).startswith("error: ")
    assert says in refused.value.code
    assert not (tmp_path / "evaluation").exists()


def test_the_frozen_models_and_the_fuser_are_left_as_they_were(fuser, tmp_path, monkeypatch):
    evaluated = []
    monkeypatch.setattr(Evaluation, "on_test_epoch_end", lambda module: evaluated.append(module.communicator))
    evaluate(fuser, tmp_path / "evaluation", *FEW, "--trainer.callbacks=[{class_path: LayerAblation}]")
    fresh = Communicator.from_pretrained(str(fuser)).state_dict()
    after = evaluated[0].state_dict()
    assert fresh.keys() == after.keys()
    assert all(torch.equal(after[name], fresh[name]) for name in fresh)
