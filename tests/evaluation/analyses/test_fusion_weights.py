"""Gates, weights and updates."""

from __future__ import annotations

import torch

from c2c_lightning.evaluation.analyses import FusionWeights
from c2c_lightning.evaluation.asking.observing import read_caches
from c2c_lightning.fuser import GateConfig
from c2c_lightning.models.alignment import UNALIGNED
from tests.evaluation.asking import observe, one_by_one, part_of
from tests.models import tiny


def test_weights_and_update_sizes_are_means_over_real_aligned_tokens(questions):
    communicator = tiny.communicator("qwen3", "qwen2", gate=GateConfig())
    with torch.no_grad():
        communicator.fusers.gates[0].logit[1, 0] = -1.0  # the values of the first mapped layer
    measured = observe(FusionWeights(), communicator, [part_of(questions, [0, 1]), part_of(questions, [2, 3, 4, 5])])
    fuser, closed = communicator.fusers[0], 3
    weights, sizes = [], []
    for alone in one_by_one(questions):
        caches = read_caches(communicator, alone)
        aligned = caches.batch.sharers[0].positions[0] != UNALIGNED
        layers = [
            communicator.fusers.fused_layers.index(layer) for layer in communicator.fusers.gates[0].receiver_layers
        ]
        features = [
            s[:, :, 0].flatten(0, 1).transpose(1, 2).flatten(2) for s in (caches.sharers[0], caches.receiver[:, layers])
        ]
        with torch.no_grad():
            hidden = fuser.trunk(fuser.input(torch.cat(features, dim=-1)))
            weights.append(torch.sigmoid(fuser.weight_head(fuser.weight_block(hidden)))[:, aligned])
        own, fused = (x[:, :, 0].transpose(2, 3).flatten(3)[:, :, aligned] for x in (caches.receiver, caches.fused))
        sizes.append((fused - own).norm(dim=-1) / own.norm(dim=-1))
    expected = torch.cat(weights, dim=1).mean(1)
    expected[closed] = torch.nan
    torch.testing.assert_close(measured["weight_0"].flatten(0, 1), expected, equal_nan=True)
    torch.testing.assert_close(measured["update"], torch.cat(sizes, dim=2).mean(2))
    assert measured["update"][1, 0] == 0
