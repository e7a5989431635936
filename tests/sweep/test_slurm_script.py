"""The SLURM script of docs/sweeps.md tells the driver, and nobody else, that its time is up."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs" / "sweeps.md"
PROGRAMS = {
    "scontrol": "echo first; echo second",
    "srun": 'echo "$SRUN_CPUS_PER_TASK" > cpus; exec "$@"',
    # As symmetric-run does it, a process between; a signal would end it, and leave the driver without one.
    "ray": 'while [ "$1" != -- ]; do shift; done; shift; "$@"; exit $?',
    # The driver: it saves when it is told to stop, and here is gone by itself when nobody tells it.
    "python": """
trap 'echo saved > saved; exit 143' TERM
echo "$@" > began
for i in $(seq 200); do sleep 0.1; done""",
}


@pytest.fixture
def job(tmp_path):
    """The script as a job that has begun, in a group of its own."""
    (script,) = re.findall(r"```\n(#!/bin/bash\n#SBATCH.*?)```", DOCS.read_text(), re.DOTALL)
    (tmp_path / "job.sh").write_text(script)
    (tmp_path / "bin").mkdir()
    for name, text in PROGRAMS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM_CPUS_PER_TASK": "64",
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NODELIST": "first,second",
    }
    process = subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=environment, start_new_session=True)
    yield process, script, tmp_path
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def test_the_signal_reaches_the_driver_and_the_job_ends_with_its_exit_code(job):
    process, script, folder = job
    until = time.monotonic() + 20
    while not (folder / "began").exists():
        assert time.monotonic() < until, "the driver was never begun"
        time.sleep(0.05)
    assert "--signal=B:TERM@" in script, "which tells the shell of the script alone"
    process.terminate()
    assert process.wait(10) == 143
    assert (folder / "saved").exists()
    assert "c2c_lightning sweep --config sweeps/gating.yaml --address auto" in (folder / "began").read_text()
    assert (folder / "cpus").read_text() == "64\n", "srun does not take it from the job by itself"
