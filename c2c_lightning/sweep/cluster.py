"""Ray: started on this machine, or joined at an address; what it has room for, and jobs that it runs there."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# Read when Ray is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# A process that asks for no GPU keeps seeing what it saw.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray

from c2c_lightning.errors import UserError, first_line
from c2c_lightning.sweep.runner import Runner
from c2c_lightning.sweep.settings import Resources

MEGABYTE = 2**20


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Ray, for as long as a sweep goes on.

    Args:
        address: of a cluster; None for $RAY_ADDRESS, or else a cluster of this machine's own.

    Raises:
        UserError: nobody answers at the address, or Ray does not start here.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    # What trials hand over goes through files, so the object store stays empty.
    own = {} if address else {"include_dashboard": False, "object_store_memory": 100 * MEGABYTE}
    try:
        if address and ":" in address and "://" not in address:
            # Ray itself would go on trying for minutes.
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address or "local", **own, **quiet)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        if address is None:
            raise UserError(
                f"Ray does not start on this machine: {first_line(error)}. It keeps its files in $RAY_TMPDIR, or else "
                "in /tmp/ray: that must be writable, with a short path and room; its logs there may say more."
            ) from error
        raise UserError(f"no Ray cluster answers at {address!r}: {first_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def room_for(resources: Resources) -> int:
    """How many processes of such a demand the machines that are there have room for, whatever else they run.

    Who finds no room at the moment waits for it. At least 1, as a machine may be on its way.

    Raises:
        UserError: none, and no machine comes.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(_fits(machine, resources) for machine in machines)
    if room == 0 and not resources.autoscaling:
        largest = max(machines, key=lambda machine: (machine.get("GPU", 0), machine.get("CPU", 0)))
        raise UserError(
            f"resources asks for {resources.cpus:g} CPUs and {resources.gpus:g} GPUs on one machine, but the largest "
            f"of the cluster's {len(machines)} has {largest.get('CPU', 0):g} and {largest.get('GPU', 0):g}. Ask for "
            "less, or set resources.autoscaling if machines are added on demand."
        )
    return max(1, room)


def _fits(machine: dict[str, float], resources: Resources) -> int:
    demand = {"CPU": resources.cpus, "GPU": resources.gpus}
    # To Ray's precision: ten times 0.1 fit into 1.
    return min(int(round(machine.get(kind, 0) / asked, 4)) for kind, asked in demand.items() if asked)


class RayJob:
    """A group of trials, trained by a Ray actor of its own on a machine that has room; see `scheduling.Job`.

    Args:
        folders: of the trials.
        resources: of the training process.
    """

    def __init__(self, folders: Sequence[Path], resources: Resources):
        # Two calls at once, so that it can be stopped while it trains.
        kind = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_concurrency=2)(Runner)
        self.actor = kind.remote()
        names = [str(folder.resolve()) for folder in folders]
        self.begun = self.actor.ready.remote().future()
        self.ended = self.actor.train.remote(names, str(Path.cwd()), resources.cpus).future()

    def stop(self) -> None:
        """Asks it to save and end."""
        self.actor.stop.remote()

    def close(self) -> None:
        """Gives back what it has."""
        ray.kill(self.actor)
