"""What lies where in a run's folder."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from c2c_lightning.cli.commands import main
from c2c_lightning.errors import UserError
from c2c_lightning.files import write_whole
from c2c_lightning.runs import begun, checkpoints, cut_off_early, give_back, make_folder, new_folder, run_of
from tests.training.runs import BASE


def make(folder, *files: str, age: int = 0):
    for name in ("config.yaml", *files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    stamp = 1_000_000 - age
    os.utime(folder / "config.yaml", (stamp, stamp))
    return folder


def test_runs_are_found_from_the_one_begun_last_and_checkpoints_from_the_newest(tmp_path):
    make(tmp_path / "z", age=3)
    make(tmp_path / "b", "checkpoints/last.ckpt", "checkpoints/step=9.ckpt", "checkpoints/step=10.ckpt", age=2)
    (tmp_path / "copied" / "fuser").mkdir(parents=True)  # no run
    assert begun(tmp_path.glob("*")) == [tmp_path / "b", tmp_path / "z"]
    assert [file.name for file in checkpoints(tmp_path / "b")] == ["last.ckpt", "step=10.ckpt", "step=9.ckpt"]


def test_a_run_was_cut_off_early_if_it_left_nothing_to_go_on_from(tmp_path):
    assert cut_off_early(make(tmp_path / "a", "progress.jsonl"))
    for name in ("checkpoints/step=1.ckpt", "fuser/config.json", "summary.json"):
        assert not cut_off_early(make(tmp_path / name.partition("/")[0] / "run", name))
    assert not cut_off_early(tmp_path)


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_folder(tmp_path / "runs"), range(40)))
    assert len(set(folders)) == 40
    for folder in folders:
        give_back(folder)
    assert not (tmp_path / "runs").exists()


def test_a_run_that_is_refused_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="accumulate_grad_batches is 0"):
        main(["fit", "--config", BASE, "--trainer.accumulate_grad_batches=0"])
    assert not any(tmp_path.iterdir())


def test_what_is_in_use_is_not_given_back(tmp_path):
    folder = new_folder(tmp_path / "runs")
    (folder / "config.yaml").touch()
    give_back(folder)
    assert folder.exists()


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
