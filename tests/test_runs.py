"""What lies where in a run's folder."""

import os

import pytest

from c2c_lightning.errors import UserError
from c2c_lightning.files import write_whole
from c2c_lightning.runs import make_folder, newest_fuser, run_of


def make(folder, *files: str, age: int = 0):
    for name in ("config.yaml", *files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    stamp = 1_000_000 - age
    os.utime(folder / "config.yaml", (stamp, stamp))
    return folder


def test_the_newest_fuser_is_that_of_the_run_begun_last_which_has_one(tmp_path):
    with pytest.raises(UserError, match="has no run with a fuser"):
        newest_fuser(tmp_path)
    make(tmp_path / "z", "fuser/config.json", age=3)
    assert newest_fuser(tmp_path) == tmp_path / "z" / "fuser"
    make(tmp_path / "b", "checkpoints/last.ckpt", age=2)
    assert newest_fuser(tmp_path) == tmp_path / "b" / "checkpoints" / "last.ckpt"
    make(tmp_path / "a", age=1)  # cut off before its first checkpoint
    (tmp_path / "copied" / "fuser").mkdir(parents=True)  # no run
    assert newest_fuser(tmp_path) == tmp_path / "b" / "checkpoints" / "last.ckpt"


def test_a_fusers_run_is_found_from_its_folder_its_fuser_and_its_checkpoint(tmp_path, monkeypatch):
    run = make(tmp_path / "run", "fuser/config.json", "checkpoints/last.ckpt")
    for fuser in (run, run / "fuser", run / "checkpoints" / "last.ckpt"):
        assert run_of(str(fuser)) == run
    monkeypatch.chdir(make(tmp_path / "elsewhere"))
    assert run_of("owner/fuser-on-the-hub") is None


def test_a_file_is_there_as_a_whole_or_not_at_all(tmp_path):
    write_whole(tmp_path / "file", "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "file", "half \ud800")
    assert (tmp_path / "file").read_text() == "old"


def test_a_folder_that_cannot_be_made_is_said_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"output .*file.inside cannot be made"):
        make_folder(tmp_path / "file" / "inside", "output")
