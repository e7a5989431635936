"""A training process: alone in its folder, deaf to the job around it, and gone when its parent is."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from c2c_lightning.communication.models import PROJECT
from c2c_lightning.sweep.process import TrainingProcess, is_free, log_tail, wait_until_free
from tests.sweep.sweeps import wait_for

HELP = ["--help"]


def test_it_is_none_of_the_ranks_of_the_job_around_it(tmp_path, monkeypatch):
    for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "4")
    monkeypatch.setenv("C2C_KEPT", "5")
    started = TrainingProcess(HELP, [tmp_path], PROJECT, cpus=2)
    names = Path(f"/proc/{started.process.pid}/environ").read_bytes().split(b"\0")
    started.process.wait()
    assert not [name for name in names if name.startswith((b"LOCAL_RANK", b"WORLD", b"MASTER", b"SLURM", b"TORCHEL"))]
    assert {b"C2C_KEPT=5", b"OMP_NUM_THREADS=2"} <= set(names)
    assert "python -m c2c_lightning COMMAND" in log_tail(tmp_path)


def test_a_folder_is_busy_as_long_as_its_process_lives(tmp_path):
    assert is_free(tmp_path)
    started = TrainingProcess(HELP, [tmp_path], PROJECT)
    assert not is_free(tmp_path)
    assert wait_until_free([tmp_path], 0.0) == [tmp_path]
    assert wait_until_free([tmp_path], 60.0) == []
    assert started.returncode() == 0 or started.process.wait() == 0


def test_several_trials_of_one_process_share_its_log_and_are_all_busy(tmp_path):
    folders = [tmp_path / "000", tmp_path / "001"]
    for folder in folders:
        folder.mkdir()
    started = TrainingProcess(HELP, folders, PROJECT)
    assert not is_free(folders[0])
    assert not is_free(folders[1])
    started.process.wait()
    assert log_tail(folders[0]) == log_tail(folders[1]) != ""
    # By itself afterwards, it has a log of its own again.
    TrainingProcess(["nonsense"], [folders[1]], PROJECT).process.wait()
    assert "nonsense" in log_tail(folders[1])
    assert "nonsense" not in log_tail(folders[0])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_it_ends_when_its_parent_is_killed(tmp_path):
    starter = (
        "import sys, time; from pathlib import Path; from c2c_lightning.sweep.process import TrainingProcess;"
        "t = TrainingProcess(['fit', '--config', 'conf/base.yaml', '--trainer.default_root_dir', sys.argv[1]],"
        "[Path(sys.argv[1])], Path.cwd()); print(t.process.pid, flush=True); time.sleep(600)"
    )
    (tmp_path / "run").mkdir()
    parent = subprocess.Popen(
        [sys.executable, "-c", starter, str(tmp_path / "run")], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    child = int(parent.stdout.readline())
    time.sleep(1.0)  # until it has told the kernel
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_for(lambda: is_free(tmp_path / "run"), "it ended", seconds=60.0)
    assert not Path(f"/proc/{child}/fd").exists() or not os.listdir(f"/proc/{child}/fd")


def test_stopping_ends_the_whole_group(tmp_path):
    (tmp_path / "run").mkdir()
    started = TrainingProcess(["fit", "--config", "conf/base.yaml"], [tmp_path / "run"], PROJECT)
    time.sleep(0.5)
    started.stop()
    assert started.returncode() is not None
    with pytest.raises(ProcessLookupError):
        os.killpg(started.process.pid, 0)
