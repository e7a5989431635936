"""Several processes learn what one learns, however the models are spread over them."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.training.ranks import FSDP1, FSDP2, ON_TWO, STEPS, TORCHRUN, assert_same_fuser, curve, launch

pytestmark = pytest.mark.slow
WAYS = {"ddp": [], "fsdp2": FSDP2, "fsdp1": FSDP1}


@pytest.fixture(scope="module")
def whole(fit):
    return fit(*STEPS)


@pytest.fixture(scope="module", params=WAYS)
def spread(request, tmp_path_factory):
    """The same run on two processes."""
    return launch(tmp_path_factory.mktemp(request.param), *STEPS, *ON_TWO, *WAYS[request.param])


def test_two_processes_have_the_losses_of_one_on_the_same_global_batch(spread, whole):
    for metric, tolerance in (("train/loss", 1e-5), ("train/grad_norm", 1e-4)):
        two, one = curve(spread, metric), curve(whole, metric)
        assert len(two) == len(one) == 20
        assert two == pytest.approx(one, abs=tolerance)


def test_two_processes_end_with_the_fuser_of_one(spread, whole):
    assert_same_fuser(spread, whole)


def test_all_is_validated_and_the_whole_fuser_exported(spread):
    assert {"val/loss", "val/accuracy/c2c", "val/accuracy/receiver"} <= spread.summary["metrics"].keys()
    exported = load_file(spread.folder / "fuser" / "model.safetensors")
    trained = spread.checkpoint()["state_dict"]
    assert trained.keys() == {f"communicator.fusers.{name}" for name in exported}
    assert all(torch.equal(tensor, trained[f"communicator.fusers.{name}"]) for name, tensor in exported.items())


def test_sharded_fusers_are_trained_in_single_precision_whatever_is_computed_in_bf16(tmp_path):
    checkpoint = launch(
        tmp_path, "--trainer.max_steps=2", "--trainer.precision=bf16-mixed", *FSDP2, *ON_TWO
    ).checkpoint()
    moments = [moment for state in checkpoint["optimizer_states"][0]["state"].values() for moment in state.values()]
    assert moments
    assert {tensor.dtype for tensor in (*moments, *checkpoint["state_dict"].values())} == {torch.float32}


@pytest.mark.parametrize("strategy", [FSDP2, FSDP1], ids=["fsdp2", "fsdp1"])
def test_a_process_with_nothing_to_read_keeps_step_with_those_it_shares_models_with(tmp_path, strategy):
    """Of 5 questions the last batch of 2 for each process has one, and of 5 to validate on too."""
    for name in ("train", "val"):
        lines = [json.dumps({"question": f"{name} {i}?", "answer": "yes " * (i + 1)}) for i in range(5)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    data = ["--data=InstructionData", "--data.init_args.path=train.jsonl", "--data.init_args.val_path=val.jsonl"]
    sizes = ["--data.init_args.batch_size=2", "--data.init_args.val_batch_size=2", "--trainer.limit_val_batches=1.0"]
    more = ["--data.init_args.exact_answers=true", "--trainer.max_epochs=2", "--trainer.max_steps=-1"]
    run = launch(tmp_path, *strategy, "--trainer.devices=2", *data, *sizes, *more)
    assert run.summary["steps"] == 4
    assert "val/accuracy/wrong_question" in run.summary["metrics"]


def test_processes_that_a_cluster_started_share_the_run_of_the_first(tmp_path):
    """Each has read the clock by itself to name the run's folder."""
    run = launch(tmp_path, "--trainer.max_steps=2", *ON_TWO, by=TORCHRUN)
    assert list((tmp_path / "runs").iterdir()) == [run.folder]
    assert run.checkpoint()["global_step"] == run.summary["steps"] == 2
