"""Nothing is lost: neither to a kill of a trial, nor of the driver, nor of a machine."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from c2c_lightning.sweep.process import log_tail
from tests.sweep.sweeps import Workspace, is_free, process_of, wait_for

pytestmark = pytest.mark.slow

GRID = {"model.gate.init": {"grid": [0.5, 1.0, 1.5]}}
LONG = {"trainer.max_steps": 60}


def has_checkpoint(trial) -> bool:
    return (trial / "checkpoints" / "last.ckpt").exists()


def summaries(workspace: Workspace) -> dict[int, int]:
    """By trial that has finished when it did."""
    files = {number: workspace.trial(number) / "summary.json" for number in range(3)}
    return {number: file.stat().st_mtime_ns for number, file in files.items() if file.exists()}


def accounted(workspace: Workspace, number: int) -> None:
    """Every trial is there once, finished, with a curve to its last step."""
    assert list(workspace.table["trial"]) == list(range(number))
    assert set(workspace.table["state"]) == {"finished"}
    assert list(workspace.table["step"]) == [60] * number
    _, below = workspace.tracked()
    assert {name: run.info.status for name, run in below.items()} == {f"{i:03d}": "FINISHED" for i in range(number)}
    for run in below.values():
        curve = [point.step for point in workspace.client.get_metric_history(run.info.run_id, "val/loss")]
        # Of twelve validations the one at which a run was interrupted may be missing.
        assert len(set(curve)) >= 10
        assert max(curve) == 59


def test_a_sweep_goes_on_after_kills_and_trains_nothing_twice(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.write(LONG, space=GRID, concurrent=2)
    driver = workspace.start("--config", "tiny.yaml")

    # A trial is killed: it is begun again, from its checkpoint.
    wait_for(lambda: (tmp_path / "runs" / "sweeps").exists(), "the sweep began")
    wait_for(lambda: has_checkpoint(workspace.trial(0)), "trial 0 saved a checkpoint")
    os.kill(process_of(workspace.trial(0)), signal.SIGKILL)
    wait_for(lambda: "going on from" in (workspace.trial(0) / "log.txt").read_text(), "trial 0 went on")
    wait_for(lambda: "begun again (1 of 2)" in workspace.said, "it is said that trial 0 was begun again")

    # The driver is killed as soon as a trial has finished: no process outlives it.
    wait_for(lambda: summaries(workspace), "a trial finished")
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    for number in range(3):
        wait_for(lambda number=number: is_free(workspace.trial(number)), f"trial {number} ended with its driver")
    finished = summaries(workspace)
    assert len(finished) < 3

    # SIGTERM, which is handled as Ctrl-C is, says how far it came, and leaves nothing behind either.
    driver = workspace.start("--resume")
    wait_for(lambda: process_of(workspace.trial(2)), "trial 2 was taken up again")
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(120) == 128 + signal.SIGTERM, workspace.said
    assert re.search(r"\d of 3 trials done", workspace.said)
    assert (
        f"Go on with: python -m c2c_lightning sweep --resume {workspace.sweep.relative_to(tmp_path)}" in workspace.said
    )
    assert process_of(workspace.trial(2)) is None
    assert workspace.tracked()[0].info.status == "KILLED"

    assert workspace.run("--resume") == 0, workspace.said
    accounted(workspace, 3)
    assert finished.items() <= summaries(workspace).items(), "what had finished was not trained again"
    assert workspace.tracked()[0].info.status == "FINISHED"

    # What is complete stays as it is; what would change what is compared is refused; more trials are not.
    assert workspace.run("--resume", "--fixed={trainer.max_steps: 5}") == 1
    assert "it was begun with fixed" in workspace.said
    assert workspace.run("--resume") == 0, workspace.said
    accounted(workspace, 3)


CLUSTER = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
print(cluster.address, nodes[1].all_processes["raylet"][0].process.pid, flush=True)
sys.stdin.readline()
cluster.remove_node(nodes[1], allow_graceful=False)
print("removed", flush=True)
sys.stdin.readline()
cluster.shutdown()
"""


@pytest.fixture
def cluster():
    """Ray with two machines, of one CPU each; a line to it kills one of them.

    It says its address, and the process that all of the one that will be killed descend from.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process
    process.communicate("\n\n")


def on_machine(workspace: Workspace, machine: int) -> list[int]:
    """The trials that run on a machine, by the process that all of its others descend from."""
    processes = {number: process_of(workspace.trial(number)) for number in range(3)}
    return [number for number, pid in processes.items() if pid is not None and machine in ancestors(pid)]


def ancestors(pid: int) -> list[int]:
    found = []
    with suppress(OSError):  # one has ended
        while pid > 1:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            found.append(pid)
    return found


@pytest.mark.parametrize("engine", ["processes", "shared"])
def test_a_machine_that_is_lost_costs_no_trial(tmp_path, cluster, engine):
    workspace = Workspace(tmp_path)
    workspace.write(LONG, space=GRID, engine=engine, together=2)
    address, machine = cluster.stdout.readline().split()
    driver = workspace.start("--config", "tiny.yaml", "--address", address)
    wait_for(lambda: (tmp_path / "runs" / "sweeps").exists(), "the sweep began")
    wait_for(lambda: on_machine(workspace, int(machine)), "the machine trains")
    there = on_machine(workspace, int(machine))
    for number in there:
        wait_for(lambda number=number: has_checkpoint(workspace.trial(number)), f"trial {number} saved a checkpoint")
    assert not summaries(workspace).keys() & set(there), "what is lost with the machine has not ended"
    cluster.stdin.write("\n")
    cluster.stdin.flush()
    assert cluster.stdout.readline() == "removed\n"
    assert driver.wait(240) == 0, workspace.said
    accounted(workspace, 3)
    for number in there:
        assert "going on from" in log_tail(workspace.trial(number), lines=1000)


def test_a_trial_that_crashes_spoils_no_other_of_its_group(tmp_path):
    workspace = Workspace(tmp_path)
    fusers = ["c2c_lightning.fuser.C2CFuser", "tests.sweep.sweeps.BurningFuser"]
    workspace.write(space={"model.fuser.class_path": {"grid": fusers}}, engine="shared", together=2, retries=0)
    assert workspace.run() == 0, workspace.said
    assert workspace.states == ["finished", "failed"]
    assert "the disk is on fire" in workspace.trials.known[1].reason
    assert log_tail(workspace.trial(1), lines=1000).count("RuntimeError: the disk is on fire") == 1, "once by itself"
