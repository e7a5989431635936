"""What is sharded, and what only looks as if it were whole."""

import math
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from c2c_lightning.fuser import C2CFuser
from c2c_lightning.training.sharding import clip_gradients, renamed, shard, whole_state, wrap_policy
from tests.models import tiny

MODELS = "c2c_lightning/nano/receiver", ["c2c_lightning/nano/sharer"]
BLOCKS = {f"models.receiver.model.layers.{i}" for i in range(4)} | {
    f"models.sharers.0.model.layers.{i}" for i in range(6)
}


@pytest.fixture
def communicator():
    return tiny.between(*MODELS, fuser=partial(C2CFuser, hidden=16))


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def with_gradients(fusers):
    torch.manual_seed(0)
    for parameter in fusers.parameters():
        parameter.grad = torch.randn_like(parameter)
    return [parameter.grad.clone() for parameter in fusers.parameters()]


def test_fsdp1_wraps_every_block_and_every_fuser(communicator):
    assert all(wrap_policy(module, True, 0) for module in communicator.modules())
    wrapped = {name for name, module in communicator.named_modules() if wrap_policy(module, False, 0)}
    assert wrapped == BLOCKS | {"fusers.0"}


def test_everything_is_sharded_but_the_gate_logits(communicator, mesh):
    config, before = communicator.config(), {k: v.clone() for k, v in communicator.fusers.state_dict().items()}
    shard(communicator, mesh)
    whole = {name for name, parameter in communicator.named_parameters() if not isinstance(parameter, DTensor)}
    assert whole == {"fusers.0.gate.logit"}
    assert communicator.config() == config
    gathered = whole_state(communicator.fusers)
    assert gathered.keys() == before.keys()
    assert all(type(tensor) is torch.Tensor and torch.equal(tensor, before[name]) for name, tensor in gathered.items())


@pytest.mark.parametrize("sharded", [False, True])
def test_gradients_are_clipped_by_their_norm_all_together(communicator, mesh, sharded):
    fusers = communicator.fusers
    if sharded:
        shard(communicator, mesh)
    before = [g.full_tensor() if sharded and isinstance(g, DTensor) else g for g in with_gradients(fusers)]
    norm = math.sqrt(sum((gradient.double() ** 2).sum() for gradient in before))
    assert norm > 1
    assert clip_gradients(fusers).item() == pytest.approx(norm, rel=1e-5)
    assert clip_gradients(fusers, max_norm=1.0).item() == pytest.approx(norm, rel=1e-5)
    for parameter, gradient in zip(fusers.parameters(), before):
        clipped = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
        torch.testing.assert_close(clipped, gradient / norm, rtol=1e-4, atol=1e-7)
    clip_gradients(fusers, max_value=1e-3)
    for parameter in fusers.parameters():
        clipped = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
        assert clipped.abs().max() <= 1e-3


@pytest.mark.parametrize("keys", [["a", "b", "c"], [0, 1, 2], [57, 58, 71]], ids=["names", "places", "in the model"])
def test_an_optimizers_state_is_renamed_in_its_order(keys):
    saved = {
        "state": {keys[2]: {"step": 3}, keys[0]: {"step": 1}},  # what has no gradient has no state
        "param_groups": [{"lr": 0.1, "params": keys[:2]}, {"lr": 0.2, "params": keys[2:]}],
    }
    called = renamed(saved, ["x", "y", "z"])
    assert called["state"] == {"z": {"step": 3}, "x": {"step": 1}}
    assert called["param_groups"] == [{"lr": 0.1, "params": ["x", "y"]}, {"lr": 0.2, "params": ["z"]}]
