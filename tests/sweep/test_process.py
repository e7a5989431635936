"""A training process: alone in its folder, deaf to the job around it, and gone when its parent is."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from c2c_lightning.files import PROJECT
from c2c_lightning.sweep.process import (
    DIES_WITH_PARENT,
    LOCK,
    LOG,
    FolderBusy,
    held,
    log_tail,
    start_training,
    stop_training,
)
from tests.sweep.sweeps import is_alive, is_free, wait_for

HELP = ["--help"]
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")


def start(arguments: list[str], *folders: Path, cpus: float = 1.0) -> subprocess.Popen:
    with held(folders) as locks:
        return start_training(arguments, locks, PROJECT, cpus)


def test_it_is_none_of_the_ranks_of_the_job_around_it(tmp_path, monkeypatch):
    for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "4")
    monkeypatch.setenv("C2C_KEPT", "5")
    started = start(HELP, tmp_path, cpus=2)
    names = Path(f"/proc/{started.pid}/environ").read_bytes().split(b"\0")
    started.wait()
    assert not [name for name in names if name.startswith((b"LOCAL_RANK", b"WORLD", b"MASTER", b"SLURM", b"TORCHEL"))]
    assert {b"C2C_KEPT=5", b"OMP_NUM_THREADS=2"} <= set(names)
    assert "python -m c2c_lightning COMMAND" in log_tail(tmp_path)


def test_a_folder_is_busy_as_long_as_its_process_lives(tmp_path):
    assert is_free(tmp_path)
    started = start(HELP, tmp_path)
    assert not is_free(tmp_path)
    with pytest.raises(FolderBusy), held([tmp_path], seconds=0.0):
        pass
    with held([tmp_path], seconds=60.0):
        assert started.wait(60.0) == 0


def test_who_waits_for_a_folder_says_for_whom_and_gives_up_in_the_end(tmp_path):
    started = start(HELP, tmp_path)
    os.kill(started.pid, signal.SIGSTOP)
    with pytest.raises(FolderBusy, match=f"process {started.pid} on "), held([tmp_path], seconds=1.0):
        pass
    waits, gives_up = log_tail(tmp_path).splitlines()
    assert waits.startswith(f"waiting for process {started.pid} on ")
    assert gives_up.startswith(f"gave up waiting for process {started.pid} on ")
    os.kill(started.pid, signal.SIGCONT)
    with held([tmp_path]):
        assert started.wait(10.0) == 0
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")


def test_nothing_in_a_folder_is_touched_before_it_is_held(tmp_path):
    folders = [tmp_path / "000", tmp_path / "001"]
    for folder in folders:
        folder.mkdir()
    with held(folders[1:]), ThreadPoolExecutor() as pool:
        (folders[1] / LOG).write_text("of another process\n")
        starting = pool.submit(held(folders, seconds=0.5).__enter__)
        assert isinstance(starting.exception(), FolderBusy)
        assert not (folders[1] / LOG).is_symlink()
        assert (folders[1] / LOG).read_text().startswith("of another process\n")
    assert is_free(folders[0]), "what it held already is given back"


def test_several_trials_of_one_process_share_its_log_and_are_all_busy(tmp_path):
    folders = [tmp_path / "000", tmp_path / "001"]
    for folder in folders:
        folder.mkdir()
    started = start(HELP, *folders)
    assert not is_free(folders[0])
    assert not is_free(folders[1])
    started.wait()
    assert log_tail(folders[0]) == log_tail(folders[1]) != ""
    # By itself afterwards, it has a log of its own again.
    start(["nonsense"], folders[1]).wait()
    assert "nonsense" in log_tail(folders[1])
    assert "nonsense" not in log_tail(folders[0])


@only_linux
@pytest.mark.parametrize("when", ["at once", "once the kernel knows"])
def test_it_ends_when_its_parent_is_killed(tmp_path, when):
    starter = """
import sys, time
from pathlib import Path
from c2c_lightning.sweep.process import held, start_training

with held([Path(sys.argv[1])]) as locks:
    arguments = ["fit", "--config", "conf/base.yaml", "--trainer.default_root_dir", sys.argv[1]]
    print(start_training(arguments, locks, Path.cwd()).pid, flush=True)
time.sleep(600)
"""
    (tmp_path / "run").mkdir()
    parent = subprocess.Popen(
        [sys.executable, "-c", starter, str(tmp_path / "run")], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    child = int(parent.stdout.readline())
    if when == "once the kernel knows":  # which is told before anything heavy is imported
        wait_for(lambda: "torch" in Path(f"/proc/{child}/maps").read_text(), "it imported torch")
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not is_alive(child), "it ended", seconds=60.0)
    assert is_free(tmp_path / "run")


@only_linux
def test_it_ends_if_its_parent_was_gone_before_it_began(monkeypatch):
    monkeypatch.setenv(DIES_WITH_PARENT, "1")  # which is not who starts it here
    began = subprocess.run([sys.executable, "-m", "c2c_lightning", *HELP], cwd=PROJECT, capture_output=True)
    assert began.returncode == -signal.SIGTERM
    assert began.stdout == b""


@only_linux
def test_its_own_children_end_with_it(monkeypatch):
    monkeypatch.setenv(DIES_WITH_PARENT, str(os.getpid()))
    code = (
        "import os; from c2c_lightning.sweep.process import DIES_WITH_PARENT, die_with_parent;"
        "die_with_parent(); assert os.environ[DIES_WITH_PARENT] == str(os.getpid())"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)


def test_stopping_ends_the_whole_group(tmp_path, monkeypatch):
    """Also what would outlive the process itself, as another rank might."""
    (tmp_path / "run").mkdir()
    (tmp_path / "sitecustomize.py").write_text(  # which Python runs at its start
        "import pathlib, subprocess\n"
        f"pathlib.Path({str(tmp_path)!r}, 'pid').write_text(str(subprocess.Popen(['sleep', '600']).pid))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    started = start(["fit", "--config", "conf/base.yaml"], tmp_path / "run")
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "it started another one")
    other = int((tmp_path / "pid").read_text())
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    assert is_alive(other)
    stop_training(started)
    wait_for(lambda: not is_alive(other), "the other one ended", seconds=10.0)
