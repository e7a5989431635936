"""What a finished run leaves behind."""

import json
import math

import pytest
import torch

from c2c_lightning import Communicator
from c2c_lightning.cli.commands import main
from c2c_lightning.errors import UserError
from tests.training.runs import BASE, SMALL, newest, same

STABLE_NAMES = {
    "train/loss",
    "train/tokens_per_second",
    "train/grad_norm",
    "gate/open_keys",
    "gate/open_values",
    "val/loss",
    "val/perplexity",
    "val/accuracy/c2c",
    "val/accuracy/receiver",
    "val/accuracy/sharer",
    "val/accuracy/wrong_question",
}


@pytest.fixture(scope="module")
def run(fit):
    return fit("--trainer.max_steps=12", "--trainer.val_check_interval=6", "--trainer.log_every_n_steps=1")


def test_metrics_have_their_stable_names(run):
    assert set(run.tracked.data.metrics) >= STABLE_NAMES
    assert set(run.summary["metrics"]) >= STABLE_NAMES
    assert run.summary["steps"] == 12


def test_every_step_and_every_validation_is_a_point_of_a_curve(run):
    history = run.client.get_metric_history(run.tracked.info.run_id, "train/loss")
    assert [point.step for point in history] == list(range(12))
    assert len(run.client.get_metric_history(run.tracked.info.run_id, "val/accuracy/receiver")) == 2


def test_perplexity_is_exp_of_the_loss(run):
    metrics = run.summary["metrics"]
    assert metrics["val/perplexity"] == pytest.approx(math.exp(metrics["val/loss"]), rel=1e-5)


def test_mlflow_has_the_record_of_the_run(run):
    tracked = run.tracked
    assert tracked.info.status == "FINISHED"
    assert tracked.data.tags["pair"] == "receiver <- sharer"
    assert tracked.data.tags["fuser"] == "C2CFuser"
    assert tracked.data.params["model/gate/init"] == "1.0"
    artifacts = {file.path for file in run.client.list_artifacts(tracked.info.run_id)}
    assert artifacts >= {"config.yaml", "gates.png", "fuser", "summary.json"}


def test_the_checkpoint_holds_the_fuser_and_no_frozen_weight(run):
    names = run.checkpoint()["state_dict"].keys()
    assert names
    assert all(name.startswith("communicator.fusers.") for name in names)


def test_the_exported_fuser_is_the_trained_one(run):
    communicator = Communicator.from_pretrained(str(run.folder / "fuser"))
    trained = run.checkpoint()["state_dict"]
    exported = {f"communicator.fusers.{name}": value for name, value in communicator.fusers.state_dict().items()}
    assert exported.keys() == trained.keys()
    assert all(torch.equal(exported[name], trained[name]) for name in trained)
    assert isinstance(communicator.generate([{"role": "user", "content": "Who is it?"}], max_new_tokens=4), str)


def test_training_changes_the_fuser_and_nothing_else(fit):
    """Seen on the live models after a run, as no checkpoint holds a frozen weight."""
    fit("--trainer.max_steps=2", "--trainer.callbacks+=tests.training.runs.CompareWithShipped")


def test_a_run_ends_with_numbers_of_its_last_step(fit):
    run = fit("--trainer.max_steps=3")  # by itself it would be validated every 100
    assert set(run.summary["metrics"]) >= STABLE_NAMES
    assert run.checkpoint()["global_step"] == 3


def test_two_runs_of_one_configuration_are_the_same_to_the_bit(run, fit):
    again = fit("--trainer.max_steps=12", "--trainer.val_check_interval=6")
    assert same(run.checkpoint(), again.checkpoint())


def test_a_failed_run_is_marked_failed_with_its_traceback(fit, tmp_path):
    with pytest.raises(RuntimeError, match="the disk is on fire"):
        fit("--trainer.max_steps=2", "--trainer.callbacks+=tests.training.runs.Fail", workspace=tmp_path)
    run = newest(tmp_path)
    assert run.tracked.info.status == "FAILED"
    assert run.tracked.data.tags["error"] == "RuntimeError: the disk is on fire"
    assert "the disk is on fire" in (run.folder / "traceback.txt").read_text()
    assert "traceback.txt" in {file.path for file in run.client.list_artifacts(run.tracked.info.run_id)}


def test_a_tracking_server_out_of_reach_does_not_stop_the_run(fit, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.warns(UserWarning, match="out of reach; the run goes on"):
        fit(
            "--trainer.max_steps=2",
            "--trainer.val_check_interval=2",
            workspace=tmp_path,
            tracking_uri="http://127.0.0.1:9",
        )
    run = newest(tmp_path)
    assert (run.folder / "fuser" / "model.safetensors").exists()
    assert (run.folder / "checkpoints" / "last.ckpt").exists()
    assert "val/accuracy/c2c" in (run.folder / "untracked_metrics.jsonl").read_text()


def test_a_fast_dev_run_leaves_nothing_behind(fit, tmp_path):
    with pytest.raises(FileNotFoundError):  # there is no newest run
        fit("--trainer.fast_dev_run=true", workspace=tmp_path)
    assert not (tmp_path / "runs").exists()


def test_what_is_not_a_number_is_null_in_json(fit, tmp_path):
    """Of a single question to validate on there is no other, so `wrong_question` means nothing."""
    for name, count in {"train": 20, "val": 1}.items():
        lines = [json.dumps({"question": f"What is {i}?", "answer": f"It is {i}."}) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    data = ["--data=InstructionData", "--data.init_args.path=train.jsonl", "--data.init_args.val_path=val.jsonl"]
    run = fit(*data, "--data.init_args.exact_answers=true", "--trainer.max_steps=1", workspace=tmp_path)
    for name in ("summary.json", "progress.jsonl"):
        metrics = json.loads((run.folder / name).read_text(), parse_constant=pytest.fail)["metrics"]
        assert metrics["val/accuracy/wrong_question"] is None
        assert metrics["val/accuracy/c2c"] in (0, 1)


def test_a_run_that_was_cut_off_in_its_last_validation_keeps_its_last_metrics(fit, tmp_path):
    steps = ["--trainer.max_steps=4", "--trainer.val_check_interval=4", "--trainer.log_every_n_steps=1"]
    cut = ["--trainer.callbacks+=tests.training.runs.FailAtValidation", "--trainer.callbacks.step=4"]
    with pytest.raises(RuntimeError, match="the power is off"):
        fit(*steps, *cut, workspace=tmp_path)
    assert not (newest(tmp_path).folder / "summary.json").exists()
    resumed = fit(*steps, "--ckpt_path=last", workspace=tmp_path).summary["metrics"]
    whole = fit(*steps).summary["metrics"]
    assert resumed.keys() == whole.keys()
    assert {"lr-AdamW/fuser", "gate/open_keys", "train/grad_norm"} < whole.keys()
    clock = "train/tokens_per_second"
    assert resumed | {clock: 0} == whole | {clock: 0}


def test_validation_of_no_checkpoint_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="validate needs --ckpt_path"):
        main(["validate", "--config", BASE, *SMALL])


def test_a_checkpoint_is_validated_whatever_would_be_trained_on(run, monkeypatch):
    monkeypatch.chdir(run.folder.parents[1])
    main(["validate", "--config", BASE, *SMALL, "--ckpt_path=last", "--trainer.limit_train_batches=0"])


def test_fusers_are_not_trained_in_half_precision(fit):
    with pytest.raises(SystemExit, match="give bf16-mixed"):
        fit("--trainer.max_steps=1", "--trainer.precision=bf16-true")
    assert fit("--trainer.max_steps=1", "--trainer.precision=bf16-mixed").summary["steps"] == 1


def test_a_checkpoint_is_loaded_as_the_exported_fuser_is(run):
    from_checkpoint = Communicator.from_pretrained(str(run.folder / "checkpoints" / "last.ckpt"))
    exported = Communicator.from_pretrained(str(run.folder))
    assert from_checkpoint.config() == exported.config()
    for name, tensor in exported.fusers.state_dict().items():
        assert torch.equal(from_checkpoint.fusers.state_dict()[name], tensor)


def test_what_is_no_checkpoint_is_refused_by_name(tmp_path):
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match=r"damaged\.ckpt.*damaged or no checkpoint"):
        Communicator.from_pretrained(str(damaged))
    with pytest.raises(UserError, match=r"nowhere\.ckpt.*no such checkpoint"):
        Communicator.from_pretrained(str(tmp_path / "nowhere.ckpt"))
