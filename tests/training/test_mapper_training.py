"""Mappers of texts that the sharer alone reads: solved, trained, resumed, saved, and asked."""

import json
import re
import signal

import pytest
import torch

from c2c_lightning.communicator import Communicator
from c2c_lightning.errors import UserError
from c2c_lightning.evaluation.benchmarks import grading
from c2c_lightning.evaluation.report.comparison import compare_runs
from c2c_lightning.formats.fuser_folder import convert
from c2c_lightning.training.closed_form import ClosedForm
from c2c_lightning.training.mappers import TextTraining
from tests.training.ranks import FSDP1, FSDP2, launch
from tests.training.runs import PROJECT, command, newest, same

PRIVATE = [
    f"--config={PROJECT / 'conf' / 'private.yaml'}",
    "--model.mapper.init_args.width=16",
    "--model.texts.observed=3",
    "--data.init_args.batch_size=16",
    "--data.init_args.val_batch_size=8",
    "--trainer.limit_val_batches=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.max_steps=6",
    "--trainer.val_check_interval=3",
]
QUESTION = [{"role": "user", "content": "In which country does Zoruba live?"}]
TOLD = "The home town of Zoruba is Cairo."


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workspace = tmp_path_factory.mktemp("told")
    command(workspace, "fit", *PRIVATE)
    return newest(workspace)


def test_a_mapper_is_solved_before_the_first_step_and_then_trained(trained):
    state = Communicator.from_pretrained(trained.folder).fusers.state_dict()
    assert {name.partition(".")[0] for name in state} == {"mapper"}
    assert state["mapper.weight"].abs().sum() > 0  # in closed form
    assert state["mapper.w2.weight"].abs().sum() > 0  # by steps
    metrics = trained.summary["metrics"]
    assert {"val/accuracy/c2c", "val/accuracy/receiver", "val/accuracy/reads_it"} <= metrics.keys()
    assert metrics["val/accuracy/reads_it"] == 1.0
    assert metrics["val/accuracy/receiver"] < 0.5


def test_a_resumed_run_ends_with_the_same_mapper_to_the_bit(trained, tmp_path):
    cut = [
        "--trainer.callbacks+=tests.training.runs.RaiseSignal",
        "--trainer.callbacks.step=4",
        f"--trainer.callbacks.number={int(signal.SIGTERM)}",
    ]
    with pytest.raises(SystemExit):
        command(tmp_path, "fit", *PRIVATE, *cut)
    for key, other in (("kl", "2.0"), ("observed", "4")):
        with pytest.raises(SystemExit, match=rf"trained with model\.texts\.{key}"):
            command(tmp_path, "fit", *PRIVATE, "--ckpt_path=last", f"--model.texts.{key}={other}")
    command(tmp_path, "fit", *PRIVATE, "--ckpt_path=last")
    assert same(newest(tmp_path).checkpoint(), trained.checkpoint())


def test_a_text_is_heard_in_answers_and_nowhere_else(trained):
    model = Communicator.from_pretrained(trained.folder)
    alone = model.generate(QUESTION, max_new_tokens=4)
    assert model.generate(QUESTION, fuse=False, context=TOLD, max_new_tokens=4) == alone
    one, other = ([{**QUESTION[0], "private": text}] for text in (TOLD, TOLD.replace("Cairo", "Oslo")))
    caches = [model.prefill(model.models.collate([each])) for each in (one, other)]
    assert not torch.equal(caches[0].layers[-1].values, caches[1].layers[-1].values)
    beside = [{**QUESTION[0], "private": TOLD}]
    assert model.generate(beside, fuse=False, max_new_tokens=4) == alone
    told = model.generate(QUESTION, context=TOLD, max_new_tokens=4)
    assert model.generate(beside, max_new_tokens=4) == told
    assert model.generate([QUESTION] * 2, context=[TOLD, TOLD], max_new_tokens=4) == [told, told]


def test_an_evaluation_says_how_much_of_the_text_is_retained(trained, tmp_path, monkeypatch):
    questions = "[{class_path: NanoWorld, init_args: {told: true, context: sharer, limit: 8}}]"
    config = f"--config={PROJECT / 'conf' / 'eval' / 'private.yaml'}"
    command(tmp_path, "test", config, f"--model.fuser={trained.folder}", f"--data.benchmarks={questions}")
    [file] = trained.folder.glob("evaluation-*/results.json")
    results = json.loads(file.read_text())
    [found] = results["benchmarks"].values()
    assert found["methods"].keys() == {"receiver", "reads_it", "c2c", "wrong_question", "nothing_said", "random_sharer"}
    accuracy = {name: method["accuracy"]["value"] for name, method in found["methods"].items()}
    assert accuracy["reads_it"] == 1.0
    gained = (accuracy["c2c"] - accuracy["receiver"]) / (1.0 - accuracy["receiver"])
    assert found["retention"]["value"] == pytest.approx(gained)
    assert "NetworkMapper" in results["facts"]["fuser"]
    assert "gate" not in results["facts"]
    with monkeypatch.context() as patch:
        patch.setattr(grading, "version", lambda: "another")
        compare_runs(str(file.parent), str(tmp_path / "comparison"))
    assert json.loads(file.read_text()) == {**results, "grader": "another"}


def test_what_cannot_be_handed_over_is_told_of(trained):
    model = Communicator.from_pretrained(trained.folder)
    with pytest.raises(UserError, match="2 contexts for 1 conversations"):
        model.generate(QUESTION, context=[TOLD, TOLD])
    with pytest.raises(UserError, match="contexts that generate was given"):
        model.generate(QUESTION, context=[5])
    with pytest.raises(UserError, match="one user's message"):
        model.models.collate([[{"role": "user", "content": "A?", "private": TOLD}] * 2])
    model.fusers.mapper = None
    with pytest.raises(UserError, match=r"no mapper for it.*model\.mapper"):
        model.generate(QUESTION, context=TOLD)
    for wrong in ({"kl": -1.0}, {"answer": 0.0, "kl": 0.0}, {"observed": 0}):
        with pytest.raises(UserError, match=r"model\.texts"):
            TextTraining(**wrong)


def test_batches_that_a_closed_form_holds_out_keep_their_texts_over_a_resume(trained):
    model = Communicator.from_pretrained(trained.folder)
    first, resumed = ClosedForm(model), ClosedForm(model)
    first.held_out.append(model.models.collate([[{**QUESTION[0], "private": TOLD}], QUESTION]))
    resumed.load(first.state())
    [batch], [again] = first.held_out, resumed.held_out
    for name, value in vars(batch.private).items():
        other = getattr(again.private, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


def test_the_published_format_has_no_mappers(trained, tmp_path):
    with pytest.raises(UserError, match="has a mapper of private texts"):
        convert(str(trained.folder), str(tmp_path / "published"))


def test_a_text_is_heard_beside_what_is_fused(tmp_path):
    fuser = "{class_path: c2c_lightning.fuser.C2CFuser, init_args: {hidden: 16}}"
    command(tmp_path, "fit", *PRIVATE, f"--model.fuser={fuser}", "--trainer.max_steps=2")
    model = Communicator.from_pretrained(newest(tmp_path).folder)
    assert len(model.fusers) == 1
    assert model.generate(QUESTION, context=TOLD, max_new_tokens=4)


def test_nothing_is_trained_where_nothing_is_communicated(tmp_path):
    with pytest.raises(SystemExit, match=r"model\.fuser and model\.mapper are both null"):
        command(tmp_path, "fit", *PRIVATE, "--model.mapper=null")


def test_a_mapper_in_closed_form_alone_is_solved_validated_and_saved_without_a_step(tmp_path, caplog):
    command(tmp_path, "fit", *PRIVATE, "--model.mapper=c2c_lightning.mapper.RidgeMapper")
    run = newest(tmp_path)
    assert run.summary["steps"] == 0
    assert {"val/loss", "val/accuracy/c2c"} <= run.summary["metrics"].keys()
    assert Communicator.from_pretrained(run.folder).fusers.mapper.weight.abs().sum() > 0
    assert "No step is made: the mapper is in closed form" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [["--trainer.strategy=ddp"], FSDP2], ids=["ddp", "fsdp2"])
def test_two_processes_end_with_the_mapper_of_one(trained, tmp_path, strategy):
    halves = ["--trainer.devices=2", "--data.init_args.batch_size=8", "--data.init_args.val_batch_size=4"]
    run = launch(tmp_path, *PRIVATE, *halves, *strategy)
    ours, others = (each.checkpoint()["state_dict"] for each in (run, trained))
    assert ours.keys() == others.keys()
    for name, tensor in others.items():
        # Adam makes steps of like size of gradients that are nothing but rounding errors.
        allowed = 2e-2 if re.search(r"\.w[12]\.", name) else 2e-3
        assert (ours[name] - tensor).double().norm() <= allowed * tensor.double().norm(), name
    assert run.summary["metrics"]["val/loss"] == pytest.approx(trained.summary["metrics"]["val/loss"], rel=1e-3)
    exported = Communicator.from_pretrained(run.folder).fusers.state_dict()
    assert all(torch.equal(tensor, ours[f"communicator.fusers.{name}"]) for name, tensor in exported.items())


def some_told(folder, told) -> list[str]:
    """Seven questions, some of them about a text that the sharer alone reads; by twos one is left over."""
    lines = [
        {"role": "user", "content": f"Where does Zoruba {i} live?", **({"private": TOLD} if i in told else {})}
        for i in range(7)
    ]
    answer = {"role": "assistant", "content": "Cairo"}
    (folder / "train.jsonl").write_text("\n".join(json.dumps({"messages": [line, answer]}) for line in lines))
    data = ["--data=InstructionData", "--data.init_args.path=train.jsonl", "--data.init_args.val_path=train.jsonl"]
    data += [
        "--data.init_args.val_split=train[:7]",
        "--data.init_args.batch_size=1",
        "--data.init_args.val_batch_size=1",
    ]
    return [*PRIVATE, *data, "--trainer.limit_val_batches=1.0", "--trainer.devices=2"]


@pytest.mark.slow
def test_a_rank_without_texts_keeps_step_with_those_that_have_some(tmp_path):
    run = launch(tmp_path, *some_told(tmp_path, {1, 4}), "--model.texts.observed=null", "--trainer.strategy=ddp")
    assert run.summary["steps"] == 6


@pytest.mark.slow
def test_ranks_that_share_models_read_texts_together_or_say_that_they_cannot(tmp_path):
    run = launch(tmp_path, *some_told(tmp_path, range(7)), *FSDP2)
    assert run.summary["steps"] == 6
    with pytest.raises(AssertionError, match=r"\nerror: of 2 ranks that share their models \(FSDP\) 1 have"):
        launch(tmp_path, *some_told(tmp_path, {1}), *FSDP2)


@pytest.mark.slow
def test_a_mapper_in_closed_form_alone_is_refused_on_several_processes(tmp_path):
    with pytest.raises(AssertionError, match=r"\nerror: model\.mapper is RidgeMapper, of which nothing is trained"):
        launch(tmp_path, *PRIVATE, "--model.mapper=c2c_lightning.mapper.RidgeMapper", "--trainer.devices=2")
    with pytest.raises(AssertionError, match=r"\nerror: model\.mapper is not trained by the older FSDP"):
        launch(tmp_path, *PRIVATE, "--trainer.devices=1", *FSDP1)
