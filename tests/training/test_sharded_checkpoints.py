"""A checkpoint is written under one strategy and resumed under another, on another number of devices."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment

from c2c_lightning import Communicator
from c2c_lightning.cli.commands import main
from c2c_lightning.errors import UserError
from c2c_lightning.training import FSDP2 as FSDP2Strategy
from c2c_lightning.training.checkpoints import CheckpointWriter
from tests.disk import full_disk
from tests.training.ranks import FSDP1, FSDP2, ON_TWO, STEPS, assert_same_fuser, launch
from tests.training.runs import same

SHARDED = "--trainer.strategy.init_args.save_distributed_checkpoint=true"


def at(run, step: int, folder) -> list[str]:
    """Goes on from a run's checkpoint as a run of its own."""
    return [f"--ckpt_path={run.folder / 'checkpoints' / f'step={step}.ckpt'}", f"--trainer.default_root_dir={folder}"]


@pytest.fixture(scope="module")
def whole(fit):
    return fit(*STEPS)


@pytest.fixture(scope="module")
def sharded(whole, tmp_path_factory):
    """From step 10 on, on two processes, each of which writes its part of every checkpoint."""
    workspace = tmp_path_factory.mktemp("sharded")
    return launch(workspace, *STEPS, *FSDP2, *ON_TWO, SHARDED, *at(whole, 10, workspace / "runs" / "sharded"))


@pytest.mark.parametrize("strategy", [FSDP2, FSDP1], ids=["fsdp2", "fsdp1"])
def test_from_one_process_to_two_and_back(whole, fit, tmp_path, strategy):
    on_two = launch(tmp_path, *STEPS, *strategy, *ON_TWO, *at(whole, 10, tmp_path / "runs" / "on_two"))
    assert_same_fuser(on_two, whole)
    back = fit(*STEPS, *at(on_two, 15, tmp_path / "runs" / "back"), workspace=tmp_path)
    assert_same_fuser(back, whole)


def test_a_sharded_one_is_resumed_by_fsdp2_on_another_number_of_processes(sharded, whole, tmp_path):
    on_one = launch(tmp_path, *STEPS, *FSDP2, "--trainer.devices=1", *at(sharded, 15, tmp_path / "runs" / "on_one"))
    assert_same_fuser(on_one, whole)


def test_a_sharded_one_is_consolidated_with_one_command_and_then_as_any_other(sharded, whole, fit, tmp_path, capsys):
    last = sharded.folder / "checkpoints" / "last.ckpt"
    assert last.is_dir()
    command = r"python -m c2c_lightning consolidate --checkpoint \S*\.ckpt"
    with pytest.raises(SystemExit, match=command):
        fit(*STEPS, *at(sharded, 15, tmp_path / "runs" / "refused"), workspace=tmp_path)
    with pytest.raises(ValueError, match=command):
        Communicator.from_pretrained(str(last))

    main(["consolidate", "--checkpoint", str(sharded.folder)])
    assert str(last) in capsys.readouterr().out
    assert all(file.is_file() for file in (sharded.folder / "checkpoints").iterdir())
    assert_same_fuser(sharded, whole)
    loaded, exported = (Communicator.from_pretrained(str(name)).fusers.state_dict() for name in (last, sharded.folder))
    assert all(torch.equal(loaded[name], tensor) for name, tensor in exported.items())
    assert sharded.checkpoint().keys() >= whole.checkpoint().keys() - {"pytorch-lightning_version", "answered_alone"}
    resumed = fit(*STEPS, *at(sharded, 15, tmp_path / "runs" / "resumed"), workspace=tmp_path)
    assert_same_fuser(resumed, whole)


def test_what_cannot_be_consolidated_is_said_so(whole, tmp_path):
    for name, reason in (
        (tmp_path / "nowhere", "no such checkpoint"),
        (whole.folder, "no sharded checkpoint"),
        (whole.folder / "checkpoints" / "last.ckpt", "no sharded checkpoint"),
    ):
        with pytest.raises(SystemExit, match=reason):
            main(["consolidate", "--checkpoint", str(name)])
    damaged = tmp_path / "damaged.ckpt"
    damaged.mkdir()
    (damaged / ".metadata").write_bytes(b"no metadata")
    with pytest.raises(SystemExit, match=r"damaged\.ckpt: a part is damaged or missing"):
        main(["consolidate", str(damaged)])
    assert damaged.is_dir()
    assert same(whole.checkpoint(), whole.checkpoint("step=20.ckpt"))


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("after", [True, False])
def test_a_checkpoint_that_was_cut_off_leaves_the_old_one(before, after, tmp_path, monkeypatch):
    last = tmp_path / "last.ckpt"

    def save(step: int, sharded: bool) -> None:
        state = {"state_dict": {"weight": torch.full((9999,), float(step))}, "global_step": step}
        strategy = FSDP2Strategy(save_distributed_checkpoint=sharded)
        strategy.checkpoint_io = CheckpointWriter()
        strategy.save_checkpoint(state, last)

    def step(sharded: bool) -> int:
        return torch.load(last / "meta.pt" if sharded else last)["global_step"]

    save(1, before)
    with full_disk(10_000), pytest.raises(UserError, match=r"last\.ckpt\S* cannot be written: "):
        save(2, after)
    assert step(before) == 1
    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            save(2, after)
    assert step(before) == 1
    save(2, after)
    assert step(after) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def save_on_a_full_disk(rank: int, folder: Path) -> None:
    """One of two ranks, with a disk that has room for the parts of both, but not for what rank 0 writes alone."""
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", store, rank=rank, world_size=2, timeout=timedelta(minutes=1))
    strategy = FSDP2Strategy(save_distributed_checkpoint=True)
    strategy.cluster_environment = LightningEnvironment()
    strategy.cluster_environment.set_global_rank(rank)
    try:
        with full_disk(50_000):
            strategy.save_checkpoint(
                {"state_dict": {"weight": torch.ones(9)}, "more": torch.ones(99_999)}, folder / "last.ckpt"
            )
    except UserError as error:
        (folder / str(rank)).write_text(str(error))


@pytest.mark.slow
def test_what_rank_0_cannot_write_ends_all_ranks(tmp_path):
    torch.multiprocessing.spawn(save_on_a_full_disk, (tmp_path,), nprocs=2)
    assert all("last.ckpt cannot be written" in (tmp_path / rank).read_text() for rank in "01")
