"""A run that was cut off ends with the fuser that it would have had."""

import signal

import pytest

from tests.training.conftest import newest, same

STEPS = ["--trainer.max_steps=10", "--trainer.val_check_interval=4"]
# The built-in training set has 100 batches of 16; of 400, so that resuming also crosses an epoch.
SHORT_EPOCHS = "--data.init_args.batch_size=400"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("extra", [[], [SHORT_EPOCHS], ["--trainer.accumulate_grad_batches=2"]])
def test_a_resumed_run_ends_with_the_same_fuser_to_the_bit(fit, tmp_path, number, extra):
    if number == signal.SIGINT and extra:
        pytest.skip("both signals take one way; once is enough")
    whole = fit(*STEPS, *extra)
    cut = [
        "--trainer.callbacks+=tests.training.conftest.RaiseSignal",
        "--trainer.callbacks.step=5",
        f"--trainer.callbacks.number={int(number)}",
    ]
    with pytest.raises(SystemExit) as stopped:
        fit(*STEPS, *extra, *cut, workspace=tmp_path)
    assert stopped.value.code == 128 + number
    interrupted = newest(tmp_path)
    assert interrupted.checkpoint()["global_step"] == 5
    assert interrupted.tracked.info.status == "KILLED"

    resumed = fit(*STEPS, *extra, "--ckpt_path=last", workspace=tmp_path)
    assert resumed.folder == interrupted.folder
    assert resumed.tracked.info.run_id == interrupted.tracked.info.run_id
    assert resumed.tracked.info.status == "FINISHED"
    assert same(resumed.checkpoint(), whole.checkpoint())


def test_accumulated_micro_batches_learn_what_one_batch_learns(fit):
    """Although responses differ in length, and so micro-batches in their number of supervised tokens."""
    steps = ["--trainer.max_steps=4", "--model.fuser.init_args.dropout=0"]
    # The whole training set in one batch, or in four: the same examples whatever their order.
    whole = fit(*steps, "--data.init_args.batch_size=1600").checkpoint()["state_dict"]
    parts = fit(*steps, "--data.init_args.batch_size=400", "--trainer.accumulate_grad_batches=4")
    parts = parts.checkpoint()["state_dict"]
    for name, value in whole.items():
        difference = (parts[name] - value).abs().max()
        assert difference < 1e-4, f"{name} differs by {difference}"


def test_what_is_typed_wins_over_the_checkpoint_or_is_refused(fit, tmp_path, capsys):
    fit("--trainer.max_steps=2", workspace=tmp_path)
    with pytest.raises(SystemExit, match=r"trained with model.optimizer .*0\.001.*, but this run says .*0\.5"):
        fit("--trainer.max_steps=4", "--ckpt_path=last", "--model.optimizer.lr=0.5", workspace=tmp_path)
    more = fit("--trainer.max_steps=4", "--ckpt_path=last", workspace=tmp_path)
    assert more.summary["steps"] == 4
