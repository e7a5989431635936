"""A run that was cut off ends with the fuser that it would have had."""

import json
import shutil
import signal

import pytest
import torch

from c2c_lightning.communicator import Communicator
from c2c_lightning.runs import held
from tests.training.runs import PROJECT, newest, same

ASKED = [{"role": "user", "content": "Where?"}]

STEPS = ["--trainer.max_steps=10", "--trainer.val_check_interval=4", "--model.fuser.init_args.dropout=0.1"]
ACCUMULATED = ["--trainer.accumulate_grad_batches=2"]


@pytest.fixture(scope="module")
def short_epochs(tmp_path_factory):
    """Data of four batches, so that a run of ten steps crosses epochs before and after it is cut off."""
    file = tmp_path_factory.mktemp("data") / "short.jsonl"
    lines = [json.dumps({"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}."}) for i in range(17)]
    file.write_text("\n".join(lines))
    return ["--data=InstructionData", f"--data.init_args.path={file}", "--data.init_args.batch_size=4"]


@pytest.mark.parametrize(
    ("kind", "number"),
    [("built-in", signal.SIGTERM), ("short epochs", signal.SIGINT), ("accumulated", signal.SIGTERM)],
)
def test_a_resumed_run_ends_with_the_same_fuser_to_the_bit(fit, tmp_path, short_epochs, kind, number):
    arguments = [*STEPS, *{"built-in": [], "short epochs": short_epochs, "accumulated": ACCUMULATED}[kind]]
    whole = fit(*arguments)
    cut = [
        "--trainer.callbacks+=tests.training.runs.RaiseSignal",
        "--trainer.callbacks.step=5",
        f"--trainer.callbacks.number={int(number)}",
    ]
    with pytest.raises(SystemExit) as stopped:
        fit(*arguments, *cut, workspace=tmp_path)
    assert stopped.value.code == 128 + number
    interrupted = newest(tmp_path)
    assert interrupted.checkpoint()["global_step"] == 5
    assert interrupted.tracked.info.status == "KILLED"

    resumed = fit(*arguments, "--ckpt_path=last", workspace=tmp_path)
    assert resumed.folder == interrupted.folder
    assert resumed.tracked.info.run_id == interrupted.tracked.info.run_id
    assert resumed.tracked.info.status == "FINISHED"
    assert resumed.checkpoint()["global_step"] == whole.checkpoint()["global_step"] == 10
    assert same(resumed.checkpoint(), whole.checkpoint())


def test_a_resumed_run_reads_prompts_of_the_day_on_which_it_began(fit, tmp_path):
    receiver = shutil.copytree(PROJECT / "c2c_lightning" / "nano" / "receiver", tmp_path / "receiver")
    template = receiver / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %b %Y') }}\n" + template.read_text())
    arguments = [f"--model.receiver={receiver}", "--trainer.max_steps=2", "--trainer.limit_val_batches=0"]
    cut = ["--trainer.callbacks+=tests.training.runs.RaiseSignal", "--trainer.callbacks.step=1"]
    cut.append("--trainer.callbacks.number=15")
    with pytest.raises(SystemExit):
        fit(*arguments, *cut, "--model.chat.date=2025-02-07", workspace=tmp_path)
    run = fit(*arguments, "--ckpt_path=last", workspace=tmp_path)
    assert run.checkpoint()["c2c"]["chat"]["date"] == "2025-02-07"
    assert Communicator.from_pretrained(run.folder).models.aligner.prompt(ASKED).text.startswith("07 Feb 2025\n")


def test_a_run_that_was_cut_off_after_its_last_step_is_ended_by_a_resume(fit, tmp_path):
    """Its weights are final, but nothing was exported yet."""
    cut = [
        "--trainer.callbacks+=tests.training.runs.RaiseSignal",
        "--trainer.callbacks.step=3",
        "--trainer.callbacks.number=15",
    ]
    with pytest.raises(SystemExit):
        fit("--trainer.max_steps=3", *cut, workspace=tmp_path)
    interrupted = newest(tmp_path)
    assert not (interrupted.folder / "summary.json").exists()
    before = interrupted.checkpoint()
    # With the bar that a user has, which never saw a start.
    resumed = fit("--trainer.max_steps=3", "--ckpt_path=last", "--trainer.enable_progress_bar=true", workspace=tmp_path)
    assert resumed.folder == interrupted.folder
    assert resumed.summary["steps"] == 3
    assert "val/accuracy/c2c" in resumed.summary["metrics"]
    assert same(resumed.checkpoint(), before)
    assert resumed.tracked.info.status == "FINISHED"
    assert (resumed.folder / "fuser" / "model.safetensors").exists()


def test_accumulated_micro_batches_have_the_gradient_of_one_batch(fit, short_epochs):
    """Although responses differ in length, and so micro-batches in their number of supervised tokens."""
    # The whole training set in one batch, or in four: the same examples whatever their order.
    step = ["--trainer.max_steps=1", *short_epochs]
    whole = fit(*step, "--data.init_args.batch_size=16").checkpoint()
    parts = fit(*step, "--trainer.accumulate_grad_batches=4").checkpoint()
    # After one step AdamW's running mean is the gradient, times 1 - beta1.
    mean, mean_of_parts = (run["optimizer_states"][0]["state"] for run in (whole, parts))
    assert len(mean) > 10
    for i in mean:
        torch.testing.assert_close(mean_of_parts[i]["exp_avg"], mean[i]["exp_avg"], rtol=1e-3, atol=1e-7)


def test_what_is_typed_against_the_checkpoint_is_refused(fit, tmp_path):
    run = fit("--trainer.max_steps=2", "--trainer.val_check_interval=1", workspace=tmp_path)
    first = f"--ckpt_path={run.folder / 'checkpoints' / 'step=1.ckpt'}"
    with pytest.raises(SystemExit, match=r"trained with model\.optimizer\.lr 0\.003, but this run says 0\.5"):
        fit("--trainer.max_steps=4", "--ckpt_path=last", "--model.optimizer.lr=0.5", workspace=tmp_path)
    with pytest.raises(SystemExit, match=r"data\.batch_size x devices is 8, but was 16"):
        fit("--trainer.max_steps=2", first, "--data.init_args.batch_size=8", workspace=tmp_path)


def contents(run) -> dict:
    """Every file of a run's folder."""
    return {file: file.read_bytes() for file in run.folder.rglob("*") if file.is_file()}


def test_a_resume_that_is_refused_leaves_the_run_as_it_was(fit, tmp_path):
    run = fit("--trainer.max_steps=2", workspace=tmp_path)
    before = contents(run)
    with pytest.raises(SystemExit, match=r"model\.gate\.kind learned, but this run says open"):
        fit("--trainer.max_steps=4", "--ckpt_path=last", "--model.gate.kind=open", workspace=tmp_path)
    assert contents(run) == before
    assert run.tracked.info.status == "FINISHED"


def test_resuming_a_finished_run_leaves_it_as_it_was(fit, tmp_path):
    run = fit("--trainer.max_steps=2", workspace=tmp_path)
    before = contents(run)
    fit("--trainer.max_steps=2", f"--ckpt_path={run.folder}", workspace=tmp_path)
    assert contents(run) == before
    assert run.tracked.info.status == "FINISHED"


def test_a_run_that_was_cut_off_before_its_first_checkpoint_begins_again_in_its_folder(fit, tmp_path, caplog):
    fit("--trainer.max_steps=2", workspace=tmp_path)
    with pytest.raises(RuntimeError):
        fit("--trainer.callbacks+=tests.training.runs.Fail", workspace=tmp_path)
    early = newest(tmp_path)
    fit("--trainer.max_steps=2", f"--trainer.default_root_dir={early.folder}", "--trainer.limit_train_batches=0.5",
        "--trainer.enable_checkpointing=false", workspace=tmp_path)  # fmt: skip
    shutil.rmtree(early.folder / "fuser")
    (early.folder / "summary.json").unlink()
    again = fit("--trainer.max_steps=2", "--ckpt_path=last", workspace=tmp_path)
    assert again.folder == early.folder
    assert again.summary["steps"] == 2
    assert "was cut off before its first checkpoint: it begins again" in caplog.text
    with pytest.raises(SystemExit, match="already holds a run"):
        fit("--trainer.max_steps=2", f"--trainer.default_root_dir={early.folder}", workspace=tmp_path)


def test_nobody_takes_a_run_up_while_it_goes_on(fit, tmp_path):
    hold = "--trainer.callbacks+=tests.training.runs.ExpectHeld"
    run = fit("--trainer.max_steps=2", hold, workspace=tmp_path)
    named = "--trainer.default_root_dir=runs/named"
    refused = pytest.raises(SystemExit, match=rf"another run is writing to runs/{run.folder.name}: wait for its end")
    with held(run.folder, "run"), refused:
        fit("--trainer.max_steps=6", "--ckpt_path=last", workspace=tmp_path)
    fit("--trainer.max_steps=2", hold, named, workspace=tmp_path)
    with pytest.raises(SystemExit, match="already holds a run"):
        fit("--trainer.max_steps=2", named, workspace=tmp_path)


def test_the_recorded_configuration_makes_a_run_of_its_own(fit, tmp_path):
    first = fit("--trainer.max_steps=2", workspace=tmp_path)
    again = fit(f"--config={first.folder / 'config.yaml'}", workspace=tmp_path)
    assert again.folder != first.folder
    assert same(again.checkpoint(), first.checkpoint())
