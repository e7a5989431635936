"""Nothing is lost: neither to a kill of a trial, nor of the driver, nor of a machine."""

import os
import re
import signal
import subprocess
import sys

import pytest

from c2c_lightning.sweep.process import is_free
from tests.sweep.sweeps import Workspace, process_of, wait_for

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
import sys, time
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
print(cluster.address, flush=True)
sys.stdin.readline()
cluster.remove_node(nodes[1], allow_graceful=False)
print("removed", flush=True)
sys.stdin.readline()
cluster.shutdown()
"""


@pytest.fixture
def cluster():
    """Ray with two machines, of one CPU each; a line to it kills one of them."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process
    process.communicate("\n\n")


@pytest.mark.parametrize("engine", ["processes", "shared"])
def test_a_machine_that_is_lost_costs_no_trial(tmp_path, cluster, engine):
    workspace = Workspace(tmp_path)
    workspace.write(LONG, space=GRID, engine=engine, together=2)
    address = cluster.stdout.readline().strip()
    driver = workspace.start("--config", "tiny.yaml", "--address", address)
    wait_for(lambda: (tmp_path / "runs" / "sweeps").exists(), "the sweep began")
    for number in range(2):
        wait_for(lambda number=number: has_checkpoint(workspace.trial(number)), f"trial {number} saved a checkpoint")
    cluster.stdin.write("\n")
    cluster.stdin.flush()
    assert cluster.stdout.readline() == "removed\n"
    assert driver.wait(240) == 0, workspace.said
    accounted(workspace, 3)
