"""A consolidation that is killed at any moment can be called again, and ends with the same file."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from c2c_lightning.cli.commands import main
from c2c_lightning.errors import UserError
from c2c_lightning.training.checkpoints import ASIDE, find_checkpoint

STATE = {"state_dict": {"weight": torch.arange(6.0).reshape(2, 3)}, "global_step": 7}


class Killed(BaseException):
    """What no handler of ours catches."""


@pytest.fixture
def run(tmp_path):
    """A run's folder with two sharded checkpoints, as one rank writes them."""
    for name in ("step=5.ckpt", "last.ckpt"):
        folder = tmp_path / "run" / "checkpoints" / name
        dcp.save({"state_dict": STATE["state_dict"]}, checkpoint_id=folder, no_dist=True)
        torch.save({"global_step": STATE["global_step"]}, folder / "meta.pt")
    return tmp_path / "run"


def kill_at(monkeypatch, owner, name: str, call: int) -> None:
    """Kills whoever calls a function for so many a time, before it does anything."""
    do, calls = getattr(owner, name), []

    def killed(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            raise Killed
        return do(*args, **kwargs)

    monkeypatch.setattr(owner, name, killed)


def half_deleted(folder: Path) -> None:
    (folder / ".metadata").unlink()
    raise Killed


def assert_consolidated(run: Path) -> None:
    files = sorted((run / "checkpoints").iterdir())
    assert [file.name for file in files] == ["last.ckpt", "step=5.ckpt"]
    for file in files:
        checkpoint = torch.load(file, weights_only=True)
        assert checkpoint["global_step"] == 7
        assert torch.equal(checkpoint["state_dict"]["weight"], STATE["state_dict"]["weight"])


MOMENTS = {
    "before the file is written": (torch, "save", 1),
    "before the folder makes room": (Path, "rename", 1),
    "while neither has the name": (Path, "replace", 1),
    "before the folder is deleted": (shutil, "rmtree", 1),
    "in the second checkpoint": (Path, "replace", 2),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_what_was_killed_is_ended_by_the_next_call_on_the_run(run, moment, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        kill_at(patched, *MOMENTS[moment])
        with pytest.raises(Killed):
            main(["consolidate", str(run)])
    main(["consolidate", str(run)])
    assert_consolidated(run)
    assert "last.ckpt" in capsys.readouterr().out


@pytest.mark.parametrize("moment", ["while neither has the name", "before the folder is deleted", "half deleted"])
@pytest.mark.parametrize("named", ["last.ckpt", f"last.ckpt{ASIDE}"])
def test_what_was_killed_is_ended_by_the_next_call_on_the_checkpoint(run, moment, named, monkeypatch):
    last = run / "checkpoints" / "last.ckpt"
    with monkeypatch.context() as patched:
        if moment == "half deleted":
            patched.setattr(shutil, "rmtree", half_deleted)
        else:
            kill_at(patched, *MOMENTS[moment])
        with pytest.raises(Killed):
            main(["consolidate", str(last)])
    main(["consolidate", str(last.with_name(named))])
    main(["consolidate", str(run)])
    assert_consolidated(run)


def test_a_run_beside_it_is_left_alone(run):
    beside = run.with_name(f"{run.name}.sharded")
    shutil.copytree(run, beside)
    main(["consolidate", str(run)])
    assert_consolidated(run)
    assert (beside / "checkpoints" / "last.ckpt").is_dir()


class Harmful:
    """Touches a file when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


def metadata_runs(last: Path, file: Path) -> None:
    (last / ".metadata").write_bytes(pickle.dumps(Harmful(file)))


def metadata_hides_it(last: Path, file: Path) -> None:
    metadata = pickle.loads((last / ".metadata").read_bytes())
    metadata.planner_data = Harmful(file)
    (last / ".metadata").write_bytes(pickle.dumps(metadata))


def value_runs(last: Path, file: Path) -> None:
    dcp.save({"state_dict": STATE["state_dict"], "optimizer_0": Harmful(file)}, checkpoint_id=last, no_dist=True)


def value_of_another_file(last: Path, file: Path) -> None:
    dcp.save({"state_dict": STATE["state_dict"], "optimizer_0": {"lr": 0.1}}, checkpoint_id=last, no_dist=True)
    next(last.glob("*.distcp")).write_bytes(b"cut off")


@pytest.mark.parametrize("spoil", [metadata_runs, metadata_hides_it, value_runs, value_of_another_file])
def test_a_sharded_checkpoint_is_read_without_running_what_stands_in_it(run, spoil, tmp_path):
    last = run / "checkpoints" / "last.ckpt"
    spoil(last, tmp_path / "executed")
    (tmp_path / "executed").unlink(missing_ok=True)  # dcp.save may have unpickled its own
    with pytest.raises(SystemExit, match=r"last\.ckpt: a part is damaged or missing"):
        main(["consolidate", str(last)])
    with pytest.raises(UserError, match=r"--ckpt_path .*last\.ckpt: a part is damaged or missing"):
        find_checkpoint(last, sharded=True)
    assert not (tmp_path / "executed").exists()
    assert last.is_dir()
