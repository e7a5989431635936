"""Ray that does not start, and how much its machines have room for."""

import pytest
import ray
from ray.util import placement_group

from c2c_lightning.errors import UserError
from c2c_lightning.sweep.cluster import cluster, room_for
from c2c_lightning.sweep.settings import Resources


def test_ray_that_does_not_start_here_is_not_looked_for_at_an_address(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("too-long-for-a-socket" * 8)))
    with pytest.raises(UserError, match="Ray does not start on this machine: ") as refusal, cluster(None):
        pass
    assert "no Ray cluster answers" not in str(refusal.value)


def test_room_is_for_what_the_machines_have_whatever_else_they_run(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray.init(address="local", num_cpus=3, num_gpus=1, include_dashboard=False, object_store_memory=100 * 2**20)
    try:
        assert placement_group([{"CPU": 3}]).wait(30)
        rooms = {demand: room_for(Resources(*demand)) for demand in [(1, 0), (2, 0), (0.1, 0), (1, 1), (0.1, 0.2)]}
        assert rooms == {(1, 0): 3, (2, 0): 1, (0.1, 0): 30, (1, 1): 1, (0.1, 0.2): 5}
        with pytest.raises(UserError, match="the largest of the cluster's 1 has 3 and 1"):
            room_for(Resources(4, 0))
        assert room_for(Resources(4, 0, autoscaling=True)) == 1
    finally:
        ray.shutdown()
